"""Which parameters a pattern names, and why."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from l2path.errors import ArgumentError, nearest
from l2path.functional import Functional
from l2path.types import Params

NORM = re.compile(r"Norm(\dd)?$")  # BatchNorm2d, LayerNorm, LlamaRMSNorm, ...; not NormalHead


@dataclass(frozen=True)
class Names:
    """What a lambda spec has to know of the parameters.

    Attributes
    ----------
    params : dict of str to Tensor
        Trainable parameters by first name.
    aliases : dict of str to tuple of str
        Every name of each of them.
    exempt : dict of str to str, or None
        Parameters that "weights only" leaves free, with the reason; None where no module was given.
    frozen : dict of str to Tensor
        Parameters that no lambda reaches.
    """

    params: Params
    aliases: dict[str, tuple[str, ...]]
    exempt: dict[str, str] | None = None
    frozen: Params = field(default_factory=dict)

    @property
    def known(self) -> list[str]:
        """Every name of every trainable parameter."""
        return [alias for name in self.params for alias in self.aliases[name]]


def describe(module_or_params: nn.Module | Functional | Names | Mapping[str, Tensor]) -> Names:
    """Collect the names of a module, a :class:`Functional` or a dict of parameters."""
    if isinstance(module_or_params, Names):
        return module_or_params
    if isinstance(module_or_params, Functional):
        fn = module_or_params
        exempt = exempt_parameters(fn.template, fn.aliases)
        return Names(fn.params, fn.aliases, exempt, fn.frozen)
    if isinstance(module_or_params, nn.Module):
        module = module_or_params
        first, aliases = {id(p): n for n, p in module.named_parameters()}, dict[str, tuple[str, ...]]()
        for alias, p in module.named_parameters(remove_duplicate=False):
            aliases[first[id(p)]] = (*aliases.get(first[id(p)], ()), alias)
        every = {n: p.detach() for n, p in module.named_parameters()}
        trainable = {n for n, p in module.named_parameters() if p.requires_grad}
        return Names(
            {n: p for n, p in every.items() if n in trainable},
            aliases,
            exempt_parameters(module, aliases),
            {n: p for n, p in every.items() if n not in trainable},
        )
    if isinstance(module_or_params, Mapping):
        params = dict(module_or_params)
        return Names(params, {name: (name,) for name in params})
    raise ArgumentError(
        "module_or_params",
        got=f"a {type(module_or_params).__name__}",
        expected="an nn.Module or a dict of parameters by name",
        remedy="pass the module, or dict(module.named_parameters())",
    )


def exempt_parameters(module: nn.Module, aliases: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Return what "weights only" leaves free: biases, and parameters of normalisation layers.

    Decided by name (a part of the last name component is "bias") and by module type (its class name or a
    base's ends in "Norm", "Norm1d", ...), never by ``ndim``. A tied parameter is free only if it is under every name.
    """
    owners = dict(module.named_modules(remove_duplicate=False))

    def reason(alias: str) -> str | None:
        path, _, last = alias.rpartition(".")
        # torch.nn.utils.parametrizations keeps layer.bias as layer.parametrizations.bias.original.
        if ".parametrizations." in f".{path}.":
            path, _, inner = f".{path}".rpartition(".parametrizations.")
            path, last = path.lstrip("."), inner.split(".")[0]
        if "bias" in last.split("_"):
            return "weights only: a bias"
        for base in type(owners[path]).__mro__:
            if NORM.search(base.__name__):
                return f"weights only: in {type(owners[path]).__name__}"
        return None

    found: dict[str, str] = {}
    for name, names in aliases.items():
        reasons = [reason(alias) for alias in names]
        if reasons[0] is not None and all(reasons):
            found[name] = reasons[0]
    return found


def glob_matches(pattern: str, aliases: tuple[str, ...]) -> bool:
    """Return whether a pattern is a glob and matches one of the names."""
    # Names that are no globs never reach fnmatch, of whose cache torch.compile warns.
    return any(c in pattern for c in "*?[") and any(fnmatch.fnmatchcase(a, pattern) for a in aliases)


def match(names: Names, patterns: list[str], argument: str = "lambdas") -> dict[str, str]:
    """Return which pattern decides each parameter that some pattern names.

    An exact name (or alias) beats a glob, ``"*"`` is the default, and any other overlap is an error.

    Returns
    -------
    dict of str to str
        Pattern by first parameter name.

    Raises
    ------
    ArgumentError
        For a pattern that matches nothing, or only frozen parameters, and for overlapping patterns.
    """
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise ArgumentError(
                argument,
                got=f"the key {pattern!r}",
                expected="parameter names or globs as keys",
                remedy="write the name as a string",
            )
    chosen: dict[str, str] = {}
    used: set[str] = set()
    for name in names.params:
        exact = [p for p in patterns if p in names.aliases[name]]
        globs = [p for p in patterns if p != "*" and p not in exact and glob_matches(p, names.aliases[name])]
        used.update(exact, globs)
        candidates = exact or globs
        if len(candidates) > 1:
            raise ArgumentError(
                argument,
                got=f"the patterns {candidates}, which all match parameter {name!r}",
                expected="one pattern for each parameter (an exact name beats a glob, '*' is the default)",
                remedy=f"add the exact name {name!r}, or make the patterns disjoint",
            )
        if candidates or "*" in patterns:
            chosen[name] = candidates[0] if candidates else "*"
    for pattern in patterns:
        if pattern in used or (pattern == "*" and names.params):
            continue
        frozen = [n for n in names.frozen if any(fnmatch.fnmatchcase(a, pattern) for a in names.aliases[n])]
        if frozen:
            raise ArgumentError(
                argument,
                got=f"the pattern {pattern!r}, which matches only frozen parameters {frozen}",
                expected="a pattern that matches a trainable parameter",
                remedy="remove it, or set requires_grad=True: frozen parameters are never penalised",
            )
        raise ArgumentError(
            argument,
            got=f"the pattern {pattern!r}, which matches no parameter",
            expected="a parameter name or a glob over names",
            remedy=f"check the spelling; {nearest(pattern, names.known)}",
        )
    return chosen

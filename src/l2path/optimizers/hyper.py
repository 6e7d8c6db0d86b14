"""Hyperparameters inside a state: where they are, and how to replace one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from l2path.errors import ArgumentError, nearest
from l2path.optimizers.checks import Scalar
from l2path.types import OptState

Path: TypeAlias = tuple[str | int, ...]
"""Fields and positions from a state down to a hyperparameter, such as ``(1, "hyper", "lr")``."""

FRACTIONS = frozenset({"alpha", "beta1", "beta2", "ema_decay"})
"""Hyperparameters in [0, 1): how much of an average is kept."""

# What an optimizer leaves out of its state when it is built as exactly 0.
_BUILT_AWAY = ("momentum", "dampening", "decay")


def _walk(state: OptState, path: Path) -> Iterator[Path]:
    if isinstance(state, tuple) and hasattr(state, "_fields"):
        for name, value in zip(state._fields, state, strict=True):
            if name == "hyper" and isinstance(value, Mapping):
                yield from ((*path, "hyper", key) for key in value)
            elif isinstance(value, (tuple, list)):
                yield from _walk(value, (*path, name))
    elif isinstance(state, (tuple, list)):
        for index, value in enumerate(state):
            yield from _walk(value, (*path, index))


def hyper_paths(state: OptState) -> dict[str, list[Path]]:
    """Find the hyperparameters of an optimizer's state.

    Parameters
    ----------
    state : OptState
        What ``opt.init`` or ``opt.update`` returned; for a chain, nested tuples.

    Returns
    -------
    dict of str to list of tuple
        By hyperparameter, the paths at which it is held: one, or several in a chain.

    Examples
    --------
    >>> import torch
    >>> from l2path.optimizers import chain, clip_by_value, sgd
    >>> hyper_paths(chain(clip_by_value(1.0), sgd(lr=0.1)).init({"w": torch.ones(2)}))
    {'max_value': [(0, 'hyper', 'max_value')], 'lr': [(1, 'hyper', 'lr')]}
    """
    found: dict[str, list[Path]] = {}
    for path in _walk(state, ()):
        found.setdefault(str(path[-1]), []).append(path)
    return found


def set_hyper(state: OptState, name: str | Path, value: Scalar | Mapping[str, Scalar]) -> OptState:
    """Return a state with one hyperparameter replaced.

    Parameters
    ----------
    state : OptState
        What ``opt.init`` or ``opt.update`` returned, single or stacked over members.
    name : str or tuple
        The hyperparameter, such as ``"lr"`` or ``"beta1"``, or its path from :func:`hyper_paths`.
    value : float, Tensor, or mapping of str to float or Tensor
        The new value: a number, a 0-d tensor, ``[K]`` for a state stacked over K members, or
        ``{parameter: value}`` where the hyperparameter is held by parameter. It is converted to the
        dtype and device of the old one.

    Returns
    -------
    OptState
        A new state; the old one is left as it is, and tensors that did not change are shared.

    Raises
    ------
    ArgumentError
        If no part of the state holds the hyperparameter, several do, or a value by parameter does not
        match the parameters that the state holds.

    Examples
    --------
    >>> import torch
    >>> from l2path.optimizers import adam
    >>> state = set_hyper(adam().init({"w": torch.ones(2)}), "lr", 0.5)
    >>> state.hyper["lr"]
    tensor(0.5000, dtype=torch.float64)
    """
    paths = hyper_paths(state)
    if isinstance(name, str):
        path = _only(name, paths)
    else:
        path = tuple(name)
        if path not in [p for held in paths.values() for p in held]:
            raise ArgumentError(
                "name",
                got=f"the path {path}",
                expected=f"one of {[p for held in paths.values() for p in held]}",
                remedy="take a path from hyper_paths(state)",
            )
    if path[-1] == "decay" and isinstance(value, Mapping):
        # Built with one number, adamw takes one decay for each parameter as well.
        owner = _at(state, path[:-2])
        one = owner.hyper["decay"]
        if isinstance(one, Tensor):
            state = _replaced(state, path, lambda _: dict.fromkeys(owner.exp_avg, one))
    return _replaced(state, path, lambda old: _like(old, value))


def _at(node: OptState, path: Path) -> OptState:
    for key in path:
        node = getattr(node, key) if isinstance(key, str) else node[key]
    return node


def _only(name: str, paths: Mapping[str, list[Path]]) -> Path:
    held = paths.get(name, [])
    if not held:
        remedy = f"check the name; {nearest(name, paths)}"
        if name in _BUILT_AWAY:
            remedy = (
                f"an optimizer has {name} only if it was built with it: build it with a non-zero {name}, "
                "or with one that knows it, such as sgd(momentum=0.9) or adamw(decay=0.01)"
            )
        if name in ("weight_decay", "penalty"):
            remedy = "an L2 penalty is set by lambdas; decoupled decay is adamw's 'decay'"
        if name == "betas":
            remedy = "set 'beta1' and 'beta2', each by itself"
        raise ArgumentError(
            "name", got=repr(name), expected=f"a hyperparameter of the state: {sorted(paths)}", remedy=remedy
        )
    if len(held) > 1:
        raise ArgumentError(
            "name",
            got=f"{name!r}, which {len(held)} parts of the chain hold",
            expected="a hyperparameter that one part holds",
            remedy=f"give the path of the one you mean: {' or '.join(map(str, held))}",
        )
    return held[0]


def _replaced(node: OptState, path: Path, replace: Callable[[OptState], OptState]) -> OptState:
    if not path:
        return replace(node)
    key, rest = path[0], path[1:]
    if isinstance(node, dict):
        return {**node, key: _replaced(node[key], rest, replace)}
    if isinstance(key, str):  # a NamedTuple's field
        return node._replace(**{key: _replaced(getattr(node, key), rest, replace)})
    items = [_replaced(item, rest, replace) if i == key else item for i, item in enumerate(node)]
    return type(node)(items)


def _like(old: Tensor | dict[str, Tensor], value: Scalar | Mapping[str, Scalar]) -> Tensor | dict[str, Tensor]:
    if not isinstance(value, Mapping):
        reference = next(iter(old.values())) if isinstance(old, dict) else old
        return _tensor(reference, value)
    if not isinstance(old, dict):
        raise ArgumentError(
            "value",
            got="values by parameter",
            expected="one number, since the optimizer was built with one",
            remedy='build it with a mapping, for example adamw(decay={"*": 0.01})',
        )
    if value.keys() != old.keys():
        raise ArgumentError(
            "value",
            got=f"values for {sorted(value)}",
            expected=f"one for each of {sorted(old)}",
            remedy="expand patterns first: l2path.expand_lambdas(params, spec)",
        )
    return {key: _tensor(tensor, value[key]) for key, tensor in old.items()}


def _tensor(old: Tensor, value: Scalar) -> Tensor:
    if isinstance(value, Tensor):
        return value.to(old.device, old.dtype, copy=True)
    return torch.tensor(value, dtype=old.dtype, device=old.device)

"""Which parameter gets which lambda, as a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from l2path.functional import Functional
from l2path.penalty.axis import strengths_with_axis
from l2path.penalty.names import Names, describe, match
from l2path.penalty.specs import WeightsOnly, expand_lambdas, require_exempt
from l2path.tables import format_table
from l2path.types import LambdaSpec


@dataclass(frozen=True)
class LambdaRow:
    """One parameter of a :class:`LambdaTable`: its name, shape, strength and the reason for it."""

    parameter: str
    shape: tuple[int, ...]
    strength: str
    why: str


@dataclass(frozen=True)
class LambdaTable:
    """Which parameter gets which lambda; ``str()`` gives the table, ``rows`` the data."""

    rows: tuple[LambdaRow, ...]

    def __str__(self) -> str:
        body = [[r.parameter, str(list(r.shape)), r.strength, r.why] for r in self.rows]
        return format_table(["parameter", "shape", "lambda", "why"], body, left={0, 3})

    __repr__ = __str__


def lambda_table(
    module_or_params: nn.Module | Functional | Mapping[str, Tensor], spec: LambdaSpec, *, members: int | None = None
) -> LambdaTable:
    """Say for every parameter which lambda it gets, and why.

    Parameters
    ----------
    module_or_params : nn.Module or dict of str to Tensor
        Whose parameters to name.
    spec : number, tensor, {pattern: number or tensor}, or weights_only(...)
        As for :func:`expand_lambdas`.
    members : int, optional
        Length L of the lambda axis where the spec has one.

    Returns
    -------
    LambdaTable
        Frozen parameters are in it as well.

    Raises
    ------
    ArgumentError
        As :func:`expand_lambdas`.

    Examples
    --------
    >>> print(lambda_table(nn.Linear(2, 1), {"weight": 0.5}))
    parameter    shape  lambda  why
    weight      [1, 2]     0.5  exact name 'weight'
    bias           [1]       0  no pattern names it
    """
    names = describe(module_or_params)
    if members is None:
        values = expand_lambdas(module_or_params, spec)
    else:
        values = strengths_with_axis(names, spec, members, "lambdas")
    reasons = why(names, spec)
    rows = [LambdaRow(n, tuple(p.shape), describe_strength(values[n]), reasons[n]) for n, p in names.params.items()]
    rows += [LambdaRow(n, tuple(p.shape), "0", "frozen (requires_grad=False)") for n, p in names.frozen.items()]
    return LambdaTable(tuple(rows))


def why(names: Names, spec: LambdaSpec) -> dict[str, str]:
    """Return the reason for each parameter's lambda in words."""
    if isinstance(spec, WeightsOnly):
        return {n: require_exempt(names, "lambdas").get(n, r) for n, r in why(names, spec.spec).items()}
    if not isinstance(spec, Mapping):
        return dict.fromkeys(names.params, "one value for all")
    chosen = match(names, list(spec))

    def reason(name: str) -> str:
        pattern = chosen.get(name)
        if pattern is None:
            return "no pattern names it"
        if pattern == "*":
            return "the default '*'"
        if pattern == name:
            return f"exact name {pattern!r}"
        return f"alias {pattern!r}" if pattern in names.aliases[name] else f"pattern {pattern!r}"

    return {name: reason(name) for name in names.params}


def describe_strength(value: Tensor) -> str:
    """Return a strength as text: the number, or the range of an element-wise or a batched one."""
    if value.numel() == 0:
        return "-"
    low, high = float(value.min()), float(value.max())
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"

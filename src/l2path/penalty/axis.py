"""Specs with an axis of lambdas: what ``batch_train`` takes, one path of length L."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from l2path.errors import ArgumentError
from l2path.penalty.names import Names
from l2path.penalty.specs import WeightsOnly, as_strength, expand_lambdas, leaf_by_parameter
from l2path.types import Lambdas, LambdaSpec


@dataclass(frozen=True)
class LambdaAxis:
    """A path of L lambdas.

    Attributes
    ----------
    strengths : dict of str to Tensor
        ``[L, ...]`` by parameter, what follows broadcasts to the parameter.
    labels : tuple
        What the user wrote for each of the L points: a float, {pattern: value}, or a spec.
    values : Tensor, dict of str to Tensor, or tuple
        The same as one object: ``[L]``, ``{pattern: [L, ...]}``, or the list of specs.
    """

    strengths: Lambdas
    labels: tuple[Any, ...]
    values: Any

    def __len__(self) -> int:
        return len(self.labels)

    def only(self, i: int) -> LambdaAxis:
        """Return the path with one of its points."""
        strengths = {name: v[i : i + 1] for name, v in self.strengths.items()}
        by_pattern = isinstance(self.values, dict)
        values = {p: v[i : i + 1] for p, v in self.values.items()} if by_pattern else self.values[i : i + 1]
        return LambdaAxis(strengths, self.labels[i : i + 1], values)


def is_spec_list(spec: LambdaSpec) -> bool:
    """Return whether ``spec`` is a list of whole specs, and not a list of numbers."""
    return isinstance(spec, Sequence) and any(
        isinstance(s, (Mapping, WeightsOnly)) or (isinstance(s, (Tensor, np.ndarray)) and s.ndim > 0) for s in spec
    )


def lambda_axis(names: Names, spec: LambdaSpec, argument: str = "lambdas") -> LambdaAxis:
    """Read a spec with an axis of lambdas.

    Parameters
    ----------
    names : Names
        The parameters.
    spec : ``[L]``, ``{pattern: [L] or 0-d or [L or 1, ...]}``, a list of L specs, or weights_only of one
        Patterns are zipped: they share the one axis.
    argument : str
        What to call ``spec`` in errors.

    Raises
    ------
    ArgumentError
        For no lambdas at all, lengths that differ, and everything :func:`expand_lambdas` refuses.
    """
    if isinstance(spec, WeightsOnly) and is_spec_list(spec.spec):
        spec = [WeightsOnly(s) for s in spec.spec]
    if is_spec_list(spec):
        each = [expand_lambdas(names, s, argument=argument) for s in spec]
        stacked = {n: torch.stack(torch.broadcast_tensors(*(e[n].detach() for e in each))) for n in names.params}
        return LambdaAxis(stacked, tuple(spec), tuple(spec))
    length = axis_length(spec, argument)
    inner = spec.spec if isinstance(spec, WeightsOnly) else spec
    strengths = strengths_with_axis(names, spec, length, argument)
    if isinstance(inner, Mapping):
        values = {k: with_axis(v, length) for k, v in inner.items()}
        labels = tuple({k: as_label(v[i]) for k, v in values.items()} for i in range(length))
        return LambdaAxis(strengths, labels, values)
    value = with_axis(inner, length)
    return LambdaAxis(strengths, tuple(as_label(v) for v in value), value)


def strengths_with_axis(names: Names, spec: LambdaSpec, length: int, argument: str) -> Lambdas:
    """Return ``[L, ...]`` strengths by parameter; shared leaves are views."""
    leaves = leaf_by_parameter(names, spec, argument)
    return {n: as_strength(leaves.get(n, 0.0), names, n, argument, length).detach() for n in names.params}


def axis_length(spec: LambdaSpec, argument: str) -> int:
    """Return L, the one leading length that all leaves with an axis agree on (1 means shared)."""
    inner = spec.spec if isinstance(spec, WeightsOnly) else spec
    leaves = dict(inner) if isinstance(inner, Mapping) else {"": inner}
    lengths = {}
    for key, leaf in leaves.items():
        try:
            shape = np.shape(leaf) if not isinstance(leaf, Tensor) else tuple(leaf.shape)
        except ValueError as error:
            raise ArgumentError(
                argument,
                got=f"lists of unequal lengths: {leaf!r}",
                expected="numbers, or arrays of one shape",
                remedy="convert it with torch.tensor, which says what does not fit",
            ) from error
        if shape:
            lengths[key] = shape[0]
    if not lengths:
        raise ArgumentError(
            argument,
            got=repr(spec),
            expected="at least one leaf with an axis of lambdas, [L]",
            remedy="pass a list, for example [0.1], or l2path.lambda_grid(1e-6, 1, 32)",
        )
    longest = max(lengths.values())
    if 0 in lengths.values():
        raise ArgumentError(
            argument, got="no lambdas", expected="at least one", remedy="use l2path.lambda_grid(1e-6, 1, 32)"
        )
    if any(n not in (1, longest) for n in lengths.values()):
        raise ArgumentError(
            argument,
            got=f"leading axes of lengths {lengths}",
            expected="one length L (patterns are zipped), or 1 for a shared leaf",
            remedy="for the product of two grids pass a list of L specs, one for each combination",
        )
    return longest


def with_axis(leaf: Any, length: int) -> Tensor:
    """Return a leaf as float64 ``[L, ...]`` on the CPU, for showing."""
    value = leaf.detach() if isinstance(leaf, Tensor) else torch.as_tensor(np.asarray(leaf))
    value = value.to(device="cpu", dtype=torch.float64)
    if value.ndim == 0:
        return value.expand(length).clone()
    return value.expand(length, *value.shape[1:]).clone()


def as_label(value: Tensor) -> Any:
    """Return a float for a 0-d tensor, else the tensor."""
    return float(value) if value.ndim == 0 else value

"""Expanding a spec once for all the steps that use it."""

from __future__ import annotations

import torch
from torch import Tensor

from l2path.functional import Functional
from l2path.penalty.names import describe
from l2path.penalty.specs import expand_lambdas, refuse_bare_vector
from l2path.types import Lambdas, LambdaSpec


class Expander:
    """Expands and checks lambda specs, the same one only once in a row.

    A loop passes the same spec at every step, and reading its values costs as much as a small update. A spec is the
    same if it holds the same numbers, or the same tensors with nothing written to them since.
    """

    def __init__(self, fn: Functional) -> None:
        self.names = describe(fn)
        self.last: tuple[object, LambdaSpec, Lambdas] | None = None

    def __call__(self, spec: LambdaSpec) -> Lambdas:
        """Return the strengths by parameter."""
        if torch.compiler.is_compiling():
            return expand_lambdas(self.names, spec)
        refuse_bare_vector(self.names, spec, "lambdas")
        mark = fingerprint(spec)
        if self.last is not None and mark is not None and mark == self.last[0]:
            return self.last[2]
        strengths = expand_lambdas(self.names, spec)
        self.last = None if mark is None else (mark, spec, strengths)  # holds the spec: ids stay taken
        return strengths


def fingerprint(spec: LambdaSpec) -> object | None:
    """Return what tells whether a spec has changed, or None where that cannot be told."""
    if isinstance(spec, (int, float)):
        return spec
    if isinstance(spec, Tensor):
        try:
            return (id(spec), spec._version)
        except RuntimeError:  # inference tensors do not count writes
            return None
    if type(spec) is dict:
        parts = [(name, fingerprint(leaf)) for name, leaf in spec.items()]
        return None if any(part is None for _, part in parts) else tuple(parts)
    return None

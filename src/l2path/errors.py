"""Errors and warnings, one base class each, that name argument, got, expected and remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class L2PathError(Exception):
    """Base class of every error that l2path raises on purpose."""


class ArgumentError(L2PathError, ValueError):
    """An argument that cannot be used.

    Parameters
    ----------
    argument : str
        Name of the argument as the caller wrote it.
    got : str
        What came.
    expected : str
        What would have been accepted.
    remedy : str
        What the caller can do about it.
    """

    def __init__(self, argument: str, *, got: str, expected: str, remedy: str) -> None:
        self.argument = argument
        self.got = got
        self.expected = expected
        self.remedy = remedy
        super().__init__(f"{argument}: got {got}; expected {expected}. Remedy: {remedy}")


class MissingExtraError(L2PathError, ImportError):
    """An optional dependency that is not installed."""


class NoScoreError(L2PathError, RuntimeError):
    """A choice was asked for that the run has no score to base it on."""


class L2PathWarning(UserWarning):
    """Base class of every warning that l2path gives."""


class BoundaryWarning(L2PathWarning):
    """The best value lies on the edge of the grid."""


class ReductionWarning(L2PathWarning):
    """The loss is a sum over rows, so that lambda depends on the batch size."""


class StabilityWarning(L2PathWarning):
    """A learning rate times lambda at which gradient descent cannot converge."""


class BroadcastWarning(L2PathWarning):
    """Targets that broadcast against the outputs, every row against every other."""


class MixedDecayWarning(L2PathWarning):
    """Decoupled decay and an L2 penalty in one run."""


class ModuleStateWarning(L2PathWarning):
    """A module whose forward pass sets attributes on itself, or draws random numbers elsewhere than in torch."""


class UnusedParameterWarning(L2PathWarning):
    """Parameters that the loss does not depend on."""


class MissingClassWarning(L2PathWarning):
    """A fold that holds out classes of which it trains on none."""


class DivergenceWarning(L2PathWarning):
    """Members whose training left the finite numbers."""


class IncompleteWarning(L2PathWarning):
    """A run that was interrupted and returned what it had."""


class EngineWarning(L2PathWarning):
    """Members had to be executed in another way than asked for."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a phrase with the known names closest to ``name``."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:5]
    return "nearest names: " + ", ".join(repr(n) for n in close) if close else "there are no names"

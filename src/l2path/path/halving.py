"""Successive halving: the worst points of the path leave early."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from l2path.errors import ArgumentError
from l2path.scores import FloatArray


@dataclass(frozen=True)
class SuccessiveHalving:
    """Which points of the path go on, by the validation score that decides.

    After ``min_epochs`` the best ``1 / factor`` of the points go on, after ``factor`` times as many epochs the best
    ``1 / factor`` of those, and so on. All folds and seeds of a point go on or leave together, by their mean. Members
    that leave have the status "eliminated": their history ends there, they keep the weights that they had, and they
    are never chosen.

    Parameters
    ----------
    factor : float
        > 1; 2 halves, 3 keeps a third.
    min_epochs : int
        Epochs that every point is given, >= 1. Weak and strong shrinkage are told apart late: too few of them
        eliminate the wrong points.

    Raises
    ------
    ArgumentError
        For numbers that make no sense.

    Notes
    -----
    The standard errors and the one-standard-error rule look at the points that are left.
    Source: Jamieson and Talwalkar (2016).

    Examples
    --------
    >>> SuccessiveHalving(min_epochs=5)
    SuccessiveHalving(factor=3.0, min_epochs=5)
    """

    factor: float = 3.0
    min_epochs: int = 1

    def __post_init__(self) -> None:
        """Check the numbers."""
        if isinstance(self.factor, bool) or not self.factor > 1 or not np.isfinite(self.factor):
            raise ArgumentError("factor", got=repr(self.factor), expected="a finite number > 1", remedy="use 2 or 3")
        whole = isinstance(self.min_epochs, (int, np.integer)) and not isinstance(self.min_epochs, bool)
        if not whole or self.min_epochs < 1:
            raise ArgumentError(
                "min_epochs", got=repr(self.min_epochs), expected="a whole number >= 1", remedy="use for example 5"
            )


class Halving:
    """Follows the points of a path.

    Parameters
    ----------
    rule : SuccessiveHalving
    greater_is_better : bool
    points, folds : sequences of int, [K]
        Which point and which fold each member is.
    sizes : dict of int to int
        Held-out rows by fold, which weight its scores.
    strength : array, [P]
        Of ties the stronger points go on.

    Attributes
    ----------
    alive : array of bool, [P]
    """

    def __init__(
        self,
        rule: SuccessiveHalving,
        greater_is_better: bool,
        points: Sequence[int],
        folds: Sequence[int],
        sizes: dict[int, int],
        strength: FloatArray,
    ) -> None:
        self.rule, self.sign, self.strength = rule, -1.0 if greater_is_better else 1.0, strength
        self.points, self.weights = np.array(points), np.array([float(sizes[f]) for f in folds])
        self.alive = np.ones(len(strength), dtype=np.bool_)
        self.rung = float(rule.min_epochs)

    def losers(self, epoch: int, scores: FloatArray) -> npt.NDArray[np.bool_]:
        """Take the scores ``[K]`` after an epoch and return which members are to leave now, ``[K]``.

        A point with a score that is not finite ranks last.
        """
        out = np.zeros(len(self.points), dtype=np.bool_)
        if epoch < round(self.rung):
            return out
        while epoch >= round(self.rung):
            self.rung *= self.rule.factor
        n = len(self.alive)
        with np.errstate(invalid="ignore", over="ignore"):
            sums = np.bincount(self.points, weights=self.weights * self.sign * scores, minlength=n)
        means = sums / np.bincount(self.points, weights=self.weights, minlength=n)
        means = np.where(self.alive & np.isfinite(means), means, np.inf)
        order = np.lexsort((-self.strength, means, ~self.alive))  # the living first, by their means
        keep = int(np.ceil(self.alive.sum() / self.rule.factor))
        gone = np.zeros_like(self.alive)
        gone[order[keep:]] = self.alive[order[keep:]]
        self.alive &= ~gone
        return np.asarray(gone[self.points])

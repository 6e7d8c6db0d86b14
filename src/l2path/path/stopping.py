"""Early stopping, of each member by itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from l2path.errors import ArgumentError
from l2path.scores import FloatArray

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class EarlyStopping:
    """When a member stops training, by the validation score that decides.

    Parameters
    ----------
    patience : int
        Stop after so many epochs without a better score.
    min_delta : float
        By how much a score has to be better to count, >= 0.
    restore_best : bool
        Keep the weights of the best epoch, also of members that train to the end; False keeps the last ones.
    holdout : float
        For :func:`cross_validate` alone: the part of each fold's training rows that the rule looks at. They are not
        trained on; the rows that a fold is scored on must not decide when to stop.

    Raises
    ------
    ArgumentError
        For numbers that make no sense.

    Examples
    --------
    >>> EarlyStopping(patience=5)
    EarlyStopping(patience=5, min_delta=0.0, restore_best=True, holdout=0.2)
    """

    patience: int
    min_delta: float = 0.0
    restore_best: bool = True
    holdout: float = 0.2

    def __post_init__(self) -> None:
        """Check the numbers."""
        whole = isinstance(self.patience, (int, np.integer)) and not isinstance(self.patience, bool)
        if not whole or self.patience < 1:
            raise ArgumentError(
                "patience", got=repr(self.patience), expected="a whole number >= 1", remedy="use for example 5"
            )
        if not self.min_delta >= 0 or not np.isfinite(self.min_delta):
            raise ArgumentError(
                "min_delta", got=repr(self.min_delta), expected="a finite number >= 0", remedy="leave it at 0"
            )
        if not 0 < self.holdout < 1:
            raise ArgumentError(
                "holdout", got=repr(self.holdout), expected="a part between 0 and 1", remedy="leave it at 0.2"
            )


class Stopper:
    """Follows K scores from epoch to epoch.

    Parameters
    ----------
    rule : EarlyStopping
    greater_is_better : bool
    members : int
        K.

    Attributes
    ----------
    best_epoch : array of int, [K]
        The epoch, from 1, of each member's best score; 0 where there was no finite one.
    """

    def __init__(self, rule: EarlyStopping, greater_is_better: bool, members: int) -> None:
        self.rule, self.sign = rule, -1.0 if greater_is_better else 1.0
        self.best: FloatArray = np.full(members, np.inf)
        self.best_epoch = np.zeros(members, dtype=np.int64)

    def improved(self, scores: FloatArray, epoch: int) -> Mask:
        """Take the scores ``[K]`` of an epoch and return which of them are the best so far."""
        signed = self.sign * scores
        better = np.isfinite(signed) & (signed < self.best - np.where(np.isfinite(self.best), self.rule.min_delta, 0.0))
        self.best[better] = signed[better]
        self.best_epoch[better] = epoch
        return np.asarray(better)

    def finished(self, epoch: int) -> Mask:
        """Return which members have waited for long enough."""
        return np.asarray(epoch - self.best_epoch >= self.rule.patience)

"""The data of a cross-validation, its scores and the choice."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from l2path.crossval.folds import Fold
from l2path.errors import NoScoreError
from l2path.path import PathResult
from l2path.path.outcome import boundary_note
from l2path.path.report import show
from l2path.scores import FloatArray, best_index, fold_summary, one_se_index

ROUNDING = float(np.finfo(np.float32).eps)  # relative: folds that sum to one score differ by as much


@dataclass(frozen=True, repr=False, eq=False)
class CVOutcome:
    """The data of a :class:`CVResult`: scores on the held-out rows of each fold, and the choice between the points.

    Attributes
    ----------
    members : PathResult
        All K members.
    folds : tuple of Fold
        Rows trained on and held out.
    """

    members: PathResult
    folds: tuple[Fold, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that were trained."""
        return tuple(dict.fromkeys(self.members.table.seeds))

    @cached_property
    def seed_scores(self) -> FloatArray:
        """``[F, S, *P]`` scores by fold and seed; NaN for members that diverged."""
        table = self.members.table
        runs = len(table) // table.n_points
        return self.members.scores.reshape(len(self.folds), runs // len(self.folds), *table.shape)

    @cached_property
    def fold_scores(self) -> FloatArray:
        """``[F, *P]`` scores by fold, averaged over the seeds."""
        with np.errstate(invalid="ignore", over="ignore"):
            return np.asarray(self.seed_scores.mean(axis=1), dtype=np.float64)

    @cached_property
    def _summary(self) -> tuple[FloatArray, FloatArray]:
        sizes = np.array([len(fold.test) for fold in self.folds], dtype=np.float64)
        shape = self.members.table.shape
        cvm, cvsd = fold_summary(self.fold_scores.reshape(len(self.folds), -1), sizes)
        return cvm.reshape(shape), cvsd.reshape(shape)

    @property
    def cvm(self) -> FloatArray:
        """``[*P]`` mean score over the folds, weighted by their held-out rows; NaN where a fold has none."""
        return self._summary[0]

    @property
    def cvsd(self) -> FloatArray:
        """``[*P]`` standard error of ``cvm`` (see :func:`l2path.scores.fold_summary`)."""
        return self._summary[1]

    @property
    def cvup(self) -> FloatArray:
        """``cvm + cvsd``."""
        return self.cvm + self.cvsd

    @property
    def cvlo(self) -> FloatArray:
        """``cvm - cvsd``."""
        return self.cvm - self.cvsd

    @cached_property
    def index_min(self) -> int:
        """Number of the point with the best ``cvm``; ties, to the rounding of float32, go to the strongest shrinkage.

        Raises
        ------
        NoScoreError
            If no point has a finite score in every fold.
        """
        if not np.isfinite(self.cvm).any():
            raise NoScoreError(
                f"no point of the path has a finite {self.members.select.name} in every fold "
                f"({self.members.status.count('diverged')} of {len(self.members)} members diverged). "
                "Remedy: lower the learning rate or the largest lambda"
            )
        cvm = self.cvm.ravel()
        best = np.nanmax(cvm) if self.greater_is_better else np.nanmin(cvm)
        # As many hits in all, spread differently over the folds, are a tie for the eye and not for sums of floats.
        cvm = np.where(np.abs(cvm - best) <= ROUNDING * abs(best), best, cvm)
        return best_index(cvm, self.members.strength_rank(), greater_is_better=self.greater_is_better)

    @property
    def one_dimensional(self) -> bool:
        """Whether the points have one order of strength, which the one-standard-error rule needs."""
        return self.members.path_values is not None and self.members.table.main_axis in ("lambda", "decay")

    @cached_property
    def index_1se(self) -> int:
        """Number of the strongest point within one standard error of the best.

        Raises
        ------
        NoScoreError
            As :attr:`index_min`, and where the path is not one-dimensional.
        """
        if not self.one_dimensional:
            raise NoScoreError(
                "the one-standard-error rule needs a path with one order of strength: one axis of lambdas, or of a "
                "decay. Remedy: take index_min and refit('min'), or cross-validate one axis at the best of the others"
            )
        return one_se_index(
            self.cvm.ravel(),
            self.cvsd.ravel(),
            self.members.strength_rank(),
            self.index_min,
            greater_is_better=self.greater_is_better,
        )

    @property
    def lambda_min(self) -> Any:
        """The lambda of the best point, as it was given: a float, {pattern: value}, or a spec."""
        return self._lambda(self.index_min)

    @property
    def lambda_1se(self) -> Any:
        """The largest lambda whose score is within one standard error of the best."""
        return self._lambda(self.index_1se)

    def point(self, index: int) -> dict[str, Any]:
        """Return what a point of the path stands for: "lambda" and swept hyperparameters by name."""
        table = self.members.table
        label = table.label(table.points.index(index))
        if not self.own_seeds:
            label.pop("seed")
        return label

    @property
    def boundary(self) -> str | None:
        """What to try next if the best point is an end of the grid; None if it is inside."""
        if not np.isfinite(self.cvm).any():
            return None
        return boundary_note(self.members, self.index_min, self.cvm)

    def what(self, index: int) -> str:
        """Return what a point stands for as text."""
        return ", ".join(f"{name} {show(value)}" for name, value in self.point(index).items())

    @property
    def own_seeds(self) -> bool:
        """Whether points are members of an explicit list, each with a seed of its own."""
        return bool(len(self.seeds) > self.seed_scores.shape[1])

    @property
    def greater_is_better(self) -> bool:
        """Whether a larger score is a better one."""
        return bool(self.members.select.greater_is_better)

    def _lambda(self, index: int) -> Any:
        found = self.point(index)
        if "lambda" not in found:
            raise NoScoreError(f"no lambdas were trained. Remedy: read cv.point({index}), which is {found}")
        return found["lambda"]

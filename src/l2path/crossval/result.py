"""What ``cross_validate`` returns."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from l2path.crossval.figure import draw
from l2path.crossval.folds import Fold
from l2path.crossval.preprocess import Transform
from l2path.errors import ArgumentError, BoundaryWarning, NoScoreError
from l2path.path import PathResult
from l2path.path.outcome import boundary_note
from l2path.path.report import label_columns, number, shorten, show
from l2path.path.run import train_members
from l2path.path.setup import check_seeds
from l2path.scores import FloatArray, best_index, boundary_side, fold_summary, one_se_index
from l2path.tables import format_table
from l2path.types import Tree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROUNDING = float(np.finfo(np.float32).eps)  # relative: folds that sum to one score differ by as much
SHOWN_FOLDS = 10  # columns of the table
# What yields the arguments of train_members for a point of the path under some seeds, and the transform.
Prepare = Callable[[int, Sequence[int], int], AbstractContextManager[tuple[tuple[Any, ...], Transform | None]]]


@dataclass(frozen=True)
class Refit:
    """One point of the path, trained on all rows.

    Attributes
    ----------
    members : PathResult
        One member for each seed.
    transform : callable or None
        What preprocessing learned from all rows, as a function of inputs.
    """

    members: PathResult
    transform: Transform | None

    def state_dict(self, seed: int | None = None) -> dict[str, Any]:
        """Return what the original module loads with ``strict=True``; of the first seed by default."""
        return self.members.member(self._index(seed)).state_dict()

    def module(self, seed: int | None = None) -> nn.Module:
        """Return a new module of the original class with the weights; of the first seed by default."""
        return self.members.member(self._index(seed)).module()

    def predict(self, inputs: Any) -> Tree:
        """Return outputs in eval mode, ``[S, B, ...]`` for S seeds, after the preprocessing."""
        return self.members.predict(inputs if self.transform is None else self.transform(inputs))

    def _index(self, seed: int | None) -> int:
        seeds = self.members.table.seeds
        if seed is not None and seed not in seeds:
            raise ArgumentError("seed", got=repr(seed), expected=f"one of {list(seeds)}", remedy="leave it out")
        return 0 if seed is None else seeds.index(seed)


@dataclass(frozen=True, repr=False, eq=False)
class CVResult:
    """A cross-validated path; ``print`` it.

    Scores are those of ``select``, at the last epoch, on the held-out rows of each fold. P stands for the points of
    the path, in its own shape where it has several axes.

    Attributes
    ----------
    members : PathResult
        All K members with their history, weights and scores; its own choice is of single members.
    folds : tuple of Fold
        Rows trained on and held out.
    """

    members: PathResult
    folds: tuple[Fold, ...]
    _prepare: Prepare

    def __post_init__(self) -> None:
        """Warn where the best point is an end of the grid."""
        if self.boundary is not None:
            warnings.warn(self.boundary, BoundaryWarning, stacklevel=4)

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
        best = np.nanmax(cvm) if self._greater else np.nanmin(cvm)
        # As many hits in all, spread differently over the folds, are a tie for the eye and not for sums of floats.
        cvm = np.where(np.abs(cvm - best) <= ROUNDING * abs(best), best, cvm)
        return best_index(cvm, self.members.strength_rank(), greater_is_better=self._greater)

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
            greater_is_better=self._greater,
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
        if not self._own_seeds:
            label.pop("seed")
        return label

    @property
    def boundary(self) -> str | None:
        """What to try next if the best point is an end of the grid; None if it is inside."""
        if not np.isfinite(self.cvm).any():
            return None
        return boundary_note(self.members, self.index_min, self.cvm)

    def refit(self, at: str | int = "1se", *, seeds: Sequence[int] | None = None) -> Refit:
        """Train one point of the path on all rows, as the members were trained.

        Parameters
        ----------
        at : {"1se", "min"} or int
            The strongest point within one standard error of the best, the best one, or the number of a point.
        seeds : sequence of int, optional
            Those that the point was cross-validated with by default.

        Returns
        -------
        Refit
            With ``state_dict()``, ``module()`` and ``predict(inputs)``.

        Raises
        ------
        ArgumentError
            For another word, or a number that is out of range, and for what cannot work with all rows.
        NoScoreError
            As :attr:`index_1se` and :attr:`index_min`.
        """
        if at in ("1se", "min"):
            index = self.index_1se if at == "1se" else self.index_min
        elif isinstance(at, (int, np.integer)) and not isinstance(at, bool) and 0 <= at < self.members.table.n_points:
            index = int(at)
        else:
            raise ArgumentError(
                "at",
                got=repr(at),
                expected=f"'1se', 'min' or a number from 0 to {self.members.table.n_points - 1}",
                remedy="see print(cv) for the points",
            )
        table = self.members.table
        own = dict.fromkeys(s for s, p in zip(table.seeds, table.points, strict=True) if p == index)
        chosen = tuple(own) if seeds is None else check_seeds(None, seeds)
        with self._prepare(index, chosen, self._epochs(index)) as (arguments, transform):
            return Refit(train_members(*arguments), transform)

    def _epochs(self, index: int) -> int:
        """Return for how many epochs to train a point on all rows: the median of what its members kept."""
        members = self.members
        pairs = zip(members.table.points, members.epochs_kept, members.status, strict=True)
        kept = [n for p, n, status in pairs if p == index and status != "diverged"]
        return max(1, round(float(np.median(kept)))) if kept else max(members.epochs_trained)

    def plot(self) -> Figure:
        """Draw the validation curve over the folds with both choices marked.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        MissingExtraError
            Without matplotlib (the extra ``plot``).
        """
        choices = {}
        if np.isfinite(self.cvm).any():
            choices["best"] = (self.index_min, self._what(self.index_min))
            if self.one_dimensional:
                choices["strongest within 1 se"] = (self.index_1se, self._what(self.index_1se))
        scores = self.fold_scores.reshape(len(self.folds), -1)
        return draw(self.members, scores, self.cvm.ravel(), self.cvsd.ravel(), choices)

    def _what(self, index: int) -> str:
        return ", ".join(f"{name} {show(value)}" for name, value in self.point(index).items())

    @property
    def _own_seeds(self) -> bool:
        """Whether points are members of an explicit list, each with a seed of its own."""
        return bool(len(self.seeds) > self.seed_scores.shape[1])

    @property
    def _greater(self) -> bool:
        return bool(self.members.select.greater_is_better)

    def _lambda(self, index: int) -> Any:
        found = self.point(index)
        if "lambda" not in found:
            raise NoScoreError(f"no lambdas were trained. Remedy: read cv.point({index}), which is {found}")
        return found["lambda"]

    def __str__(self) -> str:
        return _table(self)

    def __repr__(self) -> str:
        sizes = (len(self.folds), "fold"), (self.seed_scores.shape[1], "seed"), (self.members.table.n_points, "point")
        return f"CVResult({', '.join(f'{n} {word}' + 's' * (n != 1) for n, word in sizes)})"


def _table(cv: CVResult) -> str:
    """Return the table of a cross-validation, and below it the choice."""
    result, n = cv.members, cv.members.table.n_points
    cvm, cvsd, scores = cv.cvm.ravel(), cv.cvsd.ravel(), cv.fold_scores.reshape(len(cv.folds), -1)
    chosen = {}
    if np.isfinite(cvm).any():
        chosen = {"min": cv.index_min} | ({"1se": cv.index_1se} if cv.one_dimensional else {})
    labels = [cv.point(p) for p in range(n)]
    columns = [("point", [str(p) for p in range(n)])]
    for name in labels[0]:
        columns += label_columns(name, [label[name] for label in labels])
    columns += [(result.select.name, [number(s) for s in cvm]), ("se", [number(s) for s in cvsd])]
    if len(scores) <= SHOWN_FOLDS:
        columns += [(f"fold {f}", [number(s) for s in own]) for f, own in enumerate(scores)]
    columns.append(("", [", ".join(word for word, p in chosen.items() if p == q) for q in range(n)]))
    rows = [list(row) for row in zip(*(cells for _, cells in columns), strict=True)]
    table = format_table([name for name, _ in columns], shorten(rows, [*chosen.values()]))
    return "\n".join([table, "", *_notes(cv, chosen)])


def _notes(cv: CVResult, chosen: dict[str, int]) -> list[str]:
    """Return the lines below the table."""
    result, name, seeds = cv.members, cv.members.select.name, cv.seed_scores.shape[1]
    averaged = f"{seeds} seeds" if seeds > 1 else "one seed" + " each" * cv._own_seeds
    lines = [f"{len(cv.folds)} folds, {averaged}, {len(result)} members."]

    def what(index: int) -> str:
        return f"point {index}, {cv._what(index)}"

    if not chosen:
        lines.append(f"No point has a finite {name} in every fold.")
    else:
        best = chosen["min"]
        direction = ", greater is better" if cv._greater else ""
        score = f"{number(cv.cvm.ravel()[best])} ± {number(cv.cvsd.ravel()[best])}"
        lines.append(f"Best by {name}{direction}: {what(best)}, {score}.")
        if "1se" in chosen:
            values = result.path_values
            end = values is not None and boundary_side(chosen["1se"], values) == "high"
            more = ", the high end of the grid: even stronger ones may be" if end else ""
            lines.append(f"Strongest within one standard error: {what(chosen['1se'])}{more}.")
        else:
            lines.append("The path is not one-dimensional: there is no strongest within one standard error.")
        if cv.boundary:
            lines.append(f"Careful: {cv.boundary}.")
    diverged = result.status.count("diverged")
    if diverged:
        lines.append(f"{diverged} of {len(result)} members diverged: their points have no score.")
    if not result.complete:
        lines.append(f"Incomplete: interrupted after {max(result.epochs_trained)} epochs.")
    return lines

"""What the panels of a plot show, as arrays by point of the path; nothing here draws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from l2path.path.figures.scales import STRENGTHS, Scale, describe, scale
from l2path.path.outcome import Outcome
from l2path.penalty.names import match
from l2path.scores import FloatArray

LARGEST = 1e30  # members on the way to divergence have scores that no axis holds
WITHOUT_SCORE = ("diverged", "eliminated", "no score")
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Line:
    """Points of the path along one of its axes, ascending, at fixed places on the others.

    Attributes
    ----------
    points : array of int, [n]
    scale : Scale
        Of the points, ``[n]``.
    at : str
        The values of the other axes, for example "lr 0.05"; empty where there are none.
    """

    points: IntArray
    scale: Scale
    at: str


@dataclass(frozen=True, eq=False)
class View:
    """What the panels show of a path or of a cross-validation, with P points and R runs of each.

    Attributes
    ----------
    members : Outcome
    scores : array, [P]
        Means over the runs; NaN for points without one.
    errors : array ``[P]``, or None
        Standard errors of ``scores``.
    runs : array, [R, P]
        Scores of the single seeds or folds.
    run : str
        What a run is.
    choices : dict of str to int
        Points that were chosen: the best one first.
    """

    members: Outcome
    scores: FloatArray
    errors: FloatArray | None
    runs: FloatArray
    run: str
    choices: Mapping[str, int]

    @property
    def validated(self) -> bool:
        """Whether there are validation scores."""
        return self.members.select.validation is not None

    @property
    def name(self) -> str:
        """Name of the scores."""
        return self.members.select.name if self.validated else "objective"

    @property
    def greater_is_better(self) -> bool:
        """Which way."""
        return self.validated and self.members.select.greater_is_better

    @property
    def distinct_choices(self) -> dict[str, int]:
        """The choices, both names in one where they are one point."""
        if len(self.choices) > 1 and len(set(self.choices.values())) == 1:
            return {", and ".join(self.choices): next(iter(self.choices.values()))}
        return dict(self.choices)

    @cached_property
    def status(self) -> tuple[str, ...]:
        """``[P]``: why a point has no score ("diverged", "eliminated" or "no score"), or an empty text."""
        rows = np.array(self.members.status).reshape(-1, self.members.table.n_points).T.tolist()
        own = []
        for statuses, score in zip(rows, self.scores.tolist(), strict=True):
            why = next((s for s in WITHOUT_SCORE if s in statuses), WITHOUT_SCORE[-1])
            own.append(why if not np.isfinite(score) else "")
        return tuple(own)

    @cached_property
    def last_scores(self) -> FloatArray:
        """``[P]`` scores after the last epoch that was trained: those of eliminated members are of fewer epochs."""
        rows, trained = self.members.history[self.name].numpy(), self.members.epochs_trained
        last = np.array([rows[n - 1, k] if n else np.nan for k, n in enumerate(trained)])
        return presentable(self.by_point(last))

    def by_point(self, rows: FloatArray) -> FloatArray:
        """Return ``[..., P]`` means over the runs of ``[..., K]`` numbers; members are ordered (run, point)."""
        with np.errstate(invalid="ignore", over="ignore"):
            n = self.members.table.n_points
            split = rows.reshape(*rows.shape[:-1], len(self.members) // n, n)
            return np.asarray(split.mean(axis=-2), dtype=np.float64)

    @property
    def averaged(self) -> str:
        """Over what :meth:`by_point` averages, for example "mean over 3 seeds"; empty for a single run."""
        table = self.members.table
        folds, runs = len(set(table.folds)), len(table) // table.n_points
        counts = [f"{n} {word}s" for n, word in ((folds, "fold"), (runs // folds, "seed")) if n > 1]
        return "mean over " + " × ".join(counts) if counts else ""

    @cached_property
    def axes(self) -> tuple[str, ...]:
        """The axes with several values, the one to draw along last: lambda, or decay, or the last one."""
        names = list(self.members.table.long_axes) or [self.members.table.axis_names[-1]]
        along = next((name for name in STRENGTHS if name in names), names[-1])
        return (*(name for name in names if name != along), along)

    def scale(self, name: str) -> Scale:
        """Return the values of an axis."""
        return scale(self.members, name)

    def parameters(self, pattern: str | None) -> list[str]:
        """Return the names of the parameters that a pattern names, in their order; of all without one.

        Raises
        ------
        ArgumentError
            For a pattern that matches none.
        """
        params = self.members.params
        found = params if pattern is None else match(self.members.names, [pattern], "parameter")
        return [name for name in params if name in found]

    def count(self, name: str) -> int:
        """Return how many numbers a parameter of one member has."""
        return self.members.params[name][0].numel()

    @cached_property
    def lines(self) -> tuple[Line, ...]:
        """Every line along the last of :attr:`axes`."""
        table = self.members.table
        along = self.axes[-1]
        points = np.arange(table.n_points).reshape(table.shape)
        points = np.moveaxis(points, table.axis_names.index(along), -1).reshape(-1, len(self.scale(along).values))
        values = self.scale(along)
        order = np.argsort(values.values, kind="stable")
        values = Scale(
            values.values[order], values.label, values.ordered, values.log, tuple(values.texts[i] for i in order)
        )
        return tuple(
            Line(own[order], values, describe(self.members, int(own[0]), self.axes[:-1]) if len(self.axes) > 1 else "")
            for own in points
        )

    @property
    def line(self) -> Line:
        """The line through the best point; the first one where nothing was chosen."""
        best = next(iter(self.choices.values()), None)
        return next((line for line in self.lines if best in line.points), self.lines[0])


def path_view(result: Outcome) -> View:
    """Return what to show of a path."""
    n = result.table.n_points
    runs = len(result) // n
    if result.select.validation is None:
        objective = result.history["objective"].numpy()
        last = np.array([objective[e - 1, k] if e else np.nan for k, e in enumerate(result.epochs_kept)])
        scores = last.reshape(runs, n)
    else:
        scores = result.scores.reshape(runs, n)
    scores = presentable(scores)
    chosen, errors = result.chosen, result.uncertainty.standard_errors
    return View(
        members=result,
        scores=scores.mean(axis=0),
        errors=presentable(errors.numpy()) if errors is not None and runs == 1 and chosen is not None else None,
        runs=scores,
        run="seed" if len(set(result.table.folds)) == 1 else "run",
        choices={} if chosen is None else {"best": result.table.points[chosen]},
    )


def presentable(values: FloatArray) -> FloatArray:
    """Return numbers with NaN for those that no axis holds."""
    return np.where(np.abs(values) < LARGEST, values, np.nan)

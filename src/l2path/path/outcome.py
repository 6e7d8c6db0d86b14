"""The data of a result, its scores and the choice."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from l2path.engine import Engine, EvalKind, take
from l2path.errors import ArgumentError, NoScoreError
from l2path.functional import Functional
from l2path.path.evaluation import Validation
from l2path.path.members import Members, is_monotone
from l2path.path.recorded import Recorded
from l2path.penalty import LambdaAxis, Names
from l2path.scores import FloatArray, best_index, boundary_side
from l2path.types import Buffers, Params


@dataclass(frozen=True)
class Selection:
    """The score that decides, and the data that it is computed on (None without validation)."""

    name: str
    greater_is_better: bool
    validation: Validation | None


@dataclass(frozen=True)
class Uncertainty:
    """How sure the choice is, from the score on single validation rows.

    Attributes
    ----------
    standard_errors : Tensor ``[K]`` or None
        Of each member's score.
    differences : Tensor ``[K]`` or None
        Score minus the best member's; positive is worse for a score of which less is better.
    difference_errors : Tensor ``[K]`` or None
        Paired standard errors of the differences: every member saw the same rows, so that what makes a row hard
        for all of them cancels.
    reason : str or None
        Why there are none.
    """

    standard_errors: Tensor | None = None
    differences: Tensor | None = None
    difference_errors: Tensor | None = None
    reason: str | None = None


@dataclass(frozen=True, repr=False)
class Member:
    """One trained copy.

    Attributes
    ----------
    index : int
        Its number in the flat table of members.
    seed : int
    lambdas : float, {pattern: value}, spec or None
        What it trained with.
    hyper : dict
        Its values of the swept hyperparameters.
    score : float
        Of validation, by the score that decides; NaN without validation or after divergence.
    status : str
        "trained", "stopped" (early, or by ``on_epoch``), "eliminated" (by successive halving) or "diverged".
    params : dict of str to Tensor
        Its weights, views of the result's.
    buffers : dict of str to Tensor
        Its buffers.
    """

    index: int
    seed: int
    lambdas: Any
    hyper: dict[str, Any]
    score: float
    status: str
    params: Params
    buffers: Buffers
    functional: Functional = field(repr=False)

    def module(self) -> nn.Module:
        """Return a new module of the original class with this member's weights."""
        return self.functional.materialize(self.params, self.buffers)

    def state_dict(self) -> dict[str, Any]:
        """Return what the original module loads with ``strict=True``."""
        if isinstance(self.functional, Recorded):
            return self.functional.state_dict(self.index, self.params, self.buffers)
        return dict(self.module().state_dict())

    def __repr__(self) -> str:
        shown = {"lambdas": self.lambdas, **self.hyper, "seed": self.seed, "score": self.score, "status": self.status}
        return f"Member({self.index}, {', '.join(f'{k}={v!r}' for k, v in shown.items())})"


@dataclass(frozen=True, repr=False, eq=False)
class Outcome:
    """K trained members and the choice between them: the data of a :class:`PathResult`.

    Attributes
    ----------
    history : dict of str to Tensor, ``[epochs, K]`` float64
        "loss", "penalty" and "objective" (row-weighted means over each epoch's steps, before their updates), "val_loss"
        and "val_<metric>" (at the end of each epoch). NaN from a member's divergence or stop on.
    params, buffers : dict of str to Tensor, ``[K, ...]``
        After training; a diverged member keeps its last finite state. With :func:`ema` the averaged weights.
    live_params : dict of str to Tensor, ``[K, ...]``
        The weights that training moved; without an average the same as ``params``.
    table : Members
        The flat table of members and its axes.
    status : tuple of str, [K]
        "trained", "stopped", "eliminated" or "diverged".
    epochs_trained, epochs_kept : tuple of int, [K]
    diverged_at : tuple, [K]
        The step at which a member diverged, or None.
    complete : bool
        False after an interrupt.
    engine : Engine
        How members were executed; pass it to ``batch_train`` to repeat the run.
    select : Selection
        The score that decides.
    uncertainty : Uncertainty
        How sure the choice is.
    """

    history: dict[str, Tensor]
    params: Params
    buffers: Buffers
    live_params: Params
    table: Members
    names: Names
    functionals: dict[int, tuple[Functional, Functional]]
    status: tuple[str, ...]
    epochs_trained: tuple[int, ...]
    epochs_kept: tuple[int, ...]
    diverged_at: tuple[int | None, ...]
    complete: bool
    engine: Engine
    eval_kind: EvalKind
    select: Selection
    uncertainty: Uncertainty = field(default_factory=Uncertainty)

    def __len__(self) -> int:
        return len(self.table)

    @property
    def lambdas(self) -> Any:
        """What each member trained with: ``[K]``, {pattern: ``[K, ...]``}, a tuple of K specs, or None."""
        axis = self.table.lambdas
        if axis is None:
            return None
        rows = list(self.table.index["lambda"])
        if isinstance(axis.values, Tensor):
            return axis.values[rows]
        if isinstance(axis.values, dict):
            return {pattern: value[rows] for pattern, value in axis.values.items()}
        return tuple(axis.values[i] for i in rows)

    @property
    def lambdas_by_parameter(self) -> Params:
        """The same by parameter, ``[K, ...]``, each broadcastable to its parameter."""
        return self.table.strengths(self.names, range(len(self)))

    @property
    def hyper(self) -> dict[str, tuple[Any, ...]]:
        """What each member trained with on the swept axes, K values by hyperparameter."""
        return {n: tuple(axis.labels[i] for i in self.table.index[n]) for n, axis in self.table.hyper.items()}

    @cached_property
    def scores(self) -> FloatArray:
        """``[K]`` scores of the selection at the epoch that is kept; needs validation.

        NaN for members that diverged, and for those that were eliminated: their scores are of fewer epochs.
        """
        if self.select.validation is None:
            raise NoScoreError(
                "there is no validation score to choose by: the training loss alone would always choose the weakest "
                "lambda. Remedy: pass validation=(inputs, targets) to batch_train"
            )
        rows = self.history[self.select.name].numpy()
        out = np.full(len(self), np.nan)
        for k, n in enumerate(self.epochs_kept):
            if n and self.status[k] not in ("diverged", "eliminated"):
                out[k] = rows[n - 1, k]
        return out

    @cached_property
    def cvm(self) -> FloatArray:
        """Mean score over the seeds, one for each point of the path, shaped like its axes."""
        sums = np.zeros(self.table.n_points)
        np.add.at(sums, list(self.table.points), self.scores)
        counts = np.bincount(self.table.points, minlength=self.table.n_points)
        return np.asarray(sums / counts, dtype=np.float64).reshape(self.table.shape)

    @cached_property
    def best(self) -> Member:
        """The chosen member.

        Of the point with the best mean score over the seeds (ties go to the largest lambda) it is the seed with the
        best score of its own.

        Raises
        ------
        NoScoreError
            Without validation, or if no member has a finite score.
        """
        scores = self.scores
        if not np.isfinite(self.cvm).any():
            raise NoScoreError(
                f"no member has a finite {self.select.name} ({self.status.count('diverged')} of {len(self)} diverged). "
                "Remedy: lower the learning rate or the largest lambda"
            )
        point = best_index(self.cvm.ravel(), self.strength_rank(), greater_is_better=self.select.greater_is_better)
        own = [k for k, p in enumerate(self.table.points) if p == point]
        ties = np.zeros(len(own))
        return self.member(own[best_index(scores[own], ties, greater_is_better=self.select.greater_is_better)])

    @property
    def chosen(self) -> int | None:
        """Number of the best member; None where there is nothing to choose by."""
        if self.select.validation is None or not np.isfinite(self.cvm).any():
            return None
        return self.best.index

    def strength_rank(self) -> FloatArray:
        """Return ``[P]`` ranks of how strongly each point shrinks: by lambda, then by decay."""
        return self.table.strength_rank(self.names)

    def member(self, index: int) -> Member:
        """Return one member by its number, 0 to K - 1 (negative ones count from the end).

        Raises
        ------
        ArgumentError
            For a number that is out of range.
        """
        k = self._check_index(index)
        label = self.table.label(k)
        score = float(self.scores[k]) if self.select.validation is not None else float("nan")
        return Member(
            index=k,
            seed=self.table.seeds[k],
            lambdas=label.get("lambda"),
            hyper={n: label[n] for n in self.table.hyper},
            score=score,
            status=self.status[k],
            params=take(self.params, k),
            buffers=take(self.buffers, k),
            functional=self.functionals[self.table.seeds[k]][0],
        )

    def _check_index(self, index: int) -> int:
        n = len(self)
        if isinstance(index, bool) or not isinstance(index, (int, np.integer)) or not -n <= index < n:
            raise ArgumentError(
                "member", got=repr(index), expected=f"a number from 0 to {n - 1}", remedy="see print(result)"
            )
        return int(index) % n

    def weight_norms(self) -> dict[str, Tensor]:
        """Return the Euclidean norm of each parameter for each member, ``[K]`` float64 by name."""
        return {
            n: torch.linalg.vector_norm(p.flatten(1) if p.ndim > 1 else p.unsqueeze(1), dim=1).double().cpu()
            for n, p in self.params.items()
        }

    @cached_property
    def path_values(self) -> FloatArray | None:
        """``[P]`` values along a one-dimensional path: lambda, its mean over the parameters, or the swept value.

        None where the path has two axes, or patterns that do not rise together.
        """
        if len(self.table.long_axes) > 1 or self.table.axis_names == ("member",):
            return None
        name = self.table.main_axis
        axis: Any = self.table.lambdas if name == "lambda" else self.table.hyper[name]
        if all(isinstance(label, float) for label in axis.labels):
            return np.array(axis.labels, dtype=np.float64)
        strengths = axis.strengths if isinstance(axis, LambdaAxis) else axis.values
        if not is_monotone(strengths, self.names):
            return None
        weights = sum(p.numel() for p in self.names.params.values())
        totals = self.table.totals(self.names)[0 if name == "lambda" else 1]
        return np.asarray(totals[: self.table.n_points] / weights)

    @cached_property
    def boundary(self) -> str | None:
        """What to try next if the best value is an end of the grid; None if it is inside (or was not chosen)."""
        return None if self.chosen is None else boundary_note(self, self.table.points[self.chosen], self.cvm)


class Edge(NamedTuple):
    """The end of the grid that a point is."""

    side: str  # "high" or "low"
    grid: tuple[float, float, int] | None  # where to go on, arguments of lambda_grid


def edge(result: Outcome, point: int, scores: FloatArray) -> Edge | None:
    """Return the end of the grid that a point is; None if it is inside, or there is no one order."""
    values = result.path_values
    side = None if values is None else boundary_side(point, values)
    finite = scores[np.isfinite(scores)]
    if values is None or side is None:
        return None
    if np.ptp(finite) == 0 and "eliminated" not in result.status:  # no edge of equals is better
        return None
    if result.table.main_axis not in ("lambda", "decay", "lr"):  # not every hyperparameter has a scale to move on
        return Edge(side, None)
    value = float(values[point])
    # The next grid reaches back over the neighbour: an optimum at this very edge is then inside of it.
    inner = np.unique(values[(values < value) & (values > 0)] if side == "high" else values[values > value])
    near = float(inner[-1] if side == "high" else inner[0]) if inner.size else value
    low, high = (near, value * 100) if side == "high" else (value / 100, near)
    return Edge(side, (low, high, min(max(len(values), 10), 32)))


def boundary_note(result: Outcome, point: int, scores: FloatArray) -> str | None:
    """Say what to try next if a point is an end of the grid; None if it is inside, or there is no one order."""
    found, values = edge(result, point, scores), result.path_values
    if found is None or values is None:
        return None
    what = result.table.main_axis
    axis: Any = result.table.lambdas if what == "lambda" else result.table.hyper[what]
    if not all(isinstance(label, float) for label in axis.labels):
        factor = "100 times larger" if found.side == "high" else "100 times smaller"
        return f"the best {what} is the {found.side} end of the grid. Try next: every value up to {factor}"
    said = f"the best {what}, {float(values[point]):.4g}, is the {found.side} end of the grid"
    if found.grid is None:
        return said
    low, high, n = found.grid
    grid = f"l2path.lambda_grid({low:.2g}, {high:.2g}, {n})"
    grid = grid if what == "lambda" else f"sweep={{{what!r}: {grid}}}"
    return f"{said}. Try next: {grid}"

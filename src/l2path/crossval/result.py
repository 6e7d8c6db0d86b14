"""What ``cross_validate`` returns."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from l2path.crossval.frame import point_frame
from l2path.crossval.outcome import CVOutcome
from l2path.crossval.preprocess import Transform
from l2path.crossval.report import report
from l2path.crossval.saved import CV_KIND, cv_contents
from l2path.errors import ArgumentError
from l2path.files import write_file
from l2path.path import PathResult
from l2path.path.figures import View, draw, presentable
from l2path.path.run import train_members
from l2path.path.saved import SCHEMA
from l2path.path.setup import check_seeds
from l2path.types import Tree

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

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
class CVResult(CVOutcome):
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

    _prepare: Prepare

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

    def plot(self, kind: str = "validation", *, ax: Axes | None = None, parameter: str | None = None) -> Figure:
        """Draw the mean score over the folds with both choices marked, or another panel of :meth:`PathResult.plot`.

        Parameters
        ----------
        kind : str
            "validation" has the folds beneath, "heatmap" shows ``cvm``; "norms", "coefficients", "shrinkage" and
            "curves" are means over the folds and seeds; "overview" is three of these.
        ax, parameter : optional
            As for :meth:`PathResult.plot`.

        Returns
        -------
        matplotlib.figure.Figure
            The new one, or that of ``ax``.

        Raises
        ------
        MissingExtraError
            Without matplotlib (the extra ``plot``).
        ArgumentError
            For a kind that there is not or that this result cannot have, and for arguments that do not fit it.
        """
        choices = {}
        if np.isfinite(self.cvm).any():
            choices["best"] = self.index_min
            if self.one_dimensional:
                choices["strongest within 1 se"] = self.index_1se
        folds = presentable(self.fold_scores.reshape(len(self.folds), -1))
        mean, errors = presentable(self.cvm.ravel()), presentable(self.cvsd.ravel())
        return draw(View(self.members, mean, errors, folds, "fold", choices), kind, ax, parameter)

    def to_dataframe(self) -> DataFrame:
        """Return the points of the path as a pandas DataFrame; :attr:`members` has one of single members.

        Returns
        -------
        pandas.DataFrame
            A row for each point, by its number: the swept hyperparameters, "lambda" (or "lambda[<pattern>]" for each
            pattern), "cvm", "cvsd", "cvup", "cvlo", the score of each fold as "fold_0", ..., whether the point
            "is_min" and, on one-dimensional paths, "is_1se".

        Raises
        ------
        MissingExtraError
            Without pandas (the extra ``pandas``).
        """
        return point_frame(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything but the module's code and the data to one file, for :func:`load_result`.

        Parameters
        ----------
        path : str or path
            As for :meth:`PathResult.save`.

        Raises
        ------
        ArgumentError
            For a directory that does not exist.
        """
        write_file(path, CV_KIND, SCHEMA, cv_contents(self))

    def __str__(self) -> str:
        return report(self).text()

    def _repr_html_(self) -> str:
        return report(self).html()

    def __repr__(self) -> str:
        sizes = (len(self.folds), "fold"), (self.seed_scores.shape[1], "seed"), (self.members.table.n_points, "point")
        return f"CVResult({', '.join(f'{n} {word}' + 's' * (n != 1) for n, word in sizes)})"

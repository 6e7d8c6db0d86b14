"""Members: the flat table of trained copies, and the axes it comes from."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from l2path.errors import ArgumentError
from l2path.optimizers.hyper import FRACTIONS
from l2path.penalty import LambdaAxis, Names, WeightsOnly, lambda_axis
from l2path.penalty.axis import is_spec_list
from l2path.penalty.specs import strength_dtype
from l2path.trees import map_tensors
from l2path.types import Lambdas, LambdaSpec


@dataclass(frozen=True)
class HyperAxis:
    """The values of one swept hyperparameter.

    Attributes
    ----------
    values : Tensor ``[S]`` float64, or {parameter: ``[S, ...]``} for a per-parameter decay
    labels : tuple
        What the user wrote for each value.
    """

    values: Tensor | Lambdas
    labels: tuple[Any, ...]

    def only(self, i: int) -> HyperAxis:
        """Return the axis with one of its values."""
        return HyperAxis(map_tensors(lambda v: v[i : i + 1], self.values), self.labels[i : i + 1])


@dataclass(frozen=True)
class Members:
    """K members, ordered (fold, seed, swept hyperparameters ..., lambda), lambda fastest.

    Attributes
    ----------
    folds : tuple of int, [K]
        Each member's fold; 0 where there is one split or none.
    seeds : tuple of int, [K]
        Each member's seed.
    points : tuple of int, [K]
        Which point of the path each member is: members that differ in fold and seed alone share one.
    index : dict of str to tuple of int, [K]
        Position of each member on each axis; the lambda axis is called "lambda".
    shape : tuple of int
        Lengths of the path's axes (without folds and seeds), "lambda" last where there is one.
    axis_names : tuple of str
        Their names.
    lambdas : LambdaAxis or None
        None where the penalty is not in play.
    hyper : dict of str to HyperAxis
        Swept hyperparameters.
    """

    folds: tuple[int, ...]
    seeds: tuple[int, ...]
    points: tuple[int, ...]
    index: dict[str, tuple[int, ...]]
    shape: tuple[int, ...]
    axis_names: tuple[str, ...]
    lambdas: LambdaAxis | None
    hyper: dict[str, HyperAxis]

    def __len__(self) -> int:
        return len(self.seeds)

    @property
    def keys(self) -> list[tuple[int, int]]:
        """Fold and seed of each member."""
        return list(zip(self.folds, self.seeds, strict=True))

    @property
    def long_axes(self) -> tuple[str, ...]:
        """Names of the axes with more than one value."""
        return tuple(n for n, size in zip(self.axis_names, self.shape, strict=True) if size > 1)

    @property
    def main_axis(self) -> str:
        """Name of the axis that a one-dimensional path runs along."""
        return (*self.long_axes, self.axis_names[-1])[0]

    @property
    def n_points(self) -> int:
        """P, the number of points of the path."""
        return int(np.prod(self.shape, dtype=np.int64))

    def in_folds(self, folds: int) -> Members:
        """Return the same members once for each fold."""
        n = len(self)
        index = {name: rows * folds for name, rows in self.index.items()}
        own = tuple(f for f in range(folds) for _ in range(n))
        return replace(self, folds=own, seeds=self.seeds * folds, points=self.points * folds, index=index)

    def only(self, point: int, seeds: Sequence[int]) -> Members:
        """Return one point of the path, which is then all there is of it, under these seeds and without folds."""
        row = self.points.index(point)
        at = {name: own[row] for name, own in self.index.items()}
        zeros = (0,) * len(seeds)
        return Members(
            folds=zeros,
            seeds=tuple(seeds),
            points=zeros,
            index=dict.fromkeys(self.index, zeros),
            shape=(1,) * len(self.shape),
            axis_names=self.axis_names,
            lambdas=None if self.lambdas is None else self.lambdas.only(at["lambda"]),
            hyper={name: axis.only(at[name]) for name, axis in self.hyper.items()},
        )

    def strengths(self, names: Names, members: Sequence[int]) -> Lambdas:
        """Return the lambdas of these members by parameter, ``[C, ...]``."""
        if self.lambdas is None:
            return {
                n: torch.zeros(len(members), dtype=strength_dtype(p), device=p.device) for n, p in names.params.items()
            }
        rows = torch.tensor([self.index["lambda"][k] for k in members])
        return {n: self.lambdas.strengths[n][rows.to(p.device)] for n, p in names.params.items()}

    def hyper_values(self, names: Names, name: str, members: Sequence[int]) -> Tensor | Lambdas:
        """Return the values of a swept hyperparameter for these members, ``[C]`` or {parameter: ``[C, ...]``}."""
        rows = torch.tensor([self.index[name][k] for k in members])
        values = self.hyper[name].values
        if isinstance(values, Tensor):
            return values[rows.to(values.device)]
        return {n: values[n][rows.to(values[n].device)] for n in names.params}

    def label(self, member: int) -> dict[str, Any]:
        """Return what a member trained with: its seed, its swept values and its lambda."""
        out: dict[str, Any] = {"seed": self.seeds[member]}
        out.update({n: axis.labels[self.index[n][member]] for n, axis in self.hyper.items()})
        if self.lambdas is not None:
            out["lambda"] = self.lambdas.labels[self.index["lambda"][member]]
        return out

    def totals(self, names: Names) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return ``[2, K]`` totals ``sum(strength * numel)`` of lambda and of decay: each member's shrinkage."""
        out = np.zeros((2, len(self)))
        decay = self.hyper.get("decay")
        for row, (axis, key) in enumerate(((self.lambdas, "lambda"), (decay, "decay"))):
            if axis is None:
                continue
            values = axis.strengths if isinstance(axis, LambdaAxis) else axis.values
            if isinstance(values, Tensor):
                total = values.double().cpu() * sum(p.numel() for p in names.params.values())
            else:
                total = total_strength(values, names)
            out[row] = total.numpy()[list(self.index[key])]
        return out

    def strength_rank(self, names: Names) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return ``[P]`` ranks of how strongly each point shrinks: by lambda, then by decay."""
        totals = np.zeros((2, self.n_points))
        totals[:, list(self.points)] = self.totals(names)
        _, rank = np.unique(totals.T, axis=0, return_inverse=True)
        return np.asarray(rank, dtype=np.float64).ravel()


def total_strength(strengths: Lambdas, names: Names) -> Tensor:
    """Return ``sum(lambda * numel)`` over the parameters, ``[L]`` float64."""
    parts = []
    for name, p in names.params.items():
        value = strengths[name].double().cpu()
        parts.append((value.flatten(1).mean(1) if value.ndim > 1 else value) * p.numel())
    return torch.stack(parts).sum(0)


def is_monotone(strengths: Lambdas, names: Names) -> bool:
    """Return whether one ordering of the path sorts every strength: whether it is one-dimensional."""
    order = torch.argsort(total_strength(strengths, names), stable=True)
    return all(bool((v.double().cpu()[order].diff(dim=0) >= 0).all()) for v in strengths.values())


def build_members(
    names: Names,
    *,
    lambdas: LambdaSpec | None,
    sweep: Mapping[str, Any] | None,
    seeds: Sequence[int],
    members: Sequence[Mapping[str, Any]] | None,
) -> Members:
    """Cross the axes, or take an explicit list.

    Parameters
    ----------
    names : Names
        The parameters.
    lambdas : spec with an axis, or None
    sweep : {hyperparameter: values}, or None
    seeds : sequence of int
    members : sequence of dicts, or None
        Each with the same keys out of "lambdas", "seed" and names of hyperparameters.

    Raises
    ------
    ArgumentError
        If nothing is swept at all, if both forms are given, or if a value makes no sense.
    """
    if members is not None:
        return _explicit(names, members, lambdas, sweep, seeds)
    hyper = {name: hyper_axis(names, name, values) for name, values in (sweep or {}).items()}
    axis = None if lambdas is None else lambda_axis(names, lambdas)
    if axis is None and not hyper:
        raise ArgumentError(
            "lambdas",
            got="None, and no sweep",
            expected="lambdas to train with, or hyperparameters to sweep",
            remedy="pass lambdas=l2path.lambda_grid(1e-6, 1, 32), or sweep={'decay': [...]}",
        )
    axis_names = (*hyper, *(("lambda",) if axis is not None else ()))
    shape = (*(len(h.labels) for h in hyper.values()), *((len(axis),) if axis is not None else ()))
    rows = list(itertools.product(*(range(n) for n in shape)))
    index = {name: tuple(row[i] for _ in seeds for row in rows) for i, name in enumerate(axis_names)}
    return Members(
        folds=(0,) * len(seeds) * len(rows),
        seeds=tuple(s for s in seeds for _ in rows),
        points=tuple(range(len(rows))) * len(seeds),
        index=index,
        shape=shape,
        axis_names=axis_names,
        lambdas=axis,
        hyper=hyper,
    )


def _explicit(
    names: Names,
    members: Sequence[Mapping[str, Any]],
    lambdas: LambdaSpec | None,
    sweep: Mapping[str, Any] | None,
    seeds: Sequence[int],
) -> Members:
    if lambdas is not None or sweep is not None:
        raise ArgumentError(
            "members",
            got="an explicit list beside lambdas= or sweep=",
            expected="one of the two forms",
            remedy="put the lambda and the hyperparameters into each entry of members",
        )
    rows = [dict(m) for m in members]
    if not rows or any(row.keys() != rows[0].keys() for row in rows) or not rows[0]:
        raise ArgumentError(
            "members",
            got="an empty list" if not rows else f"entries with the keys {[sorted(row) for row in rows[:3]]}",
            expected="at least one dict, all with the same keys ('lambdas', 'seed', 'lr', ...)",
            remedy="write every key in every entry",
        )
    count = tuple(range(len(rows)))
    own = tuple(check_seed(row["seed"], "members") for row in rows) if "seed" in rows[0] else (seeds[0],) * len(rows)
    axis = lambda_axis(names, [row["lambdas"] for row in rows]) if "lambdas" in rows[0] else None
    hyper = {k: hyper_axis(names, k, [row[k] for row in rows]) for k in rows[0] if k not in ("lambdas", "seed")}
    index = {name: count for name in (*hyper, *(("lambda",) if axis is not None else ()))}
    return Members((0,) * len(rows), own, count, index, (len(rows),), ("member",), axis, hyper)


def hyper_axis(names: Names, name: str, values: Any) -> HyperAxis:
    """Read the values of one swept hyperparameter."""
    argument = f"sweep[{name!r}]"
    if name == "betas":
        raise ArgumentError(
            argument, got="pairs", expected="'beta1' and 'beta2'", remedy="sweep each by itself, as two axes"
        )
    if isinstance(values, (Mapping, WeightsOnly)) or is_spec_list(values):
        axis = lambda_axis(names, values, argument)
        return HyperAxis(axis.strengths, axis.labels)
    try:
        values = values.detach().cpu() if isinstance(values, Tensor) else values
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        array = np.empty(0)
    below = 1.0 if name in FRACTIONS else np.inf
    if array.ndim != 1 or array.size == 0 or not ((array >= 0) & (array < below)).all():
        raise ArgumentError(
            argument,
            got=repr(values),
            expected=f"a list of at least one finite number >= 0{' and < 1' if name in FRACTIONS else ''}",
            remedy=f"write for example sweep={{{name!r}: [0.1, 0.01]}}",
        )
    return HyperAxis(torch.from_numpy(array), tuple(float(v) for v in array))


def check_seed(seed: object, argument: str) -> int:
    """Return a seed that is a whole number >= 0."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ArgumentError(argument, got=repr(seed), expected="whole numbers >= 0", remedy="use for example seed=0")
    return int(seed)

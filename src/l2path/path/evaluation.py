"""Scores on validation data: per member, on the concatenated outputs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from l2path.data import Source, batch_rows
from l2path.engine import map_members, members_of, take
from l2path.errors import ArgumentError
from l2path.functional import Functional, vmap
from l2path.scores import FloatArray
from l2path.training import FullLoss, TrainState, check_scalar, data_loss, split_batch
from l2path.trees import tensor_leaves, tree_map
from l2path.types import LossFn, MetricFn, Tree

ROW_CALLS = 200_000  # row scores that a metric which cannot be vmapped may be called for, one by one


@dataclass(frozen=True)
class Metric:
    """A score on validation data.

    Parameters
    ----------
    function : callable
        ``function(outputs, targets) -> number``, on the concatenated outputs ``[N, ...]`` of one member.
    greater_is_better : bool
        Whether large values are good (accuracy) or bad (an error).

    Examples
    --------
    >>> Metric(lambda outputs, targets: (outputs.argmax(1) == targets).float().mean(), greater_is_better=True)
    Metric(greater_is_better=True)
    """

    function: MetricFn
    greater_is_better: bool = False

    def __repr__(self) -> str:
        return f"Metric(greater_is_better={self.greater_is_better})"


def check_metrics(metrics: Mapping[str, Metric | MetricFn] | None) -> dict[str, Metric]:
    """Return metrics by name; a bare function is one where less is better."""
    checked: dict[str, Metric] = {}
    for name, metric in (metrics or {}).items():
        if not isinstance(metric, Metric) and not callable(metric):
            raise ArgumentError(
                f"metrics[{name!r}]",
                got=f"a {type(metric).__name__}",
                expected="l2path.Metric(function, greater_is_better=...) or a function",
                remedy="wrap the function in l2path.Metric",
            )
        if name == "loss":
            raise ArgumentError(
                "metrics", got="the name 'loss'", expected="any other name", remedy="'val_loss' is always there"
            )
        checked[name] = metric if isinstance(metric, Metric) else Metric(metric)
    return checked


@dataclass(frozen=True)
class Validation:
    """Validation data and what is computed on it."""

    source: Source
    loss_fn: LossFn | FullLoss
    metrics: dict[str, Metric]

    @property
    def names(self) -> list[str]:
        """Keys of the history that this fills."""
        return ["val_loss", *(f"val_{name}" for name in self.metrics)]


def outputs_of(kind: Literal["vmap", "loop"], fn: Functional, state: TrainState, source: Source) -> tuple[Tree, Tree]:
    """Return the outputs ``[C, N, ...]`` of a chunk in eval mode, and the targets ``[N, ...]``."""
    outputs, targets = [], []
    with torch.no_grad():
        for batch in source.epoch(0):
            inputs, target = split_batch(batch)
            outputs.append(forward(kind, fn, state, inputs))
            targets.append(target)
    return tree_map(lambda *x: torch.cat(x, dim=1), *outputs), tree_map(lambda *x: torch.cat(x), *targets)


def forward(kind: Literal["vmap", "loop"], fn: Functional, state: TrainState, inputs: Any) -> Tree:
    """Return the outputs ``[C, B, ...]`` of a chunk on one batch of inputs."""
    return map_members(kind, lambda s, x: fn.call(s[0], s[1], x)[0], (state.params, state.buffers), inputs)


def score(kind: Literal["vmap", "loop"], fn: Functional, state: TrainState, val: Validation) -> dict[str, Tensor]:
    """Return ``[C]`` float64 scores of a chunk by name.

    The loss is the loss of all rows at once; with ``full_loss`` it is the row-weighted mean over the batches.
    """
    if isinstance(val.loss_fn, FullLoss):
        loss = data_loss(fn, val.loss_fn, evaluation=True)
        total: Tensor | float = 0.0
        rows = 0
        with torch.no_grad():
            for batch in val.source.epoch(0):
                n = batch_rows(batch)
                one = map_members(kind, lambda s, b: loss(s[0], s[1], b)[0], (state.params, state.buffers), batch)
                total, rows = total + one.double() * n, rows + n
        return {"val_loss": torch.as_tensor(total / rows)}
    outputs, targets = outputs_of(kind, fn, state, val.source)
    return scores_of_outputs(outputs, targets, val)


def scores_of_outputs(outputs: Tree, targets: Tree, val: Validation) -> dict[str, Tensor]:
    """Return ``[C]`` float64 scores by name, calling the loss and each metric on one member at a time."""
    found: dict[str, list[float]] = {name: [] for name in val.names}
    with torch.no_grad():
        for c in range(members_of(outputs)):
            one = take(outputs, c)
            found["val_loss"].append(float(check_scalar(val.loss_fn(one, targets))))  # type: ignore[operator]  # no FullLoss
            for name, metric in val.metrics.items():
                found[f"val_{name}"].append(_number(metric.function(one, targets), name))
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in found.items()}


def _number(value: Any, name: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArgumentError(
            f"metrics[{name!r}]",
            got=f"a result of {type(value).__name__}" + (f" {list(value.shape)}" if isinstance(value, Tensor) else ""),
            expected="one number for all rows",
            remedy="average over the rows in the metric",
        ) from error


def row_scores(
    outputs: Tree, targets: Tree, function: Callable[[Any, Any], Any], whole: FloatArray
) -> tuple[FloatArray | None, str | None]:
    """Score every validation row alone, for standard errors.

    Parameters
    ----------
    outputs, targets : tree, ``[C, N, ...]`` and ``[N, ...]``
    function : callable
        The loss or the metric.
    whole : array, [C]
        The score of all rows at once.

    Returns
    -------
    rows : array ``[C, N]``, or None
    reason : str, or None
        Why there are none: the score is not the mean of its rows (AUC, weighted losses), or cannot be had.
    """
    members = members_of(outputs)
    n = next(tensor_leaves(targets)).shape[0]
    with warnings.catch_warnings():
        # What a score warns of when it is given one row was asked for by nobody.
        warnings.simplefilter("ignore")
        return _row_scores(outputs, targets, function, whole, members, n)


def _row_scores(
    outputs: Tree, targets: Tree, function: Callable[[Any, Any], Any], whole: FloatArray, members: int, n: int
) -> tuple[FloatArray | None, str | None]:
    def one(output: Tree, target: Tree) -> Any:
        return function(*tree_map(lambda x: x.unsqueeze(0), (output, target)))

    try:
        with torch.no_grad():
            rows = vmap(vmap(one), in_dims=(0, None))(outputs, targets).double().cpu().numpy()
    except Exception:  # anything that does not batch, a metric of scikit-learn for example: row by row
        if members * n > ROW_CALLS:
            return None, f"the score cannot be vmapped, and {members} x {n} rows are too many to score one by one"
        try:
            with torch.no_grad():
                pairs = [[(take(take(outputs, c), i), take(targets, i)) for i in range(n)] for c in range(members)]
                rows = np.array([[float(one(*pair)) for pair in row] for row in pairs])
        except Exception as error:
            return None, f"the score fails on one row: {error}"
    finite = np.isfinite(whole)
    if rows.shape != (members, n) or not np.allclose(rows.mean(1)[finite], whole[finite], rtol=1e-4, atol=1e-7):
        return None, "the score is not the mean over its rows, so that rows say nothing about its error"
    return rows, None

"""Scores on validation data: per member, on the concatenated outputs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from l2path.data import DataStream, Source, batch_rows
from l2path.engine import EvalKind, map_members, members_of, take
from l2path.errors import ArgumentError
from l2path.functional import Functional, seed_generators, vmap
from l2path.losses import FullLoss, check_scalar, data_loss, split_batch
from l2path.order import step_seed
from l2path.scores import FloatArray
from l2path.training import TrainState
from l2path.trees import map_tensors, tensor_leaves, tree_map
from l2path.types import Batch, LossFn, MetricFn, Tree

ROW_CALLS = 200_000  # row scores that a metric which cannot be vmapped may be called for, one by one


@dataclass(frozen=True)
class Metric:
    """A score on validation data.

    Parameters
    ----------
    function : callable
        ``function(outputs, targets) -> number``, on the concatenated outputs ``[N, ...]`` of one member. Mind the
        order: scikit-learn's metrics take the targets first, ``lambda outputs, targets: r2_score(targets, outputs)``.
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
    """Return metrics by name; a bare function is recorded, but does not know which way is better."""
    if metrics is not None and not isinstance(metrics, Mapping):
        raise ArgumentError(
            "metrics",
            got=f"a {type(metrics).__name__}",
            expected="a dict of metrics by name",
            remedy="write metrics={'accuracy': l2path.Metric(accuracy, greater_is_better=True)}",
        )
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


def validation_batches(source: Source) -> Iterator[Batch]:
    """Yield the validation batches, the same ones in the same order at every call."""
    empty = True
    for batch in DataStream(source, 0):
        empty = False
        yield batch
    if empty:
        raise ArgumentError(
            "validation",
            got="a stream without batches",
            expected="at least one batch at every evaluation",
            remedy="an iterator can be read once only: pass an iterable that starts anew, such as a DataLoader",
        )


def outputs_of(kind: EvalKind, fn: Functional, state: TrainState, source: Source, seed: int) -> tuple[Tree, Tree]:
    """Return the outputs ``[C, N, ...]`` of a chunk in eval mode, and the targets ``[N, ...]``."""
    outputs, targets, rows = [], [], []
    with torch.no_grad():
        for step, batch in enumerate(validation_batches(source)):
            inputs, target = split_batch(batch)
            outputs.append(forward(kind, fn, state, inputs, step_seed(seed, step)))
            targets.append(target)
            rows.append(batch_rows(batch))
    return concatenate(outputs, rows, member_axis=True), concatenate(targets, rows, member_axis=False)


def concatenate(trees: list[Tree], rows: list[int], *, member_axis: bool) -> Tree:
    """Join batches along their rows; what has no rows (one number for a batch) becomes the row-weighted mean."""
    axis = 1 if member_axis else 0

    def join(*leaves: Any) -> Any:
        if not isinstance(leaves[0], Tensor):
            return leaves[0]
        if leaves[0].ndim == axis:
            return sum(leaf * (n / sum(rows)) for leaf, n in zip(leaves, rows, strict=True))
        return torch.cat(leaves, dim=axis)

    return tree_map(join, *trees)


def forward(kind: EvalKind, fn: Functional, state: TrainState, inputs: Any, seed: int) -> Tree:
    """Return the outputs ``[C, B, ...]`` of a chunk on one batch of inputs; ``seed`` is of random masks."""
    parts = (state.params, state.buffers)
    prepare = partial(seed_generators, fn.device, seed)
    return map_members(kind, lambda s, x: fn.call(s[0], s[1], x)[0], parts, inputs, prepare)


def score(kind: EvalKind, fn: Functional, state: TrainState, val: Validation, seed: int) -> dict[str, Tensor]:
    """Return ``[C]`` float64 scores of a chunk by name.

    The loss is the loss of all rows at once; with ``full_loss`` it is the row-weighted mean over the batches. Random
    masks of modules that draw in eval mode are a function of (seed, batch), the same for every member.
    """
    if isinstance(val.loss_fn, FullLoss):
        loss = data_loss(fn, val.loss_fn, evaluation=True)
        total: Tensor | float = 0.0
        rows = 0
        parts = (state.params, state.buffers)
        with torch.no_grad():
            for step, batch in enumerate(validation_batches(val.source)):
                n = batch_rows(batch)
                prepare = partial(seed_generators, fn.device, step_seed(seed, step))
                one = map_members(kind, lambda s, b: loss(s[0], s[1], b)[0], parts, batch, prepare)
                total, rows = total + one.double() * n, rows + n
        return {"val_loss": torch.as_tensor(total / rows)}
    outputs, targets = outputs_of(kind, fn, state, val.source, seed)
    return scores_of_outputs(outputs, targets, val)


def copied(*trees: Tree) -> tuple[Tree, ...]:
    """Return trees of copied tensors."""
    return tuple(map_tensors(torch.clone, tree) for tree in trees)


def scores_of_outputs(outputs: Tree, targets: Tree, val: Validation) -> dict[str, Tensor]:
    """Return ``[C]`` float64 scores by name, calling the loss and each metric on one member at a time."""
    found: dict[str, list[float]] = {name: [] for name in val.names}
    with torch.no_grad():
        for c in range(members_of(outputs)):
            one = take(outputs, c)
            # Copied for each call: what works in place must not spoil the rows for the others.
            loss = val.loss_fn(*copied(one, targets))  # type: ignore[operator]  # no FullLoss comes here
            found["val_loss"].append(float(check_scalar(loss)))
            for name, metric in val.metrics.items():
                found[f"val_{name}"].append(_number(metric.function(*copied(one, targets)), name))
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
    n = next(leaf for leaf in tensor_leaves(outputs) if leaf.ndim > 1).shape[1]
    with warnings.catch_warnings():
        # What a score warns of when it is given one row was asked for by nobody.
        warnings.simplefilter("ignore")
        return _row_scores(outputs, targets, function, whole, members, n)


def _row_scores(
    outputs: Tree, targets: Tree, function: Callable[[Any, Any], Any], whole: FloatArray, members: int, n: int
) -> tuple[FloatArray | None, str | None]:
    def one(output: Tree, target: Tree) -> Any:
        return function(*map_tensors(lambda x: x.unsqueeze(0).clone(), (output, target)))

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

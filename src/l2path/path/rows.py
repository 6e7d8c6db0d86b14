"""Scores of single validation rows, for standard errors."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from l2path.batches import batch_rows
from l2path.engine import EvalKind, members_of
from l2path.functional import Functional, vmap
from l2path.losses import ModelLoss
from l2path.order import step_seed
from l2path.path.evaluation import Validation, forward, outputs_of, validation_batches, whole_batch
from l2path.scores import FloatArray
from l2path.training import TrainState
from l2path.trees import map_tensors, tensor_leaves, with_tensors
from l2path.types import Tree

ROW_CALLS = 200_000  # row scores that a metric which cannot be vmapped may be called for, one by one
MODEL_CALLS = 2_000  # the same for a model that computes its own loss

Rows = tuple[FloatArray | None, str | None]
"""Scores ``[C, N]``, or None with the reason why there are none."""


def chunk_rows(
    kind: EvalKind, fn: Functional, state: TrainState, val: Validation, name: str, seed: int, whole: FloatArray
) -> Rows:
    """Return the score ``name`` of a chunk on every validation row alone.

    Parameters
    ----------
    kind, fn, state, val, seed
        As for :func:`score`.
    name : str
        "val_loss", or "val_<metric>".
    whole : array, [C]
        The score of all rows at once.
    """
    if name == "val_loss" and isinstance(val.loss_fn, ModelLoss):
        return rows_of_model(kind, fn, state, val, seed, whole)
    outputs, targets = outputs_of(lambda inputs, _, own: forward(kind, fn, state, inputs, own), val, seed)
    function: Any = val.loss_fn if name == "val_loss" else val.metrics[name.removeprefix("val_")].function
    return row_scores(outputs, targets, function, whole)


def rows_of_model(
    kind: EvalKind, fn: Functional, state: TrainState, val: Validation, seed: int, whole: FloatArray
) -> Rows:
    """Score every validation row alone by calling a model that computes its own loss on it."""
    n = sum(map(batch_rows, validation_batches(val.source)))
    calls = n * (len(whole) if kind == "loop" else 1)
    if calls > MODEL_CALLS:
        return None, f"the model computes the loss itself, and {calls} calls on single rows are too many"
    found = []
    try:
        with torch.no_grad():
            for step, batch in enumerate(validation_batches(val.source)):
                size = batch_rows(batch)
                for i in range(size):
                    row = map_tensors(lambda x: x[i : i + 1] if x.ndim and len(x) == size else x, batch)  # noqa: B023
                    found.append(whole_batch(kind, fn, state, val, row, step_seed(seed, step))[0])
    except Exception as error:
        return None, f"the model fails on one row: {error}"
    return checked(torch.stack(found, 1).double().cpu().numpy(), whole, n)


def row_scores(outputs: Tree, targets: Tree, function: Callable[[Any, Any], Any], whole: FloatArray) -> Rows:
    """Score every validation row alone, from its outputs.

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
    # What is one number for all rows says nothing of one: NaN in its place shows whether the score depends on it.
    given = tuple(_unknown(x) if x.ndim == 1 else x for x in tensor_leaves(outputs))
    beside = tuple(_unknown(x) if x.ndim == 0 else x for x in tensor_leaves(targets))
    axes = tuple(tuple(0 if x.ndim > least else None for x in part) for part, least in ((given, 1), (beside, 0)))
    n = next(x for x in given if x.ndim > 1).shape[1]

    def one(*rows: tuple[Tensor, ...]) -> Any:
        outs, tgts = (
            [x.clone() if axis is None else x.unsqueeze(0).clone() for x, axis in zip(row, ax, strict=True)]
            for row, ax in zip(rows, axes, strict=True)
        )
        return function(with_tensors(outputs, outs), with_tensors(targets, tgts))

    def pick(part: tuple[Tensor, ...], ax: tuple[int | None, ...], i: int) -> tuple[Tensor, ...]:
        return tuple(x if axis is None else x[i] for x, axis in zip(part, ax, strict=True))

    with warnings.catch_warnings(), torch.no_grad():
        # What a score warns of when it is given one row was asked for by nobody.
        warnings.simplefilter("ignore")
        try:
            found = vmap(vmap(one, in_dims=axes), in_dims=(0, None))(given, beside).double().cpu().numpy()
        except Exception:  # anything that does not batch, a metric of scikit-learn for example: row by row
            if members * n > ROW_CALLS:
                return None, f"the score cannot be vmapped, and {members} x {n} rows are too many to score one by one"
            try:
                alone = [tuple(x[c] for x in given) for c in range(members)]
                found = np.array(
                    [[float(one(pick(own, axes[0], i), pick(beside, axes[1], i))) for i in range(n)] for own in alone]
                )
            except Exception as error:
                return None, f"the score fails on one row: {error}"
    return checked(found, whole, n)


def _unknown(x: Tensor) -> Tensor:
    return torch.full_like(x, torch.nan) if x.is_floating_point() or x.is_complex() else x


def checked(rows: FloatArray, whole: FloatArray, n: int) -> Rows:
    """Return the rows if their mean is the whole score."""
    finite = np.isfinite(whole)
    if rows.shape != (len(whole), n) or not np.allclose(rows.mean(1)[finite], whole[finite], rtol=1e-4, atol=1e-7):
        return None, "the score is not the mean over its rows, so that rows say nothing about its error"
    return rows, None

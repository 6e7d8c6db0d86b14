"""Scores on validation data: per member, on the concatenated outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from l2path.batches import batch_rows, noted
from l2path.data import DataStream, Source
from l2path.engine import EvalKind, map_members, members_of, take
from l2path.errors import ArgumentError
from l2path.functional import Functional, seed_generators, vmap
from l2path.losses import FullLoss, ModelLoss, check_scalar, data_loss, split_batch
from l2path.memory import peak_bytes
from l2path.order import step_seed
from l2path.training import TrainState
from l2path.trees import map_tensors, tensor_leaves, tree_map
from l2path.types import Batch, Buffers, LossFn, MetricFn, Params, Tree

LOSS_BYTES = 2**25  # that a vmapped loss may take


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
    batched: bool = False  # whether the loss of many members' outputs can be vmapped
    member_bytes: int = 1  # that one member takes while it is scored, about
    peaks: dict[Any, int] = field(default_factory=dict, compare=False, repr=False)  # bytes of a loss, by shapes

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


def outputs_of(call: Callable[[Any, int, int], Tree], val: Validation, seed: int) -> tuple[Tree, Tree]:
    """Return the outputs ``[C, N, ...]`` of a chunk in eval mode, and the targets ``[N, ...]``.

    ``call(inputs, rows, seed)`` returns those of one batch, see :func:`forward`.
    """
    outputs, targets, rows = [], [], []
    with torch.no_grad():
        for step, batch in enumerate(validation_batches(val.source)):
            inputs, target = split_batch(batch, val.loss_fn)
            with noted(f"batch {step} of the validation data", batch):
                rows.append(batch_rows(batch))
                outputs.append(call(inputs, rows[-1], step_seed(seed, step)))
            targets.append(target)
    return concatenate(outputs, rows, member_axis=True), concatenate(targets, rows, member_axis=False)


def concatenate(trees: list[Tree], rows: list[int], *, member_axis: bool) -> Tree:
    """Join batches along their rows; what has no rows (one number for a batch) becomes the row-weighted mean."""
    axis = 1 if member_axis else 0

    def join(*leaves: Any) -> Any:
        shapes = {leaf.shape[:axis] + leaf.shape[axis + 1 :] for leaf in leaves if isinstance(leaf, Tensor)}
        if len(shapes) > 1:
            raise ArgumentError(
                "outputs" if member_axis else "targets",
                got=f"batches of the shapes {[list(leaf.shape[axis:]) for leaf in leaves]}",
                expected="shapes that differ in their rows alone: all of them are scored together",
                remedy="pad every batch to one length, or return one row for each example; a loss that the model "
                "computes itself (l2path.model_loss) is averaged over the batches instead, if there are no metrics",
            )
        if not isinstance(leaves[0], Tensor):
            return leaves[0]
        if leaves[0].ndim == axis:
            return sum(leaf * (n / sum(rows)) for leaf, n in zip(leaves, rows, strict=True))
        if len(leaves) > 1 and any(leaf.shape[axis] % n for leaf, n in zip(leaves, rows, strict=True)):
            raise ArgumentError(
                "outputs" if member_axis else "targets",
                got=f"shapes {[list(leaf.shape[axis:]) for leaf in leaves][:3]} for batches of {rows[:3]} rows",
                expected="rows along the first axis, by which batches are joined",
                remedy="return it with the rows first (a recurrent layer's last state has its layers there), or not at "
                "all in eval mode",
            )
        return torch.cat(leaves, dim=axis)

    return tree_map(join, *trees)


def forward(kind: EvalKind, fn: Functional, state: TrainState, inputs: Any, seed: int) -> Tree:
    """Return the outputs ``[C, B, ...]`` of a chunk on one batch of inputs; ``seed`` is of random masks."""
    parts = (state.params, state.buffers)
    prepare = partial(seed_generators, fn.device, seed)
    return map_members(kind, lambda s, x: fn.call_substituted(s[0], s[1], x)[0], parts, inputs, prepare)


def whole_batch(
    kind: EvalKind, fn: Functional, state: TrainState, val: Validation, batch: Batch, seed: int
) -> tuple[Tensor, Tree]:
    """Return the losses ``[C]`` of a chunk on one batch that goes to the model as a whole, and its outputs.

    Outputs are kept only where there are metrics to compute on them: those of a language model are large.
    """
    loss_fn = val.loss_fn

    def call(s: tuple[Params, Buffers], b: Batch) -> tuple[Tensor, Tree]:
        if isinstance(loss_fn, FullLoss):
            return data_loss(fn, loss_fn, evaluation=True)(s[0], s[1], b)[0], None
        outputs = fn.call_substituted(s[0], s[1], b)[0]
        return check_scalar(loss_fn(outputs, b)), outputs if val.metrics else None

    with torch.no_grad():
        found: tuple[Tensor, Tree] = map_members(
            kind, call, (state.params, state.buffers), batch, partial(seed_generators, fn.device, seed)
        )
    return found


def score(
    kind: EvalKind,
    fn: Functional,
    state: Callable[[], TrainState],
    val: Validation,
    seed: int,
    outputs: Callable[[Any, int, int], Tree],
    undisturbed: AbstractContextManager[object],
) -> dict[str, Tensor]:
    """Return ``[C]`` float64 scores of a chunk by name.

    ``outputs`` is what :func:`outputs_of` calls; ``undisturbed`` is held while the loss and metrics are called.

    The loss is the loss of all rows at once; with ``model_loss`` and ``full_loss`` it is the row-weighted mean over the
    batches. Random masks of modules that draw in eval mode are a function of (seed, batch), the same for every member.
    """
    prepare = partial(seed_generators, fn.device, step_seed(seed, 0))
    if not isinstance(val.loss_fn, (FullLoss, ModelLoss)):
        found = outputs_of(outputs, val, seed)
        with undisturbed:
            return scores_of_outputs(*found, val, prepare)
    losses, trees, batches, rows = [], [], [], []
    with undisturbed:
        for step, batch in enumerate(validation_batches(val.source)):
            with noted(f"batch {step} of the validation data", batch):
                loss, returned = whole_batch(kind, fn, state(), val, batch, step_seed(seed, step))
            losses.append(loss.double())
            rows.append(batch_rows(batch))
            if val.metrics:
                trees.append(returned)
                batches.append(batch)
        mean = {"val_loss": concatenate(losses, rows, member_axis=True)}
        if not val.metrics:
            return mean
        joined = concatenate(trees, rows, member_axis=True), concatenate(batches, rows, member_axis=False)
        return scores_of_outputs(*joined, val, prepare) | mean


def copied(*trees: Tree) -> tuple[Tree, ...]:
    """Return trees of copied tensors."""
    return tuple(map_tensors(torch.clone, tree) for tree in trees)


def scores_of_outputs(outputs: Tree, targets: Tree, val: Validation, prepare: Callable[[], None]) -> dict[str, Tensor]:
    """Return ``[C]`` float64 scores by name: metrics, and a loss that cannot be vmapped, are called member by member.

    ``prepare`` seeds what they may draw, the same for every member.
    """
    found: dict[str, list[float]] = {name: [] for name in val.names}
    with torch.no_grad():
        try:
            found["val_loss"] = losses_at_once(val, outputs, targets, prepare) if val.batched else []
        except Exception:  # out of memory, or what is there in these rows alone: an error of the loss comes again
            found["val_loss"] = []
        batched = bool(found["val_loss"])
        for c in range(members_of(outputs) if val.metrics or not batched else 0):
            one = take(outputs, c)
            if not batched:
                # Copied for each call: what works in place must not spoil the rows for the others.
                prepare()
                loss = val.loss_fn(*copied(one, targets))  # type: ignore[operator]  # no FullLoss comes here
                found["val_loss"].append(float(check_scalar(loss)))
            for name, metric in val.metrics.items():
                prepare()
                found[f"val_{name}"].append(_number(metric.function(*copied(one, targets)), name))
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in found.items()}


def losses_at_once(val: Validation, outputs: Tree, targets: Tree, prepare: Callable[[], None]) -> list[float]:
    """Return the loss of each member, vmapped over as many of them as ``LOSS_BYTES`` hold."""

    def loss(own: Tree, rows: Tree) -> Tensor:
        return check_scalar(val.loss_fn(own, rows))  # type: ignore[operator]  # no FullLoss comes here

    shapes = tuple(x.shape[1:] for x in tensor_leaves(outputs))
    if shapes not in val.peaks:
        prepare()
        val.peaks[shapes] = peak_bytes(lambda: loss(*copied(take(outputs, 0), targets)))
    members, count = members_of(outputs), max(1, LOSS_BYTES // max(1, val.peaks[shapes]))
    losses: list[float] = []
    for start in range(0, members, count):
        part = map_tensors(lambda x: x[start : start + count], outputs)  # noqa: B023
        prepare()
        losses += vmap(loss, in_dims=(0, None))(*copied(part, targets)).tolist()
    return losses


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

"""Both kinds of loss as one function of parameters, buffers and a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from l2path.errors import ArgumentError
from l2path.functional import Functional
from l2path.trees import map_tensors
from l2path.types import Batch, Buffers, LossFn, Params

DataLoss = Callable[[Params, Buffers, Batch], tuple[Tensor, Buffers]]


@dataclass(frozen=True)
class FullLoss:
    """A loss that calls the model itself; see :func:`full_loss`."""

    function: Callable[[Params, Buffers, Batch], tuple[Tensor, Any]]
    evaluate: Callable[[Params, Buffers, Batch], tuple[Tensor, Any]]


def full_loss(
    function: Callable[[Params, Buffers, Batch], tuple[Tensor, Any]],
    *,
    evaluate: Callable[[Params, Buffers, Batch], tuple[Tensor, Any]] | None = None,
) -> FullLoss:
    """Mark a function as a loss over parameters, buffers and a whole batch.

    Parameters
    ----------
    function : callable
        ``f(params, buffers, batch) -> (loss, aux)`` with a 0-d mean loss. ``aux`` is None or a dict, whose
        entry ``"buffers"`` holds the new buffers where the model changes them (BatchNorm).
    evaluate : callable, optional
        The same in evaluation mode, for validation; ``function`` itself where it is left out.

    Returns
    -------
    FullLoss
        To be passed as ``loss_fn``.

    Examples
    --------
    >>> from l2path.functional import functionalize
    >>> fn = functionalize(nn.Linear(2, 1))
    >>> def loss(params, buffers, batch):
    ...     outputs, buffers = fn.apply(params, buffers, batch)
    ...     return outputs.square().mean(), {"buffers": buffers}
    >>> full_loss(loss).function is loss
    True
    """
    return FullLoss(function, evaluate or function)


def data_loss(fn: Functional, loss_fn: LossFn | FullLoss, *, evaluation: bool = False) -> DataLoss:
    """Return ``(params, buffers, batch) -> (loss, new_buffers)`` for either kind of loss."""
    check_loss(loss_fn)
    if isinstance(loss_fn, FullLoss):
        function = loss_fn.evaluate if evaluation else loss_fn.function

        def call_full(params: Params, buffers: Buffers, batch: Batch) -> tuple[Tensor, Buffers]:
            everything = {**{k: fn.frozen[k] for k in fn.unused}, **params}
            loss, aux = function(everything, buffers, map_tensors(torch.clone, batch))
            found = aux.get("buffers") if isinstance(aux, Mapping) else None
            return check_scalar(loss), buffers if found is None else dict(found)

        return call_full

    def call(params: Params, buffers: Buffers, batch: Batch) -> tuple[Tensor, Buffers]:
        inputs, targets = split_batch(batch)
        outputs, new_buffers = fn.call(params, buffers, inputs)
        # Copied, as the inputs are: a loss that works in place must not spoil the batch for the other members.
        return check_scalar(loss_fn(outputs, map_tensors(torch.clone, targets))), new_buffers

    return call


def split_batch(batch: Batch) -> tuple[Any, Any]:
    """Return ``(inputs, targets)`` of a batch, or say what a batch is."""
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    got = f"{len(batch)} parts" if isinstance(batch, (tuple, list)) else f"a {type(batch).__name__}"
    raise ArgumentError(
        "batch",
        got=got,
        expected="(inputs, targets), where inputs may be a tuple or a dict",
        remedy="regroup it, or compute the loss from the whole batch with l2path.full_loss",
    )


def check_scalar(loss: Any) -> Tensor:
    """Return the loss if it is a 0-d floating tensor."""
    if not isinstance(loss, Tensor) or loss.ndim != 0 or not loss.is_floating_point():
        got = f"shape {list(loss.shape)}, {loss.dtype}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ArgumentError(
            "loss_fn",
            got=f"a result of {got}",
            expected="a scalar (0-d, real, floating) tensor, the mean over the batch",
            remedy="use reduction='mean', or call .mean() on the losses",
        )
    return loss


def check_loss(loss_fn: object) -> None:
    """Refuse what is no loss, and criteria with parameters of their own to train."""
    if isinstance(loss_fn, nn.Module):
        trainable = [name for name, p in loss_fn.named_parameters() if p.requires_grad]
        if trainable:
            raise ArgumentError(
                "loss_fn",
                got=f"a criterion with trainable parameters {trainable}",
                expected="a function of outputs and targets alone",
                remedy="make the criterion a sub-module of the model, or set requires_grad=False on them",
            )
    if isinstance(loss_fn, type) or (not isinstance(loss_fn, FullLoss) and not callable(loss_fn)):
        raise ArgumentError(
            "loss_fn",
            got=f"a {type(loss_fn).__name__}",
            expected="loss_fn(outputs, targets) -> scalar, or l2path.full_loss(f)",
            remedy="pass for example torch.nn.functional.cross_entropy",
        )

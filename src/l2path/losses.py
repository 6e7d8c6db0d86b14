"""Every kind of loss as one function of parameters, buffers and a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from l2path.errors import ArgumentError
from l2path.functional import Functional, first_members
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


@dataclass(frozen=True)
class ModelLoss:
    """A loss that the model computes itself from the whole batch; see :func:`model_loss`."""

    pick: Callable[[Any], Any]

    def __call__(self, outputs: Any, batch: Batch) -> Any:
        """Take the loss out of the outputs; called like any other loss."""
        return self.pick(outputs)


def model_loss(pick: Callable[[Any], Any] | None = None) -> ModelLoss:
    """Say that the model computes its loss itself, from the whole batch, as those of Hugging Face do.

    A batch is no ``(inputs, targets)`` then: all of it goes to the module, a dict as keyword arguments and a tuple as
    positional ones. Data may be a dict of tensors with one row for each example, or a DataLoader of dicts.

    Parameters
    ----------
    pick : callable, optional
        ``pick(outputs) -> 0-d mean loss`` takes the loss out of what the module returns. By default that is the 0-d
        tensor itself, or ``outputs.loss``, or ``outputs["loss"]``.

    Returns
    -------
    ModelLoss
        To be passed as ``loss_fn``. ``val_loss`` is then the mean over the validation batches, weighted by their rows;
        a metric is called as ``function(outputs, batch)``.

    Raises
    ------
    ArgumentError
        If ``pick`` is no function; when a model is called, if there is no loss in what it returns.

    Examples
    --------
    >>> class Model(nn.Linear):
    ...     def forward(self, x, labels=None):
    ...         outputs = super().forward(x)
    ...         return {"outputs": outputs} if labels is None else {"loss": nn.functional.mse_loss(outputs, labels)}
    >>> from l2path import batch_train, sgd
    >>> rows = {"x": torch.ones(4, 2), "labels": torch.ones(4, 1)}
    >>> result = batch_train(
    ...     Model(2, 1), rows, loss_fn=model_loss(), optimizer=sgd(lr=0.1), lambdas=[0.1, 0.0], epochs=2
    ... )
    >>> result.predict({"x": torch.ones(3, 2)})["outputs"].shape
    torch.Size([2, 3, 1])
    """
    if pick is not None and (not callable(pick) or isinstance(pick, nn.Module)):
        raise ArgumentError(
            "pick",
            got=f"a {type(pick).__name__}",
            expected="a function that takes the loss out of what the module returns",
            remedy="write model_loss(lambda outputs: outputs[0])",
        )
    return ModelLoss(own_loss if pick is None else pick)


def own_loss(outputs: Any) -> Tensor:
    """Return the loss among the outputs of a model that computes it."""
    loss = outputs if isinstance(outputs, Tensor) and outputs.ndim == 0 else getattr(outputs, "loss", None)
    if loss is None and isinstance(outputs, Mapping):
        loss = outputs.get("loss")
    if isinstance(loss, Tensor):
        return loss
    shape = f" of shape {list(outputs.shape)}" if isinstance(outputs, Tensor) else ""
    raise ArgumentError(
        "loss_fn",
        got=f"model_loss() with a model that returns a {type(outputs).__name__}{shape} without a loss",
        expected="a 0-d tensor, or outputs with a .loss or ['loss']",
        remedy="give the model what it computes its loss from (mostly: labels in the batch), or say where the loss "
        "is, for example model_loss(lambda outputs: outputs[0])",
    )


def data_loss(fn: Functional, loss_fn: LossFn | FullLoss, *, evaluation: bool = False) -> DataLoss:
    """Return ``(params, buffers, batch) -> (loss, new_buffers)`` for any kind of loss."""
    check_loss(loss_fn)
    if fn.substitutes is not None:
        plain = data_loss(fn.with_substitutes(None), loss_fn, evaluation=evaluation)

        def substituted(params: Params, buffers: Buffers, batch: Batch) -> tuple[Tensor, Buffers]:
            with fn.substituted(batch, lambda: plain(*first_members(params, buffers), batch)):
                return plain(params, buffers, batch)

        return substituted
    if isinstance(loss_fn, FullLoss):
        function = loss_fn.evaluate if evaluation else loss_fn.function

        def call_full(params: Params, buffers: Buffers, batch: Batch) -> tuple[Tensor, Buffers]:
            everything = {**{k: fn.frozen[k] for k in fn.unused}, **params}
            loss, aux = function(everything, buffers, map_tensors(torch.clone, batch))
            found = aux.get("buffers") if isinstance(aux, Mapping) else None
            return check_scalar(loss), buffers if found is None else dict(found)

        return call_full

    def call(params: Params, buffers: Buffers, batch: Batch) -> tuple[Tensor, Buffers]:
        inputs, targets = split_batch(batch, loss_fn)
        outputs, new_buffers = fn.call(params, buffers, inputs)
        # Copied, as the inputs are: a loss that works in place must not spoil the batch for the other members.
        return check_scalar(loss_fn(outputs, map_tensors(torch.clone, targets))), new_buffers

    return call


def split_batch(batch: Batch, loss_fn: object = None) -> tuple[Any, Any]:
    """Return what goes to the module, and what to the loss and the metrics beside its outputs."""
    if isinstance(loss_fn, ModelLoss):
        return batch, batch
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    got = f"{len(batch)} parts" if isinstance(batch, (tuple, list)) else f"a {type(batch).__name__}"
    if isinstance(batch, Mapping):
        got += f" of {list(batch)}"
    raise ArgumentError(
        "batch",
        got=got,
        expected="(inputs, targets), where inputs may be a tuple or a dict",
        remedy="regroup it; if the model computes its loss from the whole batch, pass loss_fn=l2path.model_loss(), and "
        "for any other loss of the whole batch l2path.full_loss",
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
    if loss_fn is model_loss or loss_fn is full_loss:
        name = "model_loss()" if loss_fn is model_loss else "full_loss(f)"
        raise ArgumentError(
            "loss_fn",
            got="the function that marks a loss",
            expected="what it returns",
            remedy=f"call it: l2path.{name}",
        )
    if isinstance(loss_fn, type) or (not isinstance(loss_fn, FullLoss) and not callable(loss_fn)):
        raise ArgumentError(
            "loss_fn",
            got=f"a {type(loss_fn).__name__}",
            expected="loss_fn(outputs, targets) -> scalar, l2path.model_loss() or l2path.full_loss(f)",
            remedy="pass for example torch.nn.functional.cross_entropy",
        )

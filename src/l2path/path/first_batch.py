"""What the first batch shows before training starts: what fails, and where, and what would train a wrong model."""

from __future__ import annotations

import inspect
import math
import pickle
import random
import warnings

import numpy as np
import torch
from torch import Tensor

from l2path.batches import describe_batch, structure
from l2path.errors import (
    ArgumentError,
    BroadcastWarning,
    ModuleStateWarning,
    ReductionWarning,
    UnusedParameterWarning,
)
from l2path.functional import Functional, as_arguments, failing_layer, seed_generators, unused_parameters
from l2path.losses import DataLoss, FullLoss, ModelLoss, data_loss, split_batch
from l2path.order import step_seed
from l2path.trees import map_tensors
from l2path.types import Batch, LossFn, Tree


def first_loss(fn: Functional, loss_fn: LossFn | FullLoss, batch: Batch) -> None:
    """Run the module and the loss once on the first batch, and say what fails, and in which layer."""

    def run(f: Functional) -> None:
        with torch.no_grad():
            data_loss(f, loss_fn)(f.params, f.buffers, batch)

    others = foreign_generators()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run(fn)
    except ArgumentError:
        raise
    except Exception as error:
        if isinstance(error, TypeError) and not isinstance(loss_fn, FullLoss):
            refuse_arguments(fn, split_batch(batch, loss_fn)[0])
        layer = failing_layer(fn, run)
        raise unusable(fn, batch, f"the layer {layer}" if layer else "the model or the loss", error) from error
    if fn.changed:
        warnings.warn(
            f"a forward pass sets the attributes {sorted(fn.changed)} of the module: they are put back after every "
            "call, so that members do not share them. What training depends on must be a buffer",
            ModuleStateWarning,
            stacklevel=4,
        )
    if foreign_generators() != others:
        warnings.warn(
            "a forward pass draws random numbers from NumPy or from Python's random, which are not seeded for each "
            "step: every member sees other ones, and a run does not repeat. Draw them with torch, or switch that off",
            ModuleStateWarning,
            stacklevel=4,
        )
    if not isinstance(loss_fn, (FullLoss, ModelLoss)):
        with torch.no_grad():
            inputs, targets = split_batch(batch)
            warn_broadcast(fn.call(fn.params, fn.buffers, inputs)[0], targets, "data")
    refuse_broadcast(caught, "data")


def foreign_generators() -> bytes:
    """Return where the generators stand that are not torch's."""
    state = np.random.get_state(legacy=False)  # noqa: NPY002 - the one that modules draw from
    return pickle.dumps((random.getstate(), state))


def unusable(fn: Functional, batch: Batch, what: str, error: Exception) -> ArgumentError:
    """Return the error to raise when ``what`` fails on the first batch."""
    remedy = "call loss_fn(module(inputs), targets) on a batch and mend what it says"
    if fn.dtype in (torch.float16, torch.bfloat16) and "not implemented for" in str(error):
        remedy = (
            f"train in float32 (module.float(), and inputs of that dtype): not every operation exists in {fn.dtype}"
        )
    return ArgumentError(
        "data",
        got=f"a first batch of {describe_batch(batch)}, on which {what} fails: {type(error).__name__}: {error}",
        expected=f"batches that {type(fn.template).__name__} ({fn.dtype}, {fn.device}) and the loss take",
        remedy=remedy,
    )


def refuse_arguments(fn: Functional, inputs: Batch) -> None:
    """Refuse inputs that ``forward`` cannot be called with, and say what it takes."""
    signature = inspect.signature(fn.template.forward)
    args, kwargs = as_arguments(inputs)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        names = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
        plain = inspect.Signature(names)
        raise ArgumentError(
            "data",
            got=f"inputs of the structure {structure(inputs)}: {error}",
            expected=f"what {type(fn.template).__name__}.forward{plain} takes",
            remedy="a dict of inputs becomes keyword arguments, a tuple positional ones: add, rename or drop entries",
        ) from None


def refuse_broadcast(caught: list[warnings.WarningMessage], argument: str) -> None:
    """Turn torch's warning of targets that broadcast into an error; give the other warnings again."""
    for warning in caught:
        if "different to the input size" in str(warning.message):
            raise ArgumentError(
                argument,
                got=f"targets that broadcast against the outputs: {str(warning.message).split('. ')[0]}",
                expected="targets of the outputs' shape",
                remedy="add the missing axis, for example targets.unsqueeze(1)",
            )
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def warn_broadcast(outputs: object, targets: object, argument: str, stacklevel: int = 5) -> None:
    """Warn of outputs ``[B, 1]`` beside targets ``[B]``, or the reverse: in most losses they become ``[B, B]``."""
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor):
        return
    if not (outputs.is_floating_point() and targets.is_floating_point()):
        return
    short, long = sorted((outputs.shape, targets.shape), key=len)
    if len(long) == len(short) + 1 and long == (*short, 1) and short.numel() > 1:
        warnings.warn(
            f"{argument}: outputs {list(outputs.shape)} and targets {list(targets.shape)} broadcast to every pair of "
            "rows in most losses, which trains or chooses a wrong model without an error. Give both one shape, for "
            "example with targets.unsqueeze(1)",
            BroadcastWarning,
            stacklevel=stacklevel,
        )


def unused_on(fn: Functional, loss: DataLoss, batch: Batch) -> list[str]:
    """Return the parameters that the loss of the first batch does not depend on.

    A model that leaves out layers at random is asked several times: a layer is unused only if it always is.
    """
    unused = list(fn.params)
    for t in range(8):
        seed_generators(fn.device, step_seed(0, t))
        before = torch.default_generator.get_state()
        try:
            found = unused_parameters(lambda p: loss(p, fn.buffers, batch), fn.params)
        except Exception as error:
            raise unusable(fn, batch, "the backward pass", error) from error
        unused = [name for name in unused if name in found]
        if not unused or torch.equal(torch.default_generator.get_state(), before):
            break
    return unused


def freeze_unused(fn: Functional, loss: DataLoss, batch: Batch, unused: str) -> list[str]:
    """Return the parameters to freeze: those that the loss does not depend on, with a warning."""
    if unused not in ("freeze", "train"):
        raise ArgumentError(
            "unused", got=repr(unused), expected="'freeze' or 'train'", remedy="leave it at 'freeze', as torch.optim"
        )
    names = unused_on(fn, loss, batch)
    if len(names) == len(fn.params):
        raise ArgumentError(
            "loss_fn",
            got="a loss that depends on no trainable parameter",
            expected="a differentiable function of the module's outputs",
            remedy="do not detach the outputs, and set requires_grad=True on what shall be trained",
        )
    if names and unused == "freeze":
        warnings.warn(
            f"the loss of the first batch does not depend on {names}: they stay as they are, unpenalised, as in "
            "torch.optim where no batch uses them "
            "(unused='train' shrinks them by their lambda)",
            UnusedParameterWarning,
            stacklevel=4,
        )
        return names
    return []


def warn_sum_reduction(fn: Functional, loss_fn: LossFn | FullLoss, batch: Batch) -> None:
    """Warn of a loss that is a sum over rows: twice the rows, twice the loss."""
    if isinstance(loss_fn, FullLoss):
        return

    def twice(tree: Tree) -> Tree:
        return map_tensors(lambda x: torch.cat([x, x]) if x.ndim else x, tree)

    try:
        with torch.no_grad():
            if isinstance(loss_fn, ModelLoss):  # in eval mode, where masks do not differ between the two
                own = data_loss(fn.evaluation(), loss_fn)
                once, double = (float(own(fn.params, fn.buffers, b)[0]) for b in (batch, twice(batch)))
            else:
                inputs, targets = split_batch(batch)
                outputs = fn.call(fn.params, fn.buffers, inputs)[0]
                once = float(loss_fn(outputs, map_tensors(torch.clone, targets)))
                double = float(loss_fn(twice(outputs), twice(targets)))
    except Exception:  # a loss that cannot take twice the rows says nothing about sums
        return
    if once != 0 and math.isclose(double, 2 * once, rel_tol=1e-4):
        warnings.warn(
            f"loss_fn sums over rows: twice the rows give {double:.6g} for {once:.6g}. What a lambda means then "
            "depends on the batch size; use reduction='mean'",
            ReductionWarning,
            stacklevel=4,
        )

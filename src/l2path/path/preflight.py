"""What is checked before training starts: one clear error, or a warning, for everything that would go wrong."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from l2path.data import Source, batch_rows
from l2path.engine import repeat, take
from l2path.errors import (
    ArgumentError,
    BroadcastWarning,
    MixedDecayWarning,
    ModuleStateWarning,
    ReductionWarning,
    StabilityWarning,
    UnusedParameterWarning,
)
from l2path.functional import Functional, failing_layer, unused_parameters
from l2path.losses import DataLoss, FullLoss, data_loss, split_batch
from l2path.optimizers import Optimizer, hyper_paths
from l2path.path.evaluation import Validation, concatenate, forward, scores_of_outputs, validation_batches
from l2path.training import TrainState
from l2path.trees import map_tensors, tensor_leaves, tree_map
from l2path.types import Batch, Lambdas, LossFn, Tree


def check_one_row(fn: Functional, source: Source) -> None:
    """Refuse a last batch of one row for BatchNorm in train mode, whose variance it has none of."""
    if source.rows is None or source.batch_size is None:
        return
    layers = [
        name for name, m in fn.template.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training
    ]
    if layers and (source.rows % source.batch_size == 1 or source.batch_size == 1):
        raise ArgumentError(
            "batch_size",
            got=f"{source.batch_size} with {source.rows} rows: a batch of one row meets {layers[0]!r}",
            expected="batches of at least two rows where BatchNorm is in train mode",
            remedy=f"use another batch_size, for example {source.batch_size + 1}, or drop one row",
        )


def first_loss(fn: Functional, loss_fn: LossFn | FullLoss, batch: Batch) -> None:
    """Run the module and the loss once on the first batch, and say what fails, and in which layer."""

    def run(f: Functional) -> None:
        with torch.no_grad():
            data_loss(f, loss_fn)(f.params, f.buffers, batch)

    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run(fn)
    except ArgumentError:
        raise
    except Exception as error:
        layer = failing_layer(fn, run)
        where = f"the layer {layer} fails" if layer else "the model or the loss fails"
        raise ArgumentError(
            "data",
            got=f"a first batch of {describe_batch(batch)}, on which {where}: {type(error).__name__}: {error}",
            expected=f"batches that {type(fn.template).__name__} ({fn.dtype}, {fn.device}) and the loss take",
            remedy="call loss_fn(module(inputs), targets) on a batch and mend what it says",
        ) from error
    if fn.changed:
        warnings.warn(
            f"a forward pass sets the attributes {sorted(fn.changed)} of the module: they are put back after every "
            "call, so that members do not share them. What training depends on must be a buffer",
            ModuleStateWarning,
            stacklevel=4,
        )
    if not isinstance(loss_fn, FullLoss):
        with torch.no_grad():
            inputs, targets = split_batch(batch)
            warn_broadcast(fn.call(fn.params, fn.buffers, inputs)[0], targets, "data")
    refuse_broadcast(caught, "data")


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


def warn_broadcast(outputs: object, targets: object, argument: str) -> None:
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
            stacklevel=5,
        )


def describe_batch(batch: Batch) -> str:
    """Return shapes and dtypes of a batch's tensors."""
    return ", ".join(f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for t in tensor_leaves(batch))


def freeze_unused(fn: Functional, loss: DataLoss, batch: Batch, unused: str) -> list[str]:
    """Return the parameters to freeze: those that the loss does not depend on, with a warning."""
    if unused not in ("freeze", "train"):
        raise ArgumentError(
            "unused", got=repr(unused), expected="'freeze' or 'train'", remedy="leave it at 'freeze', as torch.optim"
        )
    names = unused_parameters(lambda p: loss(p, fn.buffers, batch), fn.params)
    if len(names) == len(fn.params):
        raise ArgumentError(
            "loss_fn",
            got="a loss that depends on no trainable parameter",
            expected="a differentiable function of the module's outputs",
            remedy="do not detach the outputs, and set requires_grad=True on what shall be trained",
        )
    if names and unused == "freeze":
        warnings.warn(
            f"the loss does not depend on {names}: they stay as they are, unpenalised, as in torch.optim "
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
    inputs, targets = split_batch(batch)

    def twice(tree: Tree) -> Tree:
        return tree_map(lambda x: torch.cat([x, x]) if isinstance(x, Tensor) and x.ndim else x, tree)

    try:
        with torch.no_grad():
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


def warn_stability(optimizer: Optimizer, state: TrainState, strengths: Lambdas) -> None:
    """Warn of SGD whose step overshoots on the penalty alone.

    On ``1/2 lambda theta^2`` gradient descent diverges for ``lr * lambda >= 2 (1 + momentum)``, and with Nesterov's
    momentum for ``2 (1 + momentum) / (1 + 2 momentum)`` (Polyak 1964; the roots of the two-step recursion).

    Parameters
    ----------
    state, strengths
        Of all members, ``[K, ...]``.
    """
    if optimizer.name != "sgd" or not strengths:
        return
    hyper = state.opt_state.hyper
    lr = hyper["lr"].double()
    momentum = hyper["momentum"].double() if "momentum" in hyper else torch.zeros_like(lr)
    limit = 2 * (1 + momentum)
    if optimizer.config.get("nesterov"):
        limit = limit / (1 + 2 * momentum)
    filled = [s.double().reshape(len(lr), -1) for s in strengths.values() if s.numel()]
    if not filled:
        return
    product = lr * torch.stack([s.amax(1) for s in filled]).amax(0)
    bad = product >= limit
    if bool(bad.any()):
        worst = int(product.argmax())
        warnings.warn(
            f"{int(bad.sum())} of {len(bad)} members have lr * lambda >= {float(limit[worst]):.3g} (up to "
            f"{float(product[worst]):.3g}): SGD diverges on the penalty alone. Lower the largest lambda below "
            f"{float((limit / lr)[worst]):.3g}, or the learning rate",
            StabilityWarning,
            stacklevel=4,
        )


def warn_mixed_decay(optimizer: Optimizer, state: TrainState, strengths: Lambdas, sweep: Mapping[str, Any]) -> None:
    """Warn of decoupled decay and an L2 penalty in one run that nobody asked for."""
    if (
        any(bool(s.any()) for s in strengths.values())
        and "decay" in hyper_paths(state.opt_state)
        and "decay" not in sweep
    ):
        warnings.warn(
            f"{optimizer!r} decays the weights (decoupled) beside the L2 penalty of lambdas: two kinds of shrinkage in "
            "one run. Use adam for the penalty alone, or lambdas=None with sweep={'decay': [...]} for the decay alone",
            MixedDecayWarning,
            stacklevel=4,
        )


def check_memory(members: int, member_bytes: int, device: torch.device) -> None:
    """Refuse a run whose state cannot be held: K times parameters, optimizer slots and result."""
    free = free_memory(device)
    need = members * member_bytes
    if free is not None and need > free:
        raise ArgumentError(
            "lambdas",
            got=f"{members} members of {member_bytes / 2**20:.1f} MiB each: {need / 2**30:.1f} GiB",
            expected=f"at most the {free / 2**30:.1f} GiB that are free on {device}",
            remedy="train fewer members in one call, or an optimizer with less state",
        )


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that are free on a device, or None where that cannot be known."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def check_validation(fn: Functional, eval_fn: Functional, validation: Validation) -> None:
    """Score the first validation batch with the untrained weights, and say what fails."""
    if isinstance(validation.loss_fn, FullLoss):
        if validation.metrics:
            raise ArgumentError(
                "metrics",
                got=f"{sorted(validation.metrics)} with full_loss",
                expected="no metrics: there are no outputs that l2path could hand to them",
                remedy="report them from the validation loss, or use loss_fn(outputs, targets)",
            )
        return
    batch = next(validation_batches(validation.source))
    inputs, targets = split_batch(batch)
    one = TrainState(repeat(fn.params, 1), repeat(fn.buffers, 1), (), torch.zeros(1))
    try:
        with torch.no_grad():
            outputs = forward("loop", eval_fn, one, inputs, 0)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                scores_of_outputs(outputs, targets, validation)
            refuse_broadcast(caught, "validation")
            warn_broadcast(take(outputs, 0), targets, "validation")
            rows = [batch_rows(batch)] * 2  # what cannot be joined with the next batch shows now
            concatenate([outputs, outputs], rows, member_axis=True)
            concatenate([targets, targets], rows, member_axis=False)
    except ArgumentError:
        raise
    except Exception as error:
        raise ArgumentError(
            "validation",
            got=f"a first batch of {describe_batch(batch)}, on which the model, the loss or a metric fails: "
            f"{type(error).__name__}: {error}",
            expected="data of the same kind as the training data",
            remedy="call the module in eval mode, the loss and each metric on a batch and mend what it says",
        ) from error


def has_rows(batch: Batch) -> None:
    """Refuse an empty batch."""
    if batch_rows(batch) == 0:
        raise ArgumentError(
            "data", got="a batch without rows", expected="at least one row", remedy="drop empty batches"
        )

"""What is checked before training starts: one clear error, or a warning, for everything that would go wrong."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from l2path.batches import batch_rows, describe_batch
from l2path.data import Source
from l2path.engine import repeat, take
from l2path.errors import ArgumentError, MixedDecayWarning, StabilityWarning
from l2path.functional import Functional, grad_with_autograd
from l2path.losses import DataLoss, FullLoss, data_loss, split_batch
from l2path.memory import free_memory, peak_bytes
from l2path.optimizers import Optimizer, hyper_paths
from l2path.path.evaluation import Validation, concatenate, forward, scores_of_outputs, validation_batches
from l2path.path.first_batch import refuse_broadcast, warn_broadcast
from l2path.training import TrainState
from l2path.trees import tensor_leaves
from l2path.types import Batch, Lambdas, LossFn

EVALUATION_BYTES = 2**24


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


def warn_stability(optimizer: Optimizer, state: TrainState, strengths: Lambdas) -> None:
    """Warn of SGD whose step overshoots on the penalty alone.

    On ``1/2 lambda theta^2`` gradient descent diverges for ``lr * lambda >= 2 (1 + momentum)``, and with Nesterov's
    momentum for ``2 (1 + momentum) / (1 + 2 momentum)`` (Polyak 1964; the roots of the two-step recursion).

    Parameters
    ----------
    state, strengths
        Of all members, ``[K, ...]``.
    """
    opt_state = state.opt_state
    while optimizer.name in ("accumulate", "ema"):  # neither changes what one step is
        optimizer, opt_state = optimizer.parts[0], opt_state.inner
    if optimizer.name != "sgd" or not strengths:
        return
    hyper = opt_state.hyper
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


def step_bytes(fn: Functional, loss: DataLoss, batch: Batch) -> int:
    """Return the bytes that the gradients and activations of one member take at most on this batch."""
    return peak_bytes(lambda: grad_with_autograd(lambda p: loss(p, fn.buffers, batch), fn.params))


def evaluation_rows(eval_fn: Functional, loss_fn: LossFn | FullLoss, batch: Batch) -> tuple[int, int]:
    """Return how many validation rows to look at together, and the bytes that a row takes one member at most.

    As many rows as keep one member's outputs modest in memory, at least those of a training batch, and a function of
    the model and this batch alone: how rows are split shall not depend on the machine.
    """

    def call() -> None:
        with torch.no_grad():
            data_loss(eval_fn, loss_fn, evaluation=True)(eval_fn.params, eval_fn.buffers, batch)

    rows, peak = batch_rows(batch), max(1, peak_bytes(call))
    return min(4096, max(rows, rows * EVALUATION_BYTES // peak)), max(1, peak // rows)


def check_validation(fn: Functional, eval_fn: Functional, validation: Validation) -> int:
    """Score the first validation batch with the untrained weights, and say what fails.

    Returns the bytes that a member's outputs take for a row.
    """
    if isinstance(validation.loss_fn, FullLoss):
        if validation.metrics:
            raise ArgumentError(
                "metrics",
                got=f"{sorted(validation.metrics)} with full_loss",
                expected="no metrics: there are no outputs that l2path could hand to them",
                remedy="report them from the validation loss, or use loss_fn(outputs, targets)",
            )
        return 0
    batch = next(validation_batches(validation.source))
    inputs, targets = split_batch(batch, validation.loss_fn)
    one = TrainState(repeat(fn.params, 1), repeat(fn.buffers, 1), (), torch.zeros(1))
    try:
        with torch.no_grad():
            outputs = forward("loop", eval_fn, one, inputs, 0)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                scores_of_outputs(outputs, targets, validation, lambda: None)
            refuse_broadcast(caught, "validation")
            warn_broadcast(take(outputs, 0), targets, "validation", stacklevel=6)
            rows = [batch_rows(batch)] * 2
            if validation.source.rows is None or validation.source.rows > rows[0]:
                # What cannot be joined with the next batch shows now.
                concatenate([outputs, outputs], rows, member_axis=True)
                concatenate([targets, targets], rows, member_axis=False)
            return sum(leaf.nbytes for leaf in tensor_leaves(outputs)) // rows[0]
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

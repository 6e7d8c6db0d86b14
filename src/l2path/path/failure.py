"""What an error that ends a run half-way is told to carry: where it happened, and what was trained before."""

from __future__ import annotations

import warnings

import torch

from l2path.batches import describe_batch
from l2path.engine import take
from l2path.functional import Functional, failing_layer, seed_generators
from l2path.losses import FullLoss, data_loss
from l2path.order import step_seed
from l2path.path.driver import Driver
from l2path.path.members import Members
from l2path.path.outcome import Selection
from l2path.path.result import finish
from l2path.penalty import Names
from l2path.types import LossFn


def explain(error: Exception, driver: Driver, loss_fn: LossFn | FullLoss) -> None:
    """Note on an error of a training step which step it was, on what batch and, if it comes again, in which layer."""
    if driver.running is None:
        return
    chunk, step, batch = driver.running
    group = chunk.group
    params, buffers = take((chunk.state.params, chunk.state.buffers), 0)

    def again(fn: Functional) -> None:
        seed_generators(fn.device, step_seed(group.seed, step))
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data_loss(fn, loss_fn)(params, buffers, batch)

    try:
        layer = failing_layer(group.fn.with_substitutes(None), again)
    except Exception:  # the first error is the one to tell
        layer = None
    where = f", in the layer {layer}" if layer else ""
    error.add_note(f"l2path: step {step} (epoch {driver.epoch + 1}), on a batch of {describe_batch(batch)}{where}")


def keep_partial(error: Exception, driver: Driver, table: Members, names: Names, selection: Selection) -> None:
    """Hang what was trained so far on an error that ends a run, as its attribute ``partial_result``."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            partial = finish(driver, table, names, selection, complete=False)
    except Exception:  # the first error is the one to tell
        return
    error.partial_result = partial  # type: ignore[attr-defined]  # an attribute of this one error
    error.add_note("l2path: what was trained before this error is in its attribute partial_result")

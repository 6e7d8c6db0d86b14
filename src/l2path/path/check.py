"""``check``: what l2path will do with a module, in plain words, before anything is trained."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

import l2path.path.first_batch as first_batch
import l2path.path.preflight as preflight
from l2path.data import Place, make_source
from l2path.engine import EvalKind
from l2path.functional import forked_rng, functionalize
from l2path.losses import FullLoss, check_loss, data_loss
from l2path.memory import readable
from l2path.path.selfcheck import evaluation_kind, try_vmap
from l2path.types import Batch, LossFn

EVALUATION = {
    "vmap": "all members at once",
    "vjp": "all members at once, at a level of differentiation (torch batches these layers only there)",
    "loop": "one member after the other",
}


@dataclass(frozen=True)
class CheckReport:
    """What :func:`check` found; ``print`` it.

    Attributes
    ----------
    training : {"vmap", "loop"}
        How members will be trained.
    reason : str
        Why; for the loop torch's own message is in it.
    layer : str or None
        The layer that stands in the way of vmap.
    substitutes : tuple of str
        torch functions for which equivalents are used that vmap can batch.
    evaluation : {"vmap", "vjp", "loop"}
        How outputs in eval mode will be computed.
    slow_operations : tuple of str
        Operations that vmap runs member by member: right, but no faster than a loop.
    trained, frozen, unused : tuple of str
        Parameters that are trained, that have ``requires_grad=False``, and that the loss does not depend on.
    changed : tuple of str
        Attributes that a forward pass sets on the module, which are put back after every call.
    step_bytes : int
        Bytes of the gradients and activations of one member at this batch.
    notes : tuple of str
        Warnings that a run would give.
    """

    training: Literal["vmap", "loop"]
    reason: str
    layer: str | None
    substitutes: tuple[str, ...]
    evaluation: EvalKind
    slow_operations: tuple[str, ...]
    trained: tuple[str, ...]
    frozen: tuple[str, ...]
    unused: tuple[str, ...]
    changed: tuple[str, ...]
    step_bytes: int
    notes: tuple[str, ...]

    def __str__(self) -> str:
        how = "all members at once (vmap)" if self.training == "vmap" else "one member after the other (loop)"
        lines = [f"training:    {how}: {self.reason}", f"evaluation:  {EVALUATION[self.evaluation]}"]
        for label, found in (
            ("slow parts", self.slow_operations),
            ("frozen", self.frozen),
            ("unused", self.unused),
            ("put back", self.changed),
        ):
            if found:
                lines.append(f"{label + ':':12s} {', '.join(found)}")
        lines.append(f"trained:     {len(self.trained)} parameters")
        lines.append(f"memory:      {readable(self.step_bytes)} of gradients and activations in a step of one member")
        return "\n".join([*lines, *(f"note:        {note}" for note in self.notes)])


def check(module: nn.Module, batch: Batch, loss_fn: LossFn | FullLoss, *, seed: int = 0) -> CheckReport:
    """Say how a module will be trained, by one vmapped step of two members against the same step in a loop.

    Losses, gradients and buffers are compared, and outputs in eval mode; nothing is trained, and the module is left as
    it is.

    Parameters
    ----------
    module : nn.Module
        In train mode.
    batch : (inputs, targets), or what goes to a model with a loss of its own
        As ``batch_train`` will get them; a few rows are enough.
    loss_fn : callable, model_loss() or full_loss(f)
        ``loss_fn(outputs, targets) -> 0-d mean loss``.
    seed : int
        Of random masks.

    Returns
    -------
    CheckReport

    Raises
    ------
    ArgumentError
        For what no engine gets right (backward and parameter hooks, sparse gradients, ScriptModules), and for a batch
        that the module or the loss cannot take, with the layer that fails.

    Examples
    --------
    >>> print(check(nn.Linear(2, 1), (torch.ones(4, 2), torch.ones(4, 1)), nn.functional.mse_loss))
    training:    all members at once (vmap): one vmapped step equals the loop
    evaluation:  all members at once
    trained:     2 parameters
    memory:      100 bytes of gradients and activations in a step of one member
    """
    check_loss(loss_fn)
    fn = functionalize(module)
    with forked_rng(fn.device), torch.inference_mode(False), torch.enable_grad():
        place = Place(fn.device, fn.dtype)
        source = make_source(batch, argument="batch", batch_size=None, seed=None, place=place)
        rows = next(source.epoch(0))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            first_batch.first_loss(fn, loss_fn, rows)
            first_batch.warn_sum_reduction(fn, loss_fn, rows)
            unused = first_batch.unused_on(fn, data_loss(fn, loss_fn), rows)
            live = fn.freeze(unused)
            verdict = try_vmap(live, loss_fn, rows, seed)
            step_bytes = preflight.step_bytes(live, data_loss(live, loss_fn), rows)
            live = live.with_substitutes(verdict.substitutes)
            training: Literal["vmap", "loop"] = "vmap" if verdict.vmapped else "loop"
            evaluation = evaluation_kind(live, live.evaluation(), rows, loss_fn, training)
    slow, notes = _sort(caught)
    return CheckReport(
        training=training,
        reason=verdict.reason,
        layer=verdict.layer,
        substitutes=tuple(sorted(verdict.substitutes.used)) if verdict.substitutes else (),
        evaluation=evaluation,
        slow_operations=slow,
        trained=tuple(live.params),
        frozen=tuple(n for n in live.frozen if n not in live.unused),
        unused=tuple(unused),
        changed=tuple(sorted(fn.changed)),
        step_bytes=step_bytes,
        notes=notes,
    )


def _sort(caught: list[Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Split warnings into operations that fall back inside vmap, and the rest."""
    slow, notes = [], []
    for warning in caught:
        text = str(warning.message)
        operation = re.search(r"performance drop.*?batching rule for (\S+?)\.? ", text)
        if operation:
            slow.append(operation[1])
        elif "put back after every call" not in text:  # told by name already
            notes.append(text.splitlines()[0])
    return tuple(dict.fromkeys(slow)), tuple(dict.fromkeys(notes))

"""How members will be scored after an epoch: settled before training begins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch

import l2path.path.preflight as preflight
import l2path.path.selfcheck as selfcheck
from l2path.batches import batch_rows
from l2path.data import RowSource
from l2path.engine import EvalKind, map_members
from l2path.functional import Functional
from l2path.losses import FullLoss, ModelLoss, split_batch
from l2path.outputs import Parts
from l2path.path.evaluation import Validation, validation_batches
from l2path.path.job import Outputs
from l2path.types import Batch, LossFn, Tree

UNKNOWN_ROWS = 2**16  # that a stream of unknown length may have
OUTPUTS_PART = 4  # outputs are kept, and no matter of caches: they count for less


@dataclass(frozen=True)
class Scored:
    """How members are scored.

    Attributes
    ----------
    fns : dict of int to Functional
        Modules in eval mode, by seed.
    kind : EvalKind
        How their outputs are computed without a program.
    validations, monitors : dict of int to Validation
        By fold; empty where nothing is scored, or early stopping looks at the same.
    joined : bool
        Whether members of several seeds may be scored together.
    row_bytes : int
        That one member takes for a row.
    """

    fns: Mapping[int, Functional]
    kind: EvalKind
    validations: Mapping[int, Validation]
    monitors: Mapping[int, Validation]
    joined: bool = False
    row_bytes: int = 1

    def outputs(self, templates: Mapping[int, int], members: Mapping[tuple[int, int], int]) -> Outputs | None:
        """Return what a program for the outputs would have to do; None where there can be none.

        Parameters
        ----------
        templates : dict
            Which module a seed has.
        members : dict
            How many there are of each (fold, seed).
        """
        first = next(iter(self.validations.values()), None)
        if first is None or self.kind == "loop" or isinstance(first.loss_fn, (FullLoss, ModelLoss)):
            return None
        if first.source.rows is None:  # a stream
            return None
        fns = {templates[s]: fn for s, fn in reversed([*self.fns.items()])}
        # Copies: what a call leaves behind on a module is not put back while it is traced.
        plain = {template: fn.with_substitutes(None).evaluation().lowered() for template, fn in fns.items()}
        batch = next(validation_batches(first.source))
        inputs, rows = split_batch(batch, first.loss_fn)[0], batch_rows(batch)

        def eager(template: int, parts: Parts, inputs: Batch) -> Tree:
            def call(own: Parts, x: Batch) -> Tree:
                return fns[template].call_substituted(own[0], own[1], x)[0]

            with torch.no_grad():
                return map_members(self.kind, call, parts, inputs, lambda: None)

        scored = [val for each in (self.validations, self.monitors) for val in each.values()]
        return Outputs(
            fns=plain,
            eager=eager,
            parts=lambda template, n: selfcheck.differing_members(fns[template], n),
            inputs=inputs,
            rows=rows,
            most=max(min(val.source.batch_size or rows, val.source.rows or rows) for val in scored),
            row_bytes=max(1, self.row_bytes),
            members=sum(members.values()),
            member_rows=sum(
                n * (each[fold].source.rows or 0)
                for (fold, _), n in members.items()
                for each in (self.validations, self.monitors)
                if each
            ),
        )


def settle(
    fns: Mapping[int, Functional],
    loss_fn: LossFn | FullLoss,
    batch: Batch,
    validations: Mapping[int, Validation],
    monitors: Mapping[int, Validation],
    kind: Literal["vmap", "loop"],
    *,
    alike: bool,
) -> Scored:
    """Try on the first batches how members can be scored.

    Parameters
    ----------
    fns : dict of int to Functional
        By seed.
    loss_fn, batch
        Of training.
    validations, monitors : dict of int to Validation
        By fold.
    kind : {"vmap", "loop"}
        How steps can be done.
    alike : bool
        Whether all modules are.
    """
    eval_fns = {s: fn.evaluation() for s, fn in fns.items()}
    fn, eval_fn = next(iter(fns.values())), next(iter(eval_fns.values()))
    how = selfcheck.evaluation_kind(fn, eval_fn, batch, loss_fn, kind)
    if not validations:
        return Scored(eval_fns, how, {}, {})
    rows, row_bytes = preflight.evaluation_rows(eval_fn.with_substitutes(None), loss_fn, batch)
    validations, monitors = (
        {fold: _in_batches(val, rows) for fold, val in each.items()} for each in (validations, monitors)
    )
    first = next(iter(validations.values()))
    output_bytes = preflight.check_validation(fn, eval_fn, first)
    scoring = selfcheck.scoring(fn, [*eval_fns.values()], first, how, alike=alike)
    validations, monitors = (
        {
            fold: replace(val, batched=scoring.batched, member_bytes=_member_bytes(val, rows, row_bytes, output_bytes))
            for fold, val in each.items()
        }
        for each in (validations, monitors)
    )
    return Scored(eval_fns, how, validations, monitors, joined=scoring.joined, row_bytes=row_bytes)


def _in_batches(val: Validation, rows: int) -> Validation:
    """Return validation data in batches of so many rows; a stream keeps its own."""
    return replace(val, source=val.source.with_batch_size(rows)) if isinstance(val.source, RowSource) else val


def _member_bytes(val: Validation, rows: int, row_bytes: int, output_bytes: int) -> int:
    """Return what one member takes while it is scored: for a batch, and a part of its outputs for all rows."""
    every = val.source.rows or UNKNOWN_ROWS
    return row_bytes * min(val.source.batch_size or rows, every) + output_bytes * every // OUTPUTS_PART

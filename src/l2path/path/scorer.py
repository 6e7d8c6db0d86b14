"""The scores of members after an epoch."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from l2path.engine import EvalKind, joined
from l2path.functional import Functional
from l2path.path.chunks import Chunk, scored_together
from l2path.path.evaluation import Validation, forward, score
from l2path.path.recording import Array
from l2path.path.selfcheck import first_line, or_looped
from l2path.training import TrainState, averaged_params
from l2path.types import Tree


class Scorer:
    """Scores chunks on their groups' validation data.

    Parameters
    ----------
    kind : EvalKind
        How members are evaluated without a program; one after the other from where they could not be batched.
    select : str
        Name of the score that decides. Where early stopping looks at other data, theirs is recorded as "monitor".
    """

    def __init__(self, kind: EvalKind, select: str) -> None:
        self.kind, self.select = kind, select
        self.failed: str | None = None  # why there are no programs for outputs any more

    def add(self, table: dict[str, Array], chunks: Sequence[Chunk], members: int, *, several: bool) -> None:
        """Add ``[K]`` scores of all chunks to a table by name; ``several`` chunks may be scored together."""
        for own in scored_together(chunks) if several else [[chunk] for chunk in chunks]:
            group = own[0].group
            found = self.scores(own, group.validation) if group.validation else {}
            if group.validation is not None and group.monitor is not None:
                found["monitor"] = self.scores(own, group.monitor)[self.select]
            for name, values in found.items():
                row = table.setdefault(name, np.full(members, np.nan))
                row[[k for chunk in own for k in chunk.members]] = values.cpu().numpy()

    def scores(self, chunks: Sequence[Chunk], val: Validation) -> dict[str, Tensor]:
        """Return ``[C]`` scores of chunks by name; one member after the other if they cannot be batched."""
        group = chunks[0].group
        # A loss may call the module itself, whose parameters workers swap while they do steps outside of calls. The
        # compiler's lock is not taken: a loss or a metric may compile or train something, or wait for who does.
        undisturbed = group.compiled.busy if group.compiled is not None else nullcontext()

        @cache
        def state() -> TrainState:
            parts = [(averaged_params(chunk.state), chunk.state.buffers) for chunk in chunks]
            params, buffers = joined(parts) if len(parts) > 1 else parts[0]
            return chunks[0].state._replace(params=params, buffers=buffers)

        def outputs(kind: EvalKind, fn: Functional, inputs: Any, rows: int, seed: int) -> Tree:
            if (found := self._by_program(chunks, inputs, rows)) is not None:
                return found
            with undisturbed:
                return forward(kind, fn, state(), inputs, seed)

        self.kind, found = or_looped(
            self.kind,
            group.eval_fn,
            lambda kind, fn: score(kind, fn, state, val, group.seed, partial(outputs, kind, fn), undisturbed),
        )
        return found

    def _by_program(self, chunks: Sequence[Chunk], inputs: Any, rows: int) -> Tree | None:
        """Return the outputs of chunks ``[C, n, ...]`` by their programs, or None where there is one without."""
        if self.failed is not None:
            return None
        found: list[Tree] = []
        try:
            with torch.no_grad():
                for chunk in chunks:
                    program = chunk.group.outputs
                    own = (averaged_params(chunk.state), chunk.state.buffers)
                    if program is None or (outputs := program(own, inputs, rows)) is None:
                        return None
                    found.append(outputs)
        except Exception as error:
            self.failed = first_line(error)
            return None
        return joined(found) if len(found) > 1 else found[0]

"""The scores of members after an epoch."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
from torch import Tensor

from l2path.engine import EvalKind, joined
from l2path.path.chunks import Chunk, together
from l2path.path.evaluation import Validation, score
from l2path.path.recording import Array
from l2path.path.selfcheck import or_looped
from l2path.training import averaged_params


class Scorer:
    """Scores chunks on their groups' validation data.

    Parameters
    ----------
    kind : EvalKind
        How members are evaluated; one after the other from where they could not be batched.
    select : str
        Name of the score that decides. Where early stopping looks at other data, theirs is recorded as "monitor".
    """

    def __init__(self, kind: EvalKind, select: str) -> None:
        self.kind, self.select = kind, select

    def add(self, table: dict[str, Array], chunks: Sequence[Chunk], members: int, *, several: bool) -> None:
        """Add ``[K]`` scores of all chunks to a table by name; ``several`` chunks may be scored together."""
        for own in together(chunks, scored=True) if several else [[chunk] for chunk in chunks]:
            group = own[0].group
            found = self.scores(own, group.validation) if group.validation else {}
            if group.validation is not None and group.monitor is not None:
                found["monitor"] = self.scores(own, group.monitor)[self.select]
            for name, values in found.items():
                row = table.setdefault(name, np.full(members, np.nan))
                row[[k for chunk in own for k in chunk.members]] = values.cpu().numpy()

    def scores(self, chunks: Sequence[Chunk], val: Validation) -> dict[str, Tensor]:
        """Return ``[C]`` scores of chunks by name; one member after the other if they cannot be batched."""
        parts = [(averaged_params(chunk.state), chunk.state.buffers) for chunk in chunks]
        params, buffers = joined(parts) if len(parts) > 1 else parts[0]
        group, state = chunks[0].group, chunks[0].state._replace(params=params, buffers=buffers)
        # A loss may call the module itself, whose parameters workers swap while they do steps outside of calls. The
        # compiler's lock is not taken: a loss or a metric may compile or train something, or wait for who does.
        with group.compiled.busy if group.compiled is not None else nullcontext():
            self.kind, found = or_looped(
                self.kind, group.eval_fn, lambda kind, fn: score(kind, fn, state, val, group.seed)
            )
        return found

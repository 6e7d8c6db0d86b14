"""Who is in training, chunk by chunk, and what is kept of those who have left."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from l2path.engine import Flags, take
from l2path.path.chunks import Chunk, Weights, weights_of
from l2path.path.recording import Record
from l2path.path.stopping import Stopper
from l2path.trees import tensor_leaves, tree_map


class Roster:
    """All members of a run.

    Parameters
    ----------
    chunks : sequence of Chunk
        Those in training.
    record : Record
        Where weights and the end of those who leave are written down.
    stopper : Stopper or None
    """

    def __init__(self, chunks: Sequence[Chunk], record: Record, stopper: Stopper | None) -> None:
        self.chunks, self.record, self.stopper = list(chunks), record, stopper

    @property
    def active(self) -> Flags:
        """``[K]`` booleans: members still in training."""
        out = np.zeros(self.record.members, dtype=np.bool_)
        for chunk in self.chunks:
            out[chunk.members] = True
        return out

    @property
    def state_bytes(self) -> int:
        """Memory of what training changes, of all chunks."""
        return sum(leaf.nbytes for chunk in self.chunks for leaf in tensor_leaves(chunk.state))

    def split(self, chunk: Chunk, members: int) -> list[Chunk]:
        """Put chunks of up to so many members in the place of one that is larger."""
        parts = chunk.split(members)
        at = self.chunks.index(chunk)
        self.chunks[at : at + 1] = parts
        return parts

    def keep(self, chunk: Chunk, kept: Tensor) -> None:
        """Go on with the members of a chunk where ``kept``, ``[C]``, is True; without the chunk if there are none."""
        if bool(kept.any()):
            chunk.keep(kept.nonzero().flatten())
        else:
            self.chunks.remove(chunk)

    def let_go(self, leaving: Flags, status: str = "stopped") -> None:
        """Put members aside where ``leaving``, ``[K]``, is True."""
        for chunk in list(self.chunks):
            done = torch.from_numpy(leaving[chunk.members])
            if not bool(done.any()):
                continue
            kept = chunk.kept()
            for c in done.nonzero().flatten().tolist():
                self.record.parked[chunk.members[c]] = take(kept, c)
                self.record.status[chunk.members[c]] = status
            self.keep(chunk, ~done)

    def epochs_kept(self) -> tuple[int, ...]:
        """Return the epoch, from 1, whose weights are kept of each member."""
        last = self.record.epochs
        if self.stopper is None or not self.stopper.rule.restore_best:
            return tuple(last)
        best = self.stopper.best_epoch.tolist()
        return tuple(b if b and s != "diverged" else n for b, n, s in zip(best, last, self.record.status, strict=True))

    def gather(self, *, best: bool = True) -> Weights:
        """Return the weights of all members, ``[K, ...]`` by name, in the members' order.

        With ``best`` those of each member's best epoch, where they are remembered; else those that it has now.
        """
        kept = [(chunk.members, chunk.kept() if best else weights_of(chunk.state)) for chunk in self.chunks]
        kept += [([k], tree_map(lambda x: x.unsqueeze(0), one)) for k, one in self.record.parked.items()]
        out: Weights = tree_map(lambda x: x.new_empty((self.record.members, *x.shape[1:])), kept[0][1])
        for members, weights in kept:
            for target, value in zip(tensor_leaves(out), tensor_leaves(weights), strict=True):
                target[torch.tensor(members, device=target.device)] = value
        return out

"""Reading blocks of batches: all sources at the same step, and one block ahead where nobody can tell."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from l2path.blocks import Block
from l2path.data import Source
from l2path.path.setup import Peeked

Read: TypeAlias = dict[int, Block]
"""A block of each source, by the source's ``id``; without those whose epoch is over."""


class Reader:
    """Reads the blocks of some sources.

    Parameters
    ----------
    sources : sequence of Source
        What is there several times is read once.
    length : callable
        Returns the number of batches of the next block.
    epochs : int
        Number of epochs that may be looked ahead to: up to the end, or 0, where what happens between epochs shall come
        before anything of the next one is read.
    """

    def __init__(self, sources: Sequence[Source], length: Callable[[], int], epochs: int) -> None:
        self.sources, self.length, self.epochs = {id(source): source for source in sources}, length, epochs
        # Reading rows that lie in memory is noticed by nobody. Other data may count what was read, or fail.
        self.in_memory = all(isinstance(source, Peeked) and source.again for source in sources)
        self._at, self._iterators = -1, dict[int, Iterator[Block]]()
        self._ahead: tuple[int, Read] | None = None  # with its epoch

    def epoch(self, epoch: int) -> Iterator[Read]:
        """Yield the blocks of an epoch."""
        while read := self._next(epoch):
            yield read

    def ahead(self) -> Read | None:
        """Return what will be read next, without going on to it; None where it is not to be known."""
        if not self.in_memory:
            return None
        if self._ahead is None:
            epoch, read = self._at, self._read(self._at)
            if not read and self._at + 1 < self.epochs:
                epoch, read = self._at + 1, self._read(self._at + 1)
            self._ahead = (epoch, read) if read else None
        return self._ahead[1] if self._ahead else None

    def _next(self, epoch: int) -> Read | None:
        if self._ahead is None:
            return self._read(epoch)
        at, read = self._ahead
        if at != epoch:  # nothing is left of this one
            return None
        self._ahead = None
        return read

    def _read(self, epoch: int) -> Read:
        if epoch != self._at:
            self._iterators = {key: source.blocks(epoch, self.length) for key, source in self.sources.items()}
            self._at = epoch
        return {key: block for key, it in self._iterators.items() if (block := next(it, None)) is not None}

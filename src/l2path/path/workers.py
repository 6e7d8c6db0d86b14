"""Threads in which chunks of compiled programs are trained side by side."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from l2path.blocks import Block
from l2path.compiled import Piece, one_thread
from l2path.engine import joined, take
from l2path.path.chunks import Chunk, parts_of, together
from l2path.training import Metrics, TrainState
from l2path.types import Tree


class Done(NamedTuple):
    """Where a chunk stands after some pieces of a block, and the metrics ``[T, C]`` of each of them."""

    state: Tree
    metrics: list[list[Tensor]]


class Begun(NamedTuple):
    """What becomes of a chunk: one of those that are run over a piece together."""

    future: Future[list[Done]]
    number: int

    def result(self) -> Done:
        """Wait for it."""
        return self.future.result()[self.number]


class Workers:
    """Threads of one torch thread each, which run ahead of the driver over all chunks of a block.

    Parameters
    ----------
    count : int
    """

    def __init__(self, count: int) -> None:
        self.pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))
        self.begun: dict[int, Begun] = {}  # by chunk: its last piece
        self.futures: list[Future[list[Done]]] = []

    @contextmanager
    def ahead(self, chunks: Sequence[Chunk], read: Mapping[int, Block]) -> Iterator[None]:
        """Begin with all chunks of a block; ``read`` holds the batches by source. All have ended afterwards."""
        # All before the first one begins: what a step draws is noted in a call of the module, which others share.
        groups = {id(chunk.group): chunk.group for chunk in chunks if id(chunk.group.source) in read}
        given = {key: group.blocks(read[id(group.source)], group.step) for key, group in groups.items()}
        with one_thread():
            try:
                for own, block, piece in _in_order(chunks, given):
                    before = [self.begun.get(id(chunk)) for chunk in own]
                    # It waits for threads that have begun before it: never for one that waits for it.
                    future = self.pool.submit(_run, own, before, block, piece)
                    self.futures.append(future)
                    self.begun.update({id(chunk): Begun(future, n) for n, chunk in enumerate(own)})
                yield
            finally:
                self.wait()

    def result(self, chunk: Chunk) -> tuple[TrainState, Metrics] | None:
        """Return what became of a chunk, and None if it was not begun with."""
        if (begun := self.begun.get(id(chunk))) is None:
            return None
        state, metrics = begun.result()
        return TrainState(*state), Metrics(*(torch.cat(m) for m in zip(*metrics, strict=True)))

    def wait(self) -> None:
        """Let nothing run on beside what follows."""
        futures.wait(self.futures)
        self.futures.clear()
        self.begun.clear()

    def close(self) -> None:
        """End the threads."""
        self.pool.shutdown()


def _in_order(chunks: Sequence[Chunk], given: Mapping[int, Block]) -> Iterator[tuple[list[Chunk], Block, Piece]]:
    """Yield what is to be run over which piece of a block, in an order in which little waits for another thread."""
    found = []
    for number, (key, block) in enumerate(given.items()):
        own = [chunk for chunk in chunks if id(chunk.group) == key]
        assert own[0].group.compiled is not None
        for turn, piece in enumerate(own[0].group.compiled.pieces(block)):
            sets = [[chunk] for chunk in own] if piece.calls else together(own)
            # Steps outside of calls go on beside the calls of the next group.
            found.append((number + 2 * turn, [(members, block, piece) for members in sets]))
    return itertools.chain.from_iterable(tasks for _, tasks in sorted(found, key=lambda entry: entry[0]))


def _run(chunks: list[Chunk], before: list[Begun | None], block: Block, piece: Piece) -> list[Done]:
    """Run chunks of a group over a piece in a thread, where nothing is seeded: random numbers have been drawn."""
    program = chunks[0].group.compiled
    assert program is not None
    at = [b.result() if b else Done(c.state, []) for b, c in zip(before, chunks, strict=True)]
    if len(chunks) == 1:
        state, metrics = program.run(at[0].state, block, chunks[0].strengths, [piece])
        return [Done(state, [*at[0].metrics, metrics])]
    state, metrics = program.run(
        joined([done.state for done in at]), block, joined([chunk.strengths for chunk in chunks]), [piece]
    )
    return [
        Done(take(state, rows), [*done.metrics, [m[:, rows] for m in metrics]])
        for done, rows in zip(at, parts_of(chunks), strict=True)
    ]

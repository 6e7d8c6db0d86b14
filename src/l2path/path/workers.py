"""Threads in which chunks of compiled programs are trained side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch

from l2path.blocks import Block
from l2path.compiled import one_thread
from l2path.engine import run_steps
from l2path.path.chunks import Chunk
from l2path.training import Metrics, TrainState


class Workers:
    """Threads of one torch thread each, which run ahead of the driver over all chunks of a block.

    Parameters
    ----------
    count : int
    """

    def __init__(self, count: int) -> None:
        self.pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))
        self.begun: dict[int, Future[tuple[TrainState, Metrics]]] = {}  # by chunk

    @contextmanager
    def ahead(self, chunks: Sequence[Chunk], read: Mapping[int, Block]) -> Iterator[None]:
        """Begin with all chunks of a block; ``read`` holds the batches by source. All have ended afterwards."""
        # All before the first one begins: what a step draws is noted in a call of the module, which others share.
        groups = {id(chunk.group): chunk.group for chunk in chunks if id(chunk.group.source) in read}
        given = {key: group.blocks(read[id(group.source)], group.step) for key, group in groups.items()}
        with one_thread():
            try:
                for chunk in chunks:
                    if id(chunk.group) in given:
                        self.begun[id(chunk)] = self.pool.submit(_alone, chunk, given[id(chunk.group)])
                yield
            finally:
                self.wait()

    def result(self, chunk: Chunk) -> tuple[TrainState, Metrics] | None:
        """Return what became of a chunk, and None if it was not begun with or has been asked for before."""
        begun = self.begun.pop(id(chunk), None)
        return begun.result() if begun else None

    def wait(self) -> None:
        """Let nothing run on beside what follows."""
        futures.wait(self.begun.values())
        self.begun.clear()

    def close(self) -> None:
        """End the threads."""
        self.pool.shutdown()


def _alone(chunk: Chunk, block: Block) -> tuple[TrainState, Metrics]:
    """Run a chunk over a block in a thread, where nothing is seeded: random numbers have been drawn before."""
    group = chunk.group
    state, metrics = run_steps("compiled", group.call, chunk.state, block, chunk.strengths, lambda _: None)
    return TrainState(*state), Metrics(*metrics)

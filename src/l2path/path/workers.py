"""Threads in which chunks of compiled programs are trained side by side."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from l2path.blocks import Block
from l2path.compiled import Compiled, Piece, joined_in_time
from l2path.engine import joined, members_of, take
from l2path.path.chunks import TOGETHER, Chunk, together
from l2path.path.reading import Read
from l2path.training import Metrics, TrainState
from l2path.types import Lambdas, Tree


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


class Task(NamedTuple):
    """What a chunk's members begin a piece with, and which lambdas they have."""

    before: Begun | TrainState
    fresh: bool  # whether the block begins with this piece
    strengths: Lambdas

    def done(self) -> Done:
        """Return where the chunk stands in this block; waits for it."""
        if isinstance(self.before, TrainState):
            return Done(self.before, [])
        found = self.before.result()
        return found._replace(metrics=[]) if self.fresh else found


class Ahead:
    """Chunks that workers have begun to run over a block.

    Parameters
    ----------
    read : Read
        The block.
    chunks : sequence of Chunk
    """

    def __init__(self, read: Read, chunks: Sequence[Chunk]) -> None:
        self.read, self.chunks = read, [(chunk, chunk.members) for chunk in chunks]
        self.begun: dict[int, Begun] = {}  # by chunk: the last piece that it was begun with
        self.futures: list[Future[list[Done]]] = []
        self.spent: list[float] = []  # seconds of each of them

    def holds(self, read: Read, chunks: Sequence[Chunk]) -> bool:
        """Return whether this is what is to be done: nobody has left since."""
        now = [(chunk, chunk.members) for chunk in chunks]
        return read is self.read and len(now) == len(self.chunks) and all(
            a is b and m is n for (a, m), (b, n) in zip(now, self.chunks, strict=True)
        )  # fmt: skip

    def wait(self) -> None:
        """Wait until all of it is done."""
        futures.wait(self.futures)


class Workers:
    """Threads of one torch thread each, which run ahead of the driver over all chunks of a block, and of the next one.

    Parameters
    ----------
    count : int
    joins : bool
        Whether groups may do their last steps together. Not so where the shapes of batches are not known: it would
        depend on the length of a block which of them are last.
    """

    def __init__(self, count: int, *, joins: bool) -> None:
        self.count, self.joins = count, joins
        autocast = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
        self.pool = ThreadPoolExecutor(count, initializer=_prepared, initargs=autocast)
        self.now: Ahead | None = None
        self.next: Ahead | None = None

    def begin(self, read: Read, chunks: Sequence[Chunk]) -> None:
        """Begin with all chunks of a block, if that was not done ahead."""
        self.now, self.next = self.next, None
        if self.now is None or not self.now.holds(read, chunks):
            self.drop()
            self.now = self._begin(read, chunks, None)

    def begin_next(self, read: Read, chunks: Sequence[Chunk]) -> None:
        """Begin with the block that comes after the present one, from wherever that one leaves the chunks.

        Nothing comes of it if members leave meanwhile, since those that stay are then run in other company.
        """
        self.next = self._begin(read, chunks, self.now)

    def _begin(self, read: Read, chunks: Sequence[Chunk], after: Ahead | None) -> Ahead:
        ahead = Ahead(read, chunks)
        groups = {id(chunk.group): chunk.group for chunk in chunks if id(chunk.group.source) in read}
        given = {}  # all before the first one begins
        for key, group in groups.items():
            source = id(group.source)
            step = group.step + (len(after.read[source]) if after and source in after.read else 0)
            given[key] = group.blocks(read[source], step)
        for turn in _in_order(chunks, given, joins=self.joins):
            own = turn.chunks
            program = own[0].group.compiled
            assert program is not None
            tasks = []
            for chunk in own:
                here, earlier = ahead.begun.get(id(chunk)), after.begun.get(id(chunk)) if after else None
                tasks.append(Task(here or earlier or chunk.state, here is None, chunk.strengths))
            # It waits for threads that have begun before it: never for one that waits for it.
            blocks = [given[id(chunk.group)] for chunk in own]
            future = self.pool.submit(_run, program, tasks, blocks, turn.piece, ahead.spent)
            ahead.futures.append(future)
            ahead.begun.update({id(chunk): Begun(future, n) for n, chunk in enumerate(own)})
        return ahead

    def result(self, chunk: Chunk) -> tuple[TrainState, Metrics] | None:
        """Return what became of a chunk in the present block, and None if it was not begun with."""
        if self.now is None or (begun := self.now.begun.get(id(chunk))) is None:
            return None
        state, metrics = begun.result()
        return TrainState(*state), Metrics(*joined_in_time(metrics))

    @property
    def seconds(self) -> float:
        """What the present block took all workers."""
        return sum(self.now.spent) / self.count if self.now else 0.0

    def drop(self) -> None:
        """Let nothing run on beside what follows, and forget it."""
        begun = [ahead for ahead in (self.now, self.next) if ahead is not None]
        for ahead in begun:
            for future in ahead.futures:
                future.cancel()
        for ahead in begun:
            ahead.wait()
        self.now = self.next = None

    def close(self) -> None:
        """End the threads."""
        self.drop()
        self.pool.shutdown()


@dataclass
class Turn:
    """Chunks that are run over a piece of their blocks together, and when."""

    place: int
    chunks: list[Chunk]
    piece: Piece


def _in_order(chunks: Sequence[Chunk], given: Mapping[int, Block], *, joins: bool) -> list[Turn]:
    """Return what is to be run over which piece of its block, in an order in which little waits for another thread."""
    turns: list[Turn] = []
    several: dict[tuple[Any, ...], Turn] = {}  # of small groups that end with steps outside of calls
    for number, (key, block) in enumerate(given.items()):
        own = [chunk for chunk in chunks if id(chunk.group) == key]
        program = own[0].group.compiled
        assert program is not None
        pieces = program.pieces(block)
        for count, piece in enumerate(pieces):
            # Steps outside of calls go on beside the calls of the next group.
            place = number + 2 * count
            several_may = joins and program.joins and piece is pieces[-1] and len(own) <= TOGETHER // 2
            if piece.calls or not several_may:
                turns += [Turn(place, found, piece) for found in ([[c] for c in own] if piece.calls else together(own))]
                continue
            alike = (id(program), piece, *block.shapes[piece.start :])
            if alike not in several or len(several[alike].chunks) + len(own) > TOGETHER:
                several[alike] = Turn(place, [], piece)
                turns.append(several[alike])
            several[alike].place = max(place, several[alike].place)
            several[alike].chunks += own
    return sorted(turns, key=lambda turn: turn.place)


def _prepared(autocast: bool, dtype: torch.dtype) -> None:
    """Give a new thread one thread of torch's, and the caller's autocast, which is each thread's own."""
    torch.set_autocast_enabled("cpu", autocast)
    torch.set_autocast_dtype("cpu", dtype)
    # At its first operation torch gives a thread what is set for the process then, whatever the thread has set before.
    # To ask for the number is such an operation.
    torch.get_num_threads()
    torch.set_num_threads(1)


def _run(
    program: Compiled, tasks: Sequence[Task], blocks: Sequence[Block], piece: Piece, spent: list[float]
) -> list[Done]:
    """Run chunks over a piece in a thread, where nothing is seeded: random numbers have been drawn."""
    at = [task.done() for task in tasks]
    started = time.monotonic()
    found = _over(program, tasks, at, blocks, piece)
    spent.append(time.monotonic() - started)
    return found


def _over(
    program: Compiled, tasks: Sequence[Task], at: Sequence[Done], blocks: Sequence[Block], piece: Piece
) -> list[Done]:
    if len(tasks) == 1:
        state, metrics = program.run(at[0].state, blocks[0], tasks[0].strengths, [piece])
        return [Done(state, [*at[0].metrics, metrics])]
    state, strengths = joined([done.state for done in at]), joined([task.strengths for task in tasks])
    sizes = [members_of(done.state) for done in at]
    if all(block is blocks[0] for block in blocks):
        state, metrics = program.run(state, blocks[0], strengths, [piece])
    else:
        state, metrics = program.run_each(state, blocks, sizes, strengths, piece)
    parts = torch.arange(sum(sizes)).split(sizes)
    return [
        Done(take(state, rows), [*done.metrics, [m[:, rows] for m in metrics]])
        for done, rows in zip(at, parts, strict=True)
    ]

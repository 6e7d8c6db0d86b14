"""Blocks of buffered batches: what chunks of members run over, one chunk after the other."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from l2path.batches import batch_rows
from l2path.trees import map_tensors, tensor_leaves, tree_map
from l2path.types import Batch

ALIGNED = 64  # bytes: where torch's own allocations begin


class Run(NamedTuple):
    """Batches of one shape that lie one behind the other.

    Attributes
    ----------
    stacked : Batch
        Of tensors ``[n, B, ...]``.
    length : int
        n.
    """

    stacked: Batch
    length: int


class Block:
    """Batches in their order, as a list or as runs of batches that are stacked already; either gives the other.

    No digit of a result may depend on how batches are buffered, and the products of some libraries depend on where in
    memory their operands begin: what is handed out always begins where an allocation of its own would.

    Parameters
    ----------
    batches : sequence of Batch, optional
    runs : sequence of Run, optional
    """

    def __init__(self, batches: Sequence[Batch] | None = None, runs: Sequence[Run] | None = None) -> None:
        self._batches, self._runs = batches, runs
        self._stacks: dict[tuple[int, int], Batch] = {}

    @cached_property
    def batches(self) -> Sequence[Batch]:
        """The batches one by one."""
        if self._batches is None:
            assert self._runs is not None
            self._batches = [_part(run.stacked, i) for run in self._runs for i in range(run.length)]
        return self._batches

    @cached_property
    def rows(self) -> list[int]:
        """Rows of each batch."""
        if self._runs is None:
            return [batch_rows(batch) for batch in self.batches]
        return [n for run in self._runs for n in [next(tensor_leaves(run.stacked)).shape[1]] * run.length]

    @cached_property
    def shapes(self) -> list[tuple[Any, ...]]:
        """What a compiled program depends on of each batch; see :func:`shape_of`."""
        if self._runs is None:
            return [shape_of(batch) for batch in self.batches]
        return [s for run in self._runs for s in [shape_of(_part(run.stacked, 0))] * run.length]

    def __len__(self) -> int:
        return sum(run.length for run in self._runs) if self._runs is not None else len(self.batches)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(leaf.nbytes for part in self._runs or self.batches for leaf in tensor_leaves(part))

    def stacked(self, start: int, count: int) -> Batch:
        """Return so many batches of one shape as one tree ``[count, B, ...]``; chunks share it."""
        if (start, count) not in self._stacks:
            self._stacks[start, count] = self._stack(start, count)
        return self._stacks[start, count]

    def _stack(self, start: int, count: int) -> Batch:
        before = 0
        for run in self._runs or ():
            if before <= start and start + count <= before + run.length:
                return _part(run.stacked, slice(start - before, start - before + count))
            before += run.length
        return tree_map(lambda *x: torch.stack(x), *self.batches[start : start + count])

    def __getitem__(self, at: int) -> Block:
        """Return the block of one batch."""
        return Block(self.batches[at : at + 1])


def _part(stacked: Batch, index: int | slice) -> Batch:
    def part(x: Tensor) -> Tensor:
        found = x[index]
        return found.clone() if found.data_ptr() % ALIGNED else found

    return map_tensors(part, stacked)


def shape_of(batch: Batch) -> tuple[Any, ...]:
    """Return what a compiled program depends on of a batch."""
    return tuple((tuple(x.shape), x.dtype, x.stride()) for x in tensor_leaves(batch))


def blocks(batches: Iterator[Batch], length: Callable[[], int]) -> Iterator[Block]:
    """Yield blocks of up to ``length()`` batches, asked anew for each block."""
    while found := list(itertools.islice(batches, length())):
        yield Block(found)

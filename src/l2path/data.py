"""Batch sources, their published order, and blocks of buffered batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    default_collate,
)

from l2path.batches import BatchCheck, check_nan
from l2path.blocks import Block, Run, blocks
from l2path.errors import ArgumentError
from l2path.order import data_order, epoch_seed
from l2path.trees import tensor_leaves, tree_map
from l2path.types import Batch


class Place(NamedTuple):
    """Where data go: the device and the floating dtype of the module's parameters."""

    device: torch.device
    dtype: torch.dtype


class Source(Protocol):
    """Where batches come from: ``epoch(e)`` yields the batches of epoch ``e`` in their order."""

    @property
    def rows(self) -> int | None:
        """Number of rows in an epoch, where it is known."""

    @property
    def batch_size(self) -> int | None:
        """Rows in each batch but the last, where it is known."""

    @property
    def seed(self) -> int | None:
        """Of the order; None where the order is not this library's, and so the same for every member."""

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of one epoch."""

    def blocks(self, epoch: int, length: Callable[[], int]) -> Iterator[Block]:
        """Yield the same in blocks of up to ``length()`` batches, asked anew for each block.

        What is drawn on the way does not depend on how many batches are read ahead.
        """


class RowSource:
    """Rows that can be picked by index: a tree of tensors, or a map-style Dataset.

    Parameters
    ----------
    pick : callable
        Takes an index tensor ``[B]`` and returns the batch.
    rows, batch_size : int
        ``batch_size`` is cut to ``rows``.
    seed : int or None
        Of :func:`data_order`; None keeps the rows in order.
    in_memory : bool
        Whether ``pick`` takes rows from tensors, so that those of several batches can be picked at once.
    """

    def __init__(
        self, pick: Callable[[Tensor], Batch], rows: int, batch_size: int, seed: int | None, *, in_memory: bool = False
    ) -> None:
        self.pick, self.rows, self.batch_size, self.seed = pick, rows, min(batch_size, rows), seed
        self.in_memory = in_memory

    def with_seed(self, seed: int) -> RowSource:
        """Return the same rows in another seed's order."""
        return RowSource(self.pick, self.rows, self.batch_size, seed, in_memory=self.in_memory)

    def with_batch_size(self, batch_size: int) -> RowSource:
        """Return the same rows in batches of another size."""
        return RowSource(self.pick, self.rows, batch_size, self.seed, in_memory=self.in_memory)

    def with_pick(self, pick: Callable[[Tensor], Batch], rows: int, batch_size: int) -> RowSource:
        """Return other rows, picked in the same way, in order."""
        return RowSource(pick, rows, batch_size, None, in_memory=self.in_memory)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of one epoch."""
        order = self._order(epoch)
        for start in range(0, self.rows, self.batch_size):
            yield self.pick(order[start : start + self.batch_size])

    def blocks(self, epoch: int, length: Callable[[], int]) -> Iterator[Block]:
        """Yield the same in blocks; rows in memory are picked for a whole block at once."""
        if not self.in_memory:
            yield from blocks(DataStream(self, epoch), length)
            return
        order, size, start = self._order(epoch), self.batch_size, 0
        while start < self.rows:
            index = order[start : start + length() * size]
            start += len(index)
            runs, whole = [], len(index) // size
            if whole:
                picked = self.pick(index[: whole * size])
                runs.append(Run(tree_map(lambda x: x.unflatten(0, (whole, size)), picked), whole))  # noqa: B023
            if whole * size < len(index):
                runs.append(Run(tree_map(lambda x: x.unsqueeze(0), self.pick(index[whole * size :])), 1))
            yield Block(runs=runs)

    def _order(self, epoch: int) -> Tensor:
        return torch.arange(self.rows) if self.seed is None else data_order(self.rows, self.seed, epoch)


class StreamSource:
    """Batches in the order in which an iterable gives them, such as a user's DataLoader."""

    seed = None

    def __init__(self, loader: Iterable[Batch], rows: int | None = None, batch_size: int | None = None) -> None:
        self.loader, self.rows, self.batch_size = loader, rows, batch_size

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of one epoch."""
        yield from self.loader

    def blocks(self, epoch: int, length: Callable[[], int]) -> Iterator[Block]:
        """Yield the same in blocks."""
        return blocks(DataStream(self, epoch), length)


def make_source(
    data: Any,
    *,
    argument: str,
    batch_size: int | None,
    seed: int | None,
    place: Place,
    nan: bool = False,
) -> Source:
    """Return a source of batches.

    Parameters
    ----------
    data : tree of tensors or arrays, Dataset, IterableDataset or DataLoader
        NumPy arrays of floats are taken in ``dtype``; tensors as they are.
    argument : str
        What to call ``data`` in errors.
    batch_size : int or None
        None takes all rows at once. A DataLoader brings its own batches; an IterableDataset yields rows to batch, or
        with None, as in a DataLoader, whole batches.
    seed : int or None
        Of the order; None keeps the rows in order.
    place : Place
        Where the module's parameters are.
    nan : bool
        Whether tensors and arrays may hold NaN, for somebody else to fill in.

    Raises
    ------
    ArgumentError
        For no rows, lengths that differ, a batch size that makes no sense, and NaN.
    """
    device, dtype = place
    whole = isinstance(batch_size, (int, np.integer)) and not isinstance(batch_size, bool)
    if batch_size is not None and not (whole and batch_size >= 1):
        raise ArgumentError(
            "batch_size", got=repr(batch_size), expected="a whole number >= 1", remedy="use for example 128"
        )
    if isinstance(data, DataLoader):
        if batch_size is not None:
            raise ArgumentError(
                "batch_size",
                got=f"{batch_size} beside a DataLoader",
                expected="None: a DataLoader makes its own batches",
                remedy="leave batch_size out, or pass the dataset itself",
            )
        return StreamSource(_moved(data, device, argument), *_loader_rows(data))
    if isinstance(data, IterableDataset):
        loader: DataLoader[Any] = DataLoader(data, batch_size=batch_size)
        return StreamSource(_moved(loader, device, argument))
    if type(data) is TensorDataset:  # a subclass may have a __getitem__ of its own
        data = tuple(data.tensors)
    if isinstance(data, Dataset):
        if not isinstance(data, Sized):
            raise ArgumentError(
                argument,
                got=f"a {type(data).__name__} without a length",
                expected="a Dataset with __len__, an IterableDataset or a DataLoader",
                remedy="add __len__, or pass a DataLoader",
            )
        rows, dataset, check = len(data), data, BatchCheck(argument)
        _check_rows(rows, argument)

        def collate(index: Tensor) -> Batch:
            batch = default_collate([dataset[i] for i in index.tolist()])
            return check(tree_map(lambda x: _to(x, device), batch))

        return RowSource(collate, rows, batch_size or rows, seed)
    tensors = tree_map(lambda x: _as_tensor(x, device, dtype, argument), data)
    lengths = {leaf.shape[0] if leaf.ndim else 0 for leaf in tensor_leaves(tensors)}
    if len(lengths) != 1:
        shapes = [list(leaf.shape) for leaf in tensor_leaves(tensors)]
        raise ArgumentError(
            argument,
            got=f"tensors of shapes {shapes}" if shapes else "no tensors",
            expected="inputs and targets with one row for each example, of one length",
            remedy="check that inputs and targets belong together; the first axis is the rows",
        )
    rows = lengths.pop()
    _check_rows(rows, argument)
    if not nan:
        check_nan(tensors, argument)

    def pick(index: Tensor) -> Batch:
        if seed is None and len(index) == rows:
            # All of them in order. Copied, as picked rows are: what works in place must not spoil the data.
            return tree_map(torch.clone, tensors)
        return tree_map(lambda x: x.index_select(0, index.to(x.device)), tensors)

    return RowSource(pick, rows, batch_size or rows, seed, in_memory=True)


def _loader_rows(loader: DataLoader[Any]) -> tuple[int | None, int | None]:
    """Return the rows of an epoch and of a batch where a loader surely visits its whole dataset."""
    plain = type(loader.sampler) is SequentialSampler or (
        type(loader.sampler) is RandomSampler and loader.sampler.num_samples == len(loader.sampler.data_source)
    )
    if loader.batch_size is None or loader.drop_last or not plain or isinstance(loader.dataset, IterableDataset):
        return None, None
    return (len(loader.dataset), loader.batch_size) if isinstance(loader.dataset, Sized) else (None, None)


def _check_rows(rows: int, argument: str) -> None:
    if rows == 0:
        raise ArgumentError(argument, got="no rows", expected="at least one row", remedy="check how the data is made")


def _as_tensor(leaf: Any, device: torch.device, dtype: torch.dtype, argument: str) -> Tensor:
    if isinstance(leaf, Tensor):
        return leaf.detach().to(device)
    array = np.asarray(leaf)
    if array.ndim == 0 and array.dtype.kind in "biufc":
        raise ArgumentError(
            argument,
            got=f"the number {leaf!r} in a list or tuple",
            expected="tensors or arrays with one row for each example",
            remedy="convert nested lists with torch.as_tensor",
        )
    if array.dtype.kind not in "biufc":
        raise ArgumentError(
            argument,
            got=f"a {type(leaf).__name__}" + (f" of {array.dtype}" if array.ndim else ""),
            expected="tensors or numeric arrays, a Dataset or a DataLoader",
            remedy="convert it, for example with torch.as_tensor or DataFrame.to_numpy",
        )
    # NumPy's default float64 meets float32 models all the time; torch tensors are left as they are.
    if array.dtype.kind == "f":
        return torch.tensor(array, dtype=dtype, device=device)
    return torch.tensor(array, device=device)


def _to(leaf: Any, device: torch.device) -> Any:
    return leaf.to(device) if isinstance(leaf, Tensor) else leaf


def _moved(loader: Iterable[Batch], device: torch.device, argument: str) -> Iterable[Batch]:
    check = BatchCheck(argument)

    class Moved:
        def __iter__(self) -> Iterator[Batch]:
            for i, batch in enumerate(loader):
                yield check(tree_map(lambda x: _to(x, device), batch), f" (batch {i} of the epoch)")

    return Moved()


class DataStream:
    """Batches of one epoch whose random draws (shuffling, augmentation) come from a generator state of their own.

    torch's default generator is process-wide and the steps reseed it: what a dataset draws must not depend on how many
    batches are read before a step. The state that was there is put back after every read.

    Parameters
    ----------
    source : Source
    epoch : int
        What is drawn is a function of the source's seed and of this.
    """

    def __init__(self, source: Source, epoch: int) -> None:
        self.iterator = source.epoch(epoch)
        self.state = torch.Generator().manual_seed(epoch_seed(source.seed or 0, epoch)).get_state()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        outer = torch.default_generator.get_state()
        torch.default_generator.set_state(self.state)
        try:
            return next(self.iterator)
        finally:
            self.state = torch.default_generator.get_state()
            torch.default_generator.set_state(outer)

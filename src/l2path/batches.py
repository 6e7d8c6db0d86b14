"""What a batch is: its rows, its structure, and what it must not hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from l2path.errors import ArgumentError, L2PathError
from l2path.trees import entries_of, tensor_leaves
from l2path.types import Batch


class BatchCheck:
    """Refuses batches without rows, with NaN, or of another structure than the first one had."""

    def __init__(self, argument: str) -> None:
        self.argument = argument
        self.first: str | None = None

    def __call__(self, batch: Batch, where: str = "") -> Batch:
        """Return the batch; ``where`` says in errors which one it is."""
        found = structure(batch)
        self.first = self.first or found
        if found != self.first:
            raise ArgumentError(
                self.argument + where,
                got=f"a batch {found}",
                expected=f"the structure of the first batch, {self.first}",
                remedy="let the dataset or its collate_fn give every batch the same keys and the same number of parts",
            )
        if batch_rows(batch) == 0:
            raise ArgumentError(
                self.argument + where,
                got="a batch without rows",
                expected="at least one row in every batch",
                remedy="drop empty batches",
            )
        return check_nan(batch, self.argument + where)


def structure(tree: Batch) -> str:
    """Return keys and numbers of parts of a batch as text, with a star for each leaf.

    Examples
    --------
    >>> structure(({"ids": torch.ones(2), "mask": None}, torch.ones(2)))
    '({ids: *, mask: *}, *)'
    """
    entries = None if isinstance(tree, Tensor) else entries_of(tree)
    if entries is None:
        return "*"
    if isinstance(tree, (tuple, list)):
        return f"({', '.join(map(structure, entries.values()))})"
    return f"{{{', '.join(sorted(f'{key}: {structure(value)}' for key, value in entries.items()))}}}"


def describe_batch(batch: Batch) -> str:
    """Return shapes and dtypes of a batch's tensors."""
    return ", ".join(f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for t in tensor_leaves(batch))


@contextmanager
def noted(where: str, batch: Batch) -> Iterator[None]:
    """Let an error within say where it happened, on what batch; its type and text stay."""
    try:
        yield
    except Exception as error:
        error.add_note(f"l2path: {where}, on a batch of {describe_batch(batch)}")
        raise


def check_nan(batch: Batch, argument: str) -> Batch:
    """Return the batch, or say where it holds NaN."""
    for leaf in tensor_leaves(batch):
        if (leaf.is_floating_point() or leaf.is_complex()) and bool(torch.isnan(leaf).any()):
            where = torch.isnan(leaf).nonzero()[0].tolist()
            raise ArgumentError(
                argument,
                got=f"NaN at index {where} of a tensor of shape {list(leaf.shape)}",
                expected="data without NaN",
                remedy="impute or drop those rows",
            )
    return batch


def batch_rows(batch: Batch) -> int:
    """Return the number of rows of a batch: the length of its first tensor's first axis."""
    for leaf in tensor_leaves(batch):
        if leaf.ndim > 0:
            return leaf.shape[0]
    raise L2PathError("a batch holds no tensor with an axis of rows")

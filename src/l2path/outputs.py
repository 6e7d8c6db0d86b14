"""The outputs of all members of a chunk as a compiled program."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import NoneType
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_structure, tree_unflatten

from l2path.compiling import as_handed, compiled, lowering, one_thread, without_noise
from l2path.functional import vmap
from l2path.trees import map_tensors, tensor_leaves, with_tensors
from l2path.trees import tree_leaves as every_leaf
from l2path.types import Buffers, Params, Tree

Parts: TypeAlias = tuple[Params, Buffers]


class CompiledOutputs:
    """Outputs in eval mode, compiled for so many rows of so many members.

    More rows are done one part after the other, the last of which begins early enough to be as long as the others;
    fewer rows and members are filled up. So the rows of outputs must not depend on each other, which the caller has to
    try on fewer rows than a part's.

    Parameters
    ----------
    call : callable
        Of one member, ``((params, buffers), inputs) -> outputs``.
    members, rows : int
    device : torch.device
    native : bool
        Use native kernels where they are built and faster.
    """

    def __init__(
        self, call: Callable[[Parts, Any], Tree], members: int, rows: int, device: torch.device, *, native: bool
    ) -> None:
        self.members, self.rows = members, rows

        def tensors(parts: Parts, inputs: Any) -> tuple[Tensor, ...]:
            return tuple(tensor_leaves(call(parts, inputs)))

        traced = lowering(vmap(tensors, in_dims=(0, None)), native=native)

        def outputs(leaves: Sequence[Tensor], inputs: Any) -> list[Tensor]:
            return [x.clone() for x in traced(tree_unflatten(list(leaves), self._form), inputs)]

        self._program = compiled(outputs, device, native=native)
        self._form: Any = None  # of parameters and buffers
        self._like: Tree = None  # what outputs are made of
        self._shapes: list[Any] = []  # of inputs that it was compiled for, without rows

    def compile(self, parts: Parts, inputs: Any, rows: int, like: Tree) -> Tree:
        """Compile for inputs like these, and return their outputs.

        Parameters
        ----------
        parts : (params, buffers), ``[C, ...]``
        inputs : tree
            Leaves of ``rows`` rows first are taken apart along them; others are the same for all parts.
        rows : int
            n.
        like : tree, ``[C, n, ...]``
            The same outputs as they are without a program.

        Raises
        ------
        Exception
            Whatever torch says of what it cannot compile; ValueError for outputs without rows.
        """
        if any(not isinstance(leaf, Tensor) for leaf in every_leaf(like)):
            raise ValueError("outputs hold more than tensors")
        if any(not isinstance(leaf, (Tensor, bool, int, float, str, NoneType)) for leaf in tree_leaves(inputs)):
            raise ValueError("inputs hold more than tensors and numbers")
        leaves = list(tensor_leaves(like))
        if not leaves or any(x.ndim < 2 or x.shape[1] != rows for x in leaves):
            raise ValueError("outputs without rows")
        self._form, self._shapes = tree_structure(parts), _shapes(inputs, rows)
        self._like = map_tensors(lambda x: x.new_empty(0), like)
        with without_noise(), _in_python():
            return self._outputs(parts, inputs, rows)

    def __call__(self, parts: Parts, inputs: Any, rows: int) -> Tree | None:
        """Return the outputs ``[C, n, ...]`` of up to ``members`` members; None for inputs that are not like the first.

        Parameters
        ----------
        parts : (params, buffers), ``[C, ...]``
        inputs : tree
        rows : int
            n.
        """
        if _shapes(inputs, rows) != self._shapes or tree_structure(parts) != self._form:
            return None
        return self._outputs(parts, inputs, rows)

    def _outputs(self, parts: Parts, inputs: Any, rows: int) -> Tree:
        leaves = [as_handed(x) for x in tree_leaves(parts)]
        members = len(leaves[0])
        if members < self.members:
            filled = torch.arange(self.members) % members
            leaves = [x[filled] for x in leaves]
        found: list[list[Tensor]] = []
        for chosen, new in _ranges(rows, self.rows):
            own = map_tensors(lambda x: _rows_of(x, rows, chosen), inputs)  # noqa: B023
            with one_thread():  # for which it was compiled; with another number torch would compile anew
                done = self._program(leaves, own)
            if any(x.shape[1] != self.rows for x in done):
                raise ValueError("outputs without rows")
            found.append([x[:members, -new:] if new < self.rows else x[:members] for x in done])
        kinds = (kind[0] if len(kind) == 1 else torch.cat(kind, 1) for kind in zip(*found, strict=True))
        return with_tensors(self._like, kinds)


@contextmanager
def _in_python() -> Iterator[None]:
    """Let torch's transformer layers call their parts, and not one kernel for all, which compiles to itself."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def _ranges(rows: int, size: int) -> Iterator[tuple[slice | Tensor, int]]:
    """Yield the rows of each part, and how many of them, at the end, have not been in one before."""
    if rows < size:
        yield (torch.arange(size) - size) % rows, rows  # all of them in their order come last
        return
    for start in range(0, rows - size + 1, size):
        yield slice(start, start + size), size
    if rows % size:
        yield slice(rows - size, rows), rows % size


def first_rows(x: Tensor, rows: int, count: int) -> Tensor:
    """Return the first of the rows of inputs that have so many; other inputs as they are."""
    return x[:count] if _has_rows(x, rows) else x


def _rows_of(x: Tensor, rows: int, chosen: slice | Tensor) -> Tensor:
    return as_handed(x[chosen] if _has_rows(x, rows) else x)


def _has_rows(x: Tensor, rows: int) -> bool:
    return x.ndim > 0 and x.shape[0] == rows


def _shapes(inputs: Any, rows: int) -> list[Any]:
    """Return what must be the same for a program to be the one that is meant, whatever the number of rows."""
    found: list[Any] = [tree_structure(inputs)]
    for x in tree_leaves(inputs):
        if isinstance(x, Tensor):
            found.append((x.dtype, _has_rows(x, rows), *(x.shape[1:] if _has_rows(x, rows) else x.shape)))
        else:
            found.append(x)
    return found

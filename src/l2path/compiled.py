"""A step of all members of a chunk as one compiled program (``torch.compile``)."""

from __future__ import annotations

import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from l2path import lowerings
from l2path.functional import vmap
from l2path.functional.lowered import Lowered
from l2path.trees import tensor_leaves
from l2path.types import Batch, Tree

# A chunk of a compiled program works best where its state and activations stay in the caches of one core.
COMPILED_CHUNK_BYTES = 2**22
OPTIONS: dict[str, dict[str, Any]] = {
    # A C++ wrapper leaves Python while it runs, so that threads work side by side; each of them on one core.
    "cpu": {"cpp_wrapper": True, "cpp.threads": 1},
    "cuda": {"triton.cudagraphs": True},
}


class Compiled:
    """The vmapped step of a chunk, compiled for batches of the shapes that :meth:`compile` was given.

    Other batches (the last one of an epoch) go through the vmapped step as it is.

    Parameters
    ----------
    step : callable
        Of one member, ``(state, batch, per_member) -> (state, metrics)``.
    members : int
        C, the chunk's size; smaller chunks are filled up with copies of their first member.
    device : torch.device
    native : bool
        Use native kernels where they are built and faster; see :mod:`l2path.lowerings`.
    """

    def __init__(
        self, step: Callable[[Tree, Batch, Tree], Any], members: int, device: torch.device, native: bool
    ) -> None:
        self.members = members
        self.vmapped: Callable[[Tree, Batch, Tree], Any] = vmap(step, in_dims=(0, None, 0))

        def lowered(state: Tree, batch: Batch, per_member: Tree) -> Any:
            with Lowered():
                return self.vmapped(state, batch, per_member)

        options = OPTIONS.get(device.type, {}) | (lowerings.compile_options() if native else {})
        self._program = torch.compile(_own_code(lowered), fullgraph=True, dynamic=False, options=options)
        self._shapes: set[tuple[Any, ...]] = set()

    def compile(self, state: Tree, batch: Batch, per_member: Tree) -> Any:
        """Compile for batches like this one, and return what the program returns.

        Raises
        ------
        Exception
            Whatever torch says of a step that it cannot compile.
        """
        with _without_noise():
            found = self._program(state, batch, per_member)
        self._shapes.add(shape_of(batch))
        return found

    def __call__(self, state: Tree, batch: Batch, per_member: Tree) -> Any:
        """Do one step of all members."""
        call = self._program if shape_of(batch) in self._shapes else self.vmapped
        return call(state, batch, per_member)


def shape_of(batch: Batch) -> tuple[Any, ...]:
    """Return what a compiled program depends on of a batch."""
    return tuple((tuple(x.shape), x.dtype, x.stride()) for x in tensor_leaves(batch))


def _own_code(call: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function with a code object of its own: torch counts recompilations by code object, process-wide."""

    def program(state: Tree, batch: Batch, per_member: Tree) -> Any:
        return call(state, batch, per_member)

    fresh = types.FunctionType(
        program.__code__.replace(co_name=f"program_{id(call)}"),
        program.__globals__,
        program.__name__,
        program.__defaults__,
        program.__closure__,
    )
    return fresh


@contextmanager
def _without_noise() -> Iterator[None]:
    """Keep warnings of the compiler about itself away."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

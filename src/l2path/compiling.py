"""How programs are compiled: the options, and what a program may be given."""

from __future__ import annotations

import itertools
import re
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from l2path import lowerings
from l2path.blocks import ALIGNED
from l2path.functional.lowered import Lowered
from l2path.lowerings import convolution, convolutions, pooling, recurrent
from l2path.lowerings.randomness import without_random_numbers

_NUMBERS = itertools.count()
OPTIONS: dict[str, dict[str, Any]] = {
    # A C++ wrapper leaves Python while it runs, so that threads work side by side; each of them on one core. Compiled
    # apart from the kernels, and without asking the compiler for every instruction set that the processor has, it takes
    # half of the time. (A compiler that does not know one fails, and then nothing is compiled.)
    "cpu": {
        "cpp_wrapper": True,
        "cpp.threads": 1,
        "cpp_wrapper_build_separate": True,
        "cpp.vec_isa_ok": True,
    },
    # A call is recorded once and then started as a whole.
    "cuda": {"triton.cudagraphs": True},
}


def compiled(call: Callable[..., Any], device: torch.device, *, native: bool) -> Callable[..., Any]:
    """Return a function that is compiled when it is called, as one program; ``native`` puts native kernels in."""
    options = OPTIONS.get(device.type, {}) | without_random_numbers() | {"guard_filter_fn": worth_a_guard}
    recurrent.allow_in_compiled()
    if native:
        for kernels in (convolution, convolutions, pooling):
            kernels.allow_in_compiled()
        options |= lowerings.compile_options()
    found: Callable[..., Any] = torch.compile(_own_code(call), fullgraph=True, dynamic=False, options=options)
    return found


def does_many_steps(device: torch.device) -> bool:
    """Whether a program does many steps in a loop of its own, several programs side by side.

    An accelerator would wait for this machine before each turn of a loop, and it is one: there a program does one step.
    """
    return device.type == "cpu"


# Torch's own modules and this package's, as guards name them; and what is inside of parameters and buffers.
_OURS = re.compile(r"__import_(torch|l2path)(_dot_|')|__import__\('(torch|collections)'\)|\._(parameters|buffers)\[")


def worth_a_guard(entries: Sequence[Any]) -> list[bool]:
    """Say which of a program's guards are evaluated at each call; torch compiles anew where one of them fails.

    Not those on a module's parameters and buffers: a program is handed all of them, and another thread that does a
    step outside of a program has its own in their place meanwhile. Nor those on torch and this package themselves,
    which are most of a thousand and more. Those on the caller's own objects stay.
    """
    return [not _OURS.search(entry.name) for entry in entries]


def lowering(call: Callable[..., Any], *, native: bool) -> Callable[..., Any]:
    """Return a function whose convolutions and attention are products."""

    def run(*operands: Any) -> Any:
        with Lowered(native=native):
            return call(*operands)

    return run


def as_allocated(x: Tensor) -> bool:
    """Whether a tensor lies in memory as one of its own would; anything else is another program to the compiler."""
    n = 1
    for size, stride in zip(reversed(x.shape), reversed(x.stride()), strict=True):
        if stride != n:
            return False
        n *= max(1, size)
    return x.data_ptr() % ALIGNED == 0


def as_handed(x: Tensor) -> Tensor:
    """Return a tensor as a program can be given it: itself if it lies so, else a copy."""
    return x if as_allocated(x) else owned(x)


def owned(x: Tensor) -> Tensor:
    """Return a copy that lies in memory as one of its own would."""
    return x.clone(memory_format=torch.contiguous_format)


def _own_code(call: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function with a code object of its own: torch counts recompilations by code object, process-wide."""
    code = call.__code__.replace(co_name=f"block_{next(_NUMBERS)}")
    return types.FunctionType(code, call.__globals__, code.co_name, call.__defaults__, call.__closure__)


@contextmanager
def one_thread() -> Iterator[None]:
    """Give torch one thread: what compiled programs are made for, several of them run side by side."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def without_noise() -> Iterator[None]:
    """Keep warnings of the compiler about itself away."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

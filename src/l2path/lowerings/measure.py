"""Which of two kernels is faster here, for one kind of operands: measured once on a machine, in milliseconds.

What was measured is kept in a file, since kernels differ in rounding: a choice that noise may turn would turn the
last digits of a run from one time to the next.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

Product = Callable[[Tensor, Tensor], Tensor]


class Layout(NamedTuple):
    """What a tensor's speed depends on."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype


# What a stock product must take longer to be replaced: below that, noise decides.
GAIN = 1.05
# Seconds that one measurement may take, beside the first calls.
BUDGET = 4e-3
# Multiplications in one call, at most: larger operands are cut, first in their stack and then in their rows. Of images
# there are eight.
LARGEST = 2**24

_known: dict[str, bool] = {}


def faster(candidate: Product, stock: Product, a: Layout, b: Layout, file: Path | None = None) -> bool:
    """Return whether ``candidate(a, b)`` gives what ``stock(a, b)`` gives in less time, with torch's present threads.

    Parameters
    ----------
    candidate, stock : callable
        Take two tensors, which are [rows, depth] and [depth, columns] or stacks of such, or images and a kernel.
    a, b : Layout
        Of the operands.
    file : Path, optional
        Where measurements are kept for other processes.
    """
    key = f"{candidate} {a.dtype} {a.shape} {a.strides} {b.shape} {b.strides} on {torch.get_num_threads()}"
    if key not in _known and file is not None:
        _known.update(_read(file))
    if key not in _known:
        # This runs while graphs are traced and compiled, when tensors may be fake.
        with _disable_current_modes(), torch.no_grad():
            try:
                _known[key] = _measure(candidate, stock, *_cut(a, b))
            except (RuntimeError, MemoryError):  # no memory, say: a compilation must not fail over this
                _known[key] = False
        if file is not None:
            _add(file, {key: _known[key]})
    return _known[key]


def _read(file: Path) -> dict[str, bool]:
    try:
        return {str(key): bool(value) for key, value in json.loads(file.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, AttributeError):  # none yet, or not ours
        return {}


def _add(file: Path, found: dict[str, bool]) -> None:
    """Add to what is kept, which other processes may do at the same time: then one of them measures again."""
    try:
        handle, name = tempfile.mkstemp(dir=file.parent, suffix=".json")
        with os.fdopen(handle, "w", encoding="utf-8") as new:
            json.dump(found | _read(file), new, indent=0)
        os.replace(name, file)
    except OSError:  # a folder that cannot be written: this process remembers
        pass


def _cut(a: Layout, b: Layout) -> tuple[Layout, Layout]:
    """Return smaller operands where these would take long: what is faster for a part is so for the whole."""
    if len(a.shape) > 3:  # images
        return a._replace(shape=(min(8, a.shape[0]), *a.shape[1:])), b
    depth, columns = b.shape[-2:]
    count, rows = math.prod(a.shape[:-2]), a.shape[-2]
    least = torch.get_num_threads()  # so that each thread has a matrix as before
    count = max(min(count, least), min(count, LARGEST // max(1, rows * depth * columns)))
    rows = max(min(rows, 64), min(rows, LARGEST // max(1, count * depth * columns)))
    stack = (count,) if len(a.shape) == 3 else ()
    return a._replace(shape=(*stack, rows, depth)), b._replace(shape=(*stack, depth, columns))


def _measure(candidate: Product, stock: Product, a: Layout, b: Layout) -> bool:
    left, right = _tensor(a), _tensor(b)
    # Small whole numbers: any order of summation gives the same.
    if not torch.equal(candidate(left, right), stock(left, right)):
        return False
    once = _time(stock, left, right, 1)
    calls = max(1, min(16, int(2e-5 / once)))
    least = [math.inf, math.inf]
    end = time.perf_counter() + BUDGET
    # In turns, so that what else the machine does falls on both; the least is the time without it.
    while True:
        for i, product in enumerate((candidate, stock)):
            least[i] = min(least[i], _time(product, left, right, calls))
        if time.perf_counter() > end:
            return least[0] * GAIN < least[1]


def _time(product: Product, left: Tensor, right: Tensor, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        product(left, right)
    return (time.perf_counter() - start) / calls


def _tensor(layout: Layout) -> Tensor:
    """Return a tensor of small whole numbers; it draws no random ones, which would change the caller's."""
    extent = 1 + sum((n - 1) * s for n, s in zip(layout.shape, layout.strides, strict=True))
    numbers = torch.arange(max(0, extent), dtype=layout.dtype, device="cpu").remainder_(7).sub_(3)
    return numbers.as_strided(layout.shape, layout.strides)

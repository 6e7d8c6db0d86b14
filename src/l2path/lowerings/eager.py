"""Native kernels in steps that are not compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from l2path.dispatch import Dispatch
from l2path.lowerings import native, recurrent
from l2path.lowerings.measure import Layout, faster
from l2path.lowerings.recurrent import taken

aten = torch.ops.aten

STACK = 8  # products in a stack that is measured: the choice shall not change when members leave


class NativeOperations(Dispatch):
    """Puts native kernels in the place of recurrent layers and stacks of products within, in the thread that enters it.

    It sees operations after ``vmap`` and differentiation. Every operation takes some microseconds longer, so that it is
    for steps whose kernels take most of the time. The native library must be there.
    """

    def __init__(self) -> None:
        super().__init__()
        layers = {getattr(torch.ops.l2path, name).default: _layer(name) for name in recurrent.SCHEMAS}
        self.kernels: dict[Any, Callable[..., Any]] = {
            **layers,
            aten.bmm.default: _product,
            aten.baddbmm.default: _product_and_sum,
        }

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call an operation, or what stands for it."""
        kernel = self.kernels.get(func)
        found = None if kernel is None or kwargs else kernel(*args)
        return func(*args, **(kwargs or {})) if found is None else found


def _layer(name: str) -> Callable[..., Any]:
    operation = getattr(torch.ops.l2path, f"native_{name}").default

    def call(*operands: Tensor) -> Any:
        return operation(*operands) if all(map(taken, operands)) else None

    return call


def _product(a: Tensor, b: Tensor) -> Tensor | None:
    library = native.status().library
    if library is None or not (taken(a) and taken(b)):
        return None
    left, right = (Layout((STACK, *x.shape[1:]), x.stride(), x.dtype) for x in (a, b))
    ours = torch.ops.l2path.tiled_bmm.default
    if not faster(ours, torch.bmm, left, right, library.with_suffix(".json")):
        return None
    found: Tensor = ours(a, b)
    return found


def _product_and_sum(bias: Tensor, a: Tensor, b: Tensor) -> Tensor | None:
    found = _product(a, b)
    return None if found is None else found.add_(bias)

"""The largest numbers of windows as an operation that ``vmap`` batches, in C++ (``pooling.cpp``).

What a compiler makes of torch's own pooling looks for the place of the largest pixel by its number, pixel by pixel, on
the way back. Here it is kept beside the result, as a number of the same dtype, and the way back is one comparison.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SCHEMAS = {"max_pool": "(Tensor x) -> (Tensor, Tensor)"}
"""Operations by name: what they take and return."""


def declare() -> None:
    """Declare the operation, whose kernel is in the native library."""
    if not hasattr(torch.ops.l2path, "max_pool"):
        tags = (torch.Tag.needs_exact_strides, torch.Tag.pt2_compliant_tag)
        torch.library.define("l2path::max_pool", SCHEMAS["max_pool"], tags=tags)
        torch.library.register_fake("l2path::max_pool", _results)


def _results(x: Tensor) -> tuple[Tensor, Tensor]:
    *lead, _, columns, _, channels = x.shape
    y = x.new_empty(*lead, columns, channels)
    return y, torch.empty_like(y)


class _MaxPool(torch.autograd.Function):
    # The signatures are those of each function, hence Any.
    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = torch.ops.l2path.max_pool(x.contiguous())
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.window = inputs[0].shape[-4], inputs[0].shape[-2]
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx: Any, dy: Tensor, _: Any) -> Tensor:
        height, width = ctx.window
        (at,) = ctx.saved_tensors
        places = torch.arange(height * width, dtype=at.dtype, device=at.device).reshape(height, 1, width, 1)
        return torch.where(_spread(at) == places, _spread(dy), torch.zeros((), dtype=dy.dtype, device=dy.device))

    @staticmethod
    def vmap(info: Any, dims: Any, x: Tensor) -> Any:
        # torch leaves it without types
        return _MaxPool.apply(x.movedim(dims[0], 0)), (0, 0)  # type: ignore[no-untyped-call]


def _spread(x: Tensor) -> Tensor:
    """Return numbers of windows with axes for the pixels of a window."""
    return x.unsqueeze(-2).unsqueeze(-4)


def max_pool(x: Tensor) -> Tensor:
    """Return the largest number of each window, ``[B, rows, columns, C]``; the gradient goes to the first such one.

    Parameters
    ----------
    x : Tensor, ``[B, rows, height, columns, width, C]``
    """
    found: Tensor = _MaxPool.apply(x)[0]  # type: ignore[no-untyped-call]
    return found


def allow_in_compiled() -> None:
    """Have ``torch.compile`` take :func:`max_pool` whole: its own handling of such functions fails inside vmap."""
    torch.compiler.allow_in_graph(max_pool)  # imports the compiler, which takes a second

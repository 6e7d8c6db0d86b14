"""Convolutions with a step of one as operations that ``vmap`` batches, in C++ (``convolution.cpp``).

A vmapped convolution of torch becomes a grouped one, which the libraries below torch run member by member and slowly.
Written as products of patches it is batched, but patches take nine times the memory of an image for a kernel of 3 x 3.
The operations here need none. Images lie with their channels last, ``[..., B, H, W, C]``, padding included; kernels are
``[..., kernel height, kernel width, C, O]``; any leading axes are the members'.

* ``l2path::convolve(x, w)``: sums of products over patches, ``[..., B, H - height + 1, W - width + 1, O]``.
* ``l2path::convolve_weight(x, dy)``: its gradient with respect to w, from that of its result.

The gradient with respect to x is a convolution again, of dy with the kernel turned round.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

SCHEMAS = {"convolve": "(Tensor x, Tensor w) -> Tensor", "convolve_weight": "(Tensor x, Tensor dy) -> Tensor"}
"""Operations by name: what they take and return."""


def declare() -> None:
    """Declare the operations, whose kernels are in the native library."""
    shapes = {"convolve": _result, "convolve_weight": _weight}
    for name, schema in SCHEMAS.items():
        if not hasattr(torch.ops.l2path, name):
            # Other layouts are copied, member by member: inductor shall write what it writes as it was traced.
            tags = (torch.Tag.needs_exact_strides, torch.Tag.pt2_compliant_tag)
            torch.library.define(f"l2path::{name}", schema, tags=tags)
            torch.library.register_fake(f"l2path::{name}", shapes[name])


def _result(x: Tensor, w: Tensor) -> Tensor:
    *lead, height, width, _ = x.shape
    return x.new_empty(*lead, height - w.shape[-4] + 1, width - w.shape[-3] + 1, w.shape[-1])


def _weight(x: Tensor, dy: Tensor) -> Tensor:
    *lead, _, height, width, channels = x.shape
    return x.new_empty(*lead, height - dy.shape[-3] + 1, width - dy.shape[-2] + 1, channels, dy.shape[-1])


class _Batched(torch.autograd.Function):
    """A function that ``vmap`` batches by giving both operands the members' axis in front."""

    # The signatures are those of each function, hence Any.
    @classmethod
    def batched(
        cls, info: Any, dims: tuple[int | None, ...], x: Tensor, other: Tensor, pads: tuple[int, int]
    ) -> tuple[Tensor, int]:
        """Apply to batched operands."""
        if dims[0] is None:  # padded once for all members
            x, pads = _padded(x, pads), (0, 0)
        pairs = zip((x, other), dims[:2], strict=True)
        full = (t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0) for t, dim in pairs)
        return cls.apply(*full, pads), 0  # type: ignore[no-untyped-call]  # torch leaves it without types


class _Convolve(_Batched):
    @staticmethod
    def forward(x: Tensor, w: Tensor, pads: tuple[int, int]) -> Tensor:
        found: Tensor = torch.ops.l2path.convolve(_padded(x, pads), w)
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, w, ctx.pads = inputs
        ctx.save_for_backward(x, w)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, w = ctx.saved_tensors
        rest = w.shape[-4] - 1 - ctx.pads[0], w.shape[-3] - 1 - ctx.pads[1]
        dx = _Convolve.apply(dy, w.flip(-4, -3).transpose(-2, -1), rest)  # type: ignore[no-untyped-call]
        return dx, _ConvolveWeight.apply(x, dy, ctx.pads), None  # type: ignore[no-untyped-call]

    @staticmethod
    def vmap(info: Any, dims: Any, *operands: Any) -> Any:
        return _Convolve.batched(info, dims, *operands)


class _ConvolveWeight(_Batched):
    @staticmethod
    def forward(x: Tensor, dy: Tensor, pads: tuple[int, int]) -> Tensor:
        found: Tensor = torch.ops.l2path.convolve_weight(_padded(x, pads), dy.contiguous())
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, dy, ctx.pads = inputs
        ctx.save_for_backward(x, dy)

    @staticmethod
    def backward(ctx: Any, dw: Tensor) -> Any:  # it is linear in both operands
        x, dy = ctx.saved_tensors
        rest = dw.shape[-4] - 1 - ctx.pads[0], dw.shape[-3] - 1 - ctx.pads[1]
        dx = _Convolve.apply(dy, dw.flip(-4, -3).transpose(-2, -1), rest)  # type: ignore[no-untyped-call]
        return dx, _Convolve.apply(x, dw, ctx.pads), None  # type: ignore[no-untyped-call]

    @staticmethod
    def vmap(info: Any, dims: Any, *operands: Any) -> Any:
        return _ConvolveWeight.batched(info, dims, *operands)


def _padded(x: Tensor, pads: tuple[int, int]) -> Tensor:
    """Return images with zeros around them; a negative number takes rows away."""
    height, width = pads
    return F.pad(x, (0, 0, width, width, height, height)).contiguous() if any(pads) else x.contiguous()


def convolve(x: Tensor, w: Tensor, pads: tuple[int, int]) -> Tensor:
    """Return a convolution of two axes with a step of one, differentiable any number of times.

    Parameters
    ----------
    x : Tensor, ``[B, H, W, C]``
    w : Tensor, ``[kernel height, kernel width, C, O]``
    pads : (height, width)
        Zeros on each side.

    Returns
    -------
    Tensor, ``[B, H + 2 height - kernel height + 1, W + 2 width - kernel width + 1, O]``
    """
    found: Tensor = _Convolve.apply(x, w, pads)  # type: ignore[no-untyped-call]
    return found


def allow_in_compiled() -> None:
    """Have ``torch.compile`` take :func:`convolve` whole: its own handling of such functions fails inside vmap."""
    torch.compiler.allow_in_graph(convolve)  # imports the compiler, which takes a second

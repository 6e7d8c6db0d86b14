"""Operations that ``vmap`` batches badly, written in ones that it batches well: for compiled programs.

A vmapped convolution becomes a grouped one, which the libraries below torch run member by member and slowly; vmapped
attention on a CPU falls back to a loop over members. As matrix products both are batched, and the compiler fuses what
is around them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from l2path.functional.equivalents import EQUIVALENTS
from l2path.functional.opened import multi_head_attention_forward
from l2path.lowerings.convolution import convolve
from l2path.lowerings.convolutions import taken
from l2path.lowerings.pooling import max_pool


class Lowered(TorchFunctionMode):
    """Replaces convolutions and attention within, and what ``vmap`` cannot batch but has an equivalent.

    What it does not know (groups, transposed or unbatched convolutions) stays as it is.

    Parameters
    ----------
    native : bool
        Whether to take native kernels where they are faster.
    """

    def __init__(self, *, native: bool = False) -> None:
        super().__init__()
        self.native = native

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.multi_head_attention_forward:
            with self:
                return multi_head_attention_forward(*args, **(kwargs or {}))
        return lowered(func, args, kwargs or {}, native=self.native)


def lowered(func: Any, args: Any, kwargs: dict[str, Any], *, native: bool) -> Any:
    """Return what a torch function returns, by way of what stands for it."""
    # The compiler finds functions of Python in a dict by chance.
    if native and (kernel := NATIVE.get(func)) is not None and (found := kernel(*args, **kwargs)) is not None:
        return found
    replace = unflatten if func is Tensor.unflatten else REPLACED.get(func)
    if replace is not None and (found := replace(*args, **kwargs)) is not None:
        return found
    if func in EQUIVALENTS and EQUIVALENTS[func][0](*args, **kwargs):
        return EQUIVALENTS[func][1](*args, **kwargs)
    return func(*args, **kwargs)


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    """Return a convolution of one or two axes as one matrix product over shifted slices, or None.

    Parameters
    ----------
    x : Tensor, ``[B, C, *size]``
    weight : Tensor, ``[O, C, *kernel]``
    bias, stride, padding, dilation, groups
        As for ``torch.nn.functional.conv2d``.

    Returns
    -------
    Tensor, ``[B, O, *size]``
        Channels lie last in memory. None for what is not meant: groups, an axis missing, unequal padding by name.
    """
    axes = weight.ndim - 2
    if groups != 1 or x.ndim != weight.ndim or 0 in x.shape:
        return None
    steps, gaps = (_each(v, axes) for v in (stride, dilation))
    pads = _padding(padding, weight.shape[2:], gaps)
    if pads is None:
        return None
    out, inner, *kernel = weight.shape
    x = x.movedim(1, -1)
    if any(pads):
        x = F.pad(x, (0, 0, *(p for pad in reversed(pads) for p in (pad, pad))))
    size = [
        (n - gap * (k - 1) - 1) // step + 1 for n, k, gap, step in zip(x.shape[1:], kernel, gaps, steps, strict=False)
    ]
    if min(size) < 1:
        return None  # torch says what is wrong
    slices = []
    for at in product(*map(range, kernel)):
        part = x
        for axis, (i, gap, step, n) in enumerate(zip(at, gaps, steps, size, strict=True)):
            part = part.narrow(axis + 1, i * gap, (n - 1) * step + 1)
            part = part if step == 1 else part[(slice(None),) * (axis + 1) + (slice(None, None, step),)]
        slices.append(part)
    depth = inner
    for k in kernel:
        depth *= k
    patches = torch.cat(slices, -1).reshape(-1, depth)
    y = patches @ weight.movedim(1, -1).movedim(0, -1).reshape(depth, out)
    if bias is not None:
        y = y + bias.to(y.dtype)  # of the product, which autocast may choose
    return y.reshape(x.shape[0], *size, out).movedim(-1, 1)


def native_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    """Return what :func:`convolution` returns by a native kernel, where that is faster, or None."""
    axes = weight.ndim - 2
    if groups != 1 or x.ndim != weight.ndim or 0 in x.shape or x.device.type != "cpu" or x.dtype != weight.dtype:
        return None
    if torch.is_autocast_enabled("cpu"):
        return None
    gaps = _each(dilation, axes)
    pads = _padding(padding, weight.shape[2:], gaps)
    if pads is None or {*_each(stride, axes), *gaps} != {1}:
        return None
    images, kernel = x.movedim(1, -1), weight.movedim(1, -1).movedim(0, -1)
    if axes == 1:
        images, kernel, pads = images.unsqueeze(1), kernel.unsqueeze(0), [0, *pads]
    height, width = (n + 2 * pad for n, pad in zip(images.shape[1:3], pads, strict=True))
    if height < kernel.shape[0] or width < kernel.shape[1]:
        return None  # torch says what is wrong
    if not taken((images.shape[0], height, width, images.shape[3]), tuple(kernel.shape), x.dtype):
        return None
    y = convolve(images, kernel, (pads[0], pads[1]))
    if bias is not None:
        y = y + bias
    return (y.squeeze(1) if axes == 1 else y).movedim(-1, 1)


def native_max_pool(
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | None:
    """Return ``F.max_pool2d`` by a native kernel, or None where windows overlap or leave pixels over."""
    height, width = _each(kernel_size, 2)
    steps = [height, width] if stride is None else _each(stride, 2)
    if steps != [height, width] or {*_each(padding, 2)} != {0} or {*_each(dilation, 2)} != {1} or return_indices:
        return None
    if x.ndim != 4 or 0 in x.shape or x.shape[2] % height or x.shape[3] % width:
        return None
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
        return None
    rows, columns = x.shape[2] // height, x.shape[3] // width
    windows = x.movedim(1, -1).reshape(x.shape[0], rows, height, columns, width, x.shape[1])
    return max_pool(windows).movedim(-1, 1)


def native_max_pool_1d(
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | None:
    """Return ``F.max_pool1d`` by a native kernel, or None where windows overlap or leave numbers over."""
    steps = None if stride is None else [1, *_each(stride, 1)]
    pads, gaps = [0, *_each(padding, 1)], [1, *_each(dilation, 1)]
    found = native_max_pool(x.unsqueeze(-2), [1, *_each(kernel_size, 1)], steps, pads, gaps, ceil_mode, return_indices)
    return None if found is None else found.squeeze(-2)


def attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **kwargs: Any
) -> Tensor:
    """Return ``scaled_dot_product_attention`` by torch's own plain formula, in products and a softmax."""
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, -torch.inf)
    found: Tensor = torch.ops.aten._scaled_dot_product_attention_math(query, key, value, attn_mask, *args, **kwargs)[0]
    return found


def interpolate(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Return ``F.interpolate`` of a copy with its channels first in memory: a traced one cannot be batched else."""
    return F.interpolate(input.contiguous(), *args, **kwargs)


def unflatten(x: Tensor, dim: int | str, sizes: Any) -> Tensor | None:
    """Return ``x.unflatten(dim, sizes)``, whose Python the compiler cannot follow."""
    if isinstance(dim, str):
        return None
    dim %= x.ndim
    return x.reshape(*x.shape[:dim], *sizes, *x.shape[dim + 1 :])


def _each(value: Any, axes: int) -> list[int]:
    """Return a number for each axis."""
    if isinstance(value, int):
        return [value] * axes
    return [int(v) for v in value] * (axes if len(value) == 1 else 1)


def _padding(padding: Any, kernel: Sequence[int], gaps: Sequence[int]) -> list[int] | None:
    """Return the zeros on each side of each axis; None where the sides differ, as they may with "same"."""
    if padding == "valid":
        return [0] * len(kernel)
    if padding != "same":
        return _each(padding, len(kernel))
    both = [gap * (k - 1) for k, gap in zip(kernel, gaps, strict=True)]
    return None if any(n % 2 for n in both) else [n // 2 for n in both]


NATIVE: dict[Any, Callable[..., Tensor | None]] = {
    torch.conv1d: native_convolution,
    torch.conv2d: native_convolution,
    F.max_pool1d: native_max_pool_1d,
    F.max_pool2d: native_max_pool,
}
REPLACED: dict[Any, Callable[..., Tensor | None]] = {
    torch.conv1d: convolution,
    torch.conv2d: convolution,
    F.scaled_dot_product_attention: attention,
    F.interpolate: interpolate,
}

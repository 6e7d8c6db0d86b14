"""Which convolutions the native kernels take."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from operator import mul

import torch
from torch import Tensor

from l2path.lowerings import native
from l2path.lowerings.measure import Layout, faster


def taken(images: Sequence[int], kernel: Sequence[int], dtype: torch.dtype) -> bool:
    """Return whether the native convolution takes less time here than a product of patches; measured once.

    Parameters
    ----------
    images : (B, H, W, C)
        Padding included.
    kernel : (kernel height, kernel width, C, O)
    dtype : torch.dtype
    """
    library = native.status().library
    if library is None or dtype not in (torch.float32, torch.float64):
        return False
    x, w = (Layout(tuple(shape), _strides(shape), dtype) for shape in (images, kernel))
    return faster(torch.ops.l2path.convolve.default, by_patches, x, w, library.with_suffix(".json"))


def _strides(shape: Sequence[int]) -> tuple[int, ...]:
    return (*list(accumulate(reversed(shape[1:]), mul))[::-1], 1)


def by_patches(x: Tensor, w: Tensor) -> Tensor:
    """Return the convolution of ``[B, H, W, C]`` with ``[kernel height, kernel width, C, O]`` as a product."""
    height, width, channels, out = w.shape
    rows, columns = x.shape[1] - height + 1, x.shape[2] - width + 1
    slices = [x[:, i : i + rows, j : j + columns] for i in range(height) for j in range(width)]
    patches = torch.cat(slices, -1).reshape(-1, height * width * channels)
    return (patches @ w.reshape(-1, out)).reshape(len(x), rows, columns, out)


def allow_in_compiled() -> None:
    """Have ``torch.compile`` take what :func:`taken` says as it is."""
    torch.compiler.assume_constant_result(taken)  # imports the compiler, which takes a second

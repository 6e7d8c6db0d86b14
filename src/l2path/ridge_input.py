"""Reading and checking what ``ridge_path`` is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from l2path.errors import ArgumentError
from l2path.types import Array

Lambdas: TypeAlias = Array | Sequence[float] | Sequence[Sequence[float]]


def as_float64(name: str, value: Lambdas, device: torch.device) -> tuple[Tensor, torch.dtype]:
    """Return ``value`` as a float64 tensor, sharing memory where it can, and its floating dtype."""
    work = torch.device("cpu") if device.type == "mps" else device
    if isinstance(value, Tensor):
        kind = f"a {str(value.layout)[6:]} tensor of {str(value.dtype)[6:]}"
        if value.is_complex() or value.layout != torch.strided:
            raise not_real(name, kind)
        if name == "y" and value.device != device:
            raise ArgumentError(
                name,
                got=f"a tensor on {value.device}",
                expected=f"the device of X, {device}",
                remedy="move one of them with .to(...)",
            )
        dtype = value.dtype if value.is_floating_point() else torch.float64
        return value.detach().to(work).to(torch.float64), dtype
    try:
        array = np.asarray(value)
    except ValueError as error:  # rows of different lengths
        raise not_real(name, "a ragged sequence") from error
    if array.dtype.kind not in "biuf":
        raise not_real(name, f"an array of {array.dtype}")
    dtype = {"f2": torch.float16, "f4": torch.float32}.get(array.dtype.str[1:], torch.float64)
    data = np.asarray(array, dtype=np.float64)
    if not data.flags.writeable or any(stride < 0 for stride in data.strides):
        data = data.copy()  # torch warns about the one and refuses the other
    return torch.from_numpy(data).to(work), dtype


def not_real(name: str, got: str) -> ArgumentError:
    """Return the error for an array that holds something else than real numbers."""
    return ArgumentError(
        name, got=got, expected="dense real numbers", remedy="convert it to a dense float array or tensor"
    )


def check_shapes(x: Tensor, y: Tensor, lambdas: Tensor) -> None:
    """Refuse shapes and values that have no ridge path."""
    xs, ys, ls = tuple(x.shape), tuple(y.shape), tuple(lambdas.shape)
    reshape = "reshape to one row per sample"
    fault = None
    if len(xs) != 2 or 0 in xs:
        fault = ("X", f"shape {xs}", "[n, D] with n, D >= 1", reshape)
    elif len(ys) not in (1, 2) or 0 in ys[1:]:
        fault = ("y", f"shape {ys}", "[n] or [n, T] with T >= 1", reshape)
    elif ys[0] != xs[0]:
        fault = ("y", f"{ys[0]} rows", f"{xs[0]} rows, as X has", "pass one target per row of X")
    elif len(ls) not in (1, 2) or 0 in ls:
        fault = ("lambdas", f"shape {ls}", "[K] or [K, D] with K >= 1", "pass a list, such as [0.1, 1.0]")
    elif len(ls) == 2 and ls[1] != xs[1]:
        fault = ("lambdas", f"{ls[1]} columns", f"{xs[1]}, one per column of X", "pass [K, D], or [K]")
    for name, values in (("X", x), ("y", y), ("lambdas", lambdas)):
        # A finite sum proves all of them finite in one read; an infinite one may be mere overflow.
        if fault is None and not values.sum().isfinite() and not values.isfinite().all():
            bad = int((~values.isfinite()).sum())
            fault = (name, f"{bad} NaN or infinite values", "finite values", "drop or impute those entries")
    if fault is None and (lambdas < 0).any():
        fault = ("lambdas", f"{float(lambdas.min()):g}", "values >= 0", "use 0 for no penalty")
    if fault is not None:
        name, got, expected, remedy = fault
        raise ArgumentError(name, got=got, expected=expected, remedy=remedy)

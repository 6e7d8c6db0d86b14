"""Equivalents of torch functions that ``vmap`` cannot batch; these read no values, so that they can be traced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def _gaussian_nll(
    input: Tensor, target: Tensor, var: Tensor | float, full: bool = False, eps: float = 1e-6, reduction: str = "mean"
) -> Tensor:
    """``F.gaussian_nll_loss`` without its look at the values: a negative variance is NaN here, and not an error."""
    if not isinstance(var, Tensor):
        var = torch.as_tensor(var, dtype=input.dtype, device=input.device)
    if var.ndim == input.ndim - 1 and var.shape == input.shape[:-1]:
        var = var.unsqueeze(-1)
    kept = torch.where(var < 0, torch.nan, var.detach().clamp(min=eps) + (var - var.detach()))
    loss = 0.5 * (kept.log() + (input - target) ** 2 / kept)
    if full:
        loss = loss + 0.9189385332046727  # log(2 pi) / 2
    return loss.mean() if reduction == "mean" else loss.sum() if reduction == "sum" else loss


def _other_dtype(input: Tensor, *args: Any, weight: Tensor | None = None, **kwargs: Any) -> bool:
    """Whether a normalisation meets an input of another dtype than its weights, as under autocast."""
    found = [a for a in (*args, weight, *kwargs.values()) if isinstance(a, Tensor)]
    return any(a.dtype != input.dtype for a in found)


def _upcast(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a normalisation that computes in the dtype of its weights and returns the dtype of its input."""

    def normalise(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        dtype = next(a.dtype for a in (*args, *kwargs.values()) if isinstance(a, Tensor))
        with torch.autocast(input.device.type, enabled=False):
            return function(input.to(dtype), *args, **kwargs).to(input.dtype)

    return normalise


def always(*args: Any, **kwargs: Any) -> bool:
    """Say that an equivalent is for every call."""
    return True


# By torch function: when there is an equivalent for a call, and what it is.
EQUIVALENTS: dict[Any, tuple[Callable[..., bool], Callable[..., Any]]] = {
    F.gaussian_nll_loss: (always, _gaussian_nll),
    F.layer_norm: (_other_dtype, _upcast(F.layer_norm)),
    F.batch_norm: (_other_dtype, _upcast(F.batch_norm)),
}

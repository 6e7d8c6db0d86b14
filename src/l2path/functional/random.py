"""Random operations of torch taken apart into random numbers and what is done with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Draw(NamedTuple):
    """A random operation taken apart."""

    what: str  # is drawn, its parameters included
    like: Tensor  # whose shape and layout the random numbers have
    draw: Callable[[Tensor], Tensor] | None  # fills an empty tensor, or returns a new one; None: nothing is drawn
    result: Callable[[Tensor], Tensor]  # of the random numbers


def _dropout(*args: Any, **kwargs: Any) -> Draw:
    x, p, on, inplace = _dropout_arguments(*args, **kwargs)

    def draw(empty: Tensor) -> Tensor:
        return F.dropout(empty.fill_(1.0), p, training=True)  # scaled by 1 / (1 - p)

    return Draw(f"dropout {p}", x, draw if on else None, lambda noise: x.mul_(noise) if inplace else x * noise)


def _alpha_dropout(*args: Any, **kwargs: Any) -> Draw:
    """``F.alpha_dropout``: SELU's alpha in place of 0, with mean and variance kept (Klambauer et al. 2017)."""
    x, p, on, inplace = _dropout_arguments(*args, **({"training": False} | kwargs) if len(args) < 3 else kwargs)
    alpha = 1.7580993408473766
    a = ((alpha**2 * p + 1) * (1 - p)) ** -0.5

    def result(kept: Tensor) -> Tensor:
        scale, shift = kept * a, (kept - 1) * (alpha * a) + alpha * a * p
        return x.mul_(scale).add_(shift) if inplace else x * scale + shift

    return Draw(f"alpha dropout {p}", x, (lambda empty: empty.bernoulli_(1 - p)) if on else None, result)


def _feature_dropout(axes: int) -> Callable[..., Draw]:
    """Return ``F.dropout2d`` and its kin taken apart: whole channels; what is not batched is left to torch."""

    def apart(*args: Any, **kwargs: Any) -> Draw:
        x, p, on, inplace = _dropout_arguments(*args, **kwargs)
        channels = x[(slice(None), slice(None), *[slice(1)] * axes)] if x.ndim == axes + 2 else x

        def draw(empty: Tensor) -> Tensor:
            return empty.bernoulli_(1 - p).div_(1 - p)

        def result(noise: Tensor) -> Tensor:
            return x.mul_(noise) if inplace else x * noise

        return Draw(f"feature dropout {p}", channels, draw if on and x.ndim == axes + 2 else None, result)

    return apart


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Draw:
    """``F.scaled_dot_product_attention`` with dropout of the weights; grouped queries are left to torch."""
    weights = query.new_empty((*query.shape[:-1], key.shape[-2]))

    def result(noise: Tensor) -> Tensor:
        scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
        mask = torch.ones(weights.shape[-2:], dtype=torch.bool, device=query.device).tril() if is_causal else attn_mask
        if mask is None:
            return scores.softmax(-1) * noise @ value
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        nothing = (scores == -torch.inf).all(-1, keepdim=True)  # to attend to: 0, as torch has it
        return scores.masked_fill(nothing, 0.0).softmax(-1).masked_fill(nothing, 0.0) * noise @ value

    draw = None if enable_gqa else _dropout(weights, dropout_p).draw
    return Draw(f"attention dropout {dropout_p}", weights, draw, result)


def _like(what: str, fill: Callable[[Tensor], Tensor]) -> Callable[..., Draw]:
    """Return ``torch.randn_like`` or ``torch.rand_like`` taken apart; other dtypes and layouts are left to torch."""

    def apart(input: Tensor, **kwargs: Any) -> Draw:
        return Draw(what, input, None if any(v is not None for v in kwargs.values()) else fill, lambda numbers: numbers)

    return apart


def _dropout_arguments(
    input: Tensor,  # torch's names, by which it may be called
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
) -> tuple[Tensor, float, bool, bool]:
    """Return dropout's arguments, ``training`` being False where it draws nothing."""
    return input, p, training and 0.0 < p < 1.0, inplace


# By torch function: how it is taken apart.
RANDOM: dict[Any, Callable[..., Draw]] = {
    F.dropout: _dropout,
    F.alpha_dropout: _alpha_dropout,
    F.scaled_dot_product_attention: _attention,
    F.dropout1d: _feature_dropout(1),
    F.dropout2d: _feature_dropout(2),
    F.dropout3d: _feature_dropout(3),
    torch.randn_like: _like("normal", lambda empty: empty.normal_()),
    torch.rand_like: _like("uniform", lambda empty: empty.uniform_()),
}

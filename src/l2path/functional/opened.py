"""``multi_head_attention_forward``, opened: it hands itself to a mode as a whole, which then sees nothing within."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional as F


def _nobody(_: object) -> bool:
    return False


def _check_key_padding_mask(mask: Tensor, src_len: int, bsz: int) -> None:
    """Refuse a mask of another shape; torch's own makes its message in a way that the compiler cannot follow."""
    if tuple(mask.shape) != (bsz, src_len):
        raise AssertionError(f"expected key_padding_mask.shape to be {(bsz, src_len)}, but got {tuple(mask.shape)}")


def _opened(function: Any) -> Callable[..., Any]:
    """Return a copy of a Python function of torch that does not ask whether somebody wants to take its place."""
    own = {"has_torch_function": _nobody, "_check_key_padding_mask": _check_key_padding_mask}
    names = {**function.__globals__, **own}
    copy = types.FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


multi_head_attention_forward = _opened(F.multi_head_attention_forward)
"""For ``__torch_function__`` of a mode, to be called ``with self``: torch leaves a mode while it asks it."""

"""Equivalents of torch functions that ``vmap`` cannot batch, or batches with other random masks.

Nothing here is used unless the plain functions fail a comparison with the loop (``path/selfcheck.py``), and it is
compared with the loop in its turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

# How to step out of vmap; private, and pinned by the tests of dropout and of BatchNorm without momentum.
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from l2path.errors import ArgumentError
from l2path.functional.recurrent import RECURRENT, pack_padded, pad_packed
from l2path.functional.rng import forked_rng
from l2path.trees import tensor_leaves
from l2path.types import Tree


@dataclass(frozen=True)
class Layout:
    """How a tensor lies in memory."""

    shape: torch.Size
    stride: tuple[int, ...]


@dataclass
class Substitutes:
    """Switches the equivalents on, and remembers how tensors that dropout meets lie in memory.

    torch draws a mask in the order in which its tensor lies in memory. Inside ``vmap`` that order is another one, and
    the mask of a member too. One plain call for each shape of a batch tells the order; masks are then drawn in it.

    Attributes
    ----------
    used : set of str
        What has been replaced so far, in plain words.
    layouts : dict
        By the shapes of a batch, the layouts that dropout met in a plain call.
    """

    used: set[str] = field(default_factory=set)
    layouts: dict[Any, list[Layout]] = field(default_factory=dict)

    @contextmanager
    def active(self, batch: Tree, device: torch.device, plain_call: Callable[[], object]) -> Iterator[None]:
        """Replace functions within.

        Parameters
        ----------
        batch : tree of tensors
            What is shared by all members.
        device : torch.device
            Of the parameters.
        plain_call : callable
            The call that follows, of one member, outside of ``vmap``; made once for each shape of ``batch``.
        """
        key = tuple((leaf.shape, leaf.dtype) for leaf in tensor_leaves(batch))
        if key not in self.layouts:
            self.layouts[key] = self._observed(plain_call, device)
        with _Replacing(self.layouts[key], self.used):
            yield

    def _observed(self, plain_call: Callable[[], object], device: torch.device) -> list[Layout]:
        """Return the layouts that dropout meets in a plain call, which leaves the generators as they are."""
        with temporarily_clear_interpreter_stack(), forked_rng(device), torch.enable_grad(), _Observing() as seen:
            plain_call()
        found: list[Layout] = seen.layouts
        return found


class _Observing(TorchFunctionMode):
    """Keeps the layouts that dropout meets."""

    def __init__(self) -> None:
        super().__init__()
        self.layouts: list[Layout] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.dropout:
            x, _, on, _ = _dropout_arguments(*args, **kwargs)
            if on:
                self.layouts.append(Layout(x.shape, torch.empty_like(x).stride()))
        return func(*args, **kwargs)


class _Replacing(TorchFunctionMode):
    """Calls equivalents in place of torch functions."""

    def __init__(self, layouts: list[Layout], used: set[str]) -> None:
        super().__init__()
        self.layouts, self.used, self.drawn = layouts, used, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.dropout:
            x, p, on, inplace = _dropout_arguments(*args, **kwargs)
            if on:
                self.used.add("dropout")
                noise = self._noise(x, p)
                return x.mul_(noise) if inplace else x * noise
        elif func in _EQUIVALENTS and (applies := _EQUIVALENTS[func])[0](*args, **kwargs):
            name = func.__name__
            self.used.add(f"{name.strip('_')}(tensor)" if name.startswith("__") else name.lstrip("_"))
            return applies[1](*args, **kwargs)
        elif isinstance(kwargs.get("out"), Tensor):
            # Writing into a tensor that is given has no batching rule, copying into it has one.
            out = kwargs.pop("out")
            self.used.add(f"{func.__name__}(out=)")
            return out.copy_(func(*args, **kwargs))
        return func(*args, **kwargs)

    def _noise(self, x: Tensor, p: float) -> Tensor:
        """Return the mask of one member, scaled by 1 / (1 - p), drawn outside of vmap in a lone member's layout."""
        layout = self.layouts[self.drawn] if self.drawn < len(self.layouts) else None
        self.drawn += 1
        if layout is None or layout.shape != x.shape:
            raise ArgumentError(
                "module",
                got="random masks whose number or shapes change from step to step",
                expected="the same masks at every step, where members are batched",
                remedy="pass engine='loop'",
            )
        with temporarily_clear_interpreter_stack():
            ones = torch.empty_strided(layout.shape, layout.stride, dtype=x.dtype, device=x.device).fill_(1.0)
            return F.dropout(ones, p, training=True)


def _dropout_arguments(
    input: Tensor,  # torch's names, by which it may be called
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
) -> tuple[Tensor, float, bool, bool]:
    """Return dropout's arguments, ``training`` being False where it draws nothing."""
    return input, p, training and 0.0 < p < 1.0, inplace


def _gaussian_nll(
    input: Tensor, target: Tensor, var: Tensor | float, full: bool = False, eps: float = 1e-6, reduction: str = "mean"
) -> Tensor:
    """``F.gaussian_nll_loss`` without its look at the values: a negative variance is NaN here, and not an error."""
    var = torch.as_tensor(var, dtype=input.dtype, device=input.device)
    if var.ndim == input.ndim - 1 and var.shape == input.shape[:-1]:
        var = var.unsqueeze(-1)
    kept = torch.where(var < 0, torch.nan, var.detach().clamp(min=eps) + (var - var.detach()))
    loss = 0.5 * (kept.log() + (input - target) ** 2 / kept)
    if full:
        loss = loss + 0.9189385332046727  # log(2 pi) / 2
    return loss.mean() if reduction == "mean" else loss.sum() if reduction == "sum" else loss


def _whole(x: Tensor) -> bool:
    """Whether a number is read from a tensor of whole numbers, such as BatchNorm's count of batches."""
    real = x.is_floating_point() or x.is_complex() or x.dtype == torch.bool
    return not real and x.numel() == 1 and is_functorch_wrapped_tensor(x)


def _shared(read: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """Return ``read`` of a number that is the same for all members."""

    def one(x: Tensor) -> Any:
        while is_functorch_wrapped_tensor(x):
            x = get_unwrapped(x)
        with temporarily_clear_interpreter_stack():
            first = x.flatten()[0]
            if not bool((x == first).all()):
                raise ArgumentError(
                    "module",
                    got="a whole number that forward reads from a tensor, and that differs between members",
                    expected="the same number for all members that are batched",
                    remedy="pass engine='loop'",
                )
            return read(first)

    return one


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


def _always(*args: Any, **kwargs: Any) -> bool:
    return True


def _packed(*args: Any, **kwargs: Any) -> bool:
    """Whether a recurrent layer is called with a PackedSequence: its second argument is then the batch sizes."""
    return isinstance(args[1], Tensor) and not isinstance(args[3], bool)


# By torch function: when there is an equivalent for a call, and what it is.
_EQUIVALENTS: dict[Any, tuple[Callable[..., bool], Callable[..., Any]]] = {
    F.gaussian_nll_loss: (_always, _gaussian_nll),
    F.layer_norm: (_other_dtype, _upcast(F.layer_norm)),
    F.batch_norm: (_other_dtype, _upcast(F.batch_norm)),
    torch._VF._pack_padded_sequence: (_always, pack_padded),
    torch._VF._pad_packed_sequence: (_always, pad_packed),
    **{read: (_whole, _shared(read)) for read in (Tensor.item, Tensor.__int__, Tensor.__float__, Tensor.__index__)},
    **{getattr(torch._VF, name): (_packed, layer) for name, layer in RECURRENT.items()},
}

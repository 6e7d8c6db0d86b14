"""Random numbers of a step drawn ahead of it: a compiled program is given them, and draws none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from l2path.functional.lowered import lowered
from l2path.functional.opened import multi_head_attention_forward
from l2path.functional.random import RANDOM
from l2path.functional.rng import forked_rng, seed_generators


class Numbers(NamedTuple):
    """Random numbers that one operation of a lone member's step draws.

    Attributes
    ----------
    what : str
        The distribution, with its parameters.
    shape, stride : tuple of int
        How they lie in memory: that is the order in which torch draws them.
    dtype : torch.dtype
    draw : callable
        Fills an empty tensor, or returns a new one.
    """

    what: str
    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    draw: Callable[[Tensor], Tensor]


class Noted(TorchFunctionMode):
    """Keeps what random operations within draw, in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers: list[Numbers] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            with self:
                return multi_head_attention_forward(*args, **kwargs)
        if func in RANDOM:
            what, like, draw, _ = RANDOM[func](*args, **kwargs)
            if draw is not None:
                self.numbers.append(Numbers(what, like.shape, torch.empty_like(like).stride(), like.dtype, draw))
        return func(*args, **kwargs)


class Given(TorchFunctionMode):
    """Takes the random numbers of the operations within from a dict of what :func:`drawn` returns.

    It does what :class:`Lowered` does as well: the compiler takes one such mode, and not two.

    Raises
    ------
    ValueError
        From an operation that draws other numbers than those that are next.
    """

    def __init__(self, noise: Mapping[str, Tensor], *, native: bool = False) -> None:
        super().__init__()
        self.left, self.used, self.native = list(noise.items()), 0, native

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            with self:
                return multi_head_attention_forward(*args, **kwargs)
        if func in RANDOM:
            found = RANDOM[func](*args, **kwargs)
            if found.draw is not None:
                return found.result(self._next(found.what, found.like.shape))
        return lowered(func, args, kwargs, native=self.native)

    def _next(self, what: str, shape: torch.Size) -> Tensor:
        if self.used == len(self.left) or self.left[self.used][0] != f"{self.used} {what}":
            raise ValueError(f"a step draws {what} where another one did not")
        numbers = self.left[self.used][1]
        if numbers.shape != shape:
            raise ValueError(f"a step draws {what} for another shape than another one did")
        self.used += 1
        return numbers

    def finish(self) -> None:
        """Refuse numbers that are left over."""
        if self.used < len(self.left):
            raise ValueError("a step draws fewer random numbers than another one did")


def noted(call: Callable[[], object], device: torch.device) -> list[Numbers]:
    """Return what a call of one member draws; the generators are left as they were."""
    with forked_rng(device), torch.enable_grad(), Noted() as seen:
        call()
    found: list[Numbers] = seen.numbers
    return found


def drawn(numbers: list[Numbers], device: torch.device, seed: int) -> dict[str, Tensor]:
    """Return the random numbers of a step that begins with this seed, as a lone member would draw them."""
    seed_generators(device, seed)
    return {
        f"{i} {what}": draw(torch.empty_strided(shape, stride, dtype=dtype, device=device))
        for i, (what, shape, stride, dtype, draw) in enumerate(numbers)
    }

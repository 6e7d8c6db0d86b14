"""Equivalents of torch functions that ``vmap`` cannot batch, or batches with other random masks.

Used where the plain functions fail a comparison with the loop (``path/selfcheck.py``), or where a module draws random
numbers; compared with the loop in their turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

# How to step out of vmap; private, and pinned by the tests of dropout and of BatchNorm without momentum.
from torch._C._functorch import get_unwrapped, is_batchedtensor, is_functorch_wrapped_tensor, maybe_get_bdim
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from l2path.errors import ArgumentError
from l2path.functional.equivalents import EQUIVALENTS as TRACEABLE
from l2path.functional.equivalents import always as _always
from l2path.functional.noise import noted
from l2path.functional.opened import multi_head_attention_forward
from l2path.functional.random import RANDOM
from l2path.functional.recurrent import RECURRENT, pack_padded, pad_packed
from l2path.functional.rng import generator_states, set_generator_states
from l2path.trees import tensor_leaves
from l2path.types import Tree


class Mask(NamedTuple):
    """A tensor that a random operation meets: its shape and how it lies in memory."""

    shape: torch.Size
    stride: tuple[int, ...]


@dataclass
class Plan:
    """The masks of one call.

    Attributes
    ----------
    alone : list of Mask
        As a lone member's call meets them.
    batched : list of Mask
        As they were met inside ``vmap`` in a call for which ``alone`` is right.
    """

    alone: list[Mask]
    batched: list[Mask] = field(default_factory=list)


@dataclass
class Substitutes:
    """Switches the equivalents on, and remembers how tensors that random operations meet lie in memory.

    torch draws a mask in the order in which its tensor lies in memory. Inside ``vmap`` that order is another one, and
    so is the mask of a member. A plain call of one member tells the order; masks are then drawn in it. The plain call
    is made for every new shape of a batch, and again whenever what is met inside ``vmap`` differs from last time: a
    branch was taken, a layer skipped.

    Attributes
    ----------
    used : set of str
        What has been replaced so far, in plain words.
    plans : dict
        By shapes and strides of a batch.
    """

    used: set[str] = field(default_factory=set)
    plans: dict[Any, Plan] = field(default_factory=dict)

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
            The call that follows, of one of these members, outside of ``vmap``.
        """
        key = tuple((leaf.shape, leaf.stride(), leaf.dtype) for leaf in tensor_leaves(batch))
        states = generator_states(device)

        def observed() -> Plan:
            def call() -> None:
                set_generator_states(device, states)
                plain_call()

            with temporarily_clear_interpreter_stack():
                self.plans[key] = Plan([Mask(n.shape, n.stride) for n in noted(call, device)])
            return self.plans[key]

        with _Replacing(self.plans.get(key) or observed(), observed, self.used):
            yield


def first_member(x: Tensor) -> Tensor:
    """Return the tensor of one of the members that are batched here, as it is outside of ``vmap``."""
    while is_functorch_wrapped_tensor(x):
        axis = maybe_get_bdim(x) if is_batchedtensor(x) else None
        x = get_unwrapped(x)
        if axis is not None:
            with temporarily_clear_interpreter_stack():
                x = x.select(axis, 0)
    return x.detach()


def _met(x: Tensor) -> Mask:
    """Return how a tensor lies in memory inside ``vmap``, members included."""
    return Mask(x.shape, _inner(x).stride())


def _inner(x: Tensor) -> Tensor:
    """Return the tensor of all members that is batched here."""
    while is_functorch_wrapped_tensor(x):
        x = get_unwrapped(x)
    return x


class _Replacing(TorchFunctionMode):
    """Calls equivalents in place of torch functions."""

    def __init__(self, plan: Plan, observe: Callable[[], Plan], used: set[str]) -> None:
        super().__init__()
        self.plan, self.observe, self.used, self.drawn = plan, observe, used, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            with self:
                return multi_head_attention_forward(*args, **kwargs)
        if func in RANDOM:
            found = RANDOM[func](*args, **kwargs)
            if found.draw is not None:
                self.used.add(func.__name__)
                return found.result(self._drawn(found.like, found.draw))
        elif func in EQUIVALENTS and (applies := EQUIVALENTS[func])[0](*args, **kwargs):
            name = func.__name__
            self.used.add(f"{name.strip('_')}(tensor)" if name.startswith("__") else name.lstrip("_"))
            return applies[1](*args, **kwargs)
        elif isinstance(kwargs.get("out"), Tensor):
            # Writing into a tensor that is given has no batching rule, copying into it has one.
            out = kwargs.pop("out")
            self.used.add(f"{func.__name__}(out=)")
            return out.copy_(func(*args, **kwargs))
        return func(*args, **kwargs)

    def _drawn(self, like: Tensor, draw: Callable[[Tensor], Tensor]) -> Tensor:
        """Return random numbers of one member, drawn outside of vmap in a lone member's layout."""
        met, number = _met(like), self.drawn
        self.drawn += 1
        known = self.plan.batched
        if number < len(known) and known[number] != met:
            # Another way through the model than last time: look again. What was drawn so far was the same.
            earlier = known[:number]
            self.plan = self.observe()
            known = self.plan.batched = earlier
        if number >= len(self.plan.alone):
            self.plan = self.observe()
            known = self.plan.batched = known[:number]
        alone = self.plan.alone[number] if number < len(self.plan.alone) else None
        if alone is None or alone.shape != like.shape:
            raise ArgumentError(
                "module",
                got="random masks whose number or shapes are not those of a member of its own",
                expected="the same masks as alone, where members are batched",
                remedy="pass engine='loop'",
            )
        if number == len(known):
            known.append(met)
        with temporarily_clear_interpreter_stack():
            return draw(torch.empty_strided(alone.shape, alone.stride, dtype=like.dtype, device=like.device))


def _whole(x: Tensor) -> bool:
    """Whether a number is read from a tensor of whole numbers, such as BatchNorm's count of batches."""
    real = x.is_floating_point() or x.is_complex() or x.dtype == torch.bool
    return not real and x.numel() == 1 and is_functorch_wrapped_tensor(x)


def _shared(read: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """Return ``read`` of a number that is the same for all members."""

    def one(x: Tensor) -> Any:
        every = _inner(x)
        with temporarily_clear_interpreter_stack():
            first = every.flatten()[0]
            if not bool((every == first).all()):
                raise ArgumentError(
                    "module",
                    got="a whole number that forward reads from a tensor, and that differs between members",
                    expected="the same number for all members that are batched",
                    remedy="pass engine='loop'",
                )
            return read(first)

    return one


def _packed(*args: Any, **kwargs: Any) -> bool:
    """Whether a recurrent layer is called with a PackedSequence: its second argument is then the batch sizes."""
    return isinstance(args[1], Tensor) and not isinstance(args[3], bool)


# By torch function: when there is an equivalent for a call, and what it is.
EQUIVALENTS: dict[Any, tuple[Callable[..., bool], Callable[..., Any]]] = {
    **TRACEABLE,
    torch._VF._pack_padded_sequence: (_always, pack_padded),
    torch._VF._pad_packed_sequence: (_always, pad_packed),
    **{read: (_whole, _shared(read)) for read in (Tensor.item, Tensor.__int__, Tensor.__float__, Tensor.__index__)},
    **{getattr(torch._VF, name): (_packed, layer) for name, layer in RECURRENT.items()},
}

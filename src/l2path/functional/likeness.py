"""Whether modules differ in nothing but the tensors that they are called with."""

from __future__ import annotations

import functools
import types
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from l2path.functional.module import Functional

PLAIN = (int, float, complex, bool, str, bytes, frozenset, set, torch.dtype, torch.device, torch.layout)
# Those that a call goes through, and what says how, by the same keys. A number that is counted on is each one's key.
HOOKS = {
    "_forward_hooks": ("_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    "_forward_pre_hooks": ("_forward_pre_hooks_with_kwargs",),
    "_backward_hooks": (),
    "_backward_pre_hooks": (),
}
NOT_CALLED = ("_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks")
OF_HOOKS = {*HOOKS, *(flag for flags in HOOKS.values() for flag in flags), *NOT_CALLED}
# Recurrent layers keep lists of their parameters, which torch makes anew where parameters are set.
LISTED = {"_flat_weights", "_flat_weight_refs"}


def alike(fns: Sequence[Functional]) -> bool:
    """Return whether one of some modules can stand for the others, whose parameters and buffers it is given.

    These are not compared. All else that a module keeps is, value by value: plain tensors, frozen parameters and what
    functions close over included. An object that cannot be looked into is like itself only.
    """
    try:
        return all(Comparison(fn, fns[0]).same() for fn in fns[1:])
    except Exception:  # of an object's own, which is not to be compared
        return False


class Comparison:
    """Of two modules."""

    def __init__(self, one: Functional, other: Functional) -> None:
        self.one, self.other = one, other
        # Whose parameters and buffers are given with every call: those of other modules that are kept are not.
        self.given = {id(module) for fn in (one, other) for module in fn.template.modules()}
        # Pairs under way, or found the same; they are kept, as an object that is gone may leave its id to another.
        self.seen: dict[tuple[int, int], tuple[Any, Any]] = {}

    def same(self) -> bool:
        """Return whether they are alike."""
        pairs = [(getattr(self.one, name), getattr(self.other, name)) for name in ("aliases", "frozen", "template")]
        return all(self.equal(a, b) for a, b in pairs)

    def equal(self, a: Any, b: Any) -> bool:
        """Return whether values are the same to a call."""
        if a is b or (id(a), id(b)) in self.seen:
            return True
        self.seen[id(a), id(b)] = a, b
        if isinstance(a, nn.Module) and isinstance(b, nn.Module):
            return self.modules(a, b)
        if type(a) is not type(b) or isinstance(a, type):
            return False
        kind = type(a)
        if isinstance(a, Tensor):
            return _like(a, b) and torch.equal(a, b)
        if kind is np.ndarray and a.dtype != np.object_:
            return a.dtype == b.dtype and np.array_equal(a, b)
        if kind in PLAIN:
            return bool(a == b)
        if kind in (dict, OrderedDict):
            return list(a) == list(b) and all(self.equal(a[key], b[key]) for key in a)
        if kind in (list, tuple, deque):
            return len(a) == len(b) and all(map(self.equal, a, b))
        if kind is functools.partial:
            return self.equal((a.func, a.args, a.keywords), (b.func, b.args, b.keywords))
        if kind is types.MethodType:
            return a.__func__ is b.__func__ and self.equal(a.__self__, b.__self__)
        if kind is types.FunctionType:
            return a.__code__ is b.__code__ and self.equal(_held(a), _held(b))
        return self.equal(_told(a), _told(b))

    def modules(self, a: nn.Module, b: nn.Module) -> bool:
        """Return whether modules are the same to a call."""
        given = id(a) in self.given and id(b) in self.given
        mine, others = vars(a), vars(b)
        left_out = OF_HOOKS | (LISTED if given and isinstance(a, nn.RNNBase) else set())
        if _kind(a) != _kind(b) or mine.keys() - left_out != others.keys() - left_out:
            return False
        compare = [(_hooks(mine), _hooks(others))]
        for name in mine.keys() - left_out:
            x, y = mine[name], others[name]
            if given and name in ("_parameters", "_buffers"):
                x, y = ([(key, None if p is None else _shape(p)) for key, p in own.items()] for own in (x, y))
            compare.append((x, y))
        return all(self.equal(x, y) for x, y in compare)


def _kind(module: nn.Module) -> Any:
    """Return the class of a module; a parametrized one has a class of its own, made from that."""
    return type(module).__bases__ if parametrize.is_parametrized(module) else type(module)


def _hooks(own: dict[str, Any]) -> list[list[tuple[Any, ...]]]:
    return [
        [(hook, *(key in (own.get(flag) or {}) for flag in flags)) for key, hook in (own.get(name) or {}).items()]
        for name, flags in HOOKS.items()
    ]


def _shape(x: Tensor) -> tuple[Any, ...]:
    return tuple(x.shape), x.dtype, x.device, x.requires_grad


def _like(a: Tensor, b: Tensor) -> bool:
    return _shape(a) == _shape(b)


def _held(function: types.FunctionType) -> list[Any]:
    """Return what a function holds beside its code."""
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    return [cells, function.__defaults__, function.__kwdefaults__, function.__dict__]


def _told(value: Any) -> list[Any]:
    """Return what an object would be made anew from, as for a pickle."""
    told = value.__reduce_ex__(4)
    return [list(part) if isinstance(part, Iterator) else part for part in ([told] if isinstance(told, str) else told)]

"""Whether modules differ in nothing but the tensors that they are called with."""

from __future__ import annotations

import functools
import types
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from l2path.functional.module import Functional

Seen = dict[tuple[int, int], tuple[Any, Any]]


def alike(fns: Sequence[Functional]) -> bool:
    """Return whether one of some modules can stand for the others, given their parameters and buffers.

    What a module keeps beside them is compared value by value, plain tensors and what functions close over included.
    An object that cannot be looked into is like itself only.
    """
    first = fns[0]
    try:
        return all(_same(fn.frozen, first.frozen, {}) and _same(fn.template, first.template, {}) for fn in fns[1:])
    except Exception:  # of an object's own, which does not like to be compared
        return False


def _same(a: Any, b: Any, seen: Seen) -> bool:
    if a is b or (id(a), id(b)) in seen:
        return True
    seen[id(a), id(b)] = a, b  # kept, since an object that is gone may leave its id to another

    def same(x: Any, y: Any) -> bool:
        return _same(x, y, seen)

    if isinstance(a, nn.Module) and isinstance(b, nn.Module):
        return _kind(a) == _kind(b) and _same_modules(vars(a), vars(b), seen)
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return _like(a, b) and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.dtype != np.object_ and np.array_equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple | deque):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, functools.partial):
        return same((a.func, a.args, a.keywords), (b.func, b.args, b.keywords))
    if isinstance(a, types.MethodType):
        return a.__func__ is b.__func__ and same(a.__self__, b.__self__)
    if isinstance(a, types.FunctionType):
        return a.__code__ is b.__code__ and same(_held(a), _held(b))
    if hasattr(a, "__dict__"):
        return same(vars(a), vars(b))
    return bool(a == b)


def _kind(module: nn.Module) -> Any:
    """Return the class of a module; a parametrized one has a class of its own, made from that."""
    return type(module).__bases__ if parametrize.is_parametrized(module) else type(module)


def _same_modules(a: dict[str, Any], b: dict[str, Any], seen: Seen) -> bool:
    if a.keys() != b.keys():
        return False
    for name in a:
        if name in ("_parameters", "_buffers"):  # given with every call
            found = a[name].keys() == b[name].keys() and all(
                (x is None) == (y is None) and (x is None or _like(x, y))
                for x, y in zip(a[name].values(), b[name].values(), strict=True)
            )
        elif name.endswith("_hooks"):  # by numbers that are counted on
            found = _same(list(a[name].values()) if a[name] else [], list(b[name].values()) if b[name] else [], seen)
        else:
            found = _same(a[name], b[name], seen)
        if not found:
            return False
    return True


def _like(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and a.requires_grad == b.requires_grad


def _held(function: types.FunctionType) -> list[Any]:
    """Return what a function holds beside its code."""
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    return [cells, function.__defaults__, function.__kwdefaults__, function.__dict__]

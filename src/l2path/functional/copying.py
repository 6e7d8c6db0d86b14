"""A private copy of a module."""

from __future__ import annotations

import copy
import types
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from l2path.errors import ArgumentError


def copied_module(module: nn.Module, shared: Iterable[Tensor] = ()) -> nn.Module:
    """Return a deep copy of a module that shares nothing with it but these tensors.

    Raises
    ------
    ArgumentError
        If it cannot be copied.
    """
    # Old-style weight_norm and prune keep a weight that a hook computes, which deepcopy refuses: it is computed anew.
    hooked = (m for m in module.modules() if m._forward_pre_hooks)
    computed = [v for m in hooked for v in m.__dict__.values() if isinstance(v, Tensor) and v.grad_fn is not None]
    memo: dict[int, Any] = {id(v): v.detach().clone() for v in computed} | {id(t): t for t in shared}
    try:
        template = copy.deepcopy(module, memo)
    except Exception as error:
        raise ArgumentError(
            "module",
            got=f"{type(module).__name__}, whose deepcopy fails: {error}",
            expected="a module that copy.deepcopy can copy",
            remedy="keep what cannot be copied (tensors that are not leaves, locks, open files) off the module",
        ) from error
    # deepcopy leaves functions alone, also those that keep the module they were made in: self.f = lambda x: self.g(x).
    own = {id(m): memo[id(m)] for m in module.modules()}
    for m in template.modules():
        for name, value in m.__dict__.items():
            m.__dict__[name] = _rebound(value, own)
    return template


def _rebound(value: Any, own: dict[int, Any]) -> Any:
    """Return a function, or a container of such, that keeps copies in place of the objects in ``own``."""
    if isinstance(value, types.FunctionType) and value.__closure__:
        kept = [_content(cell) for cell in value.__closure__]
        new = [own.get(id(x), x) if not isinstance(x, types.FunctionType) else _rebound(x, own) for x in kept]
        if all(a is b for a, b in zip(kept, new, strict=True)):
            return value
        cells = tuple(types.CellType() if x is _EMPTY else types.CellType(x) for x in new)
        made = types.FunctionType(value.__code__, value.__globals__, value.__name__, value.__defaults__, cells)
        made.__kwdefaults__ = value.__kwdefaults__
        made.__dict__.update(value.__dict__)
        return made
    if isinstance(value, dict):
        for key, v in value.items():
            value[key] = _rebound(v, own)
    elif type(value) in (list, tuple):
        found = type(value)(_rebound(v, own) for v in value)
        return found if any(a is not b for a, b in zip(found, value, strict=True)) else value
    return value


_EMPTY = object()


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # nothing was put into it yet
        return _EMPTY

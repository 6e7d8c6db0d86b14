"""Calling a module with other tensors in place of its own, and leaving nothing behind on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from l2path.errors import ArgumentError


class Places:
    """Where a module and its parts keep their parameters and buffers.

    ``functional_call`` looks for them anew at each call, which takes longer than a small layer does. Here they are
    looked for once, and again where a part holds anything else than it held then.

    Parameters
    ----------
    module : nn.Module

    Raises
    ------
    ArgumentError
        If a parameter is a buffer as well.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.find()

    def find(self) -> None:
        """Look for all parts and tensors."""
        self.parts = list(self.module.named_modules())
        # A tied tensor has several places under its first name, in the order of named_parameters and named_buffers.
        places: dict[int, list[tuple[dict[str, Any], str]]] = {}
        held = [entries for _, m in self.parts for entries in (m._parameters, m._buffers)]
        for entries in held:
            for key, tensor in entries.items():
                if tensor is not None:
                    places.setdefault(id(tensor), []).append((entries, key))
        named: dict[str, Tensor] = dict(self.module.named_parameters())
        buffers = dict(self.module.named_buffers())
        if both := [name for name, b in buffers.items() if any(b is p for p in named.values())]:
            raise ArgumentError(
                "module",
                got=f"the buffer {both[0]!r}, which is a parameter as well",
                expected="buffers and parameters of their own",
                remedy="register a copy as the buffer, or read the parameter itself",
            )
        named |= buffers
        self.places = [(name, *place) for name, tensor in named.items() for place in places[id(tensor)]]
        self.names, self.buffers = set(named), set(buffers)
        held += [m._modules for _, m in self.parts]
        self.held = [(entries, list(entries), list(entries.values())) for entries in held]

    def found(self) -> bool:
        """Return whether all parts hold what they held when it was looked for."""
        return all(
            len(entries) == len(keys) and all(map(is_, entries.values(), values)) and list(entries) == keys
            for entries, keys, values in self.held
        )

    @contextmanager
    def holding(self, tensors: dict[str, Tensor]) -> Iterator[None]:
        """Put tensors in place of the module's own within; ``tensors`` then holds what a call has set anew.

        Raises
        ------
        RuntimeError
            If a name is missing or unknown.
        """
        if not self.found():
            self.find()
        if tensors.keys() != self.names:
            missing, unknown = sorted(self.names - tensors.keys()), sorted(tensors.keys() - self.names)
            raise RuntimeError(f"tensors for {type(self.module).__name__}: missing {missing}, unknown {unknown}")
        own = [entries[key] for _, entries, key in self.places]
        try:
            for name, entries, key in self.places:
                entries[key] = tensors[name]
            yield
        finally:
            for (name, entries, key), tensor in zip(reversed(self.places), reversed(own), strict=True):
                new = entries.get(key)
                tensors[name] = tensors[name] if new is None else new  # in the end that of its first place
                entries[key] = tensor

    def current_buffers(self) -> dict[str, Tensor]:
        """Return the buffers that the module holds now, but for those that a call has taken away."""
        now = ((name, entries.get(key)) for name, entries, key in reversed(self.places) if name in self.buffers)
        return {name: tensor for name, tensor in now if tensor is not None}

    @contextmanager
    def restored(self, changed: set[str]) -> Iterator[None]:
        """Put back the attributes that a call sets on the module or its parts; ``changed`` collects their names.

        A module that counts its calls, or keeps an activation, would otherwise carry it from one member to the next.
        Attributes that are changed in place (a list that grows) are not seen.
        """
        if torch.compiler.is_compiling():
            yield
            return
        before = [(name, m, m.__dict__.copy()) for name, m in self.parts]
        try:
            yield
        finally:
            for name, m, attributes in before:
                now = m.__dict__
                same = len(now) == len(attributes) and all(map(is_, now.values(), attributes.values()))
                if same and list(now) == list(attributes):
                    continue
                if not type(m).__module__.startswith("torch."):  # torch's recurrent layers keep books of their weights
                    keys = [k for k in {**attributes, **now} if now.get(k, m) is not attributes.get(k, m)]
                    changed.update(f"{name}.{k}" if name else k for k in keys)
                now.clear()
                now.update(attributes)


_HELD: ContextVar[ExitStack | None] = ContextVar("held", default=None)


@contextmanager
def parameters_held() -> Iterator[None]:
    """Keep modules that are called within on their parameters until the end.

    Activation checkpointing runs the forward pass once more during the backward pass, which must find the same
    parameters; a call alone has put the module's own ones back by then.
    """
    with ExitStack() as stack:
        token = _HELD.set(stack)
        try:
            yield
        finally:
            _HELD.reset(token)


def call_with(places: Places, tensors: dict[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a module with these parameters and buffers in place of its own."""
    if torch.compiler.is_compiling():  # the compiler knows functional_call
        return functional_call(places.module, tensors, args, kwargs, tie_weights=True, strict=True)
    if (stack := _HELD.get()) is None:
        with places.holding(tensors):
            return places.module(*args, **kwargs)
    stack.enter_context(places.holding(tensors))
    outputs = places.module(*args, **kwargs)
    # A module may set a buffer anew; the dict learns of that when its own are put back, which is too late here.
    tensors.update(places.current_buffers())
    return outputs

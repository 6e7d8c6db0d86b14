"""Taking a module apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from l2path.functional.calling import Places, call_with
from l2path.functional.checks import check_module
from l2path.functional.copying import copied_module
from l2path.functional.lowered_recurrent import can_be_lowered, lower_layers
from l2path.functional.substitutes import Substitutes, first_member
from l2path.trees import map_tensors, tensor_leaves
from l2path.types import Batch, Buffers, Params


@dataclass(frozen=True)
class Functional:
    """A module taken apart into explicit state and a pure function.

    Attributes
    ----------
    params : dict of str to Tensor
        Trainable parameters (``requires_grad=True``), owned copies. A tied parameter appears once,
        under its first name.
    buffers : dict of str to Tensor
        Buffers, owned copies (BatchNorm statistics, for example).
    frozen : dict of str to Tensor
        Parameters outside the training state: never updated, never penalised.
    aliases : dict of str to tuple of str
        Every name of each parameter, its first name included.
    template : nn.Module
        A private copy of the module that the function runs on; the caller's module is never touched.
    unused : tuple of str
        Those of ``frozen`` that :meth:`freeze` put there.
    renormalised : tuple of str
        Weights of embeddings with ``max_norm``, which torch rewrites in place when they are looked up.
    changed : set of str
        Attributes that calls of the module have set on it and that were put back, a record for diagnosis.
    substitutes : Substitutes, optional
        Equivalents of torch functions to use where the plain ones cannot be batched.
    places : Places
        Where the template keeps its tensors.
    """

    params: Params
    buffers: Buffers
    frozen: Params
    aliases: dict[str, tuple[str, ...]]
    template: nn.Module
    unused: tuple[str, ...] = ()
    changed: set[str] = field(default_factory=set, compare=False)
    renormalised: tuple[str, ...] = ()
    substitutes: Substitutes | None = None
    places: Places = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Look for the places of the template's tensors."""
        object.__setattr__(self, "places", Places(self.template))

    @property
    def device(self) -> torch.device:
        """Device of the parameters (of the buffers where there are none)."""
        first = next(tensor_leaves((self.params, self.frozen, self.buffers)), None)
        return torch.device("cpu") if first is None else first.device

    @property
    def dtype(self) -> torch.dtype:
        """Floating dtype of the parameters; the default dtype where there are none."""
        leaves = tensor_leaves((self.params, self.frozen))
        return next((p.dtype for p in leaves if p.is_floating_point()), torch.get_default_dtype())

    def apply(self, params: Params, buffers: Buffers, *args: Any, **kwargs: Any) -> tuple[Any, Buffers]:
        """Call the module with these parameters and buffers.

        Parameters
        ----------
        params, buffers : dict of str to Tensor
            All of ``self.params`` and ``self.buffers`` by name, with any values.
        *args, **kwargs
            What the module's ``forward`` takes.

        Returns
        -------
        outputs
            What ``forward`` returns.
        new_buffers : dict of str to Tensor
            The buffers after the call; the ones passed in are not changed.

        Raises
        ------
        RuntimeError
            For a missing or an unknown name.
        """
        # Modules update buffers in place (BatchNorm) or rebind them: copy first, read back after. Inside vmap the
        # copy must be batched as all parameters are, which a sum with their zeros is (and a clone is not).
        copies = {k: b.clone() for k, b in buffers.items()}
        if buffers and params:
            zero = torch.stack([p.new_zeros((), dtype=torch.float32) for p in params.values()]).sum()
            copies = {k: b + zero.to(b.dtype) for k, b in buffers.items()}
        merged = {**self.frozen, **params, **copies}
        # A first layer that works in place would change the caller's batch.
        args, kwargs = map_tensors(torch.clone, (args, kwargs))
        # max_norm rewrites the weights that it is given.
        merged.update({k: merged[k].clone() for k in self.renormalised})
        with self.places.restored(self.changed):
            outputs = call_with(self.places, merged, args, kwargs)
        return outputs, {k: merged[k] for k in buffers}

    def renormalising(self) -> Functional:
        """Return the same functional with ``apply`` rewriting the weights that it is given, where ``max_norm`` does.

        torch updates the renormalised weights; a step that owns a copy of them does the same this way.
        """
        return replace(self, renormalised=()) if self.renormalised else self

    def call(self, params: Params, buffers: Buffers, inputs: Batch) -> tuple[Any, Buffers]:
        """Call the module on ``inputs``: a tuple becomes ``*args``, a dict ``**kwargs``."""
        args, kwargs = as_arguments(inputs)
        return self.apply(params, buffers, *args, **kwargs)

    def call_substituted(self, params: Params, buffers: Buffers, inputs: Batch) -> tuple[Any, Buffers]:
        """Call the module on ``inputs`` of one member inside ``vmap``, with the substitutes."""
        with self.substituted(inputs, lambda: self.call(*first_members(params, buffers), inputs)):
            return self.call(params, buffers, inputs)

    def with_substitutes(self, substitutes: Substitutes | None) -> Functional:
        """Return the same functional with other equivalents of torch functions, or with none."""
        return replace(self, substitutes=substitutes)

    @contextmanager
    def substituted(self, batch: Batch, plain_call: Callable[[], object]) -> Iterator[None]:
        """Use the substitutes within, if there are any; see :meth:`Substitutes.active`."""
        if self.substitutes is None:
            yield
            return
        with self.substitutes.active(batch, self.device, plain_call):
            yield

    def freeze(self, names: Iterator[str] | list[str]) -> Functional:
        """Return the same functional with these parameters moved from ``params`` to ``frozen``."""
        chosen = set(names)
        moved = {k: p for k, p in self.params.items() if k in chosen}
        kept = {k: p for k, p in self.params.items() if k not in chosen}
        return replace(self, params=kept, frozen={**self.frozen, **moved}, unused=(*self.unused, *moved))

    def evaluation(self) -> Functional:
        """Return the same functional with every sub-module in eval mode."""
        # The tensors of a template are never read (a call brings its own), so that the two can share them.
        tensors = (*self.template.parameters(), *self.template.buffers())
        return replace(self, template=copied_module(self.template, tensors).eval())

    def lowered(self) -> Functional:
        """Return the same functional with recurrent layers as fused operations, which compiled programs can run.

        Calls give the same to rounding. Itself if it has no layer that can be replaced: exactly ``nn.LSTM``, without
        ``proj_size``, or ``nn.GRU``. A fused layer takes no packed sequence, knows no autocast and has no second
        derivatives.
        """
        if not any(map(can_be_lowered, self.template.modules())):
            return self
        template = copied_module(self.template, (*self.template.parameters(), *self.template.buffers()))
        lower_layers(template)
        return replace(self, template=template)

    def materialize(self, params: Params, buffers: Buffers) -> nn.Module:
        """Return a new module of the caller's own class that holds these values."""
        module = copied_module(self.template)
        own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        for name, value in {**self.frozen, **params, **buffers}.items():
            # Not copy_, which an expanded buffer cannot take; tied parameters are one object, and stay tied.
            own[name].data = value.detach().clone()
        return module


def first_members(params: Params, buffers: Buffers) -> tuple[Params, Buffers]:
    """Return parameters and buffers of one of the members that are batched here."""
    return {name: first_member(p) for name, p in params.items()}, {name: first_member(b) for name, b in buffers.items()}


def failing_layer(fn: Functional, call: Callable[[Functional], object]) -> str | None:
    """Return the innermost sub-module inside which ``call(fn)`` raises, as text; None if it is outside of all.

    The call is repeated on a copy of the module that keeps a list of what is running.
    """
    template = copied_module(fn.template, (*fn.template.parameters(), *fn.template.buffers()))
    running: list[str] = []

    def enter(name: str, module: nn.Module) -> Callable[..., None]:
        return lambda *_: running.append(f"{name!r} ({type(module).__name__})")

    def leave(*_: object) -> None:
        running.pop()

    for name, module in template.named_modules():
        module.register_forward_pre_hook(enter(name, module))
        module.register_forward_hook(leave)
    try:
        call(replace(fn, template=template))
    except Exception:
        # The root, whose name is empty, stands for "no layer in particular".
        return running[-1] if len(running) > 1 else None
    return None


def as_arguments(inputs: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return ``(args, kwargs)`` of a module call: tuples and lists are positional, dicts by keyword."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, (tuple, list)):
        return tuple(inputs), {}
    return (inputs,), {}


def functionalize(module: nn.Module, *, training: bool = True) -> Functional:
    """Take a module apart into parameters, buffers and a pure function.

    Parameters
    ----------
    module : nn.Module
        Left as it is: its weights are copied, and so is the module itself.
    training : bool
        True keeps the mode of every sub-module (a frozen BatchNorm stays frozen) and needs a root in
        train mode; False puts the copy in eval mode.

    Returns
    -------
    Functional
        With ``params``, ``buffers``, ``frozen`` and ``apply(params, buffers, *args, **kwargs)``.

    Raises
    ------
    ArgumentError
        If ``module`` is no ``nn.Module``, a ScriptModule, has uninitialised lazy parameters, is in eval
        mode although ``training`` is True, or cannot be copied.

    Examples
    --------
    >>> fn = functionalize(nn.Linear(2, 1))
    >>> outputs, buffers = fn.apply(fn.params, fn.buffers, torch.zeros(3, 2))
    >>> outputs.shape
    torch.Size([3, 1])
    """
    check_module(module, training=training)
    template = copied_module(module)
    if not training:
        template.eval()
    names: dict[int, list[str]] = {}
    for name, p in template.named_parameters(remove_duplicate=False):
        names.setdefault(id(p), []).append(name)
    every = dict(template.named_parameters())
    # The template is a copy already: its tensors are nobody else's.
    params = {name: p.detach() for name, p in every.items() if p.requires_grad}
    frozen = {name: p.detach() for name, p in every.items() if not p.requires_grad}
    aliases = {name: tuple(names[id(p)]) for name, p in every.items()}
    buffers = {name: b.detach() for name, b in template.named_buffers()}
    found = {
        id(m.weight)
        for m in template.modules()
        if isinstance(m, (nn.Embedding, nn.EmbeddingBag)) and m.max_norm is not None
    }
    renormalised = tuple(name for name, p in every.items() if id(p) in found)
    return Functional(params, buffers, frozen, aliases, template, renormalised=renormalised)

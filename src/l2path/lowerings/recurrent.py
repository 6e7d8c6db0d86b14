"""LSTM and GRU layers as one operation each way, with derivatives that ``vmap`` batches and a compiler takes whole.

torch's own layers cannot be compiled inside a batched step, and written out step by step they take a compiler long.
The operations here run over a whole sequence, for any leading axes: ``l2path::lstm`` and its kin in plain torch, on
every device and dtype, and ``l2path::native_lstm`` and so on the same in C++ (``recurrent.cpp``), which are put in
their place in programs that are compiled with native kernels.

With z the projected input of a step, biases included, and h and c the states before it:

* LSTM: ``i, f, g, o = z + W h``, through sigmoid, sigmoid, tanh and sigmoid; then ``c = f c + i g``, ``h = o tanh(c)``.
* GRU: ``r, u = sigmoid(z + W h)``, ``q = W_q h + b``, ``n = tanh(z_n + r q)``, ``h = n + u (h - n)``. Its gates lie in
  the order n, r, u, q: the gradients of z are the first three then, those of the recurrent product the last three.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from l2path.lowerings import plain
from l2path.lowerings.plain import Many

SCHEMAS = {
    "lstm": "(Tensor z, Tensor w, Tensor h, Tensor c) -> (Tensor, Tensor, Tensor)",
    "lstm_backward": "(Tensor gates, Tensor c, Tensor w, Tensor dh, Tensor dc) -> (Tensor, Tensor, Tensor)",
    "gru": "(Tensor z, Tensor w, Tensor bias, Tensor h) -> (Tensor, Tensor)",
    "gru_backward": "(Tensor gates, Tensor h, Tensor w, Tensor dh) -> (Tensor, Tensor)",
}
"""Operations by name, each of them also as ``native_``: what they take and return."""


_MADE: dict[str, tuple[Callable[..., Many], Callable[..., Many]]] = {
    "lstm": (plain.lstm, plain.lstm_shapes),
    "lstm_backward": (plain.lstm_backward, plain.lstm_backward_shapes),
    "gru": (plain.gru, plain.gru_shapes),
    "gru_backward": (plain.gru_backward, plain.gru_backward_shapes),
}
for _name, (_plain, _shapes) in _MADE.items():
    torch.library.define(f"l2path::{_name}", SCHEMAS[_name], tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.impl(f"l2path::{_name}", "CompositeExplicitAutograd", _plain)
    torch.library.register_fake(f"l2path::{_name}", _shapes)


def declare_native() -> None:
    """Declare the native operations, whose kernels are in the native library."""
    for name, (_, shapes) in _MADE.items():
        if not hasattr(torch.ops.l2path, f"native_{name}"):
            # Any layout of the operands will do, so inductor has no reason to copy them.
            tags = (torch.Tag.flexible_layout, torch.Tag.pt2_compliant_tag)
            torch.library.define(f"l2path::native_{name}", SCHEMAS[name], tags=tags)
            torch.library.register_fake(f"l2path::native_{name}", shapes)


def use_native(graph: fx.Graph) -> int:
    """Put native operations in the place of plain ones, on the CPU in float32 and float64; returns how many.

    Parameters
    ----------
    graph : Graph
        Of traced operations; changed in place.
    """
    stock = {getattr(torch.ops.l2path, name).default: name for name in SCHEMAS}
    count = 0
    for node in graph.nodes:
        if node.op == "call_function" and node.target in stock and all(map(_native, node.args)):
            node.target = getattr(torch.ops.l2path, f"native_{stock[node.target]}").default
            count += 1
    return count


def _native(operand: Any) -> bool:
    value = operand.meta.get("val") if isinstance(operand, fx.Node) else None
    return isinstance(value, Tensor) and taken(value)


def taken(x: Tensor) -> bool:
    """Return whether native kernels take a tensor."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


def _apply(function: Any, *operands: Tensor) -> Any:
    return function.apply(*operands)  # which torch leaves without types


class _Batched(torch.autograd.Function):
    """A function that ``vmap`` batches by giving all operands the members' axis in front.

    torch.library's own registrations of derivatives and of batching rules do not compose with ``torch.func.grad``.
    """

    # The signatures are those of each function, hence Any.
    @classmethod
    def batched(cls, info: Any, dims: tuple[int | None, ...], operands: Many) -> tuple[Many, tuple[int, ...]]:
        """Apply to batched operands."""
        given = zip(operands, dims, strict=True)
        full = [x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0) for x, dim in given]
        found: Many = _apply(cls, *full)
        return found, (0,) * len(found)


class _Backward(_Batched):
    """A function that has no derivative: the derivatives of derivatives are left to torch's own layers."""

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise NotImplementedError("fused LSTM and GRU layers have no second derivatives; torch's own layers have")


class _LSTMBackward(_Backward):
    @staticmethod
    def forward(*operands: Tensor) -> Many:
        found: Many = torch.ops.l2path.lstm_backward(*operands)
        return found

    @staticmethod
    def vmap(info: Any, dims: Any, *operands: Tensor) -> Any:
        return _LSTMBackward.batched(info, dims, operands)


class _LSTM(_Batched):
    @staticmethod
    def forward(*operands: Tensor) -> Many:
        states, cells, gates = torch.ops.l2path.lstm(*operands)
        return states, cells.select(-3, -1).clone(), cells, gates

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        states, _, cells, gates = output
        ctx.mark_non_differentiable(cells, gates)
        ctx.save_for_backward(inputs[1], states, cells, gates)

    @staticmethod
    def backward(ctx: Any, dh: Tensor, dc: Tensor, *_: Any) -> Many:
        w, states, cells, gates = ctx.saved_tensors
        dz, dh0, dc0 = _apply(_LSTMBackward, gates, cells, w, dh, dc)
        return dz, _weight_gradient(dz, states), dh0, dc0

    @staticmethod
    def vmap(info: Any, dims: Any, *operands: Tensor) -> Any:
        return _LSTM.batched(info, dims, operands)


class _GRUBackward(_Backward):
    @staticmethod
    def forward(*operands: Tensor) -> Many:
        found: Many = torch.ops.l2path.gru_backward(*operands)
        return found

    @staticmethod
    def vmap(info: Any, dims: Any, *operands: Tensor) -> Any:
        return _GRUBackward.batched(info, dims, operands)


class _GRU(_Batched):
    @staticmethod
    def forward(*operands: Tensor) -> Many:
        found: Many = torch.ops.l2path.gru(*operands)
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(inputs[1], *output)

    @staticmethod
    def backward(ctx: Any, dh: Tensor, *_: Any) -> Many:
        w, states, gates = ctx.saved_tensors
        d, dh0 = _apply(_GRUBackward, gates, states, w, dh)
        width = states.shape[-1]
        recurrent = d[..., width:]
        bias = d[..., 3 * width :].sum((-3, -2))
        return d[..., : 3 * width], _weight_gradient(recurrent, states), bias, dh0

    @staticmethod
    def vmap(info: Any, dims: Any, *operands: Tensor) -> Any:
        return _GRU.batched(info, dims, operands)


def _weight_gradient(d: Tensor, states: Tensor) -> Tensor:
    """Return the gradient of W as one product over all steps and rows of the batch."""
    before = states.narrow(-3, 0, states.shape[-3] - 1)
    return d.flatten(-3, -2).mT @ before.flatten(-3, -2)


def lstm(z: Tensor, w: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Return all states h ``[S + 1, B, H]``, of which the first is given, and the last c ``[B, H]``; differentiable.

    Parameters
    ----------
    z : Tensor, ``[S, B, 4H]``
        The projected input with all biases: gates in torch's order i, f, g, o.
    w : Tensor, ``[4H, H]``
        The recurrent weight.
    h, c : Tensor, ``[B, H]``
        The first states.
    """
    states, last, *_ = _apply(_LSTM, z, w, h, c)
    return states, last


def gru(z: Tensor, w: Tensor, bias: Tensor, h: Tensor) -> Tensor:
    """Return all states h ``[S + 1, B, H]``, of which the first is given; differentiable.

    Parameters
    ----------
    z : Tensor, ``[S, B, 3H]``
        The projected input with all biases but that of q: gates in the order n, r, u.
    w : Tensor, ``[3H, H]``
        The recurrent weight: rows of r, u and n, which is torch's order.
    bias : Tensor, ``[H]``
        The recurrent bias of n.
    h : Tensor, ``[B, H]``
        The first state.
    """
    states: Tensor = _apply(_GRU, z, w, bias, h)[0]
    return states


def allow_in_compiled() -> None:
    """Have ``torch.compile`` take :func:`lstm` and :func:`gru` whole: its own handling of them fails inside vmap."""
    for function in (lstm, gru):
        torch.compiler.allow_in_graph(function)  # imports the compiler, which takes a second

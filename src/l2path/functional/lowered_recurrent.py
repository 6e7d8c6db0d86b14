"""Recurrent layers in the fused operations of :mod:`l2path.lowerings.recurrent`: for compiled programs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from l2path.lowerings import recurrent


def can_be_lowered(layer: nn.Module) -> bool:
    """Return whether a layer is exactly ``nn.LSTM``, without ``proj_size``, or ``nn.GRU``."""
    return type(layer) is nn.GRU or (type(layer) is nn.LSTM and not layer.proj_size)


def lower_layers(module: nn.Module) -> None:
    """Turn the layers inside a module that can be lowered into fused ones, in place; they keep all that they hold."""
    for layer in module.modules():
        if can_be_lowered(layer):
            lowered: Any = LoweredLSTM if type(layer) is nn.LSTM else LoweredGRU
            layer.__class__ = lowered


class Recurrent(nn.Module):
    """What the layers share: they are called as torch's are, and take what those take, but for packed sequences.

    No subclass of ``nn.RNNBase``, which a compiler refuses whatever it does.
    """

    input_size: int
    hidden_size: int
    num_layers: int
    bias: bool
    batch_first: bool
    dropout: float
    bidirectional: bool
    proj_size: int
    # Any, since they are declared for another class.
    all_weights: Any = nn.RNNBase.all_weights
    check_input: Any = nn.RNNBase.check_input
    check_hidden_size: Any = nn.RNNBase.check_hidden_size
    extra_repr: Any = nn.RNNBase.extra_repr

    def flatten_parameters(self) -> None:
        """Do nothing: it is for another library's kernels."""

    def direction(self, x: Tensor, names: str, first: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Run one layer in one direction over ``[S, B, features]``; return its outputs and its last states."""
        raise NotImplementedError

    def run(self, x: Tensor, first: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Run all layers; states are ``[layers * directions, B, H]``, one or two kinds of them.

        Unbatched inputs and states have no axis B.
        """
        if isinstance(x, PackedSequence):
            raise NotImplementedError(f"a fused {type(self).__name__[7:]} takes no packed sequence; torch's own does")
        if torch.is_autocast_enabled(x.device.type):
            raise NotImplementedError(f"a fused {type(self).__name__[7:]} knows no autocast; torch's own does")
        if x.dim() not in (2, 3):
            raise ValueError(f"{type(self).__name__}: expected an input of 2 or 3 axes, got {list(x.shape)}")
        batched = x.dim() == 3
        for state in first:
            if state.dim() != x.dim():
                raise RuntimeError(f"for an input of {x.dim()} axes expected such states, got {list(state.shape)}")
        if not batched:
            x, first = x.unsqueeze(0 if self.batch_first else 1), [state.unsqueeze(1) for state in first]
        self.check_input(x, None)
        if self.batch_first:
            x = x.transpose(0, 1)
        if not len(x):
            raise RuntimeError("expected a sequence of at least one step")
        directions = 2 if self.bidirectional else 1
        shape = (self.num_layers * directions, x.shape[1], self.hidden_size)
        for state in first:
            self.check_hidden_size(state, shape)
        last: list[list[Tensor]] = []
        for layer in range(self.num_layers):
            outputs = []
            for d, suffix in enumerate(("", "_reverse")[:directions]):
                k = layer * directions + d
                found, states = self.direction(
                    x.flip(0) if d else x, f"l{layer}{suffix}", [state[k] for state in first]
                )
                outputs.append(found.flip(0) if d else found)
                last.append(states)
            x = torch.cat(outputs, -1) if self.bidirectional else outputs[0]
            if self.dropout and self.training and layer < self.num_layers - 1:
                x = F.dropout(x, self.dropout)
        end = [torch.stack(kind) for kind in zip(*last, strict=True)]
        if self.batch_first:
            x = x.transpose(0, 1)
        if not batched:
            x, end = x.squeeze(0 if self.batch_first else 1), [state.squeeze(1) for state in end]
        return x, end

    def zeros(self, x: Tensor) -> Tensor:
        """Return first states of zeros."""
        layers = self.num_layers * (2 if self.bidirectional else 1)
        batch = x.shape[0 if self.batch_first else 1 : -1][:1] if x.dim() == 3 else ()
        return x.new_zeros(layers, *batch, self.hidden_size)

    def weights(self, names: str) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Return input weight, recurrent weight, and their biases if there are any."""
        w_ih, w_hh = getattr(self, f"weight_ih_{names}"), getattr(self, f"weight_hh_{names}")
        if not self.bias:
            return w_ih, w_hh, None, None
        return w_ih, w_hh, getattr(self, f"bias_ih_{names}"), getattr(self, f"bias_hh_{names}")


class LoweredLSTM(Recurrent):
    """``nn.LSTM`` without ``proj_size``."""

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return outputs and last states, as ``nn.LSTM`` does."""
        if hx is None and isinstance(input, Tensor):
            hx = (self.zeros(input), self.zeros(input))
        output, (h, c) = self.run(input, list(hx or ()))
        return output, (h, c)

    def direction(self, x: Tensor, names: str, first: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Run one layer in one direction."""
        w_ih, w_hh, b_ih, b_hh = self.weights(names)
        z = F.linear(x, w_ih, None if b_ih is None or b_hh is None else b_ih + b_hh)
        states, last = recurrent.lstm(z, w_hh, *first)
        return states[1:], [states[-1], last]


class LoweredGRU(Recurrent):
    """``nn.GRU``."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return outputs and last states, as ``nn.GRU`` does."""
        if hx is None and isinstance(input, Tensor):
            hx = self.zeros(input)
        output, (h,) = self.run(input, [] if hx is None else [hx])
        return output, h

    def direction(self, x: Tensor, names: str, first: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Run one layer in one direction."""
        w_ih, w_hh, b_ih, b_hh = self.weights(names)
        n = self.hidden_size
        if b_ih is None or b_hh is None:
            b, b_n = None, w_hh.new_zeros(n)
        else:
            b, b_n = b_ih + F.pad(b_hh[: 2 * n], (0, n)), b_hh[2 * n :]
        # The fused operation wants n, r, u where torch has r, u, n.
        z = F.linear(x, w_ih.roll(n, 0), None if b is None else b.roll(n, 0))
        states = recurrent.gru(z, w_hh, b_n, first[0])
        return states[1:], [states[-1]]

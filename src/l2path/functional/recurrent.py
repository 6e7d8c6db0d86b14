"""Recurrent layers over packed sequences in plain torch operations, and packing itself.

torch's own read batch sizes through raw pointers, which ``vmap`` does not have. A packed sequence holds the rows of
step 0, then those of step 1 and so on, longest sequence first; ``batch_sizes[t]`` sequences reach step t.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

# How to step out of vmap; private, and pinned by the tests of packed sequences.
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.nn import functional as F

# (gates of the input [b, G], state of these rows, weights of the recurrence) -> new state; state[0] is put out
Cell = Callable[[Tensor, tuple[Tensor, ...], Sequence[Tensor]], tuple[Tensor, ...]]


def _recur(h: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """``W_hh h + b_hh``."""
    return F.linear(h, weights[1], weights[3] if len(weights) > 3 else None)


def _lstm(x: Tensor, state: tuple[Tensor, ...], weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    projection = weights[-1] if len(weights) in (3, 5) else None
    biased = weights[:-1] if projection is not None else weights
    i, f, g, o = (x + _recur(state[0], biased)).chunk(4, -1)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    return (h if projection is None else F.linear(h, projection)), c


def _gru(x: Tensor, state: tuple[Tensor, ...], weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    (xr, xz, xn), (hr, hz, hn) = x.chunk(3, -1), _recur(state[0], weights).chunk(3, -1)
    z = (xz + hz).sigmoid()
    n = (xn + (xr + hr).sigmoid() * hn).tanh()
    return (n + z * (state[0] - n),)


def _rnn(nonlinearity: Callable[[Tensor], Tensor]) -> Cell:
    return lambda x, state, weights: (nonlinearity(x + _recur(state[0], weights)),)


def _direction(
    cell: Cell, data: Tensor, sizes: list[int], state: tuple[Tensor, ...], weights: Sequence[Tensor], reverse: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run one layer in one direction; return its outputs ``[rows, H]`` and its last state."""
    biased = len(weights) > 3
    steps = list(F.linear(data, weights[0], weights[2] if biased else None).split(sizes))
    outputs: list[Tensor] = [data] * len(sizes)
    for t in reversed(range(len(sizes))) if reverse else range(len(sizes)):
        live = tuple(s[: sizes[t]] for s in state)
        new = cell(steps[t], live, weights)
        outputs[t] = new[0]
        # Sequences that have ended, or that begin later in this direction, keep their state.
        state = tuple(torch.cat([n, s[sizes[t] :]]) for n, s in zip(new, state, strict=True))
    return torch.cat(outputs), state


def _layers(cell: Cell) -> Callable[..., tuple[Tensor, ...]]:
    """Return the packed form of ``torch._VF.lstm`` and its kin, with their arguments."""

    def run(
        data: Tensor,
        batch_sizes: Tensor,
        hx: Any,
        weights: Sequence[Tensor],
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
    ) -> tuple[Tensor, ...]:
        sizes: list[int] = batch_sizes.tolist()
        first = hx if isinstance(hx, (tuple, list)) else (hx,)
        directions = 2 if bidirectional else 1
        each = len(weights) // (num_layers * directions)
        last: list[tuple[Tensor, ...]] = []
        for layer in range(num_layers):
            outputs = []
            for d in range(directions):
                k = layer * directions + d
                own = weights[k * each : (k + 1) * each]
                found, state = _direction(cell, data, sizes, tuple(s[k] for s in first), own, reverse=d == 1)
                outputs.append(found)
                last.append(state)
            data = torch.cat(outputs, -1)
            if dropout and train and layer < num_layers - 1:
                data = F.dropout(data, dropout)
        return (data, *(torch.stack(part) for part in zip(*last, strict=True)))

    return run


RECURRENT: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    "lstm": _layers(_lstm),
    "gru": _layers(_gru),
    "rnn_tanh": _layers(_rnn(torch.tanh)),
    "rnn_relu": _layers(_rnn(torch.relu)),
}


def pack_padded(input: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
    """Return the rows of padded sequences ``[T, B, ...]``, longest first, and the batch sizes ``[T]``."""
    steps = input.transpose(0, 1) if batch_first else input
    # torch checks the lengths: with numbers that nobody needs.
    with temporarily_clear_interpreter_stack():
        torch._VF._pack_padded_sequence(torch.empty(steps.shape[:2]), lengths, False)
    ends: list[int] = lengths.tolist()
    sizes = [sum(n > t for n in ends) for t in range(max(ends))]
    return torch.cat([steps[t, :b] for t, b in enumerate(sizes)]), torch.tensor(sizes)


def pad_packed(
    data: Tensor, batch_sizes: Tensor, batch_first: bool, padding_value: float, total_length: int
) -> tuple[Tensor, Tensor]:
    """Return padded sequences ``[T, B, ...]`` of packed rows, and their lengths ``[B]``."""
    sizes: list[int] = batch_sizes.tolist()
    widest, longest = sizes[0], max(len(sizes), total_length)
    padding = data.new_full((1, *data.shape[1:]), padding_value)
    rows, start = [], 0
    for b in [*sizes, *[0] * (longest - len(sizes))]:
        rows.append([*range(start, start + b), *[-1] * (widest - b)])
        start += b
    index = torch.tensor(rows, device=data.device) % (len(data) + 1)  # -1 is the padding, behind the last row
    steps = torch.cat([data, padding])[index.flatten()].unflatten(0, (longest, widest))
    lengths = torch.tensor([sum(b > i for b in sizes) for i in range(widest)])
    return (steps.transpose(0, 1) if batch_first else steps), lengths

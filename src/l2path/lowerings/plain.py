"""LSTM and GRU layers over whole sequences in plain torch operations: on every device, in every dtype.

What they compute is written down in :mod:`l2path.lowerings.recurrent`.
"""

from __future__ import annotations

import torch
from torch import Tensor

Many = tuple[Tensor, ...]


def lstm(z: Tensor, w: Tensor, h: Tensor, c: Tensor) -> Many:
    """Return states h and c ``[..., S + 1, B, H]``, of which the first are given, and gates ``[..., S, B, 4H]``.

    Parameters
    ----------
    z : Tensor, ``[..., S, B, 4H]``
    w : Tensor, ``[..., 4H, H]``
    h, c : Tensor, ``[..., B, H]``
    """
    states, cells, gates = [h], [c], []
    for x in z.unbind(-3):
        i, f, g, o = (x + h @ w.mT).chunk(4, -1)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        c = f * c + i * g
        h = o * c.tanh()
        states.append(h)
        cells.append(c)
        gates.append(torch.cat([i, f, g, o], -1))
    return torch.stack(states, -3), torch.stack(cells, -3), _stacked(gates, z, z.shape[-1])


def lstm_backward(gates: Tensor, c: Tensor, w: Tensor, dh: Tensor, dc: Tensor) -> Many:
    """Return gradients of z and of the first h and c, from those of all h and of the last c."""
    found: list[Tensor] = []
    recurrent = torch.zeros_like(dc)
    for t in reversed(range(gates.shape[-3])):
        i, f, g, o = gates.select(-3, t).chunk(4, -1)
        tanh = c.select(-3, t + 1).tanh()
        dy = dh.select(-3, t + 1) + recurrent
        dc = dc + dy * o * (1 - tanh * tanh)
        parts = dc * g * i * (1 - i), dc * c.select(-3, t) * f * (1 - f), dc * i * (1 - g * g), dy * tanh * o * (1 - o)
        found.insert(0, torch.cat(parts, -1))
        recurrent = found[0] @ w
        dc = dc * f
    first = (dh.select(-3, 0) + recurrent).contiguous()
    return _stacked(found, gates, gates.shape[-1]), first, dc.clone(memory_format=torch.contiguous_format)


def gru(z: Tensor, w: Tensor, bias: Tensor, h: Tensor) -> Many:
    """Return states ``[..., S + 1, B, H]``, of which the first is given, and gates ``[..., S, B, 4H]``.

    Parameters
    ----------
    z : Tensor, ``[..., S, B, 3H]``
        In the order n, r, u.
    w : Tensor, ``[..., 3H, H]``
        Its rows belong to r, u and q.
    bias : Tensor, ``[..., H]``
        Of q.
    h : Tensor, ``[..., B, H]``
    """
    states, gates = [h], []
    for x in z.unbind(-3):
        (xn, xr, xu), (hr, hu, hq) = x.chunk(3, -1), (h @ w.mT).chunk(3, -1)
        r, u, q = (xr + hr).sigmoid(), (xu + hu).sigmoid(), hq + bias.unsqueeze(-2)
        n = (xn + r * q).tanh()
        h = n + u * (h - n)
        states.append(h)
        gates.append(torch.cat([n, r, u, q], -1))
    return torch.stack(states, -3), _stacked(gates, z, z.shape[-1] // 3 * 4)


def gru_backward(gates: Tensor, h: Tensor, w: Tensor, dh: Tensor) -> Many:
    """Return gradients of the gates n, r, u, q before their functions, and of the first h, from those of all h."""
    found: list[Tensor] = []
    carried = torch.zeros_like(dh.select(-3, 0))
    for t in reversed(range(gates.shape[-3])):
        n, r, u, q = gates.select(-3, t).chunk(4, -1)
        dy = dh.select(-3, t + 1) + carried
        dn = dy * (1 - u) * (1 - n * n)
        parts = dn, dn * q * r * (1 - r), dy * (h.select(-3, t) - n) * u * (1 - u), dn * r
        found.insert(0, torch.cat(parts, -1))
        carried = dy * u + torch.cat(parts[1:], -1) @ w
    return _stacked(found, gates, gates.shape[-1]), (dh.select(-3, 0) + carried).contiguous()


def _stacked(steps: list[Tensor], like: Tensor, width: int) -> Tensor:
    return torch.stack(steps, -3) if steps else like.new_empty(*like.shape[:-1], width)


def lstm_shapes(z: Tensor, w: Tensor, h: Tensor, c: Tensor) -> Many:
    """Return empty tensors for h, c and gates."""
    *lead, steps, batch, _ = z.shape
    states = z.new_empty(*lead, steps + 1, batch, h.shape[-1])
    return states, torch.empty_like(states), z.new_empty(z.shape)


def lstm_backward_shapes(gates: Tensor, c: Tensor, w: Tensor, dh: Tensor, dc: Tensor) -> Many:
    """Return empty tensors for the gradients of z and the first h and c."""
    return gates.new_empty(gates.shape), gates.new_empty(dc.shape), gates.new_empty(dc.shape)


def gru_shapes(z: Tensor, w: Tensor, bias: Tensor, h: Tensor) -> Many:
    """Return empty tensors for h and gates."""
    *lead, steps, batch, _ = z.shape
    width = h.shape[-1]
    return z.new_empty(*lead, steps + 1, batch, width), z.new_empty(*lead, steps, batch, 4 * width)


def gru_backward_shapes(gates: Tensor, h: Tensor, w: Tensor, dh: Tensor) -> Many:
    """Return empty tensors for the gradients of the gates and the first h."""
    return gates.new_empty(gates.shape), gates.new_empty(*gates.shape[:-3], *h.shape[-2:])

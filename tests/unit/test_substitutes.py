"""Equivalents of torch functions inside vmap, each against torch's own on one member."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from l2path.errors import ArgumentError
from l2path.functional import Substitutes, vmap
from l2path.functional.recurrent import pack_padded, pad_packed
from tests.helpers import assert_trees_close

CPU = torch.device("cpu")
LENGTHS = torch.tensor([2, 5, 1, 3])


def numbers(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def batched(
    function: Callable[[Tensor], Any], members: Tensor, found: Substitutes | None = None, gradient: bool = False
) -> Any:
    """``function`` of all members at once, or its gradient, with substitutes and seeded masks."""
    substitutes = found or Substitutes()

    def one(x: Tensor) -> Any:
        with substitutes.active(members[0], CPU, lambda: function(members[0])):
            return function(x)

    torch.manual_seed(7)
    return vmap(torch.func.grad(one) if gradient else one)(members)


def alone(function: Callable[[Tensor], Any], members: Tensor) -> list[Any]:
    """``function`` of one member after the other, each with the same masks."""
    found = []
    for x in members:
        torch.manual_seed(7)
        found.append(function(x))
    return found


# Dropout


@pytest.mark.parametrize(
    "layout",
    [
        lambda x: x,
        lambda x: x.transpose(0, 1),
        lambda x: x.permute(2, 0, 1),
        lambda x: x.transpose(1, 2)[:, ::2],  # with gaps
        lambda x: x[:, :1].expand(-1, 4, -1),  # overlapping
    ],
)
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_masks_are_those_of_a_lone_member(layout: Callable[[Tensor], Tensor], p: float) -> None:
    members = numbers(3, 4, 5, 6)

    def function(x: Tensor) -> Tensor:
        return F.dropout(layout(2 * x), p)

    assert_trees_close(list(batched(function, members)), alone(function, members), 0.0)


def test_without_substitutes_the_masks_differ() -> None:
    members = numbers(2, 4, 5)
    torch.manual_seed(7)
    plain = vmap(lambda x: F.dropout(x.t(), 0.5))(members)
    with pytest.raises(AssertionError, match="relative difference"):
        assert_trees_close(plain[0], alone(lambda x: F.dropout(x.t(), 0.5), members)[0], 1e-3)


def test_dropout_in_place_writes_into_its_input() -> None:
    members = numbers(2, 4, 5)

    def function(x: Tensor) -> Tensor:
        h = x.t() * 1.0
        F.dropout(h, 0.5, inplace=True)
        return h

    assert_trees_close(list(batched(function, members)), alone(function, members), 0.0)


def test_other_draws_between_masks_keep_their_order() -> None:
    members = numbers(2, 4, 5)

    def function(x: Tensor) -> Tensor:
        h = F.dropout(x.t(), 0.5) + torch.randn(4, dtype=x.dtype)
        return F.dropout(h, 0.5) + torch.rand((), dtype=x.dtype)

    assert_trees_close(list(batched(function, members)), alone(function, members), 0.0)


def test_each_shape_of_a_batch_is_looked_at_once_and_leaves_the_generator_alone() -> None:
    found, calls = Substitutes(), []

    def function(x: Tensor) -> Tensor:
        calls.append(tuple(x.shape))
        return F.dropout(x.t(), 0.5)

    for rows in (4, 4, 3, 4, 3):  # a partial batch, then the same again
        members = numbers(2, rows, 5)
        assert_trees_close(list(batched(function, members, found)), alone(function, members), 0.0)
    inside = [calls.count((rows, 5)) for rows in (4, 3)]
    assert inside == [3 * (1 + 2) + 1, 2 * (1 + 2) + 1]  # each run: once batched, two alone; and once to look
    assert found.used == {"dropout"}


def test_masks_that_come_and_go_are_those_of_a_lone_member() -> None:
    found, on = Substitutes(), [False]

    def function(x: Tensor) -> Tensor:
        return F.dropout(x.t(), 0.5) + (F.dropout(x, 0.5).t() if on[0] else 0)

    for turn in (False, True, True, False, True):
        on[0] = turn
        members = numbers(2, 4, 4)
        assert_trees_close(list(batched(function, members, found)), alone(function, members), 0.0)


# Packed sequences


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("total", [-1, 5, 8])
def test_packing_and_padding_are_torchs(batch_first: bool, total: int) -> None:
    ordered = LENGTHS.sort(descending=True)[0]
    padded = numbers(4, 5, 3) if batch_first else numbers(5, 4, 3)
    want = pack_padded_sequence(padded, ordered, batch_first=batch_first)
    data, sizes = pack_padded(padded, ordered, batch_first)
    assert_trees_close((data, sizes), (want.data, want.batch_sizes), 0.0)
    length = None if total == -1 else total
    again, lengths = pad_packed_sequence(want, batch_first, padding_value=0.5, total_length=length)
    assert_trees_close(pad_packed(data, sizes, batch_first, 0.5, total), (again, lengths), 0.0)


RECURRENT: dict[str, Callable[[], nn.RNNBase]] = {
    "LSTM": lambda: nn.LSTM(3, 4, batch_first=True),
    "LSTM, everything": lambda: nn.LSTM(3, 4, 3, dropout=0.4, bidirectional=True, proj_size=2),
    "LSTM, no biases": lambda: nn.LSTM(3, 4, 2, bias=False),
    "LSTM, no biases, projected": lambda: nn.LSTM(3, 4, proj_size=2, bias=False, bidirectional=True),
    "GRU": lambda: nn.GRU(3, 4),
    "GRU, everything": lambda: nn.GRU(3, 4, 2, dropout=0.4, bidirectional=True, batch_first=True),
    "RNN, tanh": lambda: nn.RNN(3, 4, 2, bidirectional=True),
    "RNN, relu": lambda: nn.RNN(3, 4, nonlinearity="relu", bias=False),
}


@pytest.mark.parametrize("first_state", [False, True])
@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers_over_packed_sequences_are_torchs(name: str, first_state: bool) -> None:
    torch.manual_seed(0)
    layer: Any = RECURRENT[name]().double()
    steps = numbers(2, 4, 5, 3) if layer.batch_first else numbers(2, 5, 4, 3)
    directions = layer.num_layers * (2 if layer.bidirectional else 1)
    h = numbers(directions, 4, layer.proj_size or 4, seed=1)
    given: Any = None
    if first_state:
        given = (h, numbers(directions, 4, 4, seed=2)) if isinstance(layer, nn.LSTM) else h

    def function(x: Tensor) -> Any:
        packed = pack_padded_sequence(x, LENGTHS, batch_first=layer.batch_first, enforce_sorted=False)
        outputs, state = layer(packed, given)
        assert isinstance(outputs, PackedSequence)
        return pad_packed_sequence(outputs, batch_first=layer.batch_first)[0], state

    def loss(x: Tensor) -> Tensor:
        outputs, state = function(x)
        parts = state if isinstance(state, tuple) else (state,)
        return torch.stack([(outputs**3).sum(), *((s**2).sum() for s in parts)]).sum()

    found = batched(function, steps)
    for k, want in enumerate(alone(function, steps)):
        own = (found[0][k], tuple(s[k] for s in found[1]) if isinstance(found[1], tuple) else found[1][k])
        assert_trees_close(own, want, 1e-12)
    grads = batched(loss, steps, gradient=True)
    for k, x in enumerate(steps):
        torch.manual_seed(7)
        leaf = x.clone().requires_grad_()
        assert_trees_close(grads[k], torch.autograd.grad(loss(leaf), leaf)[0], 1e-11)


# The others


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("variance", ["tensor", "row", "number", "tiny"])
def test_gaussian_nll_is_torchs(full: bool, reduction: str, variance: str) -> None:
    members, target = numbers(2, 4, 3), numbers(4, 3, seed=1)

    def function(x: Tensor) -> Tensor:
        variances: dict[str, Any] = {
            "tensor": x.exp(), "row": x[:, 0].exp(), "number": 0.7, "tiny": x.exp() * 1e-7
        }  # fmt: skip
        var = variances[variance]
        return F.gaussian_nll_loss(x, target, var, full=full, eps=1e-6, reduction=reduction)

    assert_trees_close(list(batched(function, members)), alone(function, members), 1e-12)
    grads = batched(lambda x: function(x).sum(), members, gradient=True)
    for k, x in enumerate(members):
        leaf = x.clone().requires_grad_()
        assert_trees_close(grads[k], torch.autograd.grad(function(leaf).sum(), leaf)[0], 1e-11)


def test_a_negative_variance_is_nan_for_that_member_alone() -> None:
    members = torch.stack([torch.ones(3), -torch.ones(3)]).double()
    found = batched(lambda x: F.gaussian_nll_loss(x, torch.zeros_like(x), x), members)
    assert found.isnan().tolist() == [False, True]


@pytest.mark.parametrize("read", [lambda n: n.item(), float, int])
def test_a_shared_count_can_be_read(read: Callable[[Tensor], float]) -> None:
    members = torch.stack([torch.tensor([1.0, 5.0]), torch.tensor([2.0, 5.0])])
    found = batched(lambda x: x[0] * read(x[1].long()), members)
    assert found.tolist() == [5.0, 10.0]


def test_a_count_that_differs_between_members_is_refused() -> None:
    members = torch.tensor([[1.0, 5.0], [2.0, 6.0]])
    with pytest.raises(ArgumentError, match=r"differs between members.*pass engine='loop'"):
        batched(lambda x: x[0] * float(x[1].long()), members)


def test_numbers_that_are_not_whole_cannot_be_read() -> None:
    with pytest.raises(RuntimeError, match="item"):
        batched(lambda x: x * float(x.sum()), torch.ones(2, 3))


def test_writing_into_a_given_tensor() -> None:
    def function(x: Tensor) -> Tensor:
        out = x * 0.0
        torch.mul(x, 3.0, out=out)
        return out

    assert_trees_close(batched(function, numbers(2, 3)), 3 * numbers(2, 3), 0.0)


@pytest.mark.parametrize("norm", [nn.LayerNorm(6), nn.BatchNorm1d(6), nn.BatchNorm1d(6).eval()])
def test_normalisations_under_autocast(norm: nn.Module) -> None:
    members = numbers(2, 8, 6).float()

    def function(x: Tensor) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            # Statistics are updated in place, which needs some of their own here.
            buffers = {name: b + 0 * x.sum().to(b.dtype) for name, b in norm.named_buffers()}
            return torch.func.functional_call(norm, buffers, (x.to(torch.bfloat16),))

    for got, want in zip(batched(function, members), alone(function, members), strict=True):
        assert got.dtype == want.dtype == torch.bfloat16
        assert_trees_close(got.float(), want.float(), 1e-2)

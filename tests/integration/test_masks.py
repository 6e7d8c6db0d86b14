"""Random masks where the first batch says little of the next ones: each was a wrong number once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.data import DataLoader

import l2path
from tests.families import Wired, seeded
from tests.helpers import assert_trees_close

LAMBDAS = [0.3, 0.01, 0.0]
Batches = list[tuple[Any, Tensor]]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dropout(x: Tensor, m: nn.Module) -> Tensor:
    return F.dropout(x, 0.3, m.training)


def by_hand(make: Callable[[], nn.Module], batches: Batches, lam: float, epochs: int, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        module, step = make(), 0
        optimizer = torch.optim.SGD(module.parameters(), 0.05, momentum=0.9)
        for _ in range(epochs):
            for inputs, targets in batches:
                torch.manual_seed(l2path.step_seed(seed, step))
                optimizer.zero_grad()
                outputs = module(*inputs) if isinstance(inputs, tuple) else module(inputs)
                # In the loss, so that parameters that a step does not use are shrunk as well, as with unused="train".
                penalty = torch.stack([0.5 * lam * (p * p).sum() for p in module.parameters()]).sum()
                (F.mse_loss(outputs, targets) + penalty).backward()
                optimizer.step()
                step += 1
        return module


def transposed(m: Any, x: Tensor) -> Any:
    return m.head(dropout(m.first(x).transpose(1, 2), m).mean(2))


def time_first(m: Any, x: Tensor) -> Any:
    return m.head(dropout(m.first(x).transpose(0, 1), m).mean(0))


def as_it_comes(m: Any, x: Tensor) -> Any:
    mixed = m.mix(x.transpose(1, 2)).transpose(1, 2)
    return m.head(m.first(dropout(dropout(x, m) + mixed, m)).mean(1))


def stochastic_depth(m: Any, x: Tensor) -> Any:
    h = m.first(x)
    if not m.training or torch.rand(()) < 0.5:
        h = h + dropout(m.mix(h.transpose(1, 2)).transpose(1, 2), m)
    if not m.training or torch.rand(()) < 0.5:
        h = h + dropout(m.inner(h), m)
    return m.head(h.mean(1))


def by_content(m: Any, x: Tensor) -> Any:
    h = m.first(x)
    if bool((x[..., 0] > 2.0).any()):
        h = m.mix(h.transpose(1, 2)).transpose(1, 2)
    return m.head(dropout(h, m).mean(1))


def by_count(m: Any, x: Tensor) -> Any:
    h = m.first(x)
    if m.training:
        m.calls.add_(1)
    if int(m.calls) > 3:
        h = h.transpose(1, 2).contiguous().transpose(1, 2)
    return m.head(dropout(h, m).mean(1))


def gated(m: Any, x: Tensor) -> Any:
    h = m.first(x)
    return m.head((h + m.gate * dropout(m.inner(h).transpose(1, 2), m).transpose(1, 2)).mean(1))


def noisy(m: Any, x: Tensor) -> Any:
    h = m.first(x).transpose(1, 2)
    return m.head((h + 0.1 * torch.randn_like(h) + 0.1 * torch.rand_like(h)).mean(2))


def padded(m: Any, x: Tensor, lengths: Tensor) -> Any:
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    steps = pad_packed_sequence(m.rnn(packed)[0], batch_first=True)[0]  # as long as the longest
    return m.head(dropout(steps, m).sum(1))


class Build:
    """A module with parts that every wiring above finds what it needs in."""

    def __init__(self, wiring: Callable[..., Any], zero: bool = False) -> None:
        self.wiring, self.zero = wiring, zero

    def __call__(self) -> nn.Module:
        module = Wired(
            self.wiring, first=nn.Linear(3, 4), inner=nn.Linear(4, 4), mix=nn.Linear(5, 5), head=nn.Linear(4, 2)
        )
        module.gate = nn.Parameter(torch.zeros(()) if self.zero else torch.ones(()))
        module.rnn = nn.GRU(3, 4, batch_first=True)
        module.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        if self.zero:
            nn.init.zeros_(module.get_parameter("head.weight"))
        return module


def steps(*shapes: tuple[int, int]) -> Batches:
    return [(numbers(b, t, 3, seed=i), numbers(b, 2, seed=50 + i)) for i, (b, t) in enumerate(shapes)]


def ragged() -> Batches:
    found: Batches = []
    for i, lengths in enumerate(([5, 2, 4, 1], [3, 3, 1, 2], [2, 5, 5, 5], [4, 4, 1, 1])):
        found.append(((numbers(4, 5, 3, seed=i), torch.tensor(lengths)), numbers(4, 2, seed=50 + i)))
    return found


STRIDED: Batches = [
    (numbers(4, 5, 3), numbers(4, 2, seed=50)),
    (numbers(5, 4, 3, seed=1).transpose(0, 1), numbers(4, 2, seed=51)),
    (numbers(4, 3, 5, seed=2).transpose(1, 2), numbers(4, 2, seed=52)),
]
CASES: dict[str, tuple[Build, Batches]] = {
    "first batch of length 1": (Build(transposed), steps((4, 1), (4, 6), (4, 5))),
    "first batch of one row": (Build(time_first), steps((1, 6), (4, 6), (3, 6))),
    "strides that differ": (Build(as_it_comes), STRIDED),
    "strides that differ, the other way round": (Build(as_it_comes), STRIDED[::-1]),
    "stochastic depth": (Build(stochastic_depth), steps(*[(4, 5)] * 6)),
    "by content": (Build(by_content), steps(*[(4, 5)] * 8)),
    "by a count": (Build(by_count), steps(*[(4, 5)] * 6)),
    "zero gates and a zero head": (Build(gated, zero=True), steps(*[(4, 5)] * 5)),
    "other noise": (Build(noisy), steps((4, 1), (4, 6))),
    "as long as the longest": (Build(padded), ragged()),
}


@pytest.mark.parametrize("options", [{}, {"member_chunk": 2}], ids=["auto", "chunks"])
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", CASES)
def test_every_member_sees_the_masks_of_a_run_of_its_own(name: str, seed: int, options: dict[str, Any]) -> None:
    build, batches = CASES[name]
    make = seeded(build)
    result = l2path.batch_train(
        make(),
        DataLoader(batches, batch_size=None),  # type: ignore[arg-type]  # a list will do
        loss_fn=F.mse_loss,
        optimizer=l2path.sgd(lr=0.05, momentum=0.9),
        lambdas={"*": LAMBDAS},
        epochs=2,
        seed=seed,
        unused="train",
        **options,
    )
    assert result.engine.kind == "vmap", result.engine.reason
    for k, lam in enumerate(LAMBDAS):
        want = {n: p.detach() for n, p in by_hand(make, batches, lam, 2, seed).named_parameters()}
        assert_trees_close({n: p[k] for n, p in result.params.items()}, want, 1e-9, where=f"member {k}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.01, 0.1])
def test_rounding_does_not_hide_other_masks(p: float, dtype: torch.dtype) -> None:
    def wiring(m: Any, x: Tensor) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            h = m.first(x)
        return m.head((h + 0.1 * F.dropout(h.float().transpose(1, 2), p).transpose(1, 2)).mean(1))

    torch.manual_seed(0)
    module = Wired(wiring, first=nn.Linear(3, 4), head=nn.Linear(4, 2))
    report = l2path.check(module, (torch.randn(6, 5, 3), torch.randn(6, 2)), F.mse_loss)
    assert (report.training, report.substitutes) == ("vmap", ("dropout",))

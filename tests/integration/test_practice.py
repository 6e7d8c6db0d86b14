"""What users do in real training, each against a plain torch loop: ragged batches, row weights, low precision."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence
from torch.utils.data import DataLoader, IterableDataset

import l2path
from l2path.memory import peak_bytes
from l2path.path import tuning
from tests.helpers import assert_trees_close

LAMBDAS = [0.3, 0.03, 0.0]
LR, MOMENTUM, EPOCHS = 0.05, 0.9, 3

pytestmark = [
    pytest.mark.filterwarnings("ignore::l2path.BoundaryWarning"),
    # torch, of a pass that autocast makes it do in two dtypes.
    pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning"),
]


def by_hand(
    module: nn.Module,
    batches: Callable[[int], Iterable[Any]],
    loss_fn: Callable[[Any, Any], Tensor],
    lam: float,
    around: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> nn.Module:
    """A copy of the module, trained as torch users do with these batches of each epoch and the published masks."""
    module, step = copy.deepcopy(module), 0
    optimizer = torch.optim.SGD(module.parameters(), LR, momentum=MOMENTUM, weight_decay=lam)
    with torch.random.fork_rng(devices=[]):
        for epoch in range(EPOCHS):
            for inputs, targets in batches(epoch):
                torch.manual_seed(l2path.step_seed(0, step))
                optimizer.zero_grad()
                with around():
                    loss = loss_fn(module(*inputs) if isinstance(inputs, (tuple, list)) else module(inputs), targets)
                loss.backward()
                optimizer.step()
                step += 1
    return module


def train(module: nn.Module, data: Any, loss_fn: Callable[[Any, Any], Tensor], **options: Any) -> l2path.PathResult:
    optimizer = l2path.sgd(lr=LR, momentum=MOMENTUM)
    settings: dict[str, Any] = {"loss_fn": loss_fn, "optimizer": optimizer, "lambdas": LAMBDAS, "epochs": EPOCHS}
    return l2path.batch_train(module, data, **(settings | options))


def check(
    result: l2path.PathResult,
    module: nn.Module,
    batches: Any,
    loss_fn: Callable[[Any, Any], Tensor],
    rtol: float,
    around: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> None:
    for k, lam in enumerate(LAMBDAS):
        want = by_hand(module, batches, loss_fn, lam, around).state_dict()
        assert_trees_close(result.member(k).state_dict(), want, rtol, where=f"member {k}")


# --- sequences of different lengths ----------------------------------------------------------------------------------


class Reader(nn.Module):
    """Packed sequences through two layers with dropout between, normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(2, 4, 2, dropout=0.3, batch_first=True, bidirectional=True)
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 1)

    def forward(self, steps: Tensor, lengths: Tensor) -> Any:
        packed = pack_padded_sequence(steps, lengths, batch_first=True, enforce_sorted=False)
        _, (h, _) = self.lstm(packed)
        return self.head(self.norm(torch.cat([h[-2], h[-1]], 1)))


def series(rows: int = 23) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 8, (rows,), generator=generator).tolist()
    return [
        (torch.randn(n, 2, generator=generator).double(), torch.randn(1, generator=generator).double()) for n in lengths
    ]


def collate(rows: list[tuple[Tensor, Tensor]]) -> Any:
    steps, targets = zip(*rows, strict=True)
    return (pad_sequence(list(steps), batch_first=True), torch.tensor([len(s) for s in steps])), torch.stack(targets)


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    """The same rows, one after the other."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from series()


@pytest.mark.parametrize("options", [{}, {"member_chunk": 2}, {"engine": "loop"}])
@pytest.mark.parametrize("dataset", [series(), Stream()])
def test_sequences_of_different_lengths(dataset: Any, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    module = Reader().double()
    loader: DataLoader[Any] = DataLoader(dataset, batch_size=5, collate_fn=collate)  # 5, 5, 5, 5 and 3 rows
    held_out = list(DataLoader(series(11), batch_size=4, collate_fn=collate))  # type: ignore[arg-type]  # a list will do
    assert len({inputs[0].shape[1] for (inputs, _) in loader}) > 1
    result = train(module, loader, F.mse_loss, validation=DataLoader(series(11), 4, collate_fn=collate), **options)  # type: ignore[arg-type]
    assert result.engine.kind == ("loop" if options.get("engine") == "loop" else "vmap")
    check(result, module, lambda epoch: loader, F.mse_loss, 1e-9)
    for k in range(len(LAMBDAS)):
        twin = copy.deepcopy(module).eval()
        twin.load_state_dict(result.member(k).state_dict())
        with torch.no_grad():
            outputs = torch.cat([twin(*inputs) for inputs, _ in held_out])
        want = F.mse_loss(outputs, torch.cat([targets for _, targets in held_out]))
        assert_trees_close(result.scores[k], want.item(), 1e-9)


# --- rows that count differently -------------------------------------------------------------------------------------


def test_weighted_rows() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    x, y, w = torch.randn(30, 4).double(), torch.randn(30, 1).double(), torch.rand(30, 1).double() + 0.1

    def loss_fn(outputs: Tensor, targets: Any) -> Tensor:
        wanted, weight = targets
        loss: Tensor = (weight * (outputs - wanted) ** 2).sum() / weight.sum()
        return loss

    def batches(epoch: int) -> Iterator[Any]:
        for rows in l2path.data_order(30, 0, epoch).split(8):
            yield x[rows], (y[rows], w[rows])

    result = train(module, (x, (y, w)), loss_fn, batch_size=8, validation=(x, (y, w)))
    check(result, module, batches, loss_fn, 1e-10)
    assert result.uncertainty.reason is not None
    assert "not the mean over its rows" in result.uncertainty.reason
    # A row of weight 2 is the row twice, in one batch of all rows.
    twice = torch.cat([x, x[:3]]), (torch.cat([y, y[:3]]), torch.ones(33, 1).double())
    weights = torch.ones(30, 1).double()
    weights[:3] = 2
    doubled = train(module, (x, (y, weights)), loss_fn).params
    assert_trees_close(doubled, train(module, twice, loss_fn).params, 1e-10)


# --- precision -------------------------------------------------------------------------------------------------------


class Within(nn.Module):
    """Autocast inside of forward."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.net(x).float()


@pytest.mark.parametrize("where", ["inside", "outside"])
@pytest.mark.parametrize(
    "norm", [nn.LayerNorm(16), nn.BatchNorm1d(16), nn.GroupNorm(2, 16), nn.RMSNorm(16)], ids=lambda n: type(n).__name__
)
def test_autocast(norm: nn.Module, where: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), norm, nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 3))
    module = Within(net) if where == "inside" else net
    x, y = torch.randn(60, 8), torch.randint(3, (60,))

    def batches(epoch: int) -> Iterator[Any]:
        for rows in l2path.data_order(60, 0, epoch).split(20):
            yield x[rows], y[rows]

    def around() -> AbstractContextManager[Any]:
        return torch.autocast("cpu", dtype=torch.bfloat16) if where == "outside" else nullcontext()

    with around():
        result = train(module, (x, y), F.cross_entropy, batch_size=20, validation=(x, y))
    assert (result.engine.kind, result.eval_kind) == ("vmap", "vmap")
    assert {p.dtype for p in result.params.values()} == {torch.float32}
    # Nine steps at some 3 significant digits.
    check(result, module, batches, F.cross_entropy, 0.05, around)
    with pytest.raises(AssertionError, match="relative difference"):
        check(result, module, lambda epoch: batches(epoch + 1), F.cross_entropy, 0.05, around)


@pytest.mark.parametrize("partial", [False, True])
def test_autocast_around_compiled_steps(partial: bool) -> None:
    """Workers have the caller's autocast: in programs, and in the steps that do not fill a call."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 3))
    x, y = torch.randn(70, 8), torch.randint(3, (70,))

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        if outputs.dtype != torch.bfloat16:
            raise TypeError(f"outputs in {outputs.dtype}")
        return F.cross_entropy(outputs.float(), targets)

    engine = l2path.Engine("compiled", 2, steps=2, partial=partial)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = train(net, (x, y), loss_fn, engine=engine, batch_size=20)
        looped = train(net, (x, y), loss_fn, engine="loop", batch_size=20)
    assert found.engine.kind == "compiled"
    assert {p.dtype for p in found.params.values()} == {torch.float32}
    assert_trees_close(found.params, looped.params, 0.02)
    assert_trees_close(found.history, looped.history, 0.02)


def test_steps_under_autocast_are_measured_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their seconds are others: what is remembered of a job is not of it under autocast."""
    keys: list[str] = []

    def recall(key: str) -> dict[str, float]:
        keys.append(key)
        return {"vmapped": 0.0}

    monkeypatch.setattr(tuning, "recall", recall)
    monkeypatch.setattr(tuning, "PART", 1.0)
    module, x, y = nn.Linear(5, 4), torch.randn(8, 5), torch.randn(8, 4)
    train(module, (x, y), F.mse_loss)
    train(module, (x, y), F.mse_loss)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        train(module, (x, y), F.mse_loss)
    assert len(keys) == 3
    assert keys[0] == keys[1] != keys[2]
    assert keys[2].count("autocast to torch.bfloat16") == 1


@pytest.mark.parametrize("engine", ["vmap", "loop"])
def test_autocast_keeps_no_copies_of_past_weights(engine: str) -> None:
    torch.manual_seed(0)
    module, x, y = nn.Linear(50, 40), torch.randn(8, 50), torch.randn(8, 40)

    def taken(epochs: int) -> int:
        def call() -> None:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                train(module, (x, y), F.mse_loss, epochs=epochs, engine=engine)

        return peak_bytes(call)

    taken(1)
    assert taken(40) < 1.5 * taken(4)


def test_masks_in_another_order_are_noticed_at_low_precision() -> None:
    class Transposed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Any:
            return self.head(F.dropout(torch.tanh(self.first(x)).transpose(1, 2), 0.1).mean(2))

    torch.manual_seed(0)
    module, batch = Transposed(), (torch.randn(16, 5, 3), torch.randn(16, 2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        report = l2path.check(module, batch, lambda o, t: F.mse_loss(o.float(), t))
    # Without equivalents the masks differ, which the plain comparison has to see.
    assert (report.training, report.substitutes) == ("vmap", ("dropout",))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_parameters(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 3)).to(dtype)
    x, y = torch.randn(60, 8).to(dtype), torch.randint(3, (60,))

    def batches(epoch: int) -> Iterator[Any]:
        for rows in l2path.data_order(60, 0, epoch).split(20):
            yield x[rows], y[rows]

    result = train(module, (x, y), F.cross_entropy, batch_size=20, validation=(x, y))
    assert result.engine.kind == "vmap"
    assert {p.dtype for p in result.params.values()} == {dtype}
    check(result, module, batches, F.cross_entropy, 0.1)

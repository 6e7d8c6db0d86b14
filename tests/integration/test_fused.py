"""Vmapped steps of recurrent layers with native kernels: every member equals a handwritten loop."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import l2path
from l2path import lowerings
from l2path.functional import functionalize
from l2path.lowerings import eager
from l2path.path import fused, tuning
from tests.contract import assert_solo, run
from tests.families import FAMILIES, LAMBDAS, Family
from tests.helpers import assert_trees_close
from tests.models import classes
from tests.unit.lowerings_kernels import native_kernels

NATIVE = l2path.Engine("vmap", len(LAMBDAS), native=True)
TRAIN, VAL = classes(50, seed=1), classes(40, seed=2)
pytestmark = pytest.mark.filterwarnings("ignore::l2path.BoundaryWarning")


@pytest.fixture(scope="module", autouse=True)
def kernels() -> Iterator[None]:
    native_kernels()
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def has_fused_layers(family: Family) -> bool:
    fn = functionalize(family.make())
    return fn.lowered() is not fn


RECURRENT = [f for f in FAMILIES if f.engine == "vmap" and f.group == "recurrent" and has_fused_layers(f)]


@pytest.mark.parametrize("family", RECURRENT, ids=lambda family: family.name)
def test_every_member_equals_a_handwritten_loop(family: Family) -> None:
    result, _ = run(family, {"engine": NATIVE})
    packed = "Packed" in family.name
    assert result.engine.native != packed
    assert ("takes no packed sequence" in result.engine.reason) == packed
    assert_solo(result, family)


def test_there_are_families_enough() -> None:
    assert len(RECURRENT) >= 10


class Last(nn.Module):
    """A recurrent layer over the features, and a head."""

    def __init__(self, layer: type[nn.LSTM] | type[nn.GRU], dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.head = layer(1, 20, batch_first=True, dtype=dtype), nn.Linear(20, 3, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.rnn(x.unsqueeze(-1).to(self.head.weight.dtype))[0][:, -1])
        return out


def train(module: nn.Module, **changes: Any) -> l2path.PathResult:
    options: dict[str, Any] = {
        "loss_fn": F.cross_entropy, "optimizer": l2path.adam(lr=0.01), "epochs": 5, "batch_size": 16,
        "lambdas": l2path.lambda_grid(1e-4, 1.0, 7), "validation": VAL, "engine": l2path.Engine("vmap", 7, native=True),
    }  # fmt: skip
    return l2path.batch_train(module, TRAIN, **(options | changes))


def recorded(result: l2path.PathResult) -> dict[str, Tensor]:
    """The history of members as long as they were trained."""
    return {name: values[~values.isnan()] for name, values in result.history.items()}


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU])
def test_chunks_threads_and_early_stopping_change_nothing(layer: Any) -> None:
    rule = l2path.EarlyStopping(patience=1)
    options: dict[str, Any] = {"early_stopping": rule, "epochs": 12}
    looped = train(Last(layer), engine="loop", **options)
    assert len(set(looped.epochs_trained)) > 1  # members leave at different times
    for engine in (l2path.Engine("vmap", 7, native=True), l2path.Engine("vmap", 3, native=True)):
        found = train(Last(layer), engine=engine, **options)
        assert found.engine == engine
        assert_trees_close(found.params, looped.params, 1e-10)
        assert found.epochs_trained == looped.epochs_trained
        assert_trees_close(recorded(found), recorded(looped), 1e-10)
        again = train(Last(layer), engine=found.engine, **options)
        assert_trees_close(again.params, found.params, 0.0)
        assert_trees_close(recorded(again), recorded(found), 0.0)


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU])
def test_float32_members_equal_the_loop(layer: Any) -> None:
    module = Last(layer, torch.float32)
    found, looped = train(module), train(module, engine="loop")
    assert found.engine.native
    assert_trees_close(found.params, looped.params, 1e-3)
    assert_trees_close(found.history, looped.history, 1e-4)


def test_other_numbers_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What disagrees on the first batch is not used: members are those of steps without native kernels."""
    right = train(Last(nn.LSTM), engine="vmap")
    kernel = torch.ops.l2path.native_lstm.default

    def wrong(*operands: Tensor) -> Any:
        h, c, gates = kernel(*operands)
        return h.roll(1, 0) * 1.001, c, gates  # the next member's

    monkeypatch.setattr(eager, "_layer", lambda name: wrong if name == "lstm" else None)
    found = train(Last(nn.LSTM))
    assert not found.engine.native
    assert (
        found.engine.reason == "asked for; without native kernels: steps with native kernels differ from those without"
    )
    assert_trees_close(found.params, right.params, 0.0)


def test_an_engine_from_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "native_kernels", lambda _: False)
    found = train(Last(nn.LSTM), epochs=1)
    assert not found.engine.native
    assert found.engine.reason.endswith("without native kernels: there are no native kernels here")


def test_modules_without_recurrent_layers_have_none() -> None:
    torch.manual_seed(0)
    found = train(nn.Linear(5, 3).double(), epochs=1)
    assert not found.engine.native
    assert found.engine.reason.endswith("there is no recurrent layer that has some")


@pytest.mark.parametrize(
    ("vmapped", "looped", "native", "expected"),
    [
        (1e-2, 1e-2, 1e-3, ("vmap", True)),
        (1e-2, 1e-4, 1e-2, ("loop", False)),
        (1e-2, 1e-1, 2e-2, ("vmap", False)),
        (1e-2, 1e-3, 4e-3, ("vmap", True)),  # of seven members
    ],
)
def test_auto_takes_what_is_fastest(
    vmapped: float, looped: float, native: float, expected: tuple[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Any] = []

    def seconds(kind: str, step: Any, job: Any, module: int, *_: Any) -> float:
        steps = job.steps[module]
        found.append(step)
        return {id(steps.batched): vmapped, id(steps.looped): looped, id(steps.fused): native}[id(step)]

    monkeypatch.setattr(tuning, "_seconds", seconds)
    monkeypatch.setattr(tuning, "_may_pay", lambda *_: False)
    result = train(Last(nn.LSTM), engine="auto", epochs=200, on_epoch=lambda event: event.active & (event.epoch < 2))
    assert (result.engine.kind, result.engine.native) == expected
    assert len(found) == 3
    assert f"with native kernels {native / 7 * 1e6:.3g}" in result.engine.reason


def test_a_long_job_with_packed_sequences_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fused layers take none: neither native kernels nor a program stand in the way."""
    family = next(f for f in RECURRENT if f.name == "LSTM, PackedSequence")
    monkeypatch.setattr(tuning, "MEASURED", 0.0)
    monkeypatch.setattr(tuning, "TIMED", 1)
    monkeypatch.setattr(tuning, "PART", 1.0)
    result, _ = run(family, {})
    assert result.engine.kind in ("vmap", "loop")
    assert not result.engine.native
    for said in ("without native kernels: NotImplementedError", "not compiled: NotImplementedError"):
        assert f"{said}: a fused LSTM takes no packed sequence" in result.engine.reason
    assert_solo(result, family)


class Branched(Last):
    """Some batches under autocast, which fused layers do not know."""

    limit = 0.0

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=bool((x[:, 0] > self.limit).any())):
            return super().forward(x).to(x.dtype)


@pytest.mark.parametrize("engine", ["auto", l2path.Engine("vmap", 7, native=True)])
def test_a_later_batch_goes_on_without_native_kernels(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_seconds", lambda kind, step, *_: 1e-2 if "run" in step.__qualname__ else 1.0)
    monkeypatch.setattr(tuning, "_may_pay", lambda *_: False)
    column = TRAIN[0][:, 0]
    firsts = {seed: float(column[l2path.data_order(50, seed, 0)[:10]].max()) for seed in range(9)}
    seed = next(seed for seed, first in firsts.items() if first < float(column.max()))
    monkeypatch.setattr(Branched, "limit", firsts[seed])  # not so the first batch
    options: dict[str, Any] = {"epochs": 3, "batch_size": 10, "seed": seed}
    with pytest.warns(l2path.EngineWarning, match="native kernels failed at step"):
        found = train(Branched(nn.LSTM, torch.float32), engine=engine, **options)
    assert (found.engine.kind, found.engine.native) == ("vmap", False)
    other = train(Branched(nn.LSTM, torch.float32), engine="vmap", **options)
    assert_trees_close(found.params, other.params, 2e-2)  # of some steps under autocast


def test_auto_does_without_what_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def prepare(wait: float | None = 0.0, *, make: bool = True) -> lowerings.Status:
        asked.append(make)
        return lowerings.Status("absent")

    monkeypatch.setattr(lowerings, "prepare", prepare)
    monkeypatch.setattr(lowerings, "enabled", lambda: False)
    monkeypatch.setattr(tuning, "_seconds", lambda *_: 1e-2)
    monkeypatch.setattr(tuning, "_may_pay", lambda *_: False)
    result = train(Last(nn.LSTM), engine="auto", epochs=200, on_epoch=lambda event: event.active & (event.epoch < 2))
    assert asked == [False]  # it is not built for this
    assert result.engine == replace(NATIVE, member_chunk=7, native=False)
    assert "native" not in result.engine.reason


def test_an_engine_shows_that_it_is_native() -> None:
    assert repr(NATIVE).endswith("native=True)")
    assert "native" not in repr(replace(NATIVE, native=False))

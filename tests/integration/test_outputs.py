"""Programs for the outputs that members are scored on: scores are those without, or there is no program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import l2path
from l2path.compiled import COMPILED_CHUNK_BYTES
from l2path.engine import Engine
from l2path.outputs import CompiledOutputs, Parts
from l2path.path import outputs, tuning
from l2path.path.chunks import SCORED_BYTES, Chunk, Group, scored_together
from l2path.path.job import Job
from l2path.path.outputs import outputs_pay, rows_of_a_part
from tests.helpers import assert_trees_close
from tests.models import classes

RTOL = 1e-10
TRAIN, VAL = classes(48, seed=1), classes(41, seed=2)
pytestmark = pytest.mark.filterwarnings("ignore::l2path.BoundaryWarning")
ENGINE = Engine("compiled", 3, workers=2, steps=3, outputs=True)


class Recurrent(nn.Module):
    """An LSTM over the features."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.LSTM(1, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.layer(x.unsqueeze(-1))[0][:, -1])
        return out


class Encoder(nn.Module):
    """A transformer layer, which torch runs as one kernel in eval mode, after a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(1, 4, 3, padding=1)
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.1, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.layer(self.convolution(x.unsqueeze(1)).transpose(1, 2)).mean(1))
        return out


class Centred(nn.Linear):
    """Whose rows depend on each other, in eval mode as well."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return out - out.mean(0)


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 3))


def made(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().double()


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(1) == targets).double().mean()


def train(make: Callable[[], nn.Module], **changes: Any) -> l2path.PathResult:
    options: dict[str, Any] = {
        "loss_fn": F.cross_entropy, "optimizer": l2path.ema(l2path.sgd(lr=0.1, momentum=0.9), decay=0.8), "epochs": 3,
        "batch_size": 16, "lambdas": l2path.lambda_grid(1e-4, 1.0, 5), "validation": VAL, "engine": ENGINE,
        "metrics": {"accuracy": l2path.Metric(accuracy, greater_is_better=True)},
    }  # fmt: skip
    return l2path.batch_train(made(make), TRAIN, **(options | changes))


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let parts be of a few rows."""
    monkeypatch.setattr(outputs, "rows_of_a_part", lambda *_: 16)


@pytest.mark.parametrize("make", [perceptron, Recurrent, Encoder])
def test_scores_by_a_program_are_those_without(make: Callable[[], nn.Module], in_parts: None) -> None:
    threads, fast = torch.get_num_threads(), torch.backends.mha.get_fastpath_enabled()
    found = train(make)
    assert found.engine.outputs
    assert (torch.get_num_threads(), torch.backends.mha.get_fastpath_enabled()) == (threads, fast)
    other = train(make, engine="loop")
    assert_trees_close(found.history, other.history, RTOL)
    assert_trees_close(found.params, other.params, RTOL)


def test_an_engine_with_a_program_for_outputs_repeats_a_run_bit_for_bit(in_parts: None) -> None:
    found = train(perceptron)
    again = train(perceptron, engine=found.engine)
    assert again.engine == found.engine
    assert_trees_close(again.history, found.history, 0.0)


def test_outputs_are_compiled_once(in_parts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether workers run ahead or a hook keeps them from it, and for other numbers of rows and members."""
    from torch._dynamo.utils import counters

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for changes in ({}, {"on_epoch": lambda event: event.active & (torch.arange(5) != event.epoch)}):
            counters.clear()
            train(perceptron, **changes)
            assert counters["stats"]["unique_graphs"] == 2  # of steps and of outputs
    finally:
        torch.set_num_threads(threads)


def test_folds_and_seeds_are_scored_by_one_program(monkeypatch: pytest.MonkeyPatch) -> None:
    programs = []
    init = CompiledOutputs.__init__

    def noted(self: CompiledOutputs, *operands: Any, **options: Any) -> None:
        programs.append(self)
        init(self, *operands, **options)

    monkeypatch.setattr(CompiledOutputs, "__init__", noted)
    options: dict[str, Any] = {
        "loss_fn": F.cross_entropy, "optimizer": l2path.sgd(lr=0.1), "epochs": 3, "batch_size": 17, "seeds": [1, 2],
        "lambdas": l2path.lambda_grid(1e-4, 1.0, 4), "folds": 3,
    }  # fmt: skip
    found = l2path.cross_validate(lambda: perceptron().double(), classes(50, seed=1), engine=ENGINE, **options)
    other = l2path.cross_validate(lambda: perceptron().double(), classes(50, seed=1), engine="vmap", **options)
    assert len(programs) == 1
    assert_trees_close(found.members.history, other.members.history, RTOL)


def test_early_stopping_watches_other_rows_by_the_same_program(in_parts: None) -> None:
    """In cross-validation with a monitor, and with members that leave."""
    stopping = l2path.EarlyStopping(patience=1)
    found, other = (train(perceptron, epochs=8, early_stopping=stopping, engine=e) for e in (ENGINE, "vmap"))
    assert found.engine.outputs
    scores, wanted = ({k: v.nan_to_num(-1.0) for k, v in result.history.items()} for result in (found, other))
    assert_trees_close(scores, wanted, RTOL)
    assert min(found.epochs_trained) < 8


@pytest.mark.parametrize("rows", [16, 41])
def test_rows_that_depend_on_each_other_have_no_program(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the first batch is taken apart or not: another one may have fewer rows."""
    monkeypatch.setattr(outputs, "rows_of_a_part", lambda *_: rows)
    found, other = (train(lambda: Centred(5, 3), engine=engine) for engine in (ENGINE, "vmap"))
    assert found.engine.kind == "compiled"
    assert not found.engine.outputs
    assert "no program for outputs" in found.engine.reason
    assert_trees_close(found.history, other.history, RTOL)


class Counting(nn.Linear):
    """Which counts its calls in eval mode, and lets them matter."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            self.calls += 1
        return super().forward(x) * (1 + self.calls)


def test_what_a_call_leaves_behind_on_the_module_reaches_no_other_call() -> None:
    found, other = (train(lambda: Counting(5, 3), engine=engine) for engine in (ENGINE, "loop"))
    assert not found.engine.outputs
    assert "sets the attributes calls" in found.engine.reason
    assert_trees_close(found.history, other.history, RTOL)
    torch.testing.assert_close(found.predict(VAL[0]), other.predict(VAL[0]))


class Wide(nn.Linear):
    """Which vmap cannot batch for more than twenty rows in eval mode."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and len(x) > 20:
            float(super().forward(x).sum())
        return super().forward(x)


@pytest.mark.filterwarnings("ignore::l2path.EngineWarning")
@pytest.mark.parametrize("engine", ["compiled", "auto"])
def test_outputs_that_cannot_be_batched_leave_the_steps_as_they_are(
    engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "MEASURED", 0.0)
    monkeypatch.setattr(tuning, "PART", 1.0)
    monkeypatch.setattr(tuning, "_may_pay", lambda *_: True)
    monkeypatch.setenv("L2PATH_REMEMBER", "0")
    found = train(lambda: Wide(5, 3), engine=engine, epochs=2)
    assert not found.engine.outputs
    assert engine == "auto" or found.engine.kind == "compiled"
    assert "UnboundLocalError" not in found.engine.reason


def test_a_program_that_mixes_up_members_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    call = CompiledOutputs._outputs

    def wrong(self: CompiledOutputs, parts: Parts, inputs: Any, rows: int) -> Tensor:
        found: Tensor = call(self, parts, inputs, rows)
        return found[torch.tensor([0, 2, 1])]

    monkeypatch.setattr(CompiledOutputs, "_outputs", wrong)
    assert not train(perceptron).engine.outputs


def test_a_program_that_fails_half_way_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    call = CompiledOutputs._outputs

    def failing(self: CompiledOutputs, *operands: Any) -> Any:
        calls.append(self)
        if len(calls) > 8:
            raise RuntimeError("out of luck")
        return call(self, *operands)

    monkeypatch.setattr(CompiledOutputs, "_outputs", failing)
    with pytest.warns(l2path.EngineWarning, match="for outputs failed after epoch .: RuntimeError: out of") as told:
        found = train(perceptron)
    (warning,) = [w for w in told if w.category is l2path.EngineWarning]
    assert warning.filename == __file__
    assert not found.engine.outputs
    assert len(calls) == 9
    assert_trees_close(found.history, train(perceptron, engine="vmap").history, RTOL)


def test_what_cannot_be_a_program_is_scored_as_ever() -> None:
    """A loss that the model computes, and outputs without rows."""

    class Loss(nn.Linear):
        def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
            return F.cross_entropy(super().forward(x), y)  # type: ignore[arg-type]

    class Sum(Recurrent):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).square().mean()

    model = train(lambda: Loss(5, 3), loss_fn=l2path.model_loss(), metrics=None)
    number = train(Sum, loss_fn=lambda outputs, _: outputs, metrics=None)
    assert not model.engine.outputs
    assert not number.engine.outputs


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 16, 23])
def test_parts_of_rows(rows: int) -> None:
    """Filled up, taken apart, the last one overlapping: without compiling anything."""
    parts: Parts = ({"w": torch.randn(2, 3, 4)}, {})

    def call(own: Parts, x: Any) -> Any:
        return {"y": x["rows"] @ own[0]["w"] + x["shift"]}

    program = CompiledOutputs(call, 3, 8, torch.device("cpu"), native=False)
    done = []

    def plain(leaves: list[Tensor], inputs: Any) -> list[Tensor]:
        assert len(leaves[0]) == 3
        assert inputs["rows"].shape == (8, 3)
        done.append(inputs)
        return [torch.einsum("bi,cij->cbj", inputs["rows"], leaves[0]) + inputs["shift"]]

    program._program = plain
    for n in (5, rows):
        inputs = {"rows": torch.randn(n, 3), "shift": torch.randn(4)}
        want = {"y": torch.einsum("bi,cij->cbj", inputs["rows"], parts[0]["w"]) + inputs["shift"]}
        found = program.compile(parts, inputs, n, want) if n == 5 else program(parts, inputs, n)
        torch.testing.assert_close(found, want)
    assert len(done) == 1 + -(-rows // 8)
    assert program(parts, {"rows": torch.randn(8, 2), "shift": torch.randn(4)}, 8) is None
    assert program(({"v": parts[0]["w"]}, {}), inputs, rows) is None


@pytest.mark.parametrize(
    ("like", "why"),
    [({"y": torch.zeros(2, 5, 1), "n": 3}, "more than tensors"), (torch.zeros(2), "rows"), (torch.zeros(2, 4), "rows")],
)
def test_outputs_that_cannot_be_taken_apart(like: Any, why: str) -> None:
    program = CompiledOutputs(lambda own, x: x, 2, 8, torch.device("cpu"), native=False)
    with pytest.raises(ValueError, match=why):
        program.compile(({"w": torch.zeros(2, 1)}, {}), torch.zeros(5, 1), 5, like)


def test_a_program_for_outputs_must_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    job: Any = type("Job", (), {})()
    wanted = type("Outputs", (), {"member_rows": 1000})()
    job.epochs, job.outputs = 10, lambda: wanted
    monkeypatch.setattr(outputs, "eager_seconds", lambda _: 1e-3)
    assert outputs_pay(job, 4.9)
    assert not outputs_pay(job, 5.1)
    job.outputs = lambda: None
    assert not outputs_pay(job, 0.0)
    asked: list[float] = []
    monkeypatch.setenv("L2PATH_REMEMBER", "0")

    def noted(_: Job, cost: float) -> bool:
        asked.append(cost)
        return False

    monkeypatch.setattr(tuning, "outputs_pay", noted)
    assert not train(perceptron, engine="compiled").engine.outputs
    assert asked
    assert asked[0] >= tuning.OUTPUTS_COST * tuning.COMPILE_SECONDS


def test_parts_are_of_one_length() -> None:
    wanted: Any = type("Outputs", (), {"row_bytes": COMPILED_CHUNK_BYTES // 1000, "most": 1100})()
    assert rows_of_a_part(wanted, 1) == 550
    assert rows_of_a_part(wanted, 4) == 220
    wanted.most = 7
    assert rows_of_a_part(wanted, 4) == 7


def test_members_are_scored_together_as_far_as_memory_goes() -> None:
    nothing: Any = None
    validation: Any = type("Validation", (), {"member_bytes": SCORED_BYTES // 10})()
    groups = [Group(0, nothing, nothing, nothing, nothing, validation) for _ in range(3)]
    groups[0].scoring = groups[2].scoring = "a fold"
    chunks = [Chunk(group, [0] * n, nothing, nothing) for group, n in zip(groups * 2, [4, 4, 6, 11, 4, 1], strict=True)]
    sets = scored_together(chunks)
    assert [[chunks.index(chunk) for chunk in own] for own in sets] == [[0, 2], [1, 4], [3], [5]]

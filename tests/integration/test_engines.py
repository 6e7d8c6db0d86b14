"""Engines: compiled programs give what vmapped steps give, and "auto" measures only where it can pay."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import l2path
from l2path import engine as engines
from l2path.compiled import Compiled
from l2path.engine import Engine
from l2path.functional.lowered import Lowered
from l2path.lowerings import randomness
from l2path.path import tuning
from l2path.path.job import Job
from l2path.path.programs import Programs, compiled_chunk
from l2path.path.workers import Workers
from tests.helpers import assert_trees_close
from tests.models import classes

RTOL = 1e-10
NONE: Any = Programs(None)  # type: ignore[arg-type]  # stands for those of a module
TRAIN, VAL = classes(50, seed=1), classes(40, seed=2)
pytestmark = pytest.mark.filterwarnings("ignore::l2path.BoundaryWarning")


def smooth() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)).double()


def train(**changes: Any) -> l2path.PathResult:
    options: dict[str, Any] = {
        "loss_fn": F.cross_entropy, "optimizer": l2path.sgd(lr=0.1, momentum=0.9), "epochs": 6, "batch_size": 16,
        "lambdas": l2path.lambda_grid(1e-4, 1.0, 5), "validation": VAL,
    }  # fmt: skip
    return l2path.batch_train(changes.pop("module", None) or smooth(), TRAIN, **(options | changes))


@pytest.fixture(scope="module")
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def compiled(two_threads: None) -> l2path.PathResult:
    """Two chunks of 3 and 2 members side by side, the last batch of an epoch of another shape."""
    return train(engine="compiled", member_chunk=3)


@pytest.mark.parametrize("engine", ["vmap", "loop"])
def test_compiled_members_equal_the_others(compiled: l2path.PathResult, engine: str) -> None:
    assert compiled.engine.kind == "compiled"
    assert compiled.engine.member_chunk == 3
    assert compiled.engine.workers == 2
    other = train(engine=engine)
    assert_trees_close(compiled.params, other.params, RTOL)
    assert_trees_close(compiled.buffers, other.buffers, RTOL)
    assert_trees_close(compiled.history, other.history, RTOL)
    assert torch.get_num_threads() == 2


def test_its_engine_repeats_it_bit_for_bit(compiled: l2path.PathResult) -> None:
    again = train(engine=compiled.engine)
    assert again.engine == compiled.engine
    for name, want in compiled.params.items():
        assert torch.equal(again.params[name], want)
    assert_trees_close(again.history, compiled.history, 0.0)


def test_members_that_leave_change_nothing_for_the_others(compiled: l2path.PathResult) -> None:
    lambdas = [*l2path.lambda_grid(1e-4, 1.0, 5).tolist()[:4], 1e6]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", l2path.L2PathWarning)
        result = train(engine=compiled.engine, lambdas=lambdas, epochs=30)
        alone = train(engine="loop", lambdas=lambdas[:4], epochs=30)
        asked = train(engine="vmap", lambdas=lambdas, epochs=30)
    assert result.status == ("trained",) * 4 + ("diverged",)
    assert result.diverged_at == asked.diverged_at
    assert_trees_close({n: p[:4] for n, p in result.params.items()}, alone.params, RTOL)
    stopping = l2path.EarlyStopping(patience=1)
    early, other = (train(engine=e, epochs=30, early_stopping=stopping) for e in (compiled.engine, "loop"))
    assert early.epochs_trained == other.epochs_trained
    assert len(set(early.epochs_trained)) > 1
    assert_trees_close(early.params, other.params, RTOL)


def test_steps_that_do_not_fill_a_call_are_right_in_threads(compiled: l2path.PathResult) -> None:
    """Two workers do many of them at the same time, on one module, and no program is compiled anew for that."""
    data = classes(200)
    options: dict[str, Any] = {
        "loss_fn": F.cross_entropy, "optimizer": l2path.sgd(lr=0.1), "epochs": 15, "batch_size": 8,
        "lambdas": l2path.lambda_grid(1e-4, 1.0, 8),
    }  # fmt: skip
    engine = Engine("compiled", 2, workers=2, steps=9)  # 25 batches: 2 calls and 7 steps
    before = programs()
    found = l2path.batch_train(smooth(), data, engine=engine, **options)
    assert found.engine.kind == "compiled"
    assert programs() == before + 1
    other = l2path.batch_train(smooth(), data, engine="vmap", **options)
    assert_trees_close(found.params, other.params, RTOL)
    assert_trees_close(found.history, other.history, RTOL)


def test_an_interrupt_while_workers_run_changes_no_digit(two_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Members of several chunks do steps outside of calls together, also after an interrupt between two of them."""

    def run() -> l2path.PathResult:
        return l2path.batch_train(
            smooth().float(), tuple(t.float() if t.is_floating_point() else t for t in classes(96)),
            loss_fn=F.cross_entropy, optimizer=l2path.sgd(lr=0.1), epochs=1, batch_size=8,
            lambdas=l2path.lambda_grid(1e-4, 1.0, 24), engine=Engine("compiled", 3, workers=2, steps=9),
        )  # fmt: skip

    want, whole, asked = run(), Workers.result, 0

    def result(self: Workers, chunk: Any) -> Any:
        nonlocal asked
        asked += 1
        found = whole(self, chunk)
        if asked == 8 + 3:  # of 8 chunks, first all for a call of 9 steps, then for the other 3 steps
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(Workers, "result", result)
    got = run()
    assert asked == 2 * 8 + 1
    for name, value in want.params.items():
        assert torch.equal(got.params[name], value)


def programs() -> int:
    """How many torch has compiled in this process."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def test_what_a_hook_changes_of_a_step_is_compiled_anew(two_threads: None) -> None:
    scale = 1.0

    class Halved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = scale * self.layer(x)
            return out

    def train_halved(engine: str) -> l2path.PathResult:
        def hook(event: l2path.EpochEvent) -> None:
            nonlocal scale
            scale = 0.5

        nonlocal scale
        scale = 1.0
        torch.manual_seed(0)
        return train(module=Halved().double(), engine=engine, epochs=2, on_epoch=hook, validation=None)

    found = train_halved("compiled")
    assert found.engine.kind == "compiled"
    assert_trees_close(found.params, train_halved("vmap").params, RTOL)


def test_a_program_that_fails_half_way_is_done_without(
    compiled: l2path.PathResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, calls = Compiled.run, 0

    def fails(self: Compiled, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 5:
            raise RuntimeError("out of luck")
        return whole(self, *args)

    monkeypatch.setattr(Compiled, "run", fails)
    with pytest.warns(l2path.EngineWarning, match="compiled program failed at step .*out of luck.*are right"):
        result = train(engine=compiled.engine)
    assert result.engine.kind == "vmap"
    assert_trees_close(result.params, compiled.params, RTOL)
    assert_trees_close(result.history, compiled.history, RTOL)


def test_folds_share_one_program(two_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    programs: list[Compiled] = []
    first = Compiled.__init__

    def counted(self: Compiled, *args: Any, **options: Any) -> None:
        first(self, *args, **options)
        programs.append(self)

    monkeypatch.setattr(Compiled, "__init__", counted)
    options: dict[str, Any] = {
        "loss_fn": F.cross_entropy, "optimizer": l2path.sgd(lr=0.1), "lambdas": [1.0, 0.1], "epochs": 2, "folds": 3,
        "batch_size": 16, "seeds": (0, 1),
    }  # fmt: skip
    cv = l2path.cross_validate(smooth(), classes(72), engine="compiled", **options)
    assert len(programs) == 1
    other = l2path.cross_validate(smooth(), classes(72), engine="loop", **options)
    assert_trees_close(cv.members.params, other.members.params, RTOL)


class Scaled(nn.Module):
    """A factory may make modules that differ in what nothing shows."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(5, 3), scale

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.scale * self.layer(x)
        return out


@pytest.mark.parametrize(("scales", "compilations"), [((1.0, 1.0), 1), ((1.0, 1.5), 2)])
def test_seeds_whose_modules_are_alike_share_a_program(
    scales: tuple[float, float], compilations: int, two_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs: list[Compiled] = []
    compile = Compiled.compile

    def counted(self: Compiled, *args: Any) -> Any:
        programs.append(self)
        return compile(self, *args)

    monkeypatch.setattr(Compiled, "compile", counted)

    def trained(engine: str) -> l2path.PathResult:
        made = iter(scales)
        factory = lambda: Scaled(next(made)).double()  # noqa: E731
        return train(module=factory, engine=engine, seeds=(0, 1), epochs=2, batch_size=25, validation=None)

    found, other = trained("compiled"), trained("loop")
    assert len(programs) == compilations
    assert_trees_close(found.params, other.params, RTOL)


class Noisy(nn.Module):
    """Masks of all kinds, drawn by layers and by functions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 3)
        self.single, self.channels, self.alpha = nn.Dropout(0.3), nn.Dropout1d(0.2), nn.AlphaDropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.single(torch.tanh(self.first(x)))
        h = self.channels(h.reshape(-1, 4, 2)).flatten(1)
        # Transposed, so that masks are not drawn in the order of the axes.
        h = F.dropout(self.alpha(h).t(), 0.2, self.training).t()
        out: Tensor = self.last(h)
        return out


def noisy_module() -> nn.Module:
    torch.manual_seed(0)
    return Noisy().double()


def test_random_numbers_of_compiled_members_are_those_of_lone_ones(two_threads: None) -> None:
    options: dict[str, Any] = {"seeds": (0, 3), "lambdas": [0.01, 0.1, 1.0], "shuffle": False, "validation": None}
    found = train(module=noisy_module(), engine="compiled", member_chunk=2, epochs=3, **options)
    assert found.engine.kind == "compiled"
    assert found.engine.steps == 3
    for engine in ("loop", "vmap"):
        other = train(module=noisy_module(), engine=engine, epochs=3, **options)
        assert_trees_close(found.params, other.params, RTOL)
        assert_trees_close(found.history, other.history, RTOL)
    again = train(module=noisy_module(), engine=found.engine, epochs=3, **options)
    assert_trees_close(again.params, found.params, 0.0)
    # Masks matter: another seed ends elsewhere.
    two = found.params["last.weight"]
    assert not torch.allclose(two[0], two[1], rtol=1e-3)


class Attentive(nn.Module):
    """Attention in the three ways in which torch computes it, with dropout."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 32), nn.Linear(8, 3)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout, batch_first=True)
        self.weighted, self.causal = (nn.MultiheadAttention(8, 2, dropout, batch_first=True) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(self.first(x).reshape(-1, 4, 8))
        h, weights = self.weighted(h, h, h)
        h = h * (1 + weights.mean())
        mask = nn.Transformer.generate_square_subsequent_mask(4, dtype=h.dtype)
        h = self.causal(h, h, h, attn_mask=mask, is_causal=True, need_weights=False)[0]
        out: Tensor = self.last(h.mean(1))
        return out


def test_dropout_inside_of_attention_is_that_of_lone_members(two_threads: None) -> None:
    def trained(engine: str) -> l2path.PathResult:
        torch.manual_seed(0)
        module = Attentive(0.2).double()
        return train(module=module, engine=engine, epochs=2, seeds=(0, 1), lambdas=[0.01, 0.1], validation=None)

    found = trained("compiled")
    assert found.engine.kind == "compiled"
    for engine in ("loop", "vmap"):
        other = trained(engine)
        assert other.engine.kind == engine
        assert_trees_close(found.params, other.params, RTOL)


def test_convolutions_and_attention_are_products_in_compiled_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    class Both(Attentive):
        def __init__(self) -> None:
            super().__init__(0.0)
            self.convolution = nn.Conv1d(1, 1, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(self.convolution(x.unsqueeze(1)).squeeze(1))

    seen: set[str] = set()

    def noted(node: torch.fx.Node) -> bool:
        seen.add(str(node.target))
        return False

    monkeypatch.setattr(randomness, "draws", noted)
    torch._dynamo.reset()  # what is cached is compiled without a look at it
    with torch._inductor.config.patch(force_disable_caches=True):
        train(module=Both().double(), engine="compiled", epochs=1, validation=None)
    assert "aten.bmm.default" in seen
    assert [name for name in seen if "convolution" in name or "attention" in name] == []


def test_an_engine_that_is_passed_in_has_its_native_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def without(device: torch.device) -> bool:
        asked.append(device.type)
        return False

    monkeypatch.setattr(tuning, "native_kernels", without)
    monkeypatch.setattr(tuning, "compile_all", lambda engine, job, measured: (replace(engine, kind="vmap"), {}))
    result = train(engine=Engine("compiled", 5, native=True), epochs=1)
    assert asked == ["cpu"]
    assert not result.engine.native  # there are none: it says so


def test_random_members_that_diverge_are_parked_where_they_were(two_threads: None) -> None:
    options: dict[str, Any] = {"lambdas": [0.01, 1e9, 0.1], "epochs": 12, "validation": None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", l2path.L2PathWarning)
        found, other = (train(module=noisy_module(), engine=e, **options) for e in ("compiled", "vmap"))
    assert found.engine.kind == "compiled"
    assert found.diverged_at == other.diverged_at
    assert found.status[1] == "diverged"
    assert_trees_close(found.params, other.params, RTOL)


def test_what_a_hook_changes_of_the_noise_is_noticed(two_threads: None) -> None:
    rate = 0.5

    class Annealed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layer(F.dropout(x, rate, self.training))
            return out

    def train_annealed(engine: str) -> l2path.PathResult:
        def hook(event: l2path.EpochEvent) -> None:
            nonlocal rate
            rate = 0.5 - 0.1 * event.epoch

        nonlocal rate
        rate = 0.5
        torch.manual_seed(0)
        return train(module=Annealed().double(), engine=engine, epochs=3, on_epoch=hook, validation=None)

    with pytest.warns(l2path.EngineWarning, match="compiled program failed at step 4.*where another one did not"):
        found = train_annealed("compiled")
    assert_trees_close(found.params, train_annealed("loop").params, RTOL)


@pytest.mark.parametrize("draw", [torch.randn_like, lambda x: torch.randn(3, dtype=x.dtype)])
def test_random_numbers_that_cannot_be_drawn_ahead_are_not_compiled(draw: Any) -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            h: Tensor = self.layer(x)
            h = h + draw(h)
            return h

    with pytest.raises(l2path.ArgumentError, match=r"'compiled', but .*draws random numbers in"):
        train(module=Other().double(), engine="compiled")


def test_what_torch_cannot_compile_is_said() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 3).double()

        def forward(self, x: Tensor) -> Tensor:
            torch._dynamo.graph_break()
            out: Tensor = self.layer(x)
            return out

    with pytest.raises(l2path.ArgumentError, match=r"'compiled', but .*Call to `torch._dynamo.graph_break"):
        train(module=Odd(), engine="compiled")


def without_compiling(engine: Engine, job: Job, measured: bool) -> tuple[Engine, dict[int, Programs]]:
    return replace(engine, workers=1), dict.fromkeys(job.steps, NONE)


# What "auto" decides from what it measures: seconds of a chunk-step of 5 members, of one looped, of 3 compiled.
@pytest.mark.parametrize(
    ("vmapped", "looped", "fast", "epochs", "kind", "asked"),
    [
        (1.0, 9.0, 9.0, 3, "vmap", []),  # 60 model-steps: timing some would take a part of the job
        (1e-3, 9.0, 9.0, 30, "vmap", ["vmap"]),  # a job of 0.12 s: nothing else is timed
        (0.1, 9.0, 9.0, 30, "vmap", ["vmap", "loop"]),
        (0.1, 0.01, 9.0, 30, "loop", ["vmap", "loop"]),
        (0.1, 0.019, 9.0, 30, "vmap", ["vmap", "loop"]),  # five in a tenth of a second are as fast
        (1.0, 9.0, 0.1, 600, "compiled", ["vmap", "loop", "compiled"]),
        (1.0, 0.1, 9.0, 600, "loop", ["vmap", "loop", "compiled"]),
    ],
)
def test_auto_takes_what_is_fastest(
    vmapped: float, looped: float, fast: float, epochs: int, kind: str, asked: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    times, timed = {"vmap": vmapped, "loop": looped, "compiled": fast}, []

    def seconds(kind: str, *_: Any) -> float:
        timed.append(kind)
        return times[kind]

    monkeypatch.setattr(tuning, "_seconds", seconds)
    monkeypatch.setattr(
        tuning,
        "compile_all",
        lambda engine, job, measured: (replace(engine, workers=1), dict.fromkeys(job.steps, NONE)),
    )
    result = train(epochs=epochs, on_epoch=lambda event: event.active & (event.epoch < 2))
    assert timed == asked
    assert result.engine.kind == kind
    if len(asked) > 1:
        assert f"measured: vmapped {vmapped / 5 * 1e6:.3g} µs a model-step" in result.engine.reason


@pytest.mark.parametrize(
    ("kib", "groups", "threads", "expected"),
    [
        (20, (8,), 2, 8),  # half of them on each of two cores would cost more than all on one
        (20, (16,), 2, 8),
        (20, (16,), 1, 16),
        (20, (4, 4, 4, 4), 2, 4),
        (700, (8,), 2, 4),
        (700, (32,), 2, 4),  # three fill 4 MiB as well, with a last chunk of two
        (9000, (8,), 2, 1),
    ],
)
def test_chunks_are_as_large_as_caches_and_as_cores_want_them(
    kib: int, groups: tuple[int, ...], threads: int, expected: int
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        job: Any = SimpleNamespace(live_bytes=lambda: kib * 1024, groups=groups, device=torch.device("cpu"))
        assert compiled_chunk(job) == expected
    finally:
        torch.set_num_threads(before)


def test_auto_remembers_what_it_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("L2PATH_REMEMBER", "1")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    timed: list[str] = []

    def seconds(kind: str, *_: Any) -> float:
        timed.append(kind)
        return {"vmap": 0.02, "loop": 9.0, "compiled": 1e-3}[kind]

    monkeypatch.setattr(tuning, "_seconds", seconds)
    monkeypatch.setattr(tuning, "native_kernels", lambda _: False)
    monkeypatch.setattr(
        tuning,
        "compile_all",
        lambda engine, job, measured: (replace(engine, workers=1), dict.fromkeys(job.steps, NONE)),
    )

    def kind(epochs: int, **changes: Any) -> tuple[str, list[str]]:
        timed.clear()
        result = train(epochs=epochs, on_epoch=lambda event: event.active & (event.epoch < 2), **changes)
        return result.engine.kind, timed.copy()

    assert kind(50) == ("vmap", ["vmap", "loop"])  # 200 chunk-steps, 4 s
    assert kind(50) == ("vmap", [])
    assert kind(600) == ("compiled", ["compiled"])
    # Compiling took no time: now it is known to pay in a shorter job, and to take others half as long as elsewhere.
    assert kind(50) == ("compiled", ["compiled"])
    assert kind(50, optimizer=l2path.adam(lr=0.1)) == ("vmap", ["vmap", "loop"])
    assert kind(50, batch_size=15) == ("vmap", ["vmap", "loop"])
    assert kind(90, batch_size=12) == ("compiled", ["vmap", "loop", "compiled"])  # 450 chunk-steps, 9 s
    (tmp_path / "l2path" / "steps.json").write_text("{ no JSON")
    assert kind(50) == ("vmap", ["vmap", "loop"])
    monkeypatch.setenv("L2PATH_REMEMBER", "0")
    assert kind(50) == ("vmap", ["vmap", "loop"])


def test_auto_goes_on_where_the_compiler_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(tuning, "_seconds", lambda *_: 1.0)
    monkeypatch.setattr(tuning, "compile_all", fails)
    result = train(epochs=600, on_epoch=lambda event: event.active & (event.epoch < 2))
    assert result.engine.kind == "vmap"
    assert "not compiled: RuntimeError: no compiler here" in result.engine.reason


class Likelihood(nn.Module):
    """A learned variance. The loss has an equivalent that can be traced, unless forward reads its count of calls."""

    calls: Tensor

    def __init__(self, *, counts: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mean, self.variance, self.counts = nn.Linear(5, 1).double(), nn.Linear(5, 1).double(), counts
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        scale = 1 + 1 / int(self.calls) if self.counts else 1.0
        return self.mean(x) * scale, F.softplus(self.variance(x))


def likelihood(outputs: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
    return F.gaussian_nll_loss(outputs[0], target.double().unsqueeze(1), outputs[1])


@pytest.mark.parametrize("partial", [False, True])
def test_equivalents_of_torch_functions_in_compiled_members(partial: bool, two_threads: None) -> None:
    """In the program, and in the steps that do not fill a call."""
    engine = Engine("compiled", 5, steps=2, partial=partial)
    options: dict[str, Any] = {"loss_fn": likelihood, "epochs": 3}
    found = train(module=Likelihood(counts=False), engine=engine, **options)
    looped = train(module=Likelihood(counts=False), engine="loop", **options)
    assert found.engine.kind == "compiled"
    assert_trees_close(found.params, looped.params, RTOL)
    assert_trees_close(found.history, looped.history, RTOL)


@pytest.mark.parametrize("engine", ["auto", "compiled"])
def test_what_only_vmap_has_equivalents_for_is_not_compiled(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long job goes on as it is; it ended with an error of vmap while its compilation was estimated."""
    monkeypatch.setattr(tuning, "_seconds", lambda *_: 1.0)
    options: dict[str, Any] = {"loss_fn": likelihood, "epochs": 600, "engine": engine}
    options["on_epoch"] = lambda event: event.active & (event.epoch < 2)
    if engine == "compiled":
        with pytest.raises(l2path.ArgumentError, match="'compiled', but forward reads a number out of a tensor"):
            train(module=Likelihood(counts=True), **options)
        return
    result = train(module=Likelihood(counts=True), **options)
    assert result.engine.kind == "vmap"
    assert "not compiled: forward reads a number out of a tensor" in result.engine.reason


@pytest.mark.parametrize("bad", ["fast", Engine("compiled", 0), Engine("compiled", 2, workers=0)])
def test_bad_engines(bad: Any) -> None:
    with pytest.raises(l2path.ArgumentError, match=r"^engine: got"):
        train(engine=bad)


def test_a_slow_step_in_a_small_job_is_measured_with_few_members(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[tuple[str, int]] = []

    def seconds(kind: str, step: Any, job: Any, module: int, members: int) -> float:
        timed.append((kind, members))
        return {"vmap": 2.0, "loop": 0.5}[kind]

    monkeypatch.setattr(tuning, "_seconds", seconds)
    result = train(epochs=6)  # 120 model-steps, of which measuring may do 6
    assert timed == [("vmap", 2), ("loop", 1)]
    assert result.engine.kind == "loop"


def test_out_of_memory_halves_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of more than two members fail from the third epoch on: chunks of 5 become 2, 2 and 1."""
    whole, calls = engines.run_steps, 0

    def fails(kind: Any, step: Any, state: Any, *rest: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 2 and len(state.step) > 2:
            whole(kind, step, state, *rest)  # some of it was done
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(kind, step, state, *rest)

    stopping = l2path.EarlyStopping(patience=3)
    expected = train(engine="vmap", early_stopping=stopping)
    monkeypatch.setattr("l2path.path.driver.run_steps", fails)
    with pytest.warns(l2path.EngineWarning, match=r"out of memory with chunks of 5 members at step.*are right"):
        result = train(engine="vmap", early_stopping=stopping)
    assert result.engine == Engine("vmap", 2)
    assert_trees_close(result.params, expected.params, RTOL)
    assert_trees_close(result.history, expected.history, RTOL)
    assert result.epochs_trained == expected.epochs_trained


def test_a_member_that_is_too_large_for_the_memory_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

    monkeypatch.setattr("l2path.path.driver.run_steps", fails)
    with pytest.raises(RuntimeError, match="can't allocate"):
        train(engine="vmap")


class Forecaster(nn.Module):
    """Two bidirectional recurrent layers with dropout between them."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(1, 3, num_layers=2, bidirectional=True, dropout=0.3, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.rnn.flatten_parameters()
        out: Tensor = self.head(self.rnn(x.unsqueeze(-1))[0][:, -1])
        return out


def test_recurrent_members_with_dropout_are_compiled(two_threads: None) -> None:
    def forecaster() -> nn.Module:
        torch.manual_seed(0)
        return Forecaster().double()

    found, other = (train(module=forecaster(), engine=e, epochs=2) for e in ("compiled", "loop"))
    assert found.engine.kind == "compiled"
    assert_trees_close(found.params, other.params, RTOL)
    assert_trees_close(found.history, other.history, RTOL)
    assert type(found.best.module().rnn) is nn.GRU


class Padded(nn.Module):
    """Attention that leaves out padding, and upsampling of what a convolution returns."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Upsample(scale_factor=2, mode="bilinear")).double()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True).double()
        self.head = nn.Linear(4, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.up(x.reshape(-1, 1, 1, 5)).flatten(2).mT
        padding = torch.arange(20) >= 12 + (x[:, :1] > 0)
        out: Tensor = self.head(self.attention(tokens, tokens, tokens, key_padding_mask=padding)[0].mean(1))
        return out


def test_padding_masks_and_upsampling_are_compiled(two_threads: None) -> None:
    found, looped = (train(module=Padded(), engine=engine, epochs=2) for engine in ("compiled", "loop"))
    assert found.engine.kind == "compiled"
    assert_trees_close(found.params, looped.params, RTOL)
    assert_trees_close(found.history, looped.history, RTOL)


def test_a_padding_mask_of_another_shape_is_refused() -> None:
    attention = nn.MultiheadAttention(4, 2, batch_first=True).double()
    x, mask = torch.randn(3, 5, 4).double(), torch.zeros(3, 4, dtype=torch.bool)
    with Lowered(), pytest.raises(AssertionError, match=r"key_padding_mask.shape to be \(3, 5\), but got \(3, 4\)"):
        attention(x, x, x, key_padding_mask=mask)

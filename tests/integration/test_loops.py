"""Compiled loops without tensors give, digit by digit, what inductor's own loops give."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import l2path
from l2path.engine import Engine
from l2path.lowerings import loops
from tests.helpers import assert_trees_close
from tests.unit.lowerings_kernels import native_kernels

LOOP = "while (1) {"


class Last(nn.Module):
    """A recurrent layer and a linear one on its last output."""

    def __init__(self, layer: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.layer, self.head = layer(3, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.layer(x)[0][:, -1])
        return out


class Case(NamedTuple):
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    optimizer: l2path.Optimizer = l2path.sgd(lr=0.1, momentum=0.9)
    dtype: torch.dtype = torch.float64


def mlp(*, dropout: float = 0.0) -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3))


def cnn() -> nn.Module:
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(20, 3))


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(32, 3))


CASES = {
    "mlp": Case(mlp, (5,)),
    "mlp float32": Case(mlp, (5,), dtype=torch.float32),
    "mlp without momentum": Case(mlp, (5,), l2path.sgd(lr=0.1)),
    "mlp Adam": Case(mlp, (5,), l2path.adam(lr=0.01)),
    "mlp Adam, averaged": Case(mlp, (5,), l2path.ema(l2path.adam(lr=0.01), 0.9)),
    "mlp RMSprop": Case(mlp, (5,), l2path.rmsprop(lr=0.01)),
    "mlp Adagrad, clipped": Case(mlp, (5,), l2path.chain(l2path.clip_by_global_norm(0.5), l2path.adagrad(lr=0.1))),
    "mlp dropout": Case(lambda: mlp(dropout=0.3), (5,)),
    "cnn": Case(cnn, (1, 8, 8)),
    "lstm": Case(lambda: Last(nn.LSTM), (4, 3)),
    "gru": Case(lambda: Last(nn.GRU), (4, 3)),
    "encoder": Case(encoder, (4, 8)),
}


@pytest.fixture(autouse=True)
def compiled_anew() -> Iterator[None]:
    """With caches of its own: they know a program by what is asked for, and the tests change what comes of it."""
    from torch._inductor.utils import fresh_cache

    native_kernels()
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with fresh_cache():
        yield
    torch.set_num_threads(before)


def train(case: Case, engine: Engine | Literal["compiled"] = "compiled") -> l2path.PathResult:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(48, *case.shape, generator=generator, dtype=case.dtype)
    targets = torch.randint(0, 3, (48,), generator=generator)
    torch.manual_seed(0)
    return l2path.batch_train(
        case.make().to(case.dtype), (inputs, targets), loss_fn=F.cross_entropy, optimizer=case.optimizer,
        lambdas=l2path.lambda_grid(1e-4, 0.1, 4), epochs=3, batch_size=8, engine=engine, member_chunk=2,
        progress=False,
    )  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_no_digit_depends_on_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, str]] = []
    without = loops.without_tensors

    def noted(source: str) -> str:
        made.append((source, without(source)))
        return made[-1][1]

    monkeypatch.setattr(loops, "without_tensors", noted)
    found = train(CASES[name])
    programs = [(old, new) for old, new in made if LOOP in old]
    assert programs
    for old, new in programs:
        inside = new.split(LOOP)[1].split("\n    }\n")[0]
        assert old != new
        assert "aoti_torch_empty_strided" not in inside
        assert "aoti_torch_assign_tensors_out" not in inside
    monkeypatch.setattr(loops, "without_tensors", str)
    from torch._inductor.utils import fresh_cache

    with fresh_cache():
        other = train(CASES[name])
    assert found.engine == other.engine
    for got, want in [(found.params, other.params), (found.buffers, other.buffers), (found.history, other.history)]:
        assert_trees_close(got, want, 0.0)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("next = 1 - next, used = true;", "used = true;"),  # a step writes over what it reads
        ("to = RAIIAtenTensorHandle(made);", ""),  # what the last step made is lost
        ("{x.data + offset * x.width,", "{x.data,"),  # all steps see the first batch
    ],
)
def test_a_loop_that_is_wrong_is_noticed(
    right: str, wrong: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    header = loops.HEADER.read_text()
    assert header.count(right) == 1
    changed = tmp_path / "loops.hpp"
    changed.write_text(header.replace(right, wrong))
    monkeypatch.setattr(loops, "HEADER", changed)
    with pytest.raises(l2path.ArgumentError, match="compiled steps differ from vmapped ones"):
        train(CASES["mlp"])


def test_other_programs_keep_their_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compiled without native kernels, by l2path or by others, is as inductor writes it."""
    seen: list[str] = []
    monkeypatch.setattr(loops, "without_tensors", lambda source: seen.append(source) or source)  # type: ignore[func-returns-value]
    found = train(CASES["mlp"])
    assert seen
    seen.clear()
    with torch._inductor.utils.fresh_cache():
        train(CASES["mlp"], engine=replace(found.engine, native=False))
        torch.compile(lambda x: x.sin() + 1, options={"cpp_wrapper": True})(torch.ones(3))
    assert not seen


def test_the_callers_tensors_are_not_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step of a call reads the state it is given; it is what a diverged member goes back to."""
    from l2path.compiled import Compiled

    call, seen = Compiled._call, list[tuple[list[Tensor], list[Tensor]]]()

    def watched(self: Compiled, state: Any, batches: Any, per_member: Any) -> Any:
        given = [*torch.utils._pytree.tree_leaves(state), *torch.utils._pytree.tree_leaves((batches, per_member))]
        before = [x.clone() for x in given]
        found = call(self, state, batches, per_member)
        seen.append((before, given))  # at once: there are two threads
        return found

    monkeypatch.setattr(Compiled, "_call", watched)
    train(CASES["mlp Adam"])
    assert seen
    assert all(torch.equal(a, b) for before, after in seen for a, b in zip(before, after, strict=True))

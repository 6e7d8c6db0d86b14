"""Programs of one step, as they are for accelerators, on this processor: all but the recording of CUDA graphs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import l2path
from l2path import compiled, compiling
from l2path.blocks import Block
from l2path.path import driver, programs, tuning
from l2path.trees import map_tensors, tensor_leaves
from tests.helpers import assert_trees_close
from tests.models import classes

RTOL = 1e-10
TRAIN, VAL = classes(50, seed=1), classes(40, seed=2)
pytestmark = pytest.mark.filterwarnings("ignore::l2path.BoundaryWarning")


class Kept:
    """A function whose results lie where those of the call before lay, as a CUDA graph's do."""

    def __init__(self, call: Any) -> None:
        self.call, self.places, self.calls = call, dict[Any, Any](), 0

    def __call__(self, leaves: Any, batches: Any, per_member: Any) -> Any:
        self.calls += 1
        found = self.call(leaves, batches, per_member)
        place = self.places.setdefault(next(tensor_leaves(batches)).shape, map_tensors(torch.clone, found))
        return map_tensors(Tensor.copy_, place, found)


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[Kept]:
    """Programs do one step in a call, and write where they wrote before."""
    made: list[Kept] = []

    def keeping(call: Any, device: torch.device, *, native: bool) -> Kept:
        made.append(Kept(whole(call, device, native=native)))
        return made[-1]

    whole = compiling.compiled
    monkeypatch.setattr(compiled, "compiled", keeping)
    for module in (compiled, driver, programs, tuning):
        monkeypatch.setattr(module, "does_many_steps", lambda _: False)
    return made


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 3)).double()


def train(**changes: Any) -> l2path.PathResult:
    options: dict[str, Any] = {
        "loss_fn": F.cross_entropy, "optimizer": l2path.sgd(lr=0.1, momentum=0.9), "epochs": 4, "batch_size": 16,
        "lambdas": l2path.lambda_grid(1e-4, 1.0, 5), "validation": VAL,
    }  # fmt: skip
    return l2path.batch_train(net(), TRAIN, **(options | changes))


@pytest.mark.parametrize("chunk", ["auto", 2])
def test_members_equal_the_loop(kept: list[Kept], chunk: Any) -> None:
    found = train(engine="compiled", member_chunk=chunk)
    assert (found.engine.kind, found.engine.steps, found.engine.workers) == ("compiled", 1, 1)
    assert found.engine.member_chunk == (5 if chunk == "auto" else 2)
    (program,) = kept
    # A step of each chunk and whole batch, and those of the checks.
    assert program.calls > 4 * 3 * (1 if chunk == "auto" else 3)
    looped = train(engine="loop")
    assert_trees_close(found.params, looped.params, RTOL)
    assert_trees_close(found.buffers, looped.buffers, RTOL)
    assert_trees_close(found.history, looped.history, RTOL)
    again = train(engine=found.engine)
    assert_trees_close(again.params, found.params, 0.0)


def test_an_engine_of_many_steps_is_cut_down(kept: list[Kept]) -> None:
    engine = l2path.Engine("compiled", 5, workers=2, steps=8, outputs=True)
    found = train(engine=engine, epochs=1)
    assert (found.engine.steps, found.engine.workers, found.engine.outputs) == (1, 1, False)
    assert_trees_close(found.params, train(engine="loop", epochs=1).params, RTOL)


def test_calls_that_do_not_follow_each_other_are_noticed(kept: list[Kept], monkeypatch: pytest.MonkeyPatch) -> None:
    """This program does each call with what it was given at its first one."""
    whole = Kept.__call__

    def forgets(self: Kept, leaves: Any, batches: Any, per_member: Any) -> Any:
        first = self.__dict__.setdefault("first", [x.clone() for x in leaves])
        return whole(self, first, batches, per_member)

    monkeypatch.setattr(Kept, "__call__", forgets)
    with pytest.raises(l2path.ArgumentError, match="calls of a compiled step that follow each other differ"):
        train(engine="compiled")


def test_results_are_copied(kept: list[Kept]) -> None:
    """A program that writes where it wrote before does not change what it returned."""
    step = compiled.Compiled(lambda s, b, e: ((s[0] + b[0].sum() * e,), s[0]), 2, torch.device("cpu"), native=False)
    state, extra = (torch.zeros(2),), torch.ones(2)
    block = Block([(torch.ones(3),)])
    first = step.compile(state, block, extra)
    step.run(first[0], block, extra)
    assert torch.equal(first[0][0], torch.full((2,), 3.0))

"""Memory that a computation takes, and what is made of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import l2path
from l2path.blocks import Block
from l2path.engine import repeat, run_steps
from l2path.functional import coarsest_dtype, functionalize, grad_with_torch_func
from l2path.losses import data_loss
from l2path.memory import free_memory, peak_bytes
from l2path.path.preflight import step_bytes
from l2path.trees import tensor_leaves
from tests.helpers import assert_trees_close

CPU = torch.device("cpu")


def test_what_is_freed_does_not_count() -> None:
    def call() -> None:
        x = torch.ones(1000)
        for _ in range(10):
            x = x + 1

    assert peak_bytes(call) == 2 * 4000


def test_what_is_kept_counts() -> None:
    kept: list[torch.Tensor] = []
    assert peak_bytes(lambda: kept.extend(torch.ones(1000, dtype=torch.float64) for _ in range(5))) == 5 * 8000


def test_views_and_writing_in_place_are_free() -> None:
    def call() -> None:
        x = torch.zeros(1000)
        x.view(10, 100).t()[:5].add_(1)
        x.mul_(2)

    assert peak_bytes(call) == 4000


def test_saved_activations_count_until_the_backward_pass() -> None:
    x = torch.ones(1000, requires_grad=True)

    def forward(then: Callable[[torch.Tensor], Any]) -> Callable[[], Any]:
        def call() -> Any:
            y = x
            for _ in range(10):
                y = y.sin()
            return then(y)

        return call

    with torch.no_grad():
        assert peak_bytes(forward(lambda y: y)) == 2 * 4000
    assert 10 * 4000 <= peak_bytes(forward(lambda y: y.sum().backward())) <= 13 * 4000


@pytest.mark.skipif(not hasattr(os, "sysconf"), reason="no sysconf to compare with")
def test_free_memory_is_some_of_what_there_is() -> None:
    free = free_memory(CPU)
    assert free is not None
    assert 2**20 < free <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


MODELS: dict[str, Callable[[], tuple[nn.Module, torch.Tensor]]] = {
    "MLP": lambda: (nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 3)), torch.ones(128, 64)),
    "CNN": lambda: (
        nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 3)),
        torch.ones(16, 1, 8, 8),
    ),
    "transformer": lambda: (
        nn.Sequential(nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True), nn.Flatten(), nn.Linear(128, 3)),
        torch.ones(8, 8, 16),
    ),
}


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.parametrize("name", MODELS)
def test_a_chunk_takes_what_its_members_were_estimated_to_take(name: str) -> None:
    module, x = MODELS[name]()
    fn = functionalize(module)
    batch, loss = (x, torch.zeros(len(x), dtype=torch.long)), data_loss(fn, F.cross_entropy)
    estimate = step_bytes(fn, loss, batch)

    def step(state: Any, b: Any, _: Any) -> Any:
        grads, value, buffers = grad_with_torch_func(lambda p: loss(p, state[1], b), state[0])
        return (grads, buffers), value

    for members in (4, 16):
        state = repeat((fn.params, fn.buffers), members)
        taken = peak_bytes(lambda: run_steps("vmap", step, state, Block([batch]), (), lambda t: None))  # noqa: B023
        assert 0.5 < taken / (members * estimate) < 2.0


def train(**options: Any) -> l2path.PathResult:
    torch.manual_seed(0)
    module, x = MODELS["MLP"]()
    data = x, torch.zeros(len(x), dtype=torch.long)
    settings: dict[str, Any] = {"lambdas": l2path.lambda_grid(1e-4, 1, 40), "epochs": 1, "validation": data}
    return l2path.batch_train(
        module, data, loss_fn=F.cross_entropy, optimizer=l2path.sgd(lr=0.1), **(settings | options)
    )


@pytest.mark.filterwarnings("ignore::l2path.BoundaryWarning")
def test_automatic_chunks_fit_into_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    free = train()
    assert free.engine.member_chunk == 40
    sizes = []
    for megabytes in (20, 10):
        monkeypatch.setattr("l2path.path.run.free_memory", lambda _, m=megabytes: m * 2**20)
        tight = train()
        sizes.append(tight.engine.member_chunk)
        assert_trees_close(tight.params, free.params, 1e-5)
    assert 1 <= sizes[1] < sizes[0] < 40
    assert train(member_chunk=33).engine.member_chunk == 33  # asked for


@pytest.mark.filterwarnings("ignore::l2path.BoundaryWarning")
def test_working_memory_is_bounded_by_the_chunk() -> None:
    def taken(chunk: int) -> int:
        return peak_bytes(lambda: train(member_chunk=chunk))

    state = 40 * sum(leaf.nbytes for leaf in tensor_leaves(functionalize(MODELS["MLP"]()[0]).params))
    small, large = taken(2) - state, taken(40) - state
    assert small < large / 2


@pytest.mark.parametrize(
    ("dtype", "expected"), [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.half, torch.half)]
)
def test_the_coarsest_dtype_is_what_was_computed_in(dtype: torch.dtype, expected: torch.dtype) -> None:
    assert coarsest_dtype(lambda: torch.ones(2, dtype=dtype).double() + 1) == expected


def test_autocast_is_seen() -> None:
    linear, x = nn.Linear(3, 3), torch.ones(2, 3)
    assert coarsest_dtype(lambda: linear(x)) == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert coarsest_dtype(lambda: linear(x)) == torch.bfloat16

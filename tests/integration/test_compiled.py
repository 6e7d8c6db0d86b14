"""Families whose vmapped step ``torch.compile`` takes as one graph, and those that it does not: ``nox -s slow``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import l2path
from l2path.engine import repeat
from l2path.functional import vmap
from l2path.trees import tree_map
from tests.families import BATCH, FAMILIES, LAMBDAS, LR, MOMENTUM, Family
from tests.helpers import assert_trees_close

# What a bare vmapped step cannot do is not compiled either; batch_train uses equivalents of torch functions there.
PLAIN = [f for f in FAMILIES if f.engine == "vmap" and (f.replaces in ("", "dropout"))]
# By the part of torch's message that says why; torch 2.13.
NOT_COMPILED = {
    **dict.fromkeys([f.name for f in PLAIN if f.group == "recurrent" and "Cell" not in f.name], "RNN, GRU, or LSTM"),
    "LSTM forecaster": "RNN, GRU, or LSTM",
    "weight_norm of old": "Cannot access storage of TensorWrapper",
    "pruned weights": "Cannot access storage of TensorWrapper",
    "complex parameters": "to_real",
    "autograd.Function": "does not have vmap support",
    "depthwise-separable CNN": "view size is not compatible",
    "CTC": "_ctc_loss",
}
BY_INDUCTOR = ("Linear, Tanh", "Conv2d", "BatchNorm1d", "Dropout", "LayerNorm", "TransformerEncoderLayer", "LSTMCell")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def fresh(fresh_compiler: None) -> Iterator[None]:
    """Compile anew, with torch's own random numbers in place of inductor's."""
    with torch._inductor.config.patch(fallback_random=True):
        yield


def two_steps(family: Family, backend: str | None) -> Any:
    """Two vmapped steps, the second with the state of the first."""
    module, optimizer = family.make(), l2path.sgd(lr=LR, momentum=MOMENTUM)
    train_step = l2path.make_train_step(module, family.loss_fn, optimizer)
    state = repeat(l2path.init_state(module, optimizer), len(LAMBDAS))
    batch = tree_map(lambda x: x[:BATCH], family.train_data)
    mapped: Any = vmap(lambda s, lam: train_step(s, batch, {"*": lam}))
    call = mapped if backend is None else torch.compile(mapped, fullgraph=True, backend=backend)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        metrics = None
        for _ in range(2):
            state, metrics = call(state, torch.tensor(LAMBDAS, dtype=torch.float64))
    return state, metrics


def cases(families: list[Family]) -> list[Any]:
    return [pytest.param(family, id=family.name) for family in families]


@pytest.mark.parametrize("family", cases([f for f in PLAIN if f.name not in NOT_COMPILED]))
def test_a_vmapped_step_is_one_graph(family: Family) -> None:
    assert_trees_close(two_steps(family, "aot_eager"), two_steps(family, None), 1e-9)


@pytest.mark.parametrize("family", cases([f for f in PLAIN if f.name in BY_INDUCTOR]))
def test_inductor_computes_the_same(family: Family) -> None:
    assert_trees_close(two_steps(family, "inductor"), two_steps(family, None), 1e-9)


@pytest.mark.parametrize("family", cases([f for f in PLAIN if f.name in NOT_COMPILED]))
def test_what_does_not_compile_is_known(family: Family) -> None:
    two_steps(family, None)
    with pytest.raises(Exception, match=NOT_COMPILED[family.name]):
        two_steps(family, "aot_eager")


def test_the_lists_name_families() -> None:
    assert set(NOT_COMPILED) | set(BY_INDUCTOR) <= {f.name for f in PLAIN}

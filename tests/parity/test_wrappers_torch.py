"""``accumulate`` and ``ema`` equal the classic loop with torch.optim and AveragedModel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import l2path
from l2path.optimizers import Optimizer
from l2path.trees import tensor_leaves
from l2path.types import Params
from tests.helpers import assert_trees_close
from tests.models import BATCH, classes, noisy

RTOL = 1e-10
EPOCHS = 6  # of 6 batches
GRID = l2path.lambda_grid(1e-3, 0.3, 4, zero=True)  # K = 5
VAL = classes(40, 2)
SCHEDULE = l2path.schedules.exponential(0.97)
# every, then epochs * batches: 36 are 9 steps, or 7 and a rest, and neither divides the 6 batches of an epoch.
EVERY = (1, 4, 5)

pytestmark = pytest.mark.filterwarnings("ignore::l2path.BoundaryWarning")


class Pair(NamedTuple):
    """An optimizer and its twin in torch, given lambda."""

    ours: Optimizer
    build: Callable[[list[Tensor], float], torch.optim.Optimizer]


def at_rate(lr: float, params: list[Tensor], lam: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=lr, momentum=0.9, weight_decay=lam)


PAIRS = {
    "sgd": Pair(l2path.sgd(lr=0.1, momentum=0.9), partial(at_rate, 0.1)),
    "adam": Pair(l2path.adam(lr=0.02), lambda p, lam: torch.optim.Adam(p, lr=0.02, weight_decay=lam)),
}
each_pair = pytest.mark.parametrize("pair", PAIRS.values(), ids=list(PAIRS))
ENGINES: list[tuple[Literal["vmap", "loop"], int]] = [("vmap", 1), ("vmap", 2), ("vmap", 5), ("loop", 2), ("loop", 5)]
each_engine = pytest.mark.parametrize(("engine", "chunk"), ENGINES)


def by_hand(
    pair: Pair,
    lam: float,
    *,
    every: int = 1,
    decay: float = 0.9,
    epochs: int = EPOCHS,
    schedule: bool = False,
    batches: int | None = None,
) -> Iterator[tuple[nn.Module, AveragedModel]]:
    """Yield the module and its average after each batch of the loop that a user of torch writes."""
    module = noisy()
    optimizer = pair.build(list(module.parameters()), lam)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.97)
    averaged = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(decay))
    x, y = classes()
    t = 0
    for epoch in range(epochs):
        for rows in l2path.data_order(len(x), 0, epoch).split(BATCH):
            torch.manual_seed(l2path.step_seed(0, t))
            (F.cross_entropy(module(x[rows]), y[rows]) / every).backward()
            if (t + 1) % every == 0:
                optimizer.step()
                averaged.update_parameters(module)
                if schedule:
                    scheduler.step()
                optimizer.zero_grad()
            t += 1
            yield module, averaged
            if t == batches:
                return


def last(*args: Any, **kwargs: Any) -> tuple[nn.Module, nn.Module]:
    """Return the module and the module of its average after training."""
    *_, (module, averaged) = by_hand(*args, **kwargs)
    return module, averaged.module


def params_of(module: nn.Module) -> Params:
    return {name: p.detach() for name, p in module.named_parameters()}


def buffers_of(module: nn.Module) -> Params:
    return dict(module.named_buffers())


def train(optimizer: Optimizer, **options: Any) -> l2path.PathResult:
    settings: dict[str, Any] = {
        "loss_fn": F.cross_entropy, "lambdas": GRID, "epochs": EPOCHS, "batch_size": BATCH, "validation": VAL,
    }  # fmt: skip
    return l2path.batch_train(noisy(), classes(), optimizer=optimizer, **(settings | options))


def take(tree: Params, k: int) -> Params:
    return {name: value[k] for name, value in tree.items()}


def assert_evaluates(result: l2path.PathResult, k: int, module: nn.Module) -> None:
    """Assert that what is scored, predicted and handed out of member k are this module's weights."""
    module.eval()
    outputs = module(VAL[0]).detach()
    assert_trees_close(float(result.history["val_loss"][-1, k]), float(F.cross_entropy(outputs, VAL[1])), RTOL)
    assert_trees_close(result.predict(VAL[0], members=k)[0], outputs, RTOL)
    assert_trees_close(result.member(k).state_dict(), module.state_dict(), RTOL)
    assert_trees_close(take(result.params, k), params_of(module), RTOL)


# --- accumulate -------------------------------------------------------------------------------------------------------


@each_pair
@pytest.mark.parametrize("every", EVERY)
def test_accumulating_steps_equal_the_classic_loop_at_every_batch(pair: Pair, every: int) -> None:
    opt = l2path.accumulate(pair.ours, every)
    module = noisy()
    state, step = l2path.init_state(module, opt), l2path.make_train_step(module, F.cross_entropy, opt)
    twin = by_hand(pair, 0.03, every=every)
    x, y = classes()
    for t in range(EPOCHS * 6):
        rows = l2path.data_order(len(x), 0, t // 6).split(BATCH)[t % 6]
        torch.manual_seed(l2path.step_seed(0, t))
        before = state.params
        state, _ = step(state, (x[rows], y[rows]), 0.03)
        expected, _ = next(twin)
        assert_trees_close(state.params, params_of(expected), RTOL, where=f"batch {t}")
        assert_trees_close(state.buffers, buffers_of(expected), RTOL, where=f"batch {t}")
        moved = not all(torch.equal(before[n], p) for n, p in state.params.items())
        assert moved == ((t + 1) % every == 0)
        assert int(state.opt_state.inner.count) == (t + 1) // every


@each_pair
@each_engine
def test_accumulating_members_equal_the_classic_loop(pair: Pair, engine: Literal["vmap", "loop"], chunk: int) -> None:
    for every in (4, 5):
        result = train(l2path.accumulate(pair.ours, every), engine=engine, member_chunk=chunk)
        assert result.live_params is result.params
        for k, lam in enumerate(GRID.tolist()):
            module, _ = last(pair, lam, every=every)
            assert_evaluates(result, k, module)


def test_the_comparison_can_fail() -> None:
    result = train(l2path.accumulate(PAIRS["sgd"].ours, 4))
    for every, lam in ((5, GRID[1]), (1, GRID[1]), (4, GRID[2])):
        with pytest.raises(AssertionError, match="relative difference"):
            assert_trees_close(take(result.params, 1), params_of(last(PAIRS["sgd"], float(lam), every=every)[0]), 1e-3)
    result = train(l2path.ema(PAIRS["sgd"].ours, 0.9))
    for decay, part in ((0.8, 1), (0.9, 0)):  # another decay, and the live weights
        twins = last(PAIRS["sgd"], float(GRID[1]), decay=decay)
        with pytest.raises(AssertionError, match="relative difference"):
            assert_trees_close(take(result.params, 1), params_of(twins[part]), 1e-3)


def test_a_schedule_inside_counts_steps() -> None:
    ours = l2path.sgd(lr=0.1, momentum=0.9, schedule=SCHEDULE)
    result = train(l2path.accumulate(ours, 4), lambdas=[0.03])
    assert_evaluates(result, 0, last(PAIRS["sgd"], 0.03, every=4, schedule=True)[0])


def test_the_accumulated_gradient_is_clipped() -> None:
    inner = l2path.chain(l2path.clip_by_global_norm(0.02), l2path.sgd(lr=0.5))
    result = train(l2path.accumulate(inner, 3), lambdas=[0.0], epochs=2)
    module = noisy()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    x, y = classes()
    for t in range(12):
        rows = l2path.data_order(len(x), 0, t // 6).split(BATCH)[t % 6]
        torch.manual_seed(l2path.step_seed(0, t))
        (F.cross_entropy(module(x[rows]), y[rows]) / 3).backward()
        if t % 3 == 2:
            nn.utils.clip_grad_norm_(module.parameters(), 0.02)
            optimizer.step()
            optimizer.zero_grad()
    assert_evaluates(result, 0, module)


# --- ema --------------------------------------------------------------------------------------------------------------


@each_pair
def test_averages_equal_torch_at_every_batch(pair: Pair) -> None:
    opt = l2path.ema(pair.ours, 0.9)
    module = noisy()
    state, step = l2path.init_state(module, opt), l2path.make_train_step(module, F.cross_entropy, opt)
    assert_trees_close(l2path.averaged_params(state), params_of(module), 0.0)
    x, y = classes()
    for t, (live, averaged) in enumerate(by_hand(pair, 0.03)):
        rows = l2path.data_order(len(x), 0, t // 6).split(BATCH)[t % 6]
        torch.manual_seed(l2path.step_seed(0, t))
        state, _ = step(state, (x[rows], y[rows]), 0.03)
        assert_trees_close(state.params, params_of(live), RTOL, where=f"batch {t}")
        assert_trees_close(l2path.averaged_params(state), params_of(averaged.module), RTOL, where=f"batch {t}")
        assert_trees_close(state.buffers, buffers_of(averaged.module), RTOL, where=f"batch {t}")
        if t == 0:  # the first update copies
            assert_trees_close(l2path.averaged_params(state), state.params, 0.0)


@each_pair
@each_engine
def test_averaged_members_equal_torch(pair: Pair, engine: Literal["vmap", "loop"], chunk: int) -> None:
    result = train(l2path.ema(pair.ours, 0.9), engine=engine, member_chunk=chunk)
    for k, lam in enumerate(GRID.tolist()):
        module, averaged = last(pair, lam)
        assert_evaluates(result, k, averaged)
        assert_trees_close(take(result.live_params, k), params_of(module), RTOL)


def test_the_training_is_left_as_it_is() -> None:
    plain, averaged = (train(o) for o in (PAIRS["adam"].ours, l2path.ema(PAIRS["adam"].ours, 0.9)))
    assert_trees_close(averaged.live_params, plain.params, RTOL)
    assert_trees_close(averaged.buffers, plain.buffers, RTOL)
    for name in ("loss", "penalty", "objective"):
        assert_trees_close(averaged.history[name], plain.history[name], RTOL)
    assert float((averaged.history["val_loss"] - plain.history["val_loss"]).abs().min()) > 1e-5


@pytest.mark.parametrize("inside", [True, False], ids=["inside", "around"])
def test_averages_move_when_a_step_is_taken(inside: bool) -> None:
    sgd = PAIRS["sgd"].ours
    opt = l2path.ema(l2path.accumulate(sgd, 4), 0.9) if inside else l2path.accumulate(l2path.ema(sgd, 0.9), 4)
    result = train(opt)
    for k, lam in enumerate(GRID.tolist()):
        module, averaged = last(PAIRS["sgd"], lam, every=4)  # 36 batches are whole steps: torch syncs buffers at steps
        assert_evaluates(result, k, averaged)
        assert_trees_close(take(result.live_params, k), params_of(module), RTOL)


def test_decay_lr_and_lambda_are_crossed() -> None:
    opt = l2path.ema(l2path.accumulate(l2path.sgd(lr=1.0, momentum=0.9), 2), 0.5)
    result = train(opt, sweep={"ema_decay": [0.0, 0.9], "lr": [0.05, 0.1]}, lambdas=[0.1, 0.01])
    for k in (0, 2, 5, 7):
        member = result.member(k)
        pair = Pair(opt, partial(at_rate, member.hyper["lr"]))
        module, averaged = last(pair, member.lambdas, every=2, decay=member.hyper["ema_decay"])
        assert_evaluates(result, k, averaged)
        assert_trees_close(take(result.live_params, k), params_of(module), RTOL)
    assert_trees_close(take(result.params, 0), take(result.live_params, 0), 0.0)  # a decay of 0 keeps nothing


@pytest.mark.parametrize("grad_transform", [None, l2path.clip_by_value(100.0)], ids=["plain", "transformed"])
def test_specs_by_parameter_go_through_the_wrappers(grad_transform: Optimizer | None) -> None:
    wrapped, decays = l2path.ema(l2path.accumulate(l2path.adamw(lr=0.02), 2), 0.9), [0.5, 0.1]
    swept = train(wrapped, sweep={"decay": l2path.weights_only(decays)}, lambdas=None, grad_transform=grad_transform)
    for k, decay in enumerate(decays):
        inner = l2path.adamw(lr=0.02, decay=l2path.weights_only(decay))  # resolved by the module that bind is given
        built = train(l2path.ema(l2path.accumulate(inner, 2), 0.9), lambdas=[0.0], grad_transform=grad_transform)
        assert_trees_close(take(swept.params, k), take(built.params, 0), RTOL)
        assert_trees_close(take(swept.live_params, k), take(built.live_params, 0), RTOL)


# --- members that leave -----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::l2path.StabilityWarning")
@each_engine
def test_a_member_that_diverges_leaves_the_others_alone(engine: Literal["vmap", "loop"], chunk: int) -> None:
    opt = l2path.ema(l2path.sgd(lr=0.1, momentum=0.9), 0.9)
    options: dict[str, Any] = {"lambdas": [0.03], "engine": engine, "member_chunk": chunk}
    with pytest.warns(l2path.DivergenceWarning):
        result = train(opt, sweep={"lr": [0.1, 1e60, 0.05]}, **options)
    assert result.status == ("trained", "diverged", "trained")
    for k, lr in ((0, 0.1), (2, 0.05)):
        alone = train(opt, sweep={"lr": [lr]}, **options)
        assert_trees_close(take(result.params, k), take(alone.params, 0), RTOL)
        assert_trees_close(take(result.live_params, k), take(alone.live_params, 0), RTOL)
        assert_trees_close(result.history["val_loss"][:, k], alone.history["val_loss"][:, 0], RTOL)
    # It keeps the average of the steps before.
    pair = Pair(opt, partial(at_rate, 1e60))
    steps = result.diverged_at[1]
    assert steps
    module, averaged = last(pair, 0.03, batches=steps)
    assert_trees_close(take(result.live_params, 1), params_of(module), 1e-6)  # on the way to infinity
    assert_trees_close(take(result.params, 1), params_of(averaged), 1e-6)
    assert all(torch.isfinite(leaf).all() for leaf in tensor_leaves((result.params, result.live_params)))


def test_a_member_that_is_stopped_keeps_its_average() -> None:
    seen: list[Params] = []

    def stop(event: l2path.EpochEvent) -> Any:
        seen.append(event.params)
        return torch.tensor([True, event.epoch < 2, True, True, True])

    result = train(l2path.ema(PAIRS["sgd"].ours, 0.9), on_epoch=stop)
    module, averaged = last(PAIRS["sgd"], float(GRID[1]), epochs=2)
    assert result.status[1] == "stopped"
    assert_trees_close(take(result.params, 1), params_of(averaged), RTOL)
    assert_trees_close(take(result.live_params, 1), params_of(module), RTOL)
    assert_trees_close(seen[-1], result.params, 0.0)  # what the hook sees is what is validated

"""Schedules: values by hand, torch.optim.lr_scheduler stepped at each update, batching and errors."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import vmap
from torch.optim import lr_scheduler

from l2path.errors import ArgumentError
from l2path.optimizers import (
    Schedule,
    constant,
    cosine,
    exponential,
    linear_warmup,
    product,
    sgd,
    step_decay,
    warmup_cosine,
)
from tests.helpers import assert_trees_close

SCHEDULES = (
    constant(),
    linear_warmup(4, start=0.2),
    cosine(8, final=0.1),
    step_decay(3, gamma=0.5),
    exponential(0.9),
    warmup_cosine(3, 10, final=0.1),
    product(linear_warmup(4), exponential(0.9)),
)


def factors(schedule: Schedule, counts: range) -> list[float]:
    return [schedule(torch.tensor(t)).item() for t in counts]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (constant(), [1, 1, 1, 1, 1, 1, 1]),
        (linear_warmup(4, start=0.2), [0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0]),
        (linear_warmup(2), [1 / 3, 2 / 3, 1, 1, 1, 1, 1]),
        (linear_warmup(2, start=0.0), [0, 0.5, 1, 1, 1, 1, 1]),
        (cosine(4), [1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5, 0, 0, 0]),
        (cosine(2, final=0.2), [1, 0.6, 0.2, 0.2, 0.2, 0.2, 0.2]),
        (step_decay(3, gamma=0.5), [1, 1, 1, 0.5, 0.5, 0.5, 0.25]),
        (step_decay(2), [1, 1, 0.1, 0.1, 0.01, 0.01, 0.001]),
        (exponential(0.5), [1, 0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625]),
        (warmup_cosine(2, 4, start=0.0), [0, 0.5, 1, 0.5, 0, 0, 0]),
        (warmup_cosine(2, 4, final=0.2, start=0.5), [0.5, 0.75, 1, 0.6, 0.2, 0.2, 0.2]),
        (warmup_cosine(0, 2), [1, 0.5, 0, 0, 0, 0, 0]),
        (product(), [1, 1, 1, 1, 1, 1, 1]),
        (product(exponential(0.5), linear_warmup(2, start=0.0)), [0, 0.25, 0.25, 0.125, 1 / 16, 1 / 32, 1 / 64]),
    ],
)
def test_values_by_hand(schedule: Schedule, expected: list[float]) -> None:
    assert factors(schedule, range(7)) == pytest.approx(expected, abs=1e-15)


Build = Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler]


@pytest.mark.parametrize(
    ("schedule", "build"),
    [
        (linear_warmup(7), lambda opt: lr_scheduler.LinearLR(opt, total_iters=7)),
        (linear_warmup(7, start=0.1), lambda opt: lr_scheduler.LinearLR(opt, 0.1, total_iters=7)),
        # Within T_max only: beyond it torch's rises again and ours stays.
        (cosine(20, final=0.1), lambda opt: lr_scheduler.CosineAnnealingLR(opt, 20, eta_min=0.03)),
        (step_decay(6, gamma=0.3), lambda opt: lr_scheduler.StepLR(opt, 6, gamma=0.3)),
        (exponential(0.9), lambda opt: lr_scheduler.ExponentialLR(opt, 0.9)),
        (
            warmup_cosine(5, 20, final=0.1, start=0.2),
            lambda opt: lr_scheduler.SequentialLR(
                opt,
                [
                    lr_scheduler.LinearLR(opt, 0.2, total_iters=5),
                    lr_scheduler.CosineAnnealingLR(opt, 15, eta_min=0.03),
                ],
                [5],
            ),
        ),
        (
            product(exponential(0.9), step_decay(6, gamma=0.3)),
            lambda opt: lr_scheduler.ChainedScheduler(
                [lr_scheduler.ExponentialLR(opt, 0.9), lr_scheduler.StepLR(opt, 6, gamma=0.3)]
            ),
        ),
        (
            lambda count: 1 / (1 + 0.1 * count.double()),
            lambda opt: lr_scheduler.LambdaLR(opt, lambda t: 1 / (1 + 0.1 * t)),
        ),
    ],
)
# SequentialLR passes an epoch, which torch deprecates, to its own parts.
@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step:UserWarning")
def test_equals_torch_stepped_at_each_update(schedule: Schedule, build: Build) -> None:
    opt = torch.optim.SGD([torch.zeros(1)], lr=0.3)
    scheduler = build(opt)
    for t in range(21):
        assert 0.3 * float(schedule(torch.tensor(t))) == pytest.approx(opt.param_groups[0]["lr"], rel=1e-12)
        opt.step()
        scheduler.step()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_factors_are_0d_float64_and_batch(schedule: Schedule) -> None:
    counts = torch.arange(12)
    batched = vmap(schedule)(counts)
    assert batched.dtype == torch.float64
    assert batched.shape == (12,)
    assert_trees_close(batched.tolist(), factors(schedule, range(12)), rtol=1e-15)
    assert schedule(counts[3]).shape == ()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_the_first_update_sees_count_zero(schedule: Schedule) -> None:
    opt = sgd(lr=0.5, schedule=schedule)
    params = {"w": torch.ones((), dtype=torch.float64)}
    state = opt.init(params)
    for t in range(5):
        updates, state = opt.update(params, state, params)
        assert updates["w"].item() == pytest.approx(-0.5 * schedule(torch.tensor(t)).item(), rel=1e-14)


def test_a_schedule_of_ones_own_may_be_any_function_of_count() -> None:
    opt = sgd(lr=1.0, schedule=lambda count: 0.5**count)
    params = {"w": torch.ones(1)}
    _, state = opt.update(params, opt.init(params), params)
    updates, _ = opt.update(params, state, params)
    assert updates["w"].item() == -0.5


def test_a_factor_with_a_shape_is_refused() -> None:
    def wrong(count: Tensor) -> Tensor:
        return torch.ones(1)

    opt = sgd(schedule=wrong)
    params = {"w": torch.ones(1)}
    with pytest.raises(ArgumentError, match=r"schedule: got a factor of shape \(1,\); expected a 0-d factor"):
        opt.update(params, opt.init(params), params)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: cosine(0), "steps: got 0; expected an integer >= 1"),
        (lambda: cosine(True), "steps: got True; expected an integer >= 1"),
        (lambda: cosine(2.5), "steps: got 2.5; expected an integer >= 1"),  # type: ignore[arg-type]  # the test
        (lambda: cosine(5, final=1.5), "final: got 1.5; expected a factor of lr in [0, 1]"),
        (lambda: linear_warmup(5, start=-0.1), "start: got -0.1; expected a finite number >= 0"),
        (lambda: exponential(0.0), "gamma: got 0; expected a finite number > 0"),
        (lambda: exponential(float("nan")), "gamma: got nan"),
        (lambda: step_decay(-1), "every: got -1; expected an integer >= 1"),
        (lambda: warmup_cosine(5, 5), "steps: got 5; expected an integer >= 6"),
        (lambda: warmup_cosine(-1, 5), "warmup: got -1; expected an integer >= 0"),
        (lambda: product(0.5), "schedules: got 0.5 (float)"),  # type: ignore[arg-type]  # the test
    ],
)
def test_bad_arguments_are_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(message)):
        build()


def test_schedules_print_as_the_call_that_builds_them() -> None:
    assert repr(warmup_cosine(3, 10)) == f"warmup_cosine(warmup=3, steps=10, final=0.0, start={1 / 3})"
    assert repr(product(constant(), step_decay(2))) == "product(constant(), step_decay(every=2, gamma=0.1))"
    assert repr(sgd(schedule=exponential(0.9))).endswith("nesterov=False, schedule=exponential(gamma=0.9))")

"""``train_step`` against torch.optim with its own weight decay, and against the tutorial's penalty loop."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import l2path
from tests.helpers import assert_trees_close
from tests.models import classes, smooth
from tests.parity.optimizer_cases import CASES, Case

STEPS, RTOL = 200, 1e-10
SCALE = 0.1  # of the learning rates: in wilder runs rounding grows by itself, without any difference in method
CLIP = 0.2
COUPLED = [case for case in CASES if not case.name.startswith("adamw")]


def torch_run(case: Case, decay: float | None, penalty: float, clip: float | None) -> tuple[nn.Module, list[float]]:
    module = smooth()
    optimizer = case.build_torch(list(module.parameters()), SCALE * case.lr)
    if decay is not None:
        optimizer.param_groups[0]["weight_decay"] = decay
    x, y = classes(200)
    losses = []
    for step in range(STEPS):
        rows = slice(step % 3, None)
        optimizer.zero_grad()
        loss = F.cross_entropy(module(x[rows]), y[rows])
        losses.append(loss.item())
        if penalty:
            loss = loss + penalty / 2 * torch.stack([(p**2).sum() for p in module.parameters()]).sum()
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(module.parameters(), clip)
        optimizer.step()
    return module, losses


def l2path_run(
    case: Case, lambdas: float, transform: l2path.Optimizer | None, chained: l2path.Optimizer | None = None
) -> tuple[l2path.TrainState, list[float]]:
    optimizer = case.build(SCALE * case.lr, None)
    if chained is not None:
        optimizer = l2path.chain(chained, optimizer)
    module = smooth()
    state = l2path.init_state(module, optimizer, grad_transform=transform)
    step = l2path.make_train_step(module, F.cross_entropy, optimizer, grad_transform=transform)
    x, y = classes(200)
    losses = []
    for i in range(STEPS):
        rows = slice(i % 3, None)
        state, metrics = step(state, (x[rows], y[rows]), lambdas)
        losses.append(float(metrics.loss))
    return state, losses


@pytest.mark.parametrize("clip", [None, CLIP])
@pytest.mark.parametrize("case", COUPLED, ids=lambda c: c.name)
def test_lambda_is_torch_weight_decay(case: Case, clip: float | None) -> None:
    transform = None if clip is None else l2path.clip_by_global_norm(clip)
    state, losses = l2path_run(case, 0.02, transform)
    module, expected = torch_run(case, 0.02, 0.0, clip)
    assert_trees_close(state.params, dict(module.named_parameters()), RTOL)
    assert_trees_close(losses, expected, RTOL)


@pytest.mark.parametrize("clip", [None, CLIP])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_lambda_is_the_explicit_penalty_of_the_tutorial(case: Case, clip: float | None) -> None:
    # Here the penalty is inside the loss, so that clipping sees it too: a transform chained in the optimizer.
    chained = None if clip is None else l2path.clip_by_global_norm(clip)
    state, losses = l2path_run(case, 0.02, None, chained)
    module, expected = torch_run(case, None, 0.02, clip)
    assert_trees_close(state.params, dict(module.named_parameters()), RTOL)
    assert_trees_close(losses, expected, RTOL)


def test_the_comparison_can_fail() -> None:
    case = CASES[0]
    state, _ = l2path_run(case, 0.02, None)
    module, _ = torch_run(case, 0.0201, 0.0, None)
    with pytest.raises(AssertionError, match="relative difference"):
        assert_trees_close(state.params, dict(module.named_parameters()), RTOL)


def test_the_order_of_clipping_and_penalty_matters() -> None:
    # The two tests above would both pass if clipping did nothing at this threshold.
    case = CASES[0]
    before, _ = l2path_run(case, 0.02, l2path.clip_by_global_norm(CLIP))
    after, _ = l2path_run(case, 0.02, None, l2path.clip_by_global_norm(CLIP))
    without, _ = l2path_run(case, 0.02, None)
    for other in (after, without):
        with pytest.raises(AssertionError, match="relative difference"):
            assert_trees_close(before.params, other.params, 1e-4)

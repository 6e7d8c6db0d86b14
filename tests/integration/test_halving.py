"""Successive halving: who goes on by plain arithmetic, and those who do train as if nobody had left."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import l2path
from tests.helpers import assert_trees_close
from tests.models import classes, noisy

GRID = [3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0]
TRAIN, VAL = classes(60, seed=1), classes(40, seed=2)
pytestmark = pytest.mark.filterwarnings("ignore::l2path.BoundaryWarning")


def train(**changes: Any) -> l2path.PathResult:
    options: dict[str, Any] = {
        "loss_fn": F.cross_entropy, "optimizer": l2path.sgd(lr=0.2), "lambdas": GRID, "epochs": 12, "batch_size": 20,
        "validation": VAL,
    }  # fmt: skip
    return l2path.batch_train(noisy(), TRAIN, **(options | changes))


def survivors(scores: np.ndarray[Any, Any], rungs: list[int], factor: float) -> list[int]:
    """Return for how many epochs each point is trained, by the rule written out; scores are ``[epochs, P]``."""
    alive, epochs = list(range(scores.shape[1])), [len(scores)] * scores.shape[1]
    for rung in rungs:
        ranked = sorted(alive, key=lambda p: (scores[rung - 1, p], p))  # GRID falls: the first is the strongest
        keep = -int(-len(alive) // factor)
        for p in ranked[keep:]:
            epochs[p] = rung
        alive = ranked[:keep]
    return epochs


@pytest.mark.parametrize("options", [{}, {"member_chunk": 2}, {"engine": "loop"}, {"seeds": (0, 1)}])
@pytest.mark.parametrize(("factor", "least", "rungs"), [(3, 1, [1, 3, 9]), (2, 3, [3, 6]), (1.5, 4, [4, 6, 9])])
def test_points_leave_where_arithmetic_says(factor: float, least: int, rungs: list[int], options: Any) -> None:
    whole = train(**options)
    result = train(halving=l2path.SuccessiveHalving(factor, least), **options)
    seeds = len(whole) // len(GRID)
    means = whole.history["val_loss"].numpy().reshape(12, seeds, len(GRID)).mean(1)
    want = survivors(means, rungs, factor) * seeds
    assert list(result.epochs_trained) == want
    assert len(set(want)) > 1, "somebody has to leave, and somebody has to stay"
    assert result.status == tuple("trained" if n == 12 else "eliminated" for n in want)
    for k, n in enumerate(want):
        assert_trees_close(result.history["val_loss"][:n, k], whole.history["val_loss"][:n, k], 1e-10)
        assert bool(result.history["val_loss"][n:, k].isnan().all())
        if n == 12:
            assert_trees_close(result.member(k).params, whole.member(k).params, 1e-10)
    assert np.isnan(result.scores[[n < 12 for n in want]]).all()
    assert f"{result.status.count('eliminated')} of {len(result)} members were eliminated early" in str(result)
    left = np.where(np.array(want[: len(GRID)]) == 12, means[-1], np.inf)
    assert result.table.points[result.best.index] == int(left.argmin())


def test_folds_and_seeds_of_a_point_leave_together() -> None:
    options: dict[str, Any] = {
        "loss_fn": F.cross_entropy, "optimizer": l2path.sgd(lr=0.2), "lambdas": GRID, "epochs": 6, "batch_size": 20,
        "folds": 3, "seeds": (0, 1),
    }  # fmt: skip
    data = classes(65, seed=3)  # folds of unequal size
    whole = l2path.cross_validate(noisy(), data, **options)
    cv = l2path.cross_validate(noisy(), data, **options, halving=l2path.SuccessiveHalving(3, 2))
    sizes = [len(fold.test) for fold in whole.folds]
    early = whole.members.history["val_loss"][1].numpy().reshape(3, 2, len(GRID)).mean(1)
    left = np.sort(np.argsort(np.average(early, axis=0, weights=sizes))[:3])
    assert np.flatnonzero(np.isfinite(cv.cvm)).tolist() == left.tolist()
    np.testing.assert_allclose(cv.cvm[left], whole.cvm[left], rtol=1e-10)
    assert cv.index_min in left
    assert cv.index_1se in left
    assert str(cv).count("eliminated") == 6 + 1
    assert "6 of 9 points were eliminated early" in str(cv)
    assert cv.refit("min").members.epochs_trained == (6, 6)


def test_diverged_points_leave_first_and_keep_their_status() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", l2path.L2PathWarning)
        rule = l2path.SuccessiveHalving(2, 100)
        result = train(lambdas=[1e4, 0.1, 0.01, 0.0], halving=rule, epochs=200)
    assert result.status[0] == "diverged"
    assert result.status.count("eliminated") == 1
    assert result.status.count("trained") == 2


def test_with_early_stopping_the_best_scores_so_far_are_compared() -> None:
    rule = l2path.EarlyStopping(patience=2)
    whole = train(early_stopping=rule)
    result = train(early_stopping=rule, halving=l2path.SuccessiveHalving(3, 6))
    so_far = np.nanmin(whole.history["val_loss"][:6].numpy(), axis=0)
    left = set(np.argsort(so_far)[:3].tolist())
    assert {k for k, status in enumerate(result.status) if status != "eliminated"} == left


def test_greater_is_better_and_ties_keep_the_strongest() -> None:
    same = l2path.Metric(lambda o, t: torch.tensor(1.0), greater_is_better=True)
    result = train(metrics={"same": same}, select="same", halving=l2path.SuccessiveHalving(3, 1), epochs=2)
    assert [k for k, status in enumerate(result.status) if status == "trained"] == [0, 1, 2]


@pytest.mark.parametrize(
    ("build", "argument"),
    [
        (lambda: l2path.SuccessiveHalving(1), "factor"),
        (lambda: l2path.SuccessiveHalving(float("nan")), "factor"),
        (lambda: l2path.SuccessiveHalving(2, 0), "min_epochs"),
        (lambda: train(halving=3), "halving"),
        (lambda: train(halving=l2path.SuccessiveHalving(), validation=None), "halving"),
    ],
)
def test_bad_rules(build: Any, argument: str) -> None:
    with pytest.raises(l2path.ArgumentError, match=f"^{argument}: got"):
        build()


def test_it_saves_the_steps_that_it_promises() -> None:
    calls = 0

    class Counting(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            calls += self.training
            return super().forward(x)

    options: dict[str, Any] = {
        "loss_fn": F.mse_loss, "optimizer": l2path.sgd(lr=0.01), "lambdas": l2path.lambda_grid(0.01, 1.0, 9),
        "epochs": 9, "engine": "loop", "validation": (torch.randn(9, 3), torch.randn(9, 1)),
    }  # fmt: skip
    l2path.batch_train(Counting(3, 1), options["validation"], **options)
    all_of_them, calls = calls, 0
    l2path.batch_train(Counting(3, 1), options["validation"], halving=l2path.SuccessiveHalving(3, 1), **options)
    assert all_of_them - calls == 9 * 9 - (9 * 1 + 3 * 2 + 1 * 6)

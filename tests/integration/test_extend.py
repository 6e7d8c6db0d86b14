"""extend=True: the grid goes on where its end is best, and what exists is not trained again."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import l2path
from tests.helpers import assert_trees_close
from tests.models import classes, noisy

TRAIN, VAL = classes(60, seed=1), classes(40, seed=2)
OPTIONS: dict[str, Any] = {
    "loss_fn": F.cross_entropy, "optimizer": l2path.sgd(lr=0.1), "epochs": 4, "batch_size": 20,
}  # fmt: skip


def train(lambdas: Any, **changes: Any) -> l2path.PathResult:
    return l2path.batch_train(noisy(), TRAIN, **(OPTIONS | {"lambdas": lambdas, "validation": VAL} | changes))


def wide(**changes: Any) -> l2path.PathResult:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", l2path.BoundaryWarning)
        return train(l2path.lambda_grid(2.0, 8.0, 3), **changes)  # far too strong: the best one lies below


def test_one_result_equals_a_run_of_the_whole_grid() -> None:
    result = wide(extend=True, seeds=(0, 1))
    assert result.boundary is None or float(result.best.lambdas) < 1e-4
    values = [float(v) for v in result.path_values]  # type: ignore[union-attr]  # one axis
    assert values == sorted(values, reverse=True)
    assert len(set(values)) == len(values)
    assert {2.0, 4.0, 8.0} <= {round(v, 9) for v in values}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", l2path.BoundaryWarning)
        whole = train(values, seeds=(0, 1))
    assert result.table.seeds == whole.table.seeds
    assert result.table.points == whole.table.points
    assert_trees_close(result.lambdas, whole.lambdas, 1e-12)
    assert_trees_close(result.params, whole.params, 1e-10)
    assert_trees_close(result.history, whole.history, 1e-10)
    assert result.best.index == whole.best.index
    assert_trees_close(result.uncertainty.difference_errors, whole.uncertainty.difference_errors, 1e-8)
    assert_trees_close(result.predict(VAL[0]), whole.predict(VAL[0]), 1e-10)


def test_what_exists_is_not_trained_again() -> None:
    trained: list[int] = []
    wide(extend=True, on_epoch=lambda event: trained.append(event.active.numel()))
    first, *more = trained[:: OPTIONS["epochs"]]
    assert first == 3
    assert more
    # As many values as there are, from 10 to 32, without those that were trained before.
    assert more[0] == 9
    assert all(5 < n <= 31 for n in more), more


def test_the_high_end_and_patterns_that_are_zipped() -> None:
    x, y = torch.randn(40, 5, dtype=torch.float64), torch.randn(40, 1, dtype=torch.float64)  # nothing to learn
    module = nn.Linear(5, 1).double()
    grid = l2path.lambda_grid(1e-4, 1e-3, 3)
    spec = l2path.weights_only({"weight": grid.flip(0)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", l2path.L2PathWarning)  # beyond 100 the steps are too large
        result = l2path.batch_train(
            module, (x[:8], y[:8]), loss_fn=F.mse_loss, optimizer=l2path.sgd(lr=0.02), lambdas=spec, epochs=300,
            validation=(x[8:], y[8:]), extend=True,
        )  # fmt: skip
    values = result.lambdas["weight"]
    assert bool((values.diff() > 0).all()), "in the order that it came in"
    assert float(values.max()) > 0.05
    assert result.best.lambdas["weight"] > 1e-3
    assert float(result.lambdas_by_parameter["bias"].abs().max()) == 0.0


def test_a_decay_is_extended_too() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", l2path.BoundaryWarning)
        options = {"optimizer": l2path.adamw(lr=0.05), "sweep": {"decay": [30.0, 20.0]}}
        result = train(None, extend=True, **options)
    assert len(result) > 8
    assert result.best.hyper["decay"] < 20.0
    assert list(result.hyper["decay"]) == sorted(result.hyper["decay"], reverse=True)


def test_no_extension_where_the_best_is_inside() -> None:
    grid = [10.0, 1e-2, 1e-3, 0.0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", l2path.BoundaryWarning)
        plain, extended = train(grid), train(grid, extend=True)
    assert plain.boundary is None
    assert_trees_close(plain.params, extended.params, 0.0)


def test_an_end_that_stays_best_is_told_once_after_three_grids() -> None:
    same = l2path.Metric(lambda o, t: o.abs().mean(), greater_is_better=False)  # the strongest always wins
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = train(
            [1e-4, 1e-5], extend=True, metrics={"size": same}, select="size", optimizer=l2path.sgd(lr=0.01), epochs=1
        )
    assert float(result.lambdas.max()) == pytest.approx(100.0)
    own = [w for w in caught if w.category is l2path.BoundaryWarning]
    assert [str(w.message) for w in own] == [result.boundary]
    assert own[0].filename == __file__


def test_folds_are_extended_and_refitted() -> None:
    data = classes(90, seed=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", l2path.BoundaryWarning)
        cv = l2path.cross_validate(
            noisy(), data, **OPTIONS, lambdas=l2path.lambda_grid(2.0, 8.0, 2), folds=3, seeds=(0, 1), extend=True
        )
        values = [float(v) for v in cv.members.path_values]  # type: ignore[union-attr]  # one axis
        whole = l2path.cross_validate(noisy(), data, **OPTIONS, lambdas=values, folds=3, seeds=(0, 1))
    assert cv.lambda_min < 2.0
    assert cv.index_min == whole.index_min
    assert cv.index_1se == whole.index_1se
    np.testing.assert_allclose(cv.fold_scores, whole.fold_scores, rtol=1e-10)
    np.testing.assert_allclose(cv.cvsd, whole.cvsd, rtol=1e-8)
    assert_trees_close(cv.refit("min").members.params, whole.refit("min").members.params, 1e-10)


def test_with_early_stopping_histories_of_unequal_length_are_joined() -> None:
    result = wide(extend=True, early_stopping=l2path.EarlyStopping(patience=1), epochs=30)
    assert len(set(result.epochs_trained)) > 1
    assert result.history["loss"].shape == (max(result.epochs_trained), len(result))
    for k, n in enumerate(result.epochs_trained):
        assert bool(result.history["loss"][:n, k].isfinite().all())
        assert bool(result.history["loss"][n:, k].isnan().all())


def test_an_error_on_the_way_keeps_what_was_there() -> None:
    def once(event: l2path.EpochEvent) -> None:
        if event.active.numel() != 3:
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no") as caught:
        wide(extend=True, on_epoch=once)
    kept = caught.value.partial_result  # type: ignore[attr-defined]  # what the error carries
    assert len(kept) == 3
    assert kept.complete


@pytest.mark.parametrize(
    ("changes", "argument"), [({"extend": 1}, "extend"), ({"extend": True, "validation": None}, "extend")]
)
def test_bad_arguments(changes: Any, argument: str) -> None:
    with pytest.raises(l2path.ArgumentError, match=f"^{argument}: got"):
        wide(**changes)


def test_a_loader_cannot_be_extended() -> None:
    loader = DataLoader(TensorDataset(*TRAIN), batch_size=20, shuffle=True)
    with pytest.raises(l2path.ArgumentError, match="a DataLoader as data"):
        l2path.batch_train(
            noisy(), loader, loss_fn=F.cross_entropy, optimizer=l2path.sgd(lr=0.1), lambdas=[1.0], epochs=1,
            validation=VAL, extend=True,
        )  # fmt: skip

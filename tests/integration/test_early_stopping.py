"""Early stopping of each member by itself, against runs that stop where plain arithmetic says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import l2path
from tests.helpers import assert_trees_close
from tests.models import classes, noisy

LAMBDAS = [0.3, 0.03, 0.003, 0.0]
TRAIN, VAL = classes(60, seed=1), classes(40, seed=2)

pytestmark = pytest.mark.filterwarnings("ignore::l2path.BoundaryWarning")


def right(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(1) == targets).double().mean()


def train(rule: l2path.EarlyStopping | None = None, **changes: Any) -> l2path.PathResult:
    options: dict[str, Any] = {
        "loss_fn": F.cross_entropy, "optimizer": l2path.sgd(lr=0.2, momentum=0.9), "lambdas": LAMBDAS, "epochs": 25,
        "batch_size": 20, "validation": VAL, "early_stopping": rule,
        "metrics": {"accuracy": l2path.Metric(right, greater_is_better=True)},
    }  # fmt: skip
    return l2path.batch_train(changes.pop("module", noisy()), TRAIN, **(options | changes))


def expected(scores: list[float], patience: int, min_delta: float = 0.0) -> tuple[int, int]:
    """Epochs that are trained, and the best one, by Keras's rule written out: from 1."""
    best, best_epoch = float("inf"), 0
    for epoch, score in enumerate(scores, 1):
        if score < best - (min_delta if best_epoch else 0.0):
            best, best_epoch = score, epoch
        elif epoch - best_epoch >= patience:
            return epoch, best_epoch
    return len(scores), best_epoch


@pytest.mark.parametrize("options", [{}, {"member_chunk": 3}, {"engine": "loop"}, {"seeds": (0, 1)}])
@pytest.mark.parametrize(("patience", "min_delta"), [(1, 0.0), (3, 0.0), (3, 0.02), (50, 0.0)])
def test_members_stop_where_arithmetic_says(patience: int, min_delta: float, options: dict[str, Any]) -> None:
    whole = train(**options)
    result = train(l2path.EarlyStopping(patience, min_delta), **options)
    want = [expected(whole.history["val_loss"][:, k].tolist(), patience, min_delta) for k in range(len(whole))]
    assert list(zip(result.epochs_trained, result.epochs_kept, strict=True)) == want
    assert result.status == tuple("stopped" if n < 25 else "trained" for n, _ in want)
    if patience == 3:
        assert len(set(result.epochs_trained)) > 1, "every member should stop by itself"
    for k, (trained, kept) in enumerate(want):
        history = result.history["val_loss"][:, k]
        assert_trees_close(history[:trained], whole.history["val_loss"][:trained, k], 1e-10)
        assert bool(history[trained:].isnan().all())
        assert result.scores[k] == float(history[kept - 1])


@pytest.mark.parametrize("restore_best", [True, False])
def test_the_weights_that_are_kept_are_those_of_a_run_that_ends_there(restore_best: bool) -> None:
    result = train(l2path.EarlyStopping(2, restore_best=restore_best), optimizer=l2path.ema(l2path.adam(lr=0.05), 0.5))
    ends = result.epochs_kept if restore_best else result.epochs_trained
    assert result.epochs_kept == ends
    assert restore_best == (result.epochs_kept != result.epochs_trained)
    for k, epochs in enumerate(ends):
        alone = train(optimizer=l2path.ema(l2path.adam(lr=0.05), 0.5), lambdas=[LAMBDAS[k]], epochs=epochs)
        for name in ("params", "buffers", "live_params"):
            own = {n: v[k] for n, v in getattr(result, name).items()}
            assert_trees_close(own, {n: v[0] for n, v in getattr(alone, name).items()}, 1e-9, where=f"{name} of {k}")
        assert_trees_close(result.scores[k], alone.scores[0], 1e-9)
        module = result.member(k).module().eval()
        with torch.no_grad():
            assert_trees_close(F.cross_entropy(module(VAL[0]), VAL[1]).item(), float(result.scores[k]), 1e-9)


def test_the_score_that_decides_decides_when_to_stop() -> None:
    whole = train(select="accuracy")
    result = train(l2path.EarlyStopping(3), select="accuracy")
    losses = train(l2path.EarlyStopping(3))
    want = [expected((-whole.history["val_accuracy"][:, k]).tolist(), 3) for k in range(len(LAMBDAS))]
    assert list(zip(result.epochs_trained, result.epochs_kept, strict=True)) == want
    assert result.epochs_trained != losses.epochs_trained


def test_a_diverged_member_changes_nothing_for_the_others() -> None:
    rule = l2path.EarlyStopping(3)
    with pytest.warns(l2path.DivergenceWarning), pytest.warns(l2path.StabilityWarning):
        result = train(rule, lambdas=[1e40, *LAMBDAS])
    alone = train(rule)
    assert result.status[0] == "diverged"
    assert np.isnan(result.scores[0])
    assert result.epochs_kept[1:] == alone.epochs_kept
    assert_trees_close({n: p[1:] for n, p in result.params.items()}, dict(alone.params), 1e-9)


def test_the_run_ends_with_its_last_member() -> None:
    epochs: list[int] = []
    result = train(l2path.EarlyStopping(1), epochs=500, on_epoch=lambda event: epochs.append(int(event.active.sum())))
    assert len(epochs) == max(result.epochs_trained) < 500
    assert epochs == sorted(epochs, reverse=True)
    assert set(result.status) == {"stopped"}
    assert "epoch" in str(result).splitlines()[0]


def test_event_params_are_the_weights_of_now() -> None:
    seen: list[Tensor] = []
    train(l2path.EarlyStopping(50), on_epoch=lambda event: seen.append(event.params["0.weight"]))
    want: list[Tensor] = []
    train(on_epoch=lambda event: want.append(event.params["0.weight"]))
    assert_trees_close(seen, want, 1e-12)


@pytest.mark.parametrize(
    ("build", "argument"),
    [
        (lambda: l2path.EarlyStopping(0), "patience"),
        (lambda: l2path.EarlyStopping(2.5), "patience"),  # type: ignore[arg-type]
        (lambda: l2path.EarlyStopping(True), "patience"),
        (lambda: l2path.EarlyStopping(2, -1.0), "min_delta"),
        (lambda: l2path.EarlyStopping(2, float("nan")), "min_delta"),
        (lambda: l2path.EarlyStopping(2, holdout=1.0), "holdout"),
        (lambda: train(5), "early_stopping"),  # type: ignore[arg-type]
        (lambda: train(l2path.EarlyStopping(2), validation=None, metrics=None), "early_stopping"),
    ],
)
def test_bad_rules(build: Any, argument: str) -> None:
    with pytest.raises(l2path.ArgumentError) as caught:
        build()
    assert caught.value.argument == argument


def test_a_linear_model_without_noise_trains_to_the_end() -> None:
    x = torch.linspace(-1, 1, 20).unsqueeze(1)
    result = l2path.batch_train(
        nn.Linear(1, 1), (x, 2 * x), loss_fn=F.mse_loss, optimizer=l2path.sgd(lr=0.1), lambdas=[0.1, 0.0], epochs=10,
        validation=(x, 2 * x), early_stopping=l2path.EarlyStopping(2),
    )  # fmt: skip
    assert (result.status, result.epochs_kept) == (("trained",) * 2, (10, 10))


# --- with cross-validation --------------------------------------------------------------------------------------------


def cross_validate(rule: l2path.EarlyStopping | None, **changes: Any) -> l2path.CVResult:
    options: dict[str, Any] = {
        "loss_fn": F.cross_entropy, "optimizer": l2path.sgd(lr=0.2, momentum=0.9), "lambdas": LAMBDAS, "epochs": 25,
        "batch_size": 20, "early_stopping": rule, "folds": 3,
    }  # fmt: skip
    return l2path.cross_validate(noisy, changes.pop("data", TRAIN), **(options | changes))


@pytest.mark.parametrize("options", [{}, {"member_chunk": 3}, {"seeds": (0, 1)}])
def test_in_a_fold_rows_apart_say_when_to_stop(options: dict[str, Any]) -> None:
    rule = l2path.EarlyStopping(3, holdout=0.25)
    cv = cross_validate(rule, **options)
    members, table = cv.members, cv.members.table
    assert len(set(members.epochs_kept)) > 1
    for number, fold in enumerate(cv.folds):
        # 10 of 40 rows, drawn by the published order of this seed and, in place of the epoch, this fold.
        order = l2path.data_order(40, 0, number).numpy()
        train_rows, watched = np.sort(fold.train[order[10:]]), np.sort(fold.train[order[:10]])
        for seed in options.get("seeds", (0,)):
            alone = l2path.batch_train(
                noisy, (TRAIN[0][train_rows], TRAIN[1][train_rows]), loss_fn=F.cross_entropy,
                optimizer=l2path.sgd(lr=0.2, momentum=0.9), lambdas=LAMBDAS, epochs=25, batch_size=20, seed=seed,
                validation=(TRAIN[0][watched], TRAIN[1][watched]), early_stopping=rule,
            )  # fmt: skip
            own = [k for k in range(len(table)) if table.keys[k] == (number, seed)]
            assert [members.epochs_kept[k] for k in own] == list(alone.epochs_kept)
            assert_trees_close({n: p[own] for n, p in members.params.items()}, dict(alone.params), 1e-9)
            looked_at = members.history["monitor"][:, own][: len(alone.history["loss"])]
            assert_trees_close(looked_at.nan_to_num(-1.0), alone.history["val_loss"].nan_to_num(-1.0), 1e-9)
            scored = alone.predict(TRAIN[0][fold.test])
            want = [F.cross_entropy(scored[k], TRAIN[1][fold.test]).item() for k in range(len(LAMBDAS))]
            assert_trees_close([float(members.scores[k]) for k in own], want, 1e-9)


def test_scored_rows_do_not_decide_when_to_stop() -> None:
    folds = [(np.arange(20, 60), np.arange(20)), (np.arange(40), np.arange(40, 60))]
    cv = cross_validate(l2path.EarlyStopping(2), folds=folds)
    spoilt = TRAIN[0].clone()
    spoilt[:20] = -5.0  # what fold 0 is scored on
    other = cross_validate(l2path.EarlyStopping(2), folds=folds, data=(spoilt, TRAIN[1]))
    first = [k for k, f in enumerate(cv.members.table.folds) if f == 0]
    assert [cv.members.epochs_kept[k] for k in first] == [other.members.epochs_kept[k] for k in first]
    assert not torch.equal(torch.tensor(cv.members.scores[first]), torch.tensor(other.members.scores[first]))


def test_a_refit_trains_for_the_median_of_the_epochs_kept() -> None:
    cv = cross_validate(l2path.EarlyStopping(2))
    points = np.array(cv.members.table.points)
    kept = np.array(cv.members.epochs_kept)
    found = cv.refit(1)
    epochs = round(float(np.median(kept[points == 1])))
    assert found.members.epochs_trained == (epochs,)
    alone = train(module=noisy, lambdas=[LAMBDAS[1]], epochs=epochs, validation=None, metrics=None)
    assert_trees_close(dict(found.members.params), dict(alone.params), 1e-10)
    assert cross_validate(None).refit(1).members.epochs_trained == (25,)


def test_too_few_rows_to_hold_some_apart() -> None:
    with pytest.raises(
        l2path.ArgumentError, match=r"early_stopping: got holdout=0.001 of the 40 training rows of fold 0"
    ):
        cross_validate(l2path.EarlyStopping(2, holdout=0.001))

"""cross_validate: every member is its own run on its fold's rows, and the choice is what its scores say."""

from __future__ import annotations

import inspect
import signal
import warnings
from functools import cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

import l2path
from l2path.path import PathResult
from tests.helpers import assert_trees_close
from tests.models import BATCH, ROWS, classes, handwritten, smooth

RTOL = 1e-10
EPOCHS = 4
SEEDS = (3, 11)
GRID = l2path.lambda_grid(1e-3, 0.3, 3)
Floats = npt.NDArray[np.float64]
pytestmark = pytest.mark.filterwarnings("ignore::l2path.BoundaryWarning")


def factory() -> nn.Module:
    """BatchNorm and dropout: buffers and random masks."""
    layers = (nn.Linear(5, 8, bias=False), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 3))
    return nn.Sequential(*layers).double()


def seeded(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return factory()


SGD = l2path.sgd(lr=0.05, momentum=0.9)
ACCURACY = l2path.Metric(lambda o, t: (o.argmax(1) == t).float().mean(), greater_is_better=True)


def run(module: Any = factory, data: Any = None, **changes: Any) -> l2path.CVResult:
    settings: dict[str, Any] = {
        "loss_fn": F.cross_entropy, "optimizer": SGD, "lambdas": GRID, "epochs": EPOCHS, "batch_size": BATCH,
        "folds": 4, "seeds": SEEDS,
    }  # fmt: skip
    return l2path.cross_validate(module, classes() if data is None else data, **(settings | changes))


def solo(module: Any, data: Any, **changes: Any) -> PathResult:
    settings: dict[str, Any] = {
        "loss_fn": F.cross_entropy, "optimizer": SGD, "lambdas": GRID, "epochs": EPOCHS, "batch_size": BATCH,
    }  # fmt: skip
    return l2path.batch_train(module, data, **(settings | changes))


def rows_of(data: Any, rows: npt.NDArray[np.int64]) -> Any:
    return tuple(x[torch.from_numpy(rows)] for x in data)


@cache
def plain() -> l2path.CVResult:
    return run()


# --- solo equivalence -------------------------------------------------------------------------------------------------


def test_members_are_ordered_by_fold_seed_and_lambda() -> None:
    cv = plain()
    table = cv.members.table
    assert len(cv.members) == 4 * 2 * 3
    assert table.folds == tuple(np.repeat(range(4), 6))
    assert table.seeds == tuple(np.tile(np.repeat(SEEDS, 3), 4))
    assert_trees_close(cv.members.lambdas, np.tile(GRID, 8), 0.0)
    assert_trees_close(cv.seed_scores.ravel(), cv.members.scores, 0.0)
    assert cv.seeds == SEEDS
    sizes = [(len(fold.train), len(fold.test)) for fold in cv.folds]
    assert sizes == [(77, 26), (77, 26), (77, 26), (78, 25)]  # 3 batches of 20, and 17 or 18 left


@pytest.mark.parametrize("options", [{}, {"engine": "loop"}, {"member_chunk": 2}], ids=str)
def test_members_equal_a_handwritten_loop_on_the_rows_of_their_fold(options: dict[str, Any]) -> None:
    cv = run(**options) if options else plain()
    assert cv.members.engine.kind == options.get("engine", "vmap")
    table, data = cv.members.table, classes()
    for k in range(len(cv.members)) if not options else (0, 4, 11, 20, 23):
        fold = cv.folds[table.folds[k]]
        module, history = handwritten(
            partial(seeded, table.seeds[k]), rows_of(data, fold.train),
            lambda p: torch.optim.SGD(p, 0.05, momentum=0.9),
            dict.fromkeys(cv.members.params, float(GRID[k % 3])), epochs=EPOCHS, seed=table.seeds[k],
        )  # fmt: skip
        assert_trees_close(cv.members.member(k).state_dict(), module.state_dict(), RTOL)
        assert_trees_close(cv.members.history["loss"][:, k].tolist(), history["loss"], RTOL)
        assert_trees_close(cv.members.history["penalty"][:, k].tolist(), history["penalty"], RTOL)
        x, y = rows_of(data, fold.test)
        with torch.no_grad():
            score = F.cross_entropy(module.eval()(x), y).item()
        assert_trees_close(float(cv.members.scores[k]), score, RTOL)


def test_members_equal_batch_train_on_the_rows_of_their_fold() -> None:
    cv, data = plain(), classes()
    for f, fold in enumerate(cv.folds):
        own = solo(factory, rows_of(data, fold.train), seeds=SEEDS, validation=rows_of(data, fold.test))
        for k in range(6):
            assert_trees_close(cv.members.member(6 * f + k).state_dict(), own.member(k).state_dict(), RTOL)
        assert_trees_close(cv.members.history["val_loss"][:, 6 * f : 6 * f + 6], own.history["val_loss"], RTOL)
        assert_trees_close(cv.seed_scores[f].ravel(), own.scores, RTOL)


def test_the_comparison_can_fail() -> None:
    cv, data = plain(), classes()
    own = solo(factory, rows_of(data, cv.folds[1].train), seeds=SEEDS)
    with pytest.raises(AssertionError, match="relative difference"):
        assert_trees_close(cv.members.member(0).params, own.member(0).params, 1e-3)


def test_refit_equals_batch_train_on_all_rows() -> None:
    cv, data = plain(), classes()
    points: list[tuple[Any, int]] = [("1se", cv.index_1se), ("min", cv.index_min), (0, 0), (np.int64(2), 2)]
    for at, index in points:
        refit = cv.refit(at)
        own = solo(factory, data, seeds=SEEDS, lambdas=GRID[index : index + 1])
        assert_trees_close(refit.members.params, own.params, RTOL)
        assert_trees_close(refit.members.buffers, own.buffers, RTOL)
    assert_trees_close(refit.state_dict(), own.member(0).state_dict(), RTOL)
    assert_trees_close(refit.state_dict(seed=11), own.member(1).state_dict(), RTOL)
    assert_trees_close(refit.predict(data[0]), own.predict(data[0]), RTOL)
    factory().load_state_dict(refit.state_dict(), strict=True)
    with torch.no_grad():
        assert_trees_close(refit.module(11).eval()(data[0]), own.predict(data[0])[1], RTOL)
    other = cv.refit(0, seeds=(7,))
    assert_trees_close(other.members.params, solo(factory, data, seed=7, lambdas=GRID[:1]).params, RTOL)
    with pytest.raises(l2path.ArgumentError, match=r"seed: got 3; expected one of \[7\]"):
        other.state_dict(seed=3)


@pytest.mark.parametrize("at", ["best", 3, -1, True, 1.0, None])
def test_a_refit_of_something_else(at: Any) -> None:
    with pytest.raises(l2path.ArgumentError, match=r"at: got .* a number from 0 to 2"):
        plain().refit(at)


def test_a_refit_starts_where_the_folds_did() -> None:
    # The caller's module may have been loaded with a result by then.
    module, calls = seeded(0), []
    cv = run(module, seeds=None, on_epoch=lambda event: calls.append(len(event.active)))
    assert calls == [12] * EPOCHS
    before = cv.refit(1).state_dict()
    module.load_state_dict(before)
    assert_trees_close(cv.refit(1).state_dict(), before, RTOL)
    assert_trees_close(before, solo(seeded(0), classes(), lambdas=GRID[1:2]).member(0).state_dict(), RTOL)
    assert calls == [12] * EPOCHS  # the hook counts on the members of the folds


# --- what held-out rows may influence ---------------------------------------------------------------------------------


def scaler() -> Any:
    return pytest.importorskip("sklearn.preprocessing").StandardScaler()


@pytest.mark.parametrize("preprocess", [None, scaler])
def test_held_out_rows_never_influence_training(preprocess: Any) -> None:
    x, y = classes()
    options: dict[str, Any] = {"engine": "vmap", "member_chunk": 3, "preprocess": preprocess and preprocess()}
    first = run(data=(x, y), **options)
    changed, labels, fold = x.clone(), y.clone(), first.folds[2]
    changed[torch.from_numpy(fold.test)] *= -7
    labels[torch.from_numpy(fold.test)] = 1
    second = run(data=(changed, labels), **options)
    own = [k for k, f in enumerate(first.members.table.folds) if f == 2]
    for name, values in first.members.params.items():
        assert torch.equal(values[own], second.members.params[name][own])
        assert not torch.equal(values[0], second.members.params[name][0])  # another fold trains on these rows
    for name, values in first.members.buffers.items():
        assert torch.equal(values[own], second.members.buffers[name][own])
    assert not np.isclose(first.fold_scores[2], second.fold_scores[2]).any()


def standardise(train: Tensor) -> Any:
    mean, std = train.mean(0), train.std(0)
    return lambda inputs: (inputs - mean) / std


@pytest.mark.parametrize("kind", ["StandardScaler", "PCA", "function"])
def test_preprocessing_is_learned_from_the_training_rows(kind: str) -> None:
    decomposition = pytest.importorskip("sklearn.decomposition")
    made = {"StandardScaler": scaler(), "PCA": decomposition.PCA(4), "function": standardise}
    preprocess, data = made[kind], classes()
    width = 4 if kind == "PCA" else 5

    def module() -> nn.Module:
        return nn.Sequential(nn.Linear(width, 6), nn.Tanh(), nn.Linear(6, 3)).double()

    def fit(x: Tensor) -> Any:
        if kind == "function":
            return standardise(x)
        own = preprocess.fit(x.numpy())
        return lambda values: torch.from_numpy(own.transform(values.numpy()))

    cv = run(module, data, preprocess=preprocess)
    for f, fold in enumerate(cv.folds):
        (x, y), (held, labels) = rows_of(data, fold.train), rows_of(data, fold.test)
        transform = fit(x)
        own = solo(module, (transform(x), y), seeds=SEEDS, validation=(transform(held), labels))
        assert_trees_close(cv.seed_scores[f].ravel(), own.scores, RTOL)
        assert_trees_close(cv.members.params["0.weight"][6 * f : 6 * f + 6], own.params["0.weight"], RTOL)
    transform = fit(data[0])
    own = solo(module, (transform(data[0]), data[1]), seeds=SEEDS, lambdas=GRID[1:2])
    refit = cv.refit(1)
    assert_trees_close(refit.members.params, own.params, RTOL)
    assert_trees_close(refit.predict(data[0].numpy()), own.predict(transform(data[0])), RTOL)


# --- data, axes, scores -----------------------------------------------------------------------------------------------


class Rows(Dataset[tuple[Tensor, Tensor]]):
    """A map-style dataset."""

    def __init__(self) -> None:
        self.x, self.y = classes()

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.y[index]


def test_a_dataset_arrays_and_rows_in_order() -> None:
    x, y = classes()
    rows = run(data=Rows())
    assert_trees_close(rows.fold_scores, plain().fold_scores, RTOL)
    assert_trees_close(rows.refit(0).members.params, plain().refit(0).members.params, RTOL)
    assert_trees_close(run(data=(x.numpy(), y.numpy())).fold_scores, plain().fold_scores, RTOL)
    cv = run(shuffle=False)
    own = solo(factory, rows_of((x, y), cv.folds[3].train), shuffle=False, seeds=SEEDS)
    assert_trees_close(cv.members.params["0.weight"][18:], own.params["0.weight"], RTOL)
    whole = solo(factory, (x, y), shuffle=False, seeds=SEEDS, lambdas=GRID[:1])
    assert_trees_close(cv.refit(0).members.params, whole.params, RTOL)


def test_two_axes_have_a_best_point_and_no_strongest_one() -> None:
    rates = [0.05, 0.02]
    cv, data = run(smooth(), sweep={"lr": rates}), classes()
    assert cv.cvm.shape == cv.cvsd.shape == (2, 3)
    assert cv.fold_scores.shape == (4, 2, 3)
    assert cv.seed_scores.shape == (4, 2, 2, 3)
    for fold, seed, lr, lam in ((0, 0, 0, 0), (2, 1, 1, 2), (3, 0, 1, 1)):
        (x, y), held = rows_of(data, cv.folds[fold].train), rows_of(data, cv.folds[fold].test)
        own = solo(
            smooth(), (x, y), optimizer=l2path.sgd(lr=rates[lr], momentum=0.9), lambdas=GRID[lam : lam + 1],
            seed=SEEDS[seed], validation=held,
        )  # fmt: skip
        assert_trees_close(float(cv.seed_scores[fold, seed, lr, lam]), float(own.scores[0]), RTOL)
    best = cv.index_min
    assert best == int(cv.cvm.argmin())
    assert cv.point(best) == {"lr": rates[best // 3], "lambda": float(GRID[best % 3])}
    assert cv.lambda_min == float(GRID[best % 3])
    assert cv.boundary is None
    for ask in (lambda: cv.lambda_1se, lambda: cv.index_1se, cv.refit):
        with pytest.raises(l2path.NoScoreError, match=r"one order of strength.*index_min and refit\('min'\)"):
            ask()
    refit = cv.refit("min")
    own = solo(
        smooth(), data, optimizer=l2path.sgd(lr=rates[best // 3], momentum=0.9), seeds=SEEDS,
        lambdas=GRID[best % 3 : best % 3 + 1],
    )  # fmt: skip
    assert_trees_close(refit.members.params, own.params, RTOL)
    assert "no strongest within one standard error" in str(cv)


def test_a_sweep_of_decay_alone() -> None:
    decays = [3.0, 0.3, 0.03]
    adamw = l2path.adamw(lr=0.02)
    cv, data = run(smooth(), lambdas=None, optimizer=adamw, sweep={"decay": decays}), classes()
    one = {"lambdas": None, "optimizer": adamw, "sweep": {"decay": decays[2:]}, "seed": SEEDS[1]}
    own = solo(smooth(), rows_of(data, cv.folds[1].train), **one)
    assert_trees_close(cv.members.member(11).params, own.member(0).params, RTOL)
    assert cv.point(cv.index_1se) == {"decay": decays[cv.index_1se]}
    with pytest.raises(l2path.NoScoreError, match=r"no lambdas were trained. Remedy: read cv.point"):
        _ = cv.lambda_min
    whole = solo(smooth(), data, lambdas=None, optimizer=adamw, sweep={"decay": decays[:1]}, seeds=SEEDS)
    assert_trees_close(cv.refit(0).members.params, whole.params, RTOL)


SPECS: dict[str, tuple[Any, Any]] = {
    "patterns": (
        {"0.*": GRID, "3.*": GRID / 2, "*": 0.01},
        {"0.*": float(GRID[1]), "3.*": float(GRID[1]) / 2, "*": 0.01},
    ),
    "weights only": (l2path.weights_only(GRID), float(GRID[1])),
    "specs": ([{"0.*": 0.3}, {"0.*": 0.1}, {"0.*": 0.01}], {"0.*": 0.1}),
}


@pytest.mark.parametrize("name", SPECS)
def test_other_specs_of_lambdas(name: str) -> None:
    spec, label = SPECS[name]
    cv, data = run(smooth(), lambdas=spec), classes()
    assert cv.point(1) == {"lambda": label}
    assert cv.one_dimensional
    assert cv.lambda_min == cv.point(cv.index_min)["lambda"]
    assert cv.index_1se <= cv.index_min
    own = solo(smooth(), rows_of(data, cv.folds[2].train), lambdas=spec, seeds=SEEDS)
    assert_trees_close(cv.members.params["0.weight"][12:18], own.params["0.weight"], RTOL)
    whole = solo(smooth(), data, lambdas=spec, seeds=SEEDS)
    refit = cv.refit(1)
    assert_trees_close(refit.members.params["0.weight"], whole.params["0.weight"][[1, 4]], RTOL)
    assert refit.members.table.label(0)["lambda"] == label


def test_patterns_that_do_not_rise_together_have_no_order() -> None:
    cv = run(smooth(), lambdas={"0.*": [0.3, 0.01], "3.*": [0.01, 0.3]})
    assert not cv.one_dimensional
    with pytest.raises(l2path.NoScoreError):
        _ = cv.index_1se


def test_explicit_members_keep_their_seeds() -> None:
    rows = [{"lambdas": 0.1, "lr": 0.05, "seed": 4}, {"lambdas": 0.01, "lr": 0.02, "seed": 9}]
    cv, data = run(lambdas=None, seeds=None, members=rows), classes()
    assert cv.seeds == (4, 9)
    assert cv.seed_scores.shape == (4, 1, 2)
    assert cv.point(1) == {"seed": 9, "lr": 0.02, "lambda": 0.01}
    assert "one seed each" in str(cv)
    for k, row in enumerate(rows):
        refit = cv.refit(k)
        assert refit.members.table.seeds == (row["seed"],)
        assert_trees_close(refit.members.params, solo(factory, data, lambdas=None, members=[row]).params, RTOL)
    other = cv.refit(1, seeds=(4, 5)).members
    alone = solo(factory, data, lambdas=None, members=[rows[1] | {"seed": 4}, rows[1] | {"seed": 5}])
    assert_trees_close(other.params, alone.params, RTOL)


def test_a_metric_of_which_more_is_better() -> None:
    cv, data = run(metrics={"accuracy": ACCURACY}, select="accuracy"), classes()
    x, y = rows_of(data, cv.folds[0].test)
    predicted = cv.members.predict(x, members=range(6)).argmax(-1)
    assert_trees_close(cv.seed_scores[0].ravel(), (predicted == y).double().mean(1), 1e-6)
    assert cv.cvm[cv.index_min] == cv.cvm.max()
    limit = cv.cvm[cv.index_min] - cv.cvsd[cv.index_min]
    assert cv.index_1se == next(i for i in range(3) if cv.cvm[i] >= limit)
    assert "Best by val_accuracy, greater is better" in str(cv)


# --- the numbers, by hand ---------------------------------------------------------------------------------------------


class Level(nn.Module):
    """A trained level w plus a constant that differs between seeds: the minimiser is 2 (mean - c) / (2 + lambda)."""

    shift: Tensor

    def __init__(self, shift: float | None = None) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.register_buffer("shift", torch.rand(1, dtype=torch.float64) if shift is None else torch.tensor([shift]))

    def forward(self, x: Tensor) -> Tensor:
        return (self.w + self.shift).expand(len(x), 1)


LEVELS = torch.tensor([0.0, 1.0, 3.0, 2.0, 5.0, 4.0, 4.5], dtype=torch.float64)[:, None]
PARTS = ([0, 3], [1, 4], [2, 5, 6])
FOLDS = [([i for i in range(7) if i not in part], part) for part in PARTS]


def levels(**changes: Any) -> l2path.CVResult:
    settings: dict[str, Any] = {
        "loss_fn": F.mse_loss, "optimizer": l2path.sgd(lr=0.3), "lambdas": [2.0, 1.0, 0.2, 0.0], "epochs": 42,
        "folds": FOLDS,
    }  # fmt: skip
    settings |= changes
    return l2path.cross_validate(settings.pop("module", Level), (LEVELS, LEVELS), **settings)


def test_every_number_by_hand() -> None:
    seeds, lambdas = (5, 6, 7), (2.0, 1.0, 0.2, 0.0)
    cv = levels(seeds=seeds)
    scores = np.empty((3, 3, 4))
    for s, seed in enumerate(seeds):
        torch.manual_seed(seed)
        shift = float(torch.rand(1, dtype=torch.float64))
        for f, (train, test) in enumerate(FOLDS):
            for i, lam in enumerate(lambdas):
                level = shift + 2 * (float(LEVELS[train].mean()) - shift) / (2 + lam)
                scores[f, s, i] = sum((level - float(LEVELS[row])) ** 2 for row in test) / len(test)
    assert_trees_close(cv.seed_scores, scores, 1e-12)
    folds = (scores[:, 0] + scores[:, 1] + scores[:, 2]) / 3  # seeds are averaged within a fold first
    assert_trees_close(cv.fold_scores, folds, 1e-12)
    cvm = (2 * folds[0] + 2 * folds[1] + 3 * folds[2]) / 7
    squares = (2 * (folds[0] - cvm) ** 2 + 2 * (folds[1] - cvm) ** 2 + 3 * (folds[2] - cvm) ** 2) / 7
    cvsd = np.sqrt(squares / 2)
    assert_trees_close([cv.cvm, cv.cvsd, cv.cvup, cv.cvlo], [cvm, cvsd, cvm + cvsd, cvm - cvsd], 1e-12)
    best = int(np.argmin(cvm))
    within = [lam for lam, score in zip(lambdas, cvm, strict=True) if score <= cvm[best] + cvsd[best]]
    assert (cv.lambda_min, cv.lambda_1se) == (lambdas[best], max(within))
    assert cv.lambda_1se != cv.lambda_min


def test_golden_values() -> None:
    # Means of the training rows: 3.5, 2.7 and 2; two thirds of them at lambda 1, and half of them at lambda 2.
    cv = levels(module=Level(0.0), lambdas=[2.0, 1.0, 0.0])
    assert_trees_close(cv.fold_scores[:, 2], np.array([(12.25 + 2.25) / 2, (2.89 + 5.29) / 2, 11.25 / 3]), 1e-12)
    assert_trees_close(cv.fold_scores[:, 1], np.array([(49 + 1) / 18, (0.64 + 10.24) / 2, 179.25 / 27]), 1e-12)
    assert_trees_close(cv.fold_scores[:, 0], np.array([1.5625, (0.1225 + 13.3225) / 2, 25.25 / 3]), 1e-12)
    assert_trees_close(float(cv.cvm[2]), (14.5 + 8.18 + 11.25) / 7, 1e-12)
    assert_trees_close(cv.cvm.round(4), np.array([5.9743, 5.1932, 4.8471]), 1e-12)
    assert round(float(cv.cvsd[2]), 4) == 1.0792
    assert cv.lambda_min == 0.0
    assert cv.lambda_1se == 1.0  # 4.8471 + 1.0792 is 5.9263, a little less than the score of lambda 2


def test_ties_go_to_the_strongest() -> None:
    # Constant targets: every lambda ends at 0, wherever it stands in the grid.
    data = (LEVELS, torch.zeros_like(LEVELS))
    for lambdas in ([0.5, 2.0, 1.0], [2.0, 0.5, 1.0]):
        cv = l2path.cross_validate(
            Level(0.0), data, loss_fn=F.mse_loss, optimizer=l2path.sgd(lr=0.1), lambdas=lambdas, epochs=2, folds=FOLDS,
        )  # fmt: skip
        assert (cv.lambda_min, cv.lambda_1se) == (2.0, 2.0)
        assert cv.boundary is None
        assert_trees_close(cv.cvsd, np.zeros(3), 0.0)


def test_as_many_hits_in_other_folds_are_a_tie() -> None:
    # 9 + 8 + 7 hits are 8 + 8 + 8 hits; as fractions in float32 their sums differ, by rounding.
    hits = {0.5: [9, 8, 7], 1 / 3: [8, 8, 8], 0.2: [10, 7, 7]}  # by where the member ends: lambda / (2 + lambda)

    def fraction(outputs: Tensor, targets: Tensor) -> Tensor:
        nearest = min(hits, key=lambda end: abs(end - float(outputs[0])))
        return torch.tensor(hits[nearest][int(targets[0])]) / 10

    fold = torch.arange(3).repeat(2)
    rows = fold[:, None].double()
    scores = set()
    for lambdas in ([2.0, 1.0, 0.5], [0.5, 1.0, 2.0], [1.0, 2.0, 0.5]):
        cv = l2path.cross_validate(
            Level(0.0), (rows, rows), loss_fn=lambda o, t: o.square().mean(), lambdas=lambdas, folds=fold,
            optimizer=l2path.sgd(lr=0.3), epochs=12, anchor={"w": torch.ones(1, dtype=torch.float64)},
            metrics={"fraction": l2path.Metric(fraction, greater_is_better=True)}, select="fraction",
        )  # fmt: skip
        scores.update(cv.cvm.tolist())
        assert cv.lambda_min == 2.0
    assert len(scores) > 1


# --- what goes wrong --------------------------------------------------------------------------------------------------


def scale(strong: bool = True) -> l2path.CVResult:
    """One weight without bias; the second fold's training rows are steep enough for the largest lambda to diverge."""
    x = torch.cat([torch.ones(6), torch.full((6,), 3.0)])[:, None]
    y = torch.zeros(12, 1)
    torch.manual_seed(0)
    near, far = list(range(4)), list(range(6, 10))
    lambdas = [15.0, 1.0, 0.1] if strong else [1.0, 0.1]
    return l2path.cross_validate(
        nn.Linear(1, 1, bias=False), (x, y), loss_fn=F.mse_loss, optimizer=l2path.sgd(lr=0.1), lambdas=lambdas,
        epochs=130, folds=[(near, [4, 5, 10, 11]), (far, [4, 5, 10, 11])],
    )  # fmt: skip


def test_a_member_that_diverges_in_one_fold_is_never_chosen() -> None:
    with pytest.warns(l2path.DivergenceWarning, match=r"1 of 6 members .* \[3\]"):
        cv = scale()
    assert cv.members.status == ("trained",) * 3 + ("diverged",) + ("trained",) * 2
    assert np.isfinite(cv.fold_scores).tolist() == [[True] * 3, [False, True, True]]
    assert np.isnan(cv.cvm).tolist() == np.isnan(cv.cvsd).tolist() == [True, False, False]
    assert cv.fold_scores[0, 0] <= cv.fold_scores[0, 1:].min()  # the fold that it survived would choose it
    assert cv.index_min > 0
    assert cv.index_1se > 0
    assert "1 of 6 members diverged: their points have no score" in str(cv)
    assert_trees_close(cv.fold_scores[:, 1:], scale(strong=False).fold_scores, 1e-6)
    cv.plot()


@pytest.mark.filterwarnings("ignore::l2path.DivergenceWarning", "ignore::l2path.StabilityWarning")
def test_no_choice_when_all_diverged() -> None:
    cv = run(optimizer=l2path.sgd(lr=1e200))
    for ask in (lambda: cv.index_min, lambda: cv.lambda_min, lambda: cv.lambda_1se, cv.refit):
        with pytest.raises(l2path.NoScoreError, match=r"24 of 24 members diverged\). Remedy: lower the learning rate"):
            ask()
    assert cv.boundary is None
    assert "No point has a finite val_loss in every fold" in str(cv)
    cv.plot()


@pytest.mark.parametrize(
    ("bad", "greater"),  # infinite scores that would be the best of all, and one that is merely large
    [(float("nan"), False), (float("inf"), True), (-float("inf"), False), (1e300, True), (1e300, False)],
)
def test_scores_that_are_not_finite_in_some_fold(bad: float, greater: bool) -> None:
    # Members end at lambda / (2 + lambda); the strongest has a bad score in the first fold alone, and else the best.
    sign = 1.0 if greater else -1.0

    def score(outputs: Tensor, targets: Tensor) -> float:
        end = float(outputs[0])
        return bad if end > 0.4 and int(targets[0]) == 0 else sign * end

    fold = torch.arange(3).repeat(2)
    rows = fold[:, None].double()
    cv = l2path.cross_validate(
        Level(0.0), (rows, rows), loss_fn=lambda o, t: o.square().mean(), lambdas=[2.0, 1.0, 0.5], folds=fold,
        optimizer=l2path.sgd(lr=0.3), epochs=12, anchor={"w": torch.ones(1, dtype=torch.float64)},
        metrics={"score": l2path.Metric(score, greater_is_better=greater)}, select="score",
    )  # fmt: skip
    assert cv.members.status == ("trained",) * 9
    assert cv.lambda_min == (2.0 if np.isfinite(bad) and greater else 1.0)
    assert cv.lambda_1se == cv.lambda_min
    assert ("nan" in str(cv)) is not np.isfinite(bad)
    cv.plot()


def test_on_epoch_stops_members_for_good() -> None:
    def stop(event: l2path.EpochEvent) -> Any:
        keep = event.active.clone()
        if event.epoch == 2:
            keep[[0, 7, 23]] = False  # lambdas 0, 1 and 2 in folds 0, 1 and 3
        return keep

    cv = run(on_epoch=stop)
    assert [k for k, status in enumerate(cv.members.status) if status == "stopped"] == [0, 7, 23]
    full = plain()
    same = [k for k in range(24) if k not in (0, 7, 23)]
    assert_trees_close(cv.members.scores[same], full.members.scores[same], RTOL)
    assert_trees_close(cv.members.scores[[0, 7, 23]], full.members.history["val_loss"][1, [0, 7, 23]], RTOL)
    assert np.isfinite(cv.cvm).all()


def test_the_boundary_warning_comes_once_and_points_at_the_call() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        line = inspect.currentframe().f_lineno + 1  # type: ignore[union-attr]  # CPython has frames
        cv = l2path.cross_validate(
            Level(0.0), (LEVELS, LEVELS), loss_fn=F.mse_loss, optimizer=l2path.sgd(lr=0.3), lambdas=[1.0, 0.2],
            epochs=20, folds=FOLDS,
        )  # fmt: skip
        cv.refit("min")
        cv.plot()
        str(cv)
    own = [w for w in caught if w.category is l2path.BoundaryWarning]
    assert [(w.filename, w.lineno) for w in own] == [(__file__, line)]
    assert str(own[0].message) == cv.boundary
    assert "the low end of the grid. Try next: l2path.lambda_grid(" in str(cv)


@pytest.mark.parametrize("at", ["cross_validate", "refit"])
def test_warnings_point_at_the_call(at: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cv = run(smooth(), loss_fn=nn.CrossEntropyLoss(reduction="sum"), optimizer=l2path.sgd(lr=1e-4), seeds=None)
        if at == "refit":
            caught.clear()
            cv.refit(0)
    own = [w.filename for w in caught if w.category is l2path.ReductionWarning]
    assert own == [__file__]


def test_an_interrupt_leaves_a_result() -> None:
    def press(event: l2path.EpochEvent) -> None:
        if event.epoch == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.warns(l2path.IncompleteWarning, match="interrupted after 2 of 4 epochs") as caught:
        cv = run(on_epoch=press)
    assert [w.filename for w in caught if w.category is l2path.IncompleteWarning] == [__file__]
    assert not cv.members.complete
    assert_trees_close(cv.fold_scores, run(epochs=2).fold_scores, RTOL)
    assert "Incomplete: interrupted after 2 epochs" in str(cv)
    assert len(cv.refit(0).members.history["loss"]) == EPOCHS


def test_an_error_half_way_carries_what_was_trained() -> None:
    def fail(event: l2path.EpochEvent) -> None:
        if event.epoch == 2:
            raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way") as caught:
        run(on_epoch=fail)
    partial_result = caught.value.partial_result  # type: ignore[attr-defined]  # added by l2path
    assert partial_result.table.folds == plain().members.table.folds
    assert_trees_close(partial_result.scores, run(epochs=2).members.scores, RTOL)


def test_nothing_of_the_callers_changes() -> None:
    module, data = seeded(0), classes()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = torch.get_rng_state()
    cv = run(module, data, preprocess=standardise)
    cv.refit(0)
    assert torch.equal(torch.get_rng_state(), state)
    assert_trees_close(module.state_dict(), before, 0.0)
    assert_trees_close(data, classes(), 0.0)


# --- what a person reads ----------------------------------------------------------------------------------------------


def test_the_table() -> None:
    cv = levels(module=Level(0.0), lambdas=[2.0, 1.0, 0.2])
    assert str(cv).splitlines() == [
        "point  lambda  val_loss      se  fold 0  fold 1  fold 2",
        "    0       2    5.9743  2.0344  1.5625  6.7225  8.4167",
        "    1       1    5.1932  1.1358  2.7778  5.4400  6.6389  1se",
        "    2     0.2    4.7807  0.4404  5.7603  4.2975  4.4497  min",
        "",
        "3 folds, one seed, 9 members.",
        "Best by val_loss: point 2, lambda 0.2, 4.7807 ± 0.4404.",
        "Strongest within one standard error: point 1, lambda 1.",
        "Careful: the best lambda, 0.2, is the low end of the grid. Try next: l2path.lambda_grid(0.002, 1, 10).",
    ]
    edge = levels(module=Level(0.0), lambdas=[1.0, 0.2])
    assert "error: point 0, lambda 1, the high end of the grid: even stronger ones may be." in str(edge)
    assert repr(cv) == "CVResult(3 folds, 1 seed, 3 points)"
    assert repr(plain()) == "CVResult(4 folds, 2 seeds, 3 points)"
    assert "4 folds, 2 seeds, 24 members." in str(plain())


def test_a_long_table_and_many_folds() -> None:
    grid = l2path.lambda_grid(1e-4, 1.0, 90)
    cv = run(smooth(), lambdas=grid, folds=11, seeds=None, epochs=1)
    lines = str(cv).splitlines()
    assert "fold 0" not in lines[0]
    assert "..." in str(cv)
    assert len(lines) < 50
    assert sum("min" in line for line in lines[1:-4]) == 1
    assert lines[1].split()[0] == "0"


def test_members_of_folds_are_told_apart() -> None:
    lines = str(plain().members).splitlines()
    assert lines[0].split()[:4] == ["member", "fold", "seed", "lambda"]
    assert lines[24].split()[:3] == ["23", "3", "11"]
    assert "Members of several folds" in lines[-1]


def test_leaving_one_row_out() -> None:
    x, y = classes(12)
    cv = run(smooth(), (x, y), folds=12, epochs=2, seeds=None, metrics={"accuracy": ACCURACY})
    assert cv.fold_scores.shape == (12, 3)
    assert_trees_close(cv.cvm, cv.fold_scores.mean(0), 1e-12)
    own = solo(smooth(), rows_of((x, y), cv.folds[5].train), epochs=2)
    assert_trees_close(cv.members.params["0.weight"][15:18], own.params["0.weight"], RTOL)


def test_folds_that_overlap_and_leave_rows_out() -> None:
    selection = pytest.importorskip("sklearn.model_selection")
    for splitter in (selection.RepeatedKFold(n_splits=3, n_repeats=2, random_state=0), selection.TimeSeriesSplit(3)):
        cv, data = run(smooth(), folds=splitter, seeds=None, epochs=2), classes()
        fold = cv.folds[-1]
        last = 3 * (len(cv.folds) - 1)
        own = solo(smooth(), rows_of(data, fold.train), epochs=2, validation=rows_of(data, fold.test))
        assert_trees_close(cv.members.params["0.weight"][last:], own.params["0.weight"], RTOL)
        assert_trees_close(cv.fold_scores[-1], own.scores, RTOL)

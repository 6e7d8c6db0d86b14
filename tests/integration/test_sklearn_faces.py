"""L2PathRegressor and L2PathClassifier among the tools of scikit-learn."""

from __future__ import annotations

import copy
import importlib
import math
import pickle
import signal
import subprocess
import sys
import warnings
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import l2path

pytest.importorskip("sklearn")
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from sklearn.exceptions import NotFittedError
from sklearn.feature_selection import SelectKBest
from sklearn.metrics import make_scorer, mean_absolute_error, roc_auc_score
from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_sample_weight_equivalence_on_dense_data, estimator_checks_generator

from l2path.sklearn import L2PathClassifier, L2PathRegressor

Estimator = type[L2PathRegressor] | type[L2PathClassifier]
BOTH: list[Estimator] = [L2PathRegressor, L2PathClassifier]
GRID = [1.0, 0.1, 0.01, 0.0]
# Quick: two folds, a small network, few epochs.
SMALL: dict[str, Any] = {
    "lambdas": GRID, "cv": 2, "epochs": 8, "lr": 0.05, "hidden_layer_sizes": (8,), "engine": "vmap",
}  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore::l2path.BoundaryWarning")


@cache
def diabetes() -> tuple[Any, Any]:
    X, y = load_diabetes(return_X_y=True)
    return X[:120], y[:120]


@cache
def cancer() -> tuple[Any, Any]:
    X, y = load_breast_cancer(return_X_y=True)
    return X[:120, :6], np.where(y[:120] == 1, "benign", "malignant")


def data_of(make: Estimator) -> tuple[Any, Any]:
    return diabetes() if make is L2PathRegressor else cancer()


def answers(model: Any, X: Any) -> Any:
    return model.predict_proba(X) if isinstance(model, L2PathClassifier) else model.predict(X)


def quick(make: Estimator, **changes: Any) -> Any:
    return make(**{"random_state": 0, **SMALL, **changes})


@cache
def fitted(make: Estimator) -> Any:
    return quick(make).fit(*data_of(make))


# --- scikit-learn's own checks ----------------------------------------------------------------------------------------


def checks(**parameters: Any) -> list[Any]:
    return [
        pytest.param(estimator, check, id=f"{type(estimator).__name__}-{i}-{name_of(check)}")
        for make in BOTH
        for i, (estimator, check) in enumerate(estimator_checks_generator(make(**parameters)))
    ]


def name_of(check: Any) -> str:
    return str(getattr(check, "func", check).__name__)


@pytest.mark.filterwarnings("ignore")  # as check_estimator itself does
@pytest.mark.parametrize(("estimator", "check"), checks(**SMALL))
def test_checks_of_scikit_learn(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("estimator", "check"), checks())
def test_checks_of_scikit_learn_with_the_default_parameters(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", BOTH)
def test_the_one_check_that_batches_fail(make: Estimator) -> None:
    # Two rows that are alike come in two batches, and one row of weight 2 in one.
    name = make.__name__
    check_sample_weight_equivalence_on_dense_data(name, make(**SMALL, batch_size=None))
    with pytest.raises(AssertionError, match="not equivalent to fitting with removed"):
        check_sample_weight_equivalence_on_dense_data(name, make(**SMALL, batch_size=16))


# --- among other tools ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", BOTH)
def test_pipeline_clone_and_search(make: Estimator) -> None:
    X, y = data_of(make)
    pipeline = make_pipeline(StandardScaler(), SelectKBest(k=4), quick(make))
    name = pipeline.steps[-1][0]
    grid = {f"{name}__hidden_layer_sizes": [(), (8,)]}
    search = GridSearchCV(pipeline, grid, cv=KFold(2)).fit(X, y)
    for i, sizes in enumerate(((), (8,))):
        for f, (train, test) in enumerate(KFold(2).split(X)):
            own = clone(pipeline).set_params(**{f"{name}__hidden_layer_sizes": sizes}).fit(X[train], y[train])
            assert own[-1].n_features_in_ == 4
            assert len(own[-1].module_) == 1 + 2 * len(sizes)
            assert search.cv_results_[f"split{f}_test_score"][i] == own.score(X[test], y[test])
    inner = search.best_estimator_[-1]
    assert inner.hidden_layer_sizes == search.best_params_[f"{name}__hidden_layer_sizes"]
    assert not hasattr(clone(inner), "module_")
    outer = cross_val_score(search.best_estimator_, X, y, cv=KFold(2))
    assert outer.tolist() == [search.cv_results_[f"split{f}_test_score"][search.best_index_] for f in range(2)]
    assert clone(inner).get_params() == inner.get_params()


@pytest.mark.parametrize("make", BOTH)
def test_a_search_hands_on_sample_weights(make: Estimator) -> None:
    X, y = data_of(make)
    w = np.linspace(0, 3, len(X))
    search = GridSearchCV(quick(make), {"lambdas": [0.1, 0.01]}, cv=KFold(2)).fit(X, y, sample_weight=w)
    alone = clone(search.best_estimator_).fit(X, y, sample_weight=w)
    found = search.predict(X) if make is L2PathRegressor else search.predict_proba(X)
    np.testing.assert_array_equal(found, answers(alone, X))
    assert search.best_estimator_.best_lambda_ == search.best_params_["lambdas"]


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize("module", [None, nn.Linear])
def test_a_copy_predicts_the_same(make: Estimator, module: Any) -> None:
    X, y = data_of(make)
    optimizer = partial(l2path.sgd, momentum=0.9)
    model = quick(make, module=module, optimizer=optimizer, early_stopping=l2path.EarlyStopping(3)).fit(X, y)
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        np.testing.assert_array_equal(answers(other, X), answers(model, X))
        assert other.best_lambda_ == model.best_lambda_
        assert other.cv_results_.keys() == model.cv_results_.keys()
        assert set(vars(model)) - set(vars(other)) == {"cv_"}
        assert other.module_ is not model.module_
        other.fit(X, y)  # and trains the same
        np.testing.assert_array_equal(answers(other, X), answers(model, X))


def test_feature_names() -> None:
    pd = pytest.importorskip("pandas")
    X, y = diabetes()
    frame = pd.DataFrame(X, columns=[f"x{i}" for i in range(X.shape[1])])
    model = quick(L2PathRegressor).fit(frame, pd.Series(y))
    np.testing.assert_array_equal(model.predict(frame), fitted(L2PathRegressor).predict(X))
    assert list(model.feature_names_in_) == list(frame.columns)
    with pytest.raises(ValueError, match="feature names should match"):
        model.predict(frame[frame.columns[::-1]])
    table = pd.DataFrame(model.cv_results_)
    assert table["rank_test_score"].min() == 1
    assert len(table) == len(GRID)


# --- what is trained, and what is chosen ------------------------------------------------------------------------------


def network(width: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, outputs)).double()


@pytest.mark.parametrize("make", BOTH)
def test_fit_is_cross_validate(make: Estimator) -> None:
    X, y = data_of(make)
    model = fitted(make)
    classifier = make is L2PathClassifier
    seed = model.cv_.seeds[0]
    numbers = (y == "malignant").astype(float) if classifier else (y - y.mean()) / y.std()
    splitter = (StratifiedKFold if classifier else KFold)(2, shuffle=True, random_state=seed)
    cv = l2path.cross_validate(
        partial(network, X.shape[1], 1), (X, numbers[:, None]),
        loss_fn=F.binary_cross_entropy_with_logits if classifier else F.mse_loss,
        optimizer=l2path.adam(lr=0.05), lambdas=l2path.weights_only(GRID), epochs=8, batch_size=128, seed=seed,
        folds=list(splitter.split(X, numbers)), preprocess=StandardScaler(),
    )  # fmt: skip
    np.testing.assert_allclose(model.cv_.fold_scores, cv.fold_scores, rtol=1e-12)
    assert model.best_index_ == cv.index_1se
    outputs = cv.refit().predict(X)[0, :, 0].numpy()
    if classifier:
        np.testing.assert_allclose(model.decision_function(X), outputs, rtol=1e-10)
        np.testing.assert_allclose(model.predict_proba(X)[:, 1], 1 / (1 + np.exp(-outputs)), rtol=1e-10)
        np.testing.assert_array_equal(model.predict(X) == "malignant", outputs > 0)
    else:
        np.testing.assert_allclose(model.predict(X), outputs * y.std() + y.mean(), rtol=1e-10)


@pytest.mark.parametrize("make", BOTH)
def test_the_table_of_scores(make: Estimator) -> None:
    X, y = data_of(make)
    model = fitted(make)
    table, cv = model.cv_results_, model.cv_
    np.testing.assert_array_equal(model.lambdas_, GRID)
    assert table["params"] == [{"lambda": lam} for lam in GRID]
    assert list(table["param_lambda"]) == GRID
    np.testing.assert_array_equal(table["mean_test_score"], -cv.cvm)
    np.testing.assert_array_equal(table["se_test_score"], cv.cvsd)
    np.testing.assert_array_equal(table["split1_test_score"], -cv.fold_scores[1])
    np.testing.assert_array_equal(table["std_test_score"], cv.fold_scores.std(axis=0))
    assert table["rank_test_score"].tolist() == [1 + sum(cv.cvm < own) for own in cv.cvm]
    assert table["rank_test_score"][cv.index_min] == 1
    assert (model.best_index_, model.best_lambda_) == (cv.index_1se, cv.lambda_1se)
    assert model.best_score_ == -cv.cvm[cv.index_1se]
    best = quick(make, rule="min").fit(X, y)
    assert (best.best_index_, best.best_lambda_) == (cv.index_min, cv.lambda_min)
    assert not model.module_.training


def test_scorers_choose_on_labels_and_in_units_of_y() -> None:
    X, y = cancer()
    model = quick(L2PathClassifier, scoring="roc_auc", n_seeds=2).fit(X, y)
    members = model.cv_.members
    for k in (0, 5, len(members) - 1):
        fold = model.cv_.folds[members.table.folds[k]]
        scaler = StandardScaler().fit(X[fold.train])
        logits = members.predict(scaler.transform(X[fold.test]), k)[0, :, 0]
        assert math.isclose(float(members.scores[k]), roc_auc_score(y[fold.test] == "malignant", logits), rel_tol=1e-9)
    np.testing.assert_array_equal(model.cv_results_["mean_test_score"], model.cv_.cvm)  # greater is better already
    assert model.cv_results_["rank_test_score"][model.cv_.index_min] == 1

    X, y = diabetes()
    scoring = make_scorer(mean_absolute_error, greater_is_better=False)
    w = np.linspace(0.5, 3, len(X))
    model = quick(L2PathRegressor, scoring=scoring).fit(X, y, sample_weight=w)
    members = model.cv_.members
    for k in (0, 3, len(members) - 1):
        fold = model.cv_.folds[members.table.folds[k]]
        scaler = StandardScaler().fit(X[fold.train], sample_weight=w[fold.train])
        outputs = members.predict(scaler.transform(X[fold.test]), k)[0, :, 0].numpy()
        predicted = outputs * np.sqrt(np.cov(y, aweights=w, ddof=0)) + np.average(y, weights=w)
        error = mean_absolute_error(y[fold.test], predicted, sample_weight=w[fold.test])
        assert math.isclose(float(members.scores[k]), -error, rel_tol=1e-9)


def test_seeds_and_early_stopping() -> None:
    X, y = diabetes()
    stopping = l2path.EarlyStopping(patience=2)
    model = quick(L2PathRegressor, n_seeds=3, early_stopping=stopping, epochs=30, lr=0.1).fit(X, y)
    assert model.cv_.seed_scores.shape == (2, 3, len(GRID))
    assert "stopped" in model.cv_.members.status
    state = model.cv_.refit(model.best_index_).state_dict(seed=model.cv_.seeds[0])
    for name, value in model.module_.state_dict().items():
        assert torch.allclose(value, state[name], rtol=1e-10)


def test_lambdas_of_other_forms() -> None:
    X, y = diabetes()
    by_layer = quick(L2PathRegressor, lambdas={"0.*": [1.0, 0.1], "2.*": 0.01}).fit(X, y)
    assert by_layer.lambdas_ == [{"0.*": 1.0, "2.*": 0.01}, {"0.*": 0.1, "2.*": 0.01}]
    assert by_layer.best_lambda_ in by_layer.lambdas_
    one = quick(L2PathRegressor, lambdas=0.1).fit(X, y)
    np.testing.assert_array_equal(one.lambdas_, [0.1])
    strengths = one.cv_.members.lambdas_by_parameter
    assert all(bool((s == (0.0 if "bias" in name else 0.1)).all()) for name, s in strengths.items())
    crossing: Any = {"0.*": [1.0, 0.1], "2.*": [0.1, 1.0]}
    with pytest.raises(l2path.ArgumentError, match=r"rule: got '1se' with .* Remedy: use rule='min'"):
        quick(L2PathRegressor, lambdas=crossing).fit(X, y)
    best = quick(L2PathRegressor, lambdas=crossing, rule="min").fit(X, y)
    assert best.lambdas_ == [{"0.*": 1.0, "2.*": 0.1}, {"0.*": 0.1, "2.*": 1.0}]
    assert best.best_lambda_ == best.lambdas_[best.cv_.index_min]


def test_the_default_grid_has_no_low_end() -> None:
    # y is linear: the less shrinkage the better, and 0 is among the candidates.
    X = diabetes()[0][:, [1, 2, 3, 8]]
    linear = {"hidden_layer_sizes": (), "optimizer": partial(l2path.sgd, momentum=0.5), "lr": 0.3, "epochs": 60}
    with warnings.catch_warnings():
        warnings.simplefilter("error", l2path.BoundaryWarning)
        model = quick(L2PathRegressor, lambdas=None, **linear).fit(X, X[:, 0])
        with pytest.raises(l2path.BoundaryWarning, match="the low end of the grid"):
            quick(L2PathRegressor, lambdas=[0.1, 0.01], **linear).fit(X, X[:, 0])
    np.testing.assert_allclose(model.lambdas_, [*l2path.lambda_grid(1e-4, 1, 9).tolist(), 0.0])
    assert model.cv_.lambda_min == 0


# --- randomness -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", BOTH)
def test_random_state(make: Estimator) -> None:
    X, y = data_of(make)
    first, outer, legacy = answers(fitted(make), X), torch.get_rng_state(), str(np.random.get_state())
    np.testing.assert_array_equal(answers(quick(make).fit(X, y), X), first)
    assert not np.array_equal(answers(quick(make, random_state=1).fit(X, y), X), first)
    assert torch.equal(torch.get_rng_state(), outer)
    assert str(np.random.get_state()) == legacy
    stream = np.random.RandomState(0)
    np.testing.assert_array_equal(answers(quick(make, random_state=stream).fit(X, y), X), first)
    assert not np.array_equal(answers(quick(make, random_state=stream).fit(X, y), X), first)
    state = np.random.get_state()
    try:
        np.random.seed(0)
        np.testing.assert_array_equal(answers(quick(make, random_state=None).fit(X, y), X), first)
    finally:
        np.random.set_state(state)


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", BOTH)
def test_rows_of_weight_zero_are_not_there(make: Estimator) -> None:
    X, y = data_of(make)
    w = np.random.default_rng(3).integers(0, 3, len(X)).astype(float)
    kept = w > 0
    small = {"batch_size": 32}
    without = quick(make, **small).fit(X[kept], y[kept], sample_weight=w[kept])
    spoilt = X.copy()
    spoilt[~kept] = 1e6
    model = quick(make, **small).fit(spoilt, y, sample_weight=w)
    np.testing.assert_array_equal(answers(model, X), answers(without, X))
    np.testing.assert_array_equal(model.cv_.cvm, without.cv_.cvm)
    scaled = quick(make, **small).fit(X, y, sample_weight=w * 1e-9)
    np.testing.assert_allclose(answers(scaled, X), answers(model, X), rtol=1e-6)
    # Equal weights are none.
    equal = quick(make).fit(X, y, sample_weight=np.full(len(X), 7.0))
    np.testing.assert_array_equal(answers(equal, X), answers(fitted(make), X))


def test_folds_given_as_pairs_are_of_all_rows() -> None:
    X, y = diabetes()
    w = np.random.default_rng(3).integers(0, 3, len(X)).astype(float)
    pairs = list(KFold(3).split(X))
    as_masks = [tuple(np.isin(np.arange(len(X)), part) for part in pair) for pair in pairs]
    kept = np.flatnonzero(w)
    for cv in (pairs, as_masks, iter(pairs)):
        model = quick(L2PathRegressor, cv=cv).fit(X, y, sample_weight=w)
        for fold, (train, test) in zip(model.cv_.folds, pairs, strict=True):
            np.testing.assert_array_equal(kept[fold.train], train[w[train] > 0])
            np.testing.assert_array_equal(kept[fold.test], test[w[test] > 0])


# --- labels and targets -----------------------------------------------------------------------------------------------


def test_labels_of_any_kind() -> None:
    X, y = load_wine(return_X_y=True)
    plain = quick(L2PathClassifier).fit(X, y)
    assert plain.module_[-1].out_features == 3
    assert plain.predict_proba(X).shape == (len(X), 3)
    np.testing.assert_allclose(plain.predict_proba(X).sum(1), 1)
    for names in (np.array(["a", "b", "c"]), np.array([-7, 0, 40]), np.array(["a", "b", "c"], dtype=object)):
        model = quick(L2PathClassifier).fit(X, names[y])
        np.testing.assert_array_equal(model.classes_, names)
        np.testing.assert_array_equal(model.predict(X), names[plain.predict(X)])
        np.testing.assert_array_equal(model.predict_proba(X), plain.predict_proba(X))
    two = quick(L2PathClassifier).fit(X, y == 1)
    assert two.module_[-1].out_features == 1
    assert two.predict(X).dtype == np.bool_
    assert two.score(X, y == 1) > 0.8
    with pytest.raises(ValueError, match=r"y: got 1 class, .*expected at least two classes"):
        quick(L2PathClassifier).fit(X, y, sample_weight=(y == 0).astype(float))


class Far(nn.Module):
    """Logits that are large."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return 30 * out


def test_probabilities_of_large_logits() -> None:
    X, y = cancer()
    model = quick(L2PathClassifier, module=Far).fit(X, y)
    probabilities = model.predict_proba(X)
    assert 50 < np.abs(model.decision_function(X)).max() < 600
    assert (probabilities > 0).all()  # 1 - expit(50) is 0
    np.testing.assert_allclose(probabilities.sum(1), 1)


def test_targets_of_any_scale() -> None:
    X, y = diabetes()
    first = fitted(L2PathRegressor).predict(X)
    for scale, shift in ((1e-20, 0.0), (1e12, 5.0), (-3.0, 1e6)):
        found = quick(L2PathRegressor).fit(X, scale * y + shift).predict(X)
        sign = 1 if scale > 0 else None  # the network does not train alike on the negative of y
        if sign:
            np.testing.assert_allclose((found - shift) / scale, first, rtol=1e-5)
        else:
            assert np.corrcoef(found, first)[0, 1] < -0.9
    constant = quick(L2PathRegressor, hidden_layer_sizes=(), epochs=100, lr=0.1).fit(X, np.full(len(X), 3e5))
    np.testing.assert_allclose(constant.predict(X), 3e5, atol=0.1)
    several = np.stack([y, np.full(len(y), 2.0)], axis=1)
    assert quick(L2PathRegressor).fit(X, several).predict(X).shape == several.shape
    assert quick(L2PathRegressor).fit(X, y[:, None]).predict(X).shape == (len(X), 1)


class Positive(nn.Module):
    """A module whose outputs have a range of their own."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.softplus(self.layer(x))


def test_targets_as_they_are() -> None:
    X, y = diabetes()
    y = 1e-3 * y
    raw = quick(L2PathRegressor, module=Positive, normalize_y=False, lr=0.02, epochs=20).fit(X, y)
    with torch.no_grad():
        expected = raw.module_(torch.tensor(raw.input_scaler_.transform(X)))[:, 0].numpy()
    np.testing.assert_allclose(raw.predict(X), expected, rtol=1e-12)
    assert (raw.predict(X) > 0).all()


def test_a_module_has_the_dtype_of_its_inputs() -> None:
    X, y = diabetes()
    for dtype, expected in ((np.float32, torch.float32), (np.float64, torch.float64)):
        model = quick(L2PathRegressor).fit(X.astype(dtype), y)
        assert {p.dtype for p in model.module_.parameters()} == {expected}
    # A large offset does not cost the digits of a float32 module.
    shifted = quick(L2PathRegressor, module=nn.Linear).fit(X + 1e6, y)
    np.testing.assert_allclose(
        shifted.predict(X + 1e6), quick(L2PathRegressor, module=nn.Linear).fit(X, y).predict(X), rtol=1e-6
    )


# --- what cannot work -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "changes", "message"),
    [
        (L2PathRegressor, {"rule": "best"}, r"rule: got 'best'; expected '1se' or 'min'"),
        (L2PathRegressor, {"module": nn.Linear(10, 1)}, r"module: got a Linear; expected a function \(n_features"),
        (L2PathRegressor, {"module": lambda n, m: "net"}, r"module: got a function that returns a str"),
        (L2PathRegressor, {"module": lambda n, m: nn.Linear(n, 3)}, r"module: got outputs of shape \[60, 3\].*\[60, 1"),
        (L2PathClassifier, {"module": lambda n, m: nn.Linear(n, 2)}, r"module: .*n_outputs = 1"),
        (L2PathRegressor, {"activation": "rely"}, r"activation: got 'rely'.*nearest names: 'relu'"),
        (L2PathRegressor, {"hidden_layer_sizes": (8, 0)}, r"hidden_layer_sizes: got \(8, 0\)"),
        (L2PathRegressor, {"hidden_layer_sizes": "8"}, r"hidden_layer_sizes: got '8'"),
        (L2PathRegressor, {"n_seeds": 0}, r"n_seeds: got 0"),
        (L2PathRegressor, {"optimizer": "adam"}, r"optimizer: got a str.*functools.partial\(l2path.sgd"),
        (L2PathRegressor, {"lambdas": [0.1, -1.0]}, r"lambdas.*got"),
        (L2PathRegressor, {"lambdas": []}, r"lambdas: got no lambdas"),
        (L2PathRegressor, {"epochs": 0}, r"epochs: got 0"),
        (L2PathRegressor, {"batch_size": 0}, r"batch_size: got 0"),
        (L2PathRegressor, {"scoring": 3}, r"scoring: got 3; expected a name"),
        (L2PathRegressor, {"scoring": "auc"}, r"'auc'"),
        (L2PathRegressor, {"early_stopping": 5}, r"early_stopping: got 5"),
        (L2PathRegressor, {"cv": [([0, 1], [500])]}, r"cv: got pairs of positions that are not in the data"),
        (L2PathRegressor, {"cv": "five"}, r"cv"),
        (L2PathClassifier, {"cv": 200}, r"n_splits=200"),
    ],
)  # fmt: skip
def test_bad_parameters(make: Estimator, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quick(make, **changes).fit(*data_of(make))


def test_bad_data() -> None:
    X, y = diabetes()
    with pytest.raises(NotFittedError):
        L2PathRegressor().predict(X)
    with pytest.raises(ValueError, match=r"sample_weight: got zeros|must contain at least one non-zero number"):
        quick(L2PathRegressor).fit(X, y, sample_weight=np.zeros(len(X)))
    with pytest.raises(ValueError, match="Negative values in data passed to `sample_weight`"):
        quick(L2PathRegressor).fit(X, y, sample_weight=-np.ones(len(X)))
    with pytest.raises(ValueError, match="contains NaN"):
        quick(L2PathRegressor).fit(np.where(X > 0, X, np.nan), y)
    with pytest.raises(ValueError, match="Unknown label type: continuous"):
        quick(L2PathClassifier).fit(X, y + 0.5)
    far: dict[str, Any] = {"optimizer": l2path.sgd, "lr": 1e200, "hidden_layer_sizes": (), "lambdas": 0.0}
    with (
        pytest.raises(l2path.NoScoreError, match="no point of the path has a finite"),
        pytest.warns(l2path.DivergenceWarning),
    ):
        quick(L2PathRegressor, **far).fit(X, y)


class Interrupting(nn.Linear):
    """Somebody loses patience in the middle of a fit."""

    calls = 0

    def forward(self, input: Tensor) -> Tensor:
        Interrupting.calls += 1
        if Interrupting.calls == 30:
            signal.raise_signal(signal.SIGINT)
        return super().forward(input)


@pytest.mark.filterwarnings("ignore::l2path.EngineWarning")
def test_an_interrupt_ends_a_fit() -> None:
    Interrupting.calls = 0
    model = quick(L2PathRegressor, module=Interrupting, epochs=2000)
    with pytest.raises(KeyboardInterrupt):
        model.fit(*diabetes())
    assert 30 <= Interrupting.calls < 200
    assert not hasattr(model, "module_")


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.startswith("l2path.sklearn")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn.utils.validation", None)
    with pytest.raises(l2path.MissingExtraError, match=r"pip install 'l2path\[sklearn\]'"):
        importlib.import_module("l2path.sklearn")


def test_l2path_does_not_import_scikit_learn() -> None:
    code = "import sys, l2path; assert not {'sklearn', 'scipy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

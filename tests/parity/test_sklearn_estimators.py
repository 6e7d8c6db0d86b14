"""L2PathRegressor and L2PathClassifier around a linear module are scikit-learn's Ridge and LogisticRegression."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from torch import nn

import l2path

pytest.importorskip("sklearn")
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from l2path.sklearn import L2PathClassifier, L2PathRegressor

Floats = npt.NDArray[np.float64]
GRID = l2path.lambda_grid(1e-3, 3.0, 6)
pytestmark = pytest.mark.filterwarnings("ignore::l2path.BoundaryWarning")

# Full batches of a strictly convex objective, to convergence.
EXACT: dict[str, Any] = {
    "module": nn.Linear, "optimizer": partial(l2path.sgd, momentum=0.5), "lr": 0.3, "epochs": 100, "batch_size": None,
    "cv": 2, "random_state": 0,
}  # fmt: skip


@cache
def diabetes() -> tuple[Floats, Floats]:
    # Columns that are far from collinear, so that gradient descent is soon done.
    X, y = load_diabetes(return_X_y=True)
    X = X[:400, [1, 2, 3, 8, 9]]
    return (X - X.mean(0)) / X.std(0), y[:400]


@cache
def weights(n: int) -> Floats:
    return np.random.default_rng(7).uniform(0.2, 3.0, n)


def alpha_of(lam: float, n: int, targets: int = 1) -> float:
    return float(l2path.to_sklearn_alpha(lam, n=n, targets=targets))


def test_regressor_is_ridge_in_every_fold_and_at_the_refit() -> None:
    X, y = diabetes()
    cv = KFold(4, shuffle=True, random_state=3)  # 300 rows to train on in each fold
    ours = L2PathRegressor(**EXACT | {"cv": cv}, lambdas=GRID, rule="min", standardize=False).fit(X, y)
    alphas = [alpha_of(lam, 300) for lam in GRID.tolist()]
    search = GridSearchCV(Ridge(), {"alpha": alphas}, cv=cv, scoring="neg_mean_squared_error").fit(X, y)
    for f in range(4):  # the loss is of standardised targets
        theirs = search.cv_results_[f"split{f}_test_score"] / y.var()
        np.testing.assert_allclose(ours.cv_results_[f"split{f}_test_score"], theirs, rtol=1e-9)
    np.testing.assert_allclose(ours.cv_results_["mean_test_score"], search.cv_results_["mean_test_score"] / y.var())
    np.testing.assert_array_equal(ours.cv_results_["rank_test_score"], search.cv_results_["rank_test_score"])
    assert ours.best_index_ == search.best_index_
    assert 0 < ours.best_index_ < len(GRID) - 1
    refit = Ridge(alpha=alpha_of(ours.best_lambda_, 400)).fit(X, y)
    np.testing.assert_allclose(ours.predict(X), refit.predict(X), rtol=1e-8)
    coefficients = ours.module_.weight.detach().numpy()[0] * ours.target_scaler_.scale_
    np.testing.assert_allclose(coefficients, refit.coef_, rtol=1e-7, atol=1e-7)
    with pytest.raises(AssertionError):  # and not at the strength of the folds
        np.testing.assert_allclose(ours.predict(X), search.predict(X), rtol=1e-5)


def test_standardisation_is_a_pipeline_of_each_fold() -> None:
    X, y = diabetes()
    X = X.copy()
    X[:130] *= 2  # rows that are unlike the others: unshuffled folds have other scales
    X = X * np.geomspace(0.1, 1000, X.shape[1]) + 50
    cv = KFold(4)
    ours = L2PathRegressor(**EXACT | {"cv": cv}, lambdas=GRID, rule="min").fit(X, y)
    pipeline = make_pipeline(StandardScaler(), Ridge())
    grid = {"ridge__alpha": [alpha_of(lam, 300) for lam in GRID.tolist()]}
    search = GridSearchCV(pipeline, grid, cv=cv, scoring="neg_mean_squared_error").fit(X, y)
    for f in range(4):
        theirs = search.cv_results_[f"split{f}_test_score"] / y.var()
        np.testing.assert_allclose(ours.cv_results_[f"split{f}_test_score"], theirs, rtol=1e-8)
    refit = pipeline.set_params(ridge__alpha=alpha_of(ours.best_lambda_, 400)).fit(X, y)
    np.testing.assert_allclose(ours.predict(X), refit.predict(X), rtol=1e-7)


@pytest.mark.parametrize("weighted", [False, True])
def test_several_targets(weighted: bool) -> None:
    X, y = diabetes()
    Y = np.stack([y, -20 * X[:, 3] + 0.001 * y, X[:, 1] * X[:, 2]], axis=1)
    sample_weight = weights(len(X)) if weighted else None
    ours = L2PathRegressor(**EXACT, lambdas=0.3, standardize=False).fit(X, Y, sample_weight)
    # On standardised targets; the mean over n T numbers makes alpha n T lambda / 2 for each of them. A mean weight of 1
    # is what makes the sum of weights n.
    scaled = None if sample_weight is None else sample_weight / sample_weight.mean()
    theirs = Ridge(alpha=alpha_of(0.3, len(X), targets=3)).fit(X, Y, sample_weight=scaled)
    assert ours.predict(X).shape == (400, 3)
    np.testing.assert_allclose(ours.predict(X), theirs.predict(X), rtol=1e-7, atol=1e-7 * np.abs(Y).max())


def test_weighted_ridge() -> None:
    X, y = diabetes()
    w = weights(len(X))
    ours = L2PathRegressor(**EXACT, lambdas=0.2, standardize=False).fit(X, y, sample_weight=w)
    theirs = Ridge(alpha=alpha_of(0.2, len(X))).fit(X, y, sample_weight=w / w.mean())
    np.testing.assert_allclose(ours.predict(X), theirs.predict(X), rtol=1e-8)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(clone(ours).fit(X, y).predict(X), theirs.predict(X), rtol=1e-3)


def test_held_out_rows_are_weighted() -> None:
    X, y = diabetes()
    w = weights(len(X)) * np.where(np.arange(len(X)) < 100, 4, 1)
    cv = KFold(4)
    ours = L2PathRegressor(**EXACT | {"cv": cv}, lambdas=GRID, rule="min", standardize=False).fit(X, y, sample_weight=w)
    w = w / w.mean()
    spread = np.average((y - np.average(y, weights=w)) ** 2, weights=w)
    scores = np.empty((4, len(GRID)))
    for f, (train, test) in enumerate(cv.split(X)):
        for i, lam in enumerate(GRID.tolist()):
            fit = Ridge(alpha=alpha_of(lam, len(train))).fit(X[train], y[train], sample_weight=w[train])
            scores[f, i] = -np.average((fit.predict(X[test]) - y[test]) ** 2, weights=w[test]) / spread
        np.testing.assert_allclose(ours.cv_results_[f"split{f}_test_score"], scores[f], rtol=1e-8)
    # The mean over the folds is that over all rows: each fold counts by the weights that it holds out.
    mean = np.average(scores, axis=0, weights=[w[test].sum() for _, test in cv.split(X)])
    np.testing.assert_allclose(ours.cv_results_["mean_test_score"], mean, rtol=1e-8)
    assert not np.allclose(mean, scores.mean(0), rtol=1e-3)
    assert ours.best_index_ == ours.cv_.index_min == mean.argmax()
    assert ours.cv_.index_1se <= ours.cv_.index_min


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("load", [load_breast_cancer, load_iris])
def test_classifier_is_logistic_regression(load: Any, weighted: bool) -> None:
    X, y = load(return_X_y=True)
    w = weights(len(X)) if weighted else None
    lam = 0.05
    ours = L2PathClassifier(
        **EXACT | {"lr": 0.5, "epochs": 250, "optimizer": partial(l2path.sgd, momentum=0.8)}, lambdas=lam
    ).fit(X, y, sample_weight=w)
    scaler = StandardScaler().fit(X, sample_weight=w)
    theirs = LogisticRegression(C=l2path.to_sklearn_C(lam, n=len(X)), tol=1e-10, max_iter=10_000)
    theirs.fit(scaler.transform(X), y, sample_weight=None if w is None else w / w.mean())
    expected = theirs.predict_proba(scaler.transform(X))
    assert ours.module_.weight.shape == (1 if len(theirs.classes_) == 2 else 3, X.shape[1])
    np.testing.assert_allclose(ours.predict_proba(X), expected, atol=1e-6)
    logits = [ours.decision_function(X), theirs.decision_function(scaler.transform(X))]
    if logits[0].ndim == 2:  # a number that is added to all of a row changes nothing
        logits = [each - each.mean(1, keepdims=True) for each in logits]
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-5)
    np.testing.assert_array_equal(ours.predict(X), theirs.predict(scaler.transform(X)))


@pytest.mark.parametrize("make", [L2PathRegressor, L2PathClassifier])
def test_weights_are_repeated_rows(make: Any) -> None:
    # Of a network in full batches, for a fixed lambda.
    X, y = load_iris(return_X_y=True)
    X, y = X[::3], y[::3]
    times = np.random.default_rng(0).integers(0, 4, len(X))
    model = make(lambdas=0.01, batch_size=None, epochs=30, lr=0.02, cv=2, random_state=0, hidden_layer_sizes=(8,))
    repeated = clone(model).fit(X.repeat(times, axis=0), y.repeat(times))
    once = clone(model).fit(X, y, sample_weight=times * 0.7)
    method = "predict" if make is L2PathRegressor else "predict_proba"
    np.testing.assert_allclose(getattr(once, method)(X), getattr(repeated, method)(X), rtol=1e-8)
    plain = clone(model).fit(X, y)
    assert not np.allclose(getattr(plain, method)(X), getattr(repeated, method)(X), rtol=1e-2)

"""Cross-validated linear models against scikit-learn and himalaya, fold by fold on the same rows and grid."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import l2path

datasets = pytest.importorskip("sklearn.datasets")
linear_model = pytest.importorskip("sklearn.linear_model")
model_selection = pytest.importorskip("sklearn.model_selection")
preprocessing = pytest.importorskip("sklearn.preprocessing")

Floats = npt.NDArray[np.float64]
GRID = l2path.lambda_grid(1e-3, 3.0, 8)
pytestmark = pytest.mark.filterwarnings("ignore::l2path.BoundaryWarning")


@cache
def diabetes() -> tuple[Floats, Floats]:
    # One column fewer: the serum values s1 and s2 are nearly the same, which gradient descent takes long over.
    X, y = datasets.load_diabetes(return_X_y=True)
    X = np.delete(X, 4, axis=1)[:403]
    return (X - X.mean(0)) / X.std(0), (y[:403] - y.mean()) / y.std()


@cache
def cancer() -> tuple[Floats, npt.NDArray[np.int64]]:
    X, y = datasets.load_breast_cancer(return_X_y=True)
    return (X - X.mean(0)) / X.std(0), y


def linear(width: int, outputs: int = 1) -> nn.Module:
    module = nn.Linear(width, outputs).double()
    nn.init.zeros_(module.weight)
    nn.init.zeros_(module.bias)
    return module


@cache
def ridge_run() -> l2path.CVResult:
    X, y = diabetes()  # 403 rows in 5 folds: 322 or 323 to train on
    return l2path.cross_validate(
        linear(X.shape[1]), (X, y[:, None]), loss_fn=F.mse_loss, optimizer=l2path.sgd(lr=0.2, momentum=0.8),
        lambdas=l2path.weights_only(GRID), folds=5, epochs=300, metrics={"r2": l2path.Metric(r2, True)},
    )  # fmt: skip


def r2(outputs: Tensor, targets: Tensor) -> Tensor:
    return 1 - (outputs - targets).square().sum() / (targets - targets.mean()).square().sum()


def ridge_scores(folds: tuple[l2path.Fold, ...], rows: int | None = None) -> Floats:
    """Return ``[F, L]`` held-out errors of scikit-learn's Ridge; ``rows`` is a wrong n for all folds."""
    X, y = diabetes()
    scores = np.empty((len(folds), len(GRID)))
    for f, fold in enumerate(folds):
        for i, lam in enumerate(GRID.tolist()):
            alpha = l2path.to_sklearn_alpha(lam, n=rows or len(fold.train))
            fit = linear_model.Ridge(alpha=alpha, solver="svd").fit(X[fold.train], y[fold.train])
            scores[f, i] = np.mean((fit.predict(X[fold.test]) - y[fold.test]) ** 2)
    return scores


def choose(scores: Floats, folds: tuple[l2path.Fold, ...]) -> tuple[int, int]:
    """Return the best point and the strongest within one standard error, from scores where less is better."""
    sizes = np.array([len(fold.test) for fold in folds])
    mean = np.array([np.average(column, weights=sizes) for column in scores.T])
    best = int(np.argmin(mean))
    error = np.sqrt(np.average((scores[:, best] - mean[best]) ** 2, weights=sizes) / (len(folds) - 1))
    return best, next(i for i in range(len(mean)) if mean[i] <= mean[best] + error)  # the grid falls


def assert_same_choice(cv: l2path.CVResult, scores: Floats, tolerance: float) -> None:
    np.testing.assert_allclose(cv.fold_scores, scores, rtol=0, atol=tolerance)
    assert (cv.index_min, cv.index_1se) == choose(scores, cv.folds)
    assert cv.lambda_min == cv.members.lambdas[cv.index_min]
    assert cv.lambda_1se == cv.members.lambdas[cv.index_1se]


def test_ridge() -> None:
    cv = ridge_run()
    assert sorted({len(fold.train) for fold in cv.folds}) == [322, 323]
    assert_same_choice(cv, ridge_scores(cv.folds), 1e-10)
    assert cv.index_1se < cv.index_min


def test_the_comparison_can_fail() -> None:
    # All rows in place of those trained on: an n that is wrong by a fifth.
    cv = ridge_run()
    with pytest.raises(AssertionError):
        assert_same_choice(cv, ridge_scores(cv.folds, rows=403), 1e-4)


def test_refit_is_ridge_on_all_rows() -> None:
    X, y = diabetes()
    cv = ridge_run()
    for at in ("1se", "min", 0):
        refit = cv.refit(at)
        index = {"1se": cv.index_1se, "min": cv.index_min}.get(str(at), at)
        alpha = l2path.to_sklearn_alpha(float(GRID[int(index)]), n=len(X))
        fit = linear_model.Ridge(alpha=alpha, solver="svd").fit(X, y)
        state = refit.state_dict()
        np.testing.assert_allclose(state["weight"][0], fit.coef_, rtol=0, atol=1e-8)
        np.testing.assert_allclose(float(state["bias"][0]), fit.intercept_, rtol=0, atol=1e-8)
        np.testing.assert_allclose(refit.predict(X)[0, :, 0], fit.predict(X), rtol=0, atol=1e-8)


def test_a_score_of_which_more_is_better() -> None:
    X, y = diabetes()
    cv = ridge_run()
    history = cv.members.history["val_r2"][-1].reshape(len(cv.folds), -1).numpy()
    for f, fold in enumerate(cv.folds):
        alpha = l2path.to_sklearn_alpha(float(GRID[3]), n=len(fold.train))
        fit = linear_model.Ridge(alpha=alpha, solver="svd").fit(X[fold.train], y[fold.train])
        np.testing.assert_allclose(history[f, 3], fit.score(X[fold.test], y[fold.test]), rtol=0, atol=1e-9)


def test_logistic_regression() -> None:
    X, y = cancer()
    grid = l2path.lambda_grid(0.01, 1.0, 8)
    splitter = model_selection.StratifiedKFold(4, shuffle=True, random_state=1)
    cv = l2path.cross_validate(
        linear(30), (X, y[:, None].astype(float)), loss_fn=F.binary_cross_entropy_with_logits,
        optimizer=l2path.sgd(lr=0.5, momentum=0.9), lambdas=l2path.weights_only(grid), epochs=350, folds=splitter,
    )  # fmt: skip
    assert sorted({len(fold.train) for fold in cv.folds}) == [426, 427]
    scores = np.empty((4, len(grid)))
    for f, (train, test) in enumerate(splitter.split(X, y)):
        np.testing.assert_array_equal(cv.folds[f].train, train)
        np.testing.assert_array_equal(cv.folds[f].test, test)
        for i, lam in enumerate(grid.tolist()):
            C = l2path.to_sklearn_C(lam, n=len(train))
            fit = linear_model.LogisticRegression(C=C, tol=1e-10, max_iter=5000).fit(X[train], y[train])
            probability = fit.predict_proba(X[test])[np.arange(len(test)), y[test]]
            scores[f, i] = -np.log(probability).mean()
    assert_same_choice(cv, scores, 1e-5)


def test_preprocessing_is_a_pipeline_of_each_fold() -> None:
    # Of raw columns on different scales; with the scaler of all rows the scores differ, which is the leak.
    X, y = diabetes()
    X = X * np.geomspace(0.1, 30, X.shape[1]) + 5
    X[: len(X) // 3] *= 1.2  # rows that are unlike the others: unshuffled folds have other scales
    cv = l2path.cross_validate(
        linear(X.shape[1]), (X, y[:, None]), loss_fn=F.mse_loss, optimizer=l2path.sgd(lr=0.2, momentum=0.8),
        lambdas=l2path.weights_only(GRID), folds=model_selection.KFold(3), epochs=300,
        preprocess=preprocessing.StandardScaler(),
    )  # fmt: skip

    def scores(leak: bool) -> Floats:
        out = np.empty((3, len(GRID)))
        for f, fold in enumerate(cv.folds):
            scaler = preprocessing.StandardScaler().fit(X if leak else X[fold.train])
            train, test = scaler.transform(X[fold.train]), scaler.transform(X[fold.test])
            for i, lam in enumerate(GRID.tolist()):
                fit = linear_model.Ridge(alpha=l2path.to_sklearn_alpha(lam, n=len(fold.train)), solver="svd")
                out[f, i] = np.mean((fit.fit(train, y[fold.train]).predict(test) - y[fold.test]) ** 2)
        return out

    assert_same_choice(cv, scores(leak=False), 1e-10)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(cv.fold_scores, scores(leak=True), rtol=0, atol=1e-4)
    scaler = preprocessing.StandardScaler().fit(X)
    fit = linear_model.Ridge(alpha=l2path.to_sklearn_alpha(cv.lambda_1se, n=len(X)), solver="svd")
    fit.fit(scaler.transform(X), y)
    np.testing.assert_allclose(cv.refit().predict(X)[0, :, 0], fit.predict(scaler.transform(X)), rtol=0, atol=1e-8)


class Groups(nn.Module):
    """A linear model with a layer for each group of features."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.widths = list(widths)
        self.parts = nn.ModuleList(nn.Linear(width, 1, bias=False) for width in widths)
        self.double()
        for p in self.parameters():
            nn.init.zeros_(p)

    def forward(self, x: Tensor) -> Tensor:
        pieces = x.split(self.widths, dim=1)
        return torch.stack([part(piece) for part, piece in zip(self.parts, pieces, strict=True)]).sum(0)


@pytest.mark.parametrize("form", ["a layer for each group", "element by element"])
def test_banded_ridge_of_himalaya(form: str) -> None:
    # himalaya multiplies group g by exp(delta_g / 2) and solves with alpha = 1 on the sum of squares, so that group g
    # is penalised by exp(-delta_g): n T lambda_g / 2 = exp(-delta_g), with the n of the fold.
    ridge = pytest.importorskip("himalaya.ridge")
    X, y = diabetes()
    widths = (3, 6)
    bands = np.array([[1.0, 0.05], [0.3, 0.3], [0.05, 1.0], [0.01, 0.01]])  # [L, groups]
    module: nn.Module = Groups(*widths)
    lambdas: Any = {"parts.0.*": bands[:, 0], "parts.1.*": bands[:, 1]}
    if form == "element by element":
        module = nn.Linear(sum(widths), 1, bias=False).double()
        nn.init.zeros_(module.weight)
        lambdas = {"weight": np.repeat(bands, widths, axis=1)[:, None, :]}
    cv = l2path.cross_validate(
        module, (X, y[:, None]), loss_fn=F.mse_loss, optimizer=l2path.sgd(lr=0.2, momentum=0.8), lambdas=lambdas,
        folds=4, epochs=300,
    )  # fmt: skip
    scores = np.empty((4, len(bands)))
    for f, fold in enumerate(cv.folds):
        groups = np.split(X[fold.train], np.cumsum(widths)[:-1], axis=1)
        for i, band in enumerate(bands):
            deltas = -np.log(l2path.to_sklearn_alpha(band, n=len(fold.train)))
            scaled = np.concatenate([g * np.exp(d / 2) for g, d in zip(groups, deltas, strict=True)], axis=1)
            weights = ridge.solve_ridge_svd(scaled, y[fold.train, None], alpha=1.0, fit_intercept=False)
            weights = weights * np.exp(np.repeat(deltas, widths) / 2)[:, None]
            scores[f, i] = np.mean((X[fold.test] @ weights[:, 0] - y[fold.test]) ** 2)
    np.testing.assert_allclose(cv.fold_scores, scores, rtol=0, atol=1e-9)
    assert cv.index_min == choose(scores, cv.folds)[0]
    if form == "a layer for each group":
        assert cv.lambda_min == {"parts.0.*": bands[cv.index_min, 0], "parts.1.*": bands[cv.index_min, 1]}
    with pytest.raises(l2path.NoScoreError, match="one order of strength"):
        _ = cv.lambda_1se

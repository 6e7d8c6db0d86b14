"""ridge_path and the converters against scikit-learn and himalaya, which fit the same things their way."""

from __future__ import annotations

from functools import cache
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch

from l2path.ridge import RidgePath, ridge_path
from l2path.units import from_glmnet, from_sklearn_C, to_sklearn_alpha, to_sklearn_C

datasets = pytest.importorskip("sklearn.datasets")
linear_model = pytest.importorskip("sklearn.linear_model")

Floats = npt.NDArray[np.float64]
GRID = np.logspace(-6, 1, 6)


@cache
def data(name: str) -> tuple[Floats, Floats]:
    if name == "diabetes":
        X, y = datasets.load_diabetes(return_X_y=True)
        return X / X.std(0), y
    generator = np.random.default_rng(0)
    n, d = {"tall": (80, 6), "wide": (15, 40), "two targets": (60, 5)}[name]
    X = generator.standard_normal((n, d)) * np.logspace(-1, 1, d) + 2.0
    y = X @ generator.standard_normal((d, 2)) + generator.standard_normal((n, 2)) - 7.0
    return X, y if name == "two targets" else y[:, 0]


def assert_same(path: RidgePath, coefs: list[Floats], intercepts: list[Floats] | None, rtol: float) -> None:
    """Compare with fits whose coefficients come as scikit-learn's ``[D]`` or ``[T, D]``."""
    coef = np.stack(coefs)
    expected = coef if coef.ndim == 2 else coef.transpose(0, 2, 1)
    scale = float(np.abs(expected).max())
    np.testing.assert_allclose(path.coef.numpy(), expected, rtol=0, atol=rtol * scale)
    if intercepts is not None:
        np.testing.assert_allclose(path.intercept.numpy(), np.stack(intercepts), rtol=rtol, atol=rtol * scale)


@pytest.mark.parametrize("name", ["diabetes", "tall", "wide", "two targets"])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_ridge(name: str, fit_intercept: bool) -> None:
    X, y = data(name)
    alphas = to_sklearn_alpha(GRID, n=len(X), targets=1 if y.ndim == 1 else y.shape[1])
    fits = [linear_model.Ridge(alpha=alpha, solver="svd", fit_intercept=fit_intercept).fit(X, y) for alpha in alphas]
    path = ridge_path(X, y, GRID, fit_intercept=fit_intercept)
    intercepts = [fit.intercept_ for fit in fits] if fit_intercept else None
    assert_same(path, [fit.coef_ for fit in fits], intercepts, rtol=1e-10)
    predictions = path.predict(X).numpy()
    for k, fit in enumerate(fits):
        np.testing.assert_allclose(predictions[k], fit.predict(X), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["diabetes", "two targets"])
def test_half_mse_needs_twice_the_alpha(name: str) -> None:
    X, y = data(name)
    targets = 1 if y.ndim == 1 else y.shape[1]
    alpha = to_sklearn_alpha(0.1, n=len(X), targets=targets, loss="half_mse")
    fit = linear_model.Ridge(alpha=alpha, solver="svd").fit(X, y)
    # Half the mean squared error with lambda has the minimiser of the whole with twice lambda.
    assert_same(ridge_path(X, y, [0.2]), [fit.coef_], [fit.intercept_], rtol=1e-10)


@pytest.mark.parametrize("name", ["diabetes", "wide", "two targets"])
def test_zero_is_linear_regression(name: str) -> None:
    X, y = data(name)
    fit = linear_model.LinearRegression().fit(X, y)
    assert_same(ridge_path(X, y, [0.0]), [fit.coef_], [fit.intercept_], rtol=1e-8)


@pytest.mark.parametrize("name", ["diabetes", "wide", "two targets"])
@pytest.mark.parametrize("rows", [1, 5])
def test_per_feature_is_ridge_on_scaled_features(name: str, rows: int) -> None:
    # sum_j lambda_j w_j^2 with v_j = sqrt(lambda_j) w_j is a global penalty of 1 on v.
    X, y = data(name)
    direction = np.random.default_rng(1).uniform(0.1, 5.0, X.shape[1])
    lambdas = direction * np.logspace(-3, 1, rows)[:, None]  # five rows share an SVD, one takes a Cholesky
    alpha = to_sklearn_alpha(1.0, n=len(X), targets=1 if y.ndim == 1 else y.shape[1])
    coefs, intercepts = [], []
    for row in np.sqrt(lambdas):
        fit = linear_model.Ridge(alpha=alpha, solver="svd").fit(X / row, y)
        coefs.append(fit.coef_ / row)
        intercepts.append(fit.intercept_)
    assert_same(ridge_path(X, y, lambdas), coefs, intercepts, rtol=1e-9)


@pytest.mark.parametrize("name", ["diabetes", "two targets"])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_himalaya(name: str, fit_intercept: bool) -> None:
    solvers = pytest.importorskip("himalaya.ridge")
    X, y = data(name)
    Y = y.reshape(len(y), -1)
    coefs, intercepts = [], []
    for alpha in to_sklearn_alpha(GRID, n=len(X), targets=Y.shape[1]):
        fit = solvers.solve_ridge_svd(X, Y, alpha=float(alpha), fit_intercept=fit_intercept)
        weights, intercept = fit if fit_intercept else (fit, np.zeros(Y.shape[1]))
        coefs.append(weights.T)
        intercepts.append(intercept)
    assert_same(ridge_path(X, Y, GRID, fit_intercept=fit_intercept), coefs, intercepts, rtol=1e-9)


def test_himalaya_group_weights_scale_features() -> None:
    # himalaya's group (banded) ridge multiplies group g by exp(delta_g / 2) and has alpha = 1 on the sum of
    # squares, so group g is penalised by exp(-delta_g): n T lambda / 2 = exp(-delta_g).
    solvers = pytest.importorskip("himalaya.ridge")
    X, y = data("two targets")
    deltas = np.array([1.5, 1.5, -2.0, -2.0, -2.0])
    weights = solvers.solve_ridge_svd(X * np.exp(deltas / 2), y, alpha=1.0, fit_intercept=False)
    lambdas = 2 * np.exp(-deltas) / y.size
    path = ridge_path(X, y, lambdas[None], fit_intercept=False)
    np.testing.assert_allclose(path.coef[0].numpy(), weights * np.exp(deltas / 2)[:, None], rtol=1e-9)


@pytest.mark.parametrize("C", [0.01, 1.0, 50.0])
def test_logistic_regression_refit_at_the_converted_strength(C: float) -> None:
    X, y = data("tall")
    labels = (y > np.median(y)).astype(np.float64)
    fit = linear_model.LogisticRegression(C=C, tol=1e-12, max_iter=10_000).fit(X, labels)
    lambda_ = from_sklearn_C(C, n=len(X))
    assert to_sklearn_C(lambda_, n=len(X)) == pytest.approx(C)
    inputs, targets = torch.from_numpy(X), torch.from_numpy(labels)

    def objective(weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        loss = torch.nn.functional.binary_cross_entropy_with_logits(inputs @ weight + bias, targets)
        return loss + 0.5 * lambda_ * weight.square().sum()

    # The gradient of our objective vanishes at their solution, and not at another strength's.
    weight = torch.from_numpy(fit.coef_[0]).requires_grad_()
    bias = torch.tensor(float(fit.intercept_[0]), dtype=torch.float64, requires_grad=True)
    at_theirs = torch.cat([g.reshape(-1) for g in torch.autograd.grad(objective(weight, bias), [weight, bias])])
    assert float(at_theirs.norm()) < 1e-6
    twice = at_theirs[:-1] + lambda_ * weight.detach()  # the gradient if lambda were twice that
    assert float(twice.norm()) > 1e-4

    # And a refit from zero arrives at the same weights.
    w = torch.zeros_like(weight, requires_grad=True)
    b = torch.zeros_like(bias, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [w, b], max_iter=2000, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = objective(w, b)
        value.backward()
        return value

    optimizer.step(closure)
    torch.testing.assert_close(w.detach(), weight.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", ["mse", "half_mse"])
def test_glmnet_by_its_own_recipe(loss: Literal["mse", "half_mse"]) -> None:
    # glmnet itself is not at hand: this follows its documented inner problem, with y scaled to unit variance.
    X, y = data("diabetes")
    theirs, sd_y = 20.0, float(y.std())
    lambda_ = from_glmnet(theirs, sd_y=sd_y) * (2.0 if loss == "mse" else 1.0)
    # Inner: 1/(2n) |y / sd - X v|^2 + (theirs / sd) / 2 |v|^2, then w = sd v.
    inner = linear_model.Ridge(alpha=len(X) * theirs / sd_y, solver="svd").fit(X, y / sd_y)
    if loss == "mse":
        assert_same(ridge_path(X, y, [lambda_]), [inner.coef_ * sd_y], None, rtol=1e-10)
    alpha = to_sklearn_alpha(lambda_, n=len(X), loss=loss)
    ours = linear_model.Ridge(alpha=alpha, solver="svd").fit(X, y)
    np.testing.assert_allclose(ours.coef_, inner.coef_ * sd_y, rtol=1e-10)


def test_the_comparison_can_fail() -> None:
    X, y = data("diabetes")
    fit = linear_model.Ridge(alpha=to_sklearn_alpha(0.1, n=len(X)), solver="svd").fit(X, y)
    with pytest.raises(AssertionError):
        assert_same(ridge_path(X, y, [0.1 * (1 + 1e-6)]), [fit.coef_], [fit.intercept_], rtol=1e-10)

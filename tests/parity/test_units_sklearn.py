"""``from_sklearn_alpha`` and ``from_sklearn_C``: scikit-learn's strengths, trained here by gradient descent.

The other direction, on exact solutions, is in test_ridge_sklearn.py; within folds in test_cross_validate_sklearn.py.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
from torch import Tensor, nn
from torch.nn import functional as F

import l2path
from tests.helpers import assert_trees_close

datasets = pytest.importorskip("sklearn.datasets")
linear_model = pytest.importorskip("sklearn.linear_model")

Floats = npt.NDArray[np.float64]
RTOL = 1e-7


def half_mse(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * F.mse_loss(outputs, targets)


def train(X: Floats, y: Any, loss: Any, lambdas: Floats, outputs: int, lr: float) -> tuple[Floats, Floats]:
    """Return weights ``[L, T, D]`` and biases ``[L, T]``."""
    module = nn.Linear(X.shape[1], outputs).double()
    nn.init.zeros_(module.weight)
    nn.init.zeros_(module.bias)
    result = l2path.batch_train(
        module, (X, y), loss_fn=loss, optimizer=l2path.sgd(lr=lr, momentum=0.9), lambdas=l2path.weights_only(lambdas),
        epochs=400,
    )  # fmt: skip
    return result.params["weight"].numpy(), result.params["bias"].numpy()


@pytest.mark.parametrize("loss", ["mse", "half_mse"])
@pytest.mark.parametrize("targets", [1, 2])
def test_alpha(targets: int, loss: Literal["mse", "half_mse"]) -> None:
    X, y = datasets.load_diabetes(return_X_y=True)
    X = X[:100, :4] * 20
    Y = np.stack([y[:100], 300 * X[:, 0] ** 2], axis=1)[:, :targets] / 100
    alphas = np.array([100.0, 10.0, 1.0])
    fits = [linear_model.Ridge(alpha=alpha, solver="svd").fit(X, Y) for alpha in alphas]
    expected = [np.stack([fit.coef_.reshape(targets, 4) for fit in fits]), np.stack([fit.intercept_ for fit in fits])]
    lambdas = l2path.from_sklearn_alpha(alphas, n=100, targets=targets, loss=loss)
    function, lr = (F.mse_loss, 0.2) if loss == "mse" else (half_mse, 0.4)
    assert_trees_close(list(train(X, Y, function, lambdas, targets, lr)), expected, RTOL)
    with pytest.raises(AssertionError, match="relative difference"):  # the comparison can fail
        assert_trees_close(list(train(X, Y, function, 1.001 * lambdas, targets, lr)), expected, 10 * RTOL)


@pytest.mark.parametrize("classes", [2, 3])
def test_C(classes: int) -> None:
    X, y = datasets.load_iris(return_X_y=True)
    X, y = X[y < classes], y[y < classes]
    X = X - X.mean(axis=0)
    strengths = np.array([0.01, 0.1, 1.0])
    fits = [linear_model.LogisticRegression(C=C, tol=1e-12, max_iter=10_000).fit(X, y) for C in strengths]
    # Of two classes it fits one logit; of three a softmax, whose intercepts it leaves at a sum of zero.
    expected = [np.stack([fit.coef_ for fit in fits]), np.stack([fit.intercept_ for fit in fits])]
    lambdas = l2path.from_sklearn_C(strengths, n=len(X))
    labels, loss = (y[:, None] * 1.0, F.binary_cross_entropy_with_logits) if classes == 2 else (y, F.cross_entropy)
    outputs = 1 if classes == 2 else 3
    assert_trees_close(list(train(X, labels, loss, lambdas, outputs, 0.5)), expected, 1e-5)
    with pytest.raises(AssertionError, match="relative difference"):
        assert_trees_close(list(train(X, labels, loss, 1.001 * lambdas, outputs, 0.5)), expected, 1e-4)

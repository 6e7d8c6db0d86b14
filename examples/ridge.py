"""Train a linear layer at ten L2 strengths, and check it against the closed form and scikit-learn.

The data are scikit-learn's diabetes measurements, standardised. Gradient descent at all strengths at once must
arrive where the exact solution of each is. Needs the extra "sklearn".
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Ridge
from torch import nn

import l2path


def main() -> None:
    X, y = load_diabetes(return_X_y=True)
    X = (X - X.mean(0)) / X.std(0)
    inputs, targets = torch.from_numpy(X), torch.from_numpy(y)
    lambdas = l2path.lambda_grid(1e-3, 1.0, 10)

    # Trained: the penalty names the weight alone, so the bias is free, as in the other two. Full batches and
    # momentum near the best for a quadratic, whose curvatures lie between 0.018 and 9 here.
    torch.manual_seed(0)
    result = l2path.batch_train(
        nn.Linear(X.shape[1], 1, dtype=torch.float64),
        (inputs, targets[:, None]),
        loss_fn=nn.functional.mse_loss,
        optimizer=l2path.sgd(lr=0.4, momentum=0.84),
        lambdas={"weight": lambdas},
        epochs=400,
        batch_size=len(X),
        seed=0,
    )
    trained = result.params["weight"][:, 0]  # [K, D]
    trained_bias = result.params["bias"][:, 0]  # [K]

    # Exact: one factorisation for all strengths.
    exact = l2path.ridge_path(inputs, targets, lambdas)

    # scikit-learn: a fit for each, in its own unit.
    alphas = [l2path.to_sklearn_alpha(float(value), n=len(X)) for value in lambdas]
    fits = [Ridge(alpha=alpha, solver="svd").fit(X, y) for alpha in alphas]
    theirs = torch.from_numpy(np.stack([fit.coef_ for fit in fits]))
    their_bias = torch.tensor([fit.intercept_ for fit in fits], dtype=torch.float64)

    print("    lambda  sklearn alpha      |w|  trained - exact  sklearn - exact")
    for k, alpha in enumerate(alphas):
        norm = float(exact.coef[k].norm())
        off = float((trained[k] - exact.coef[k]).abs().max())
        off_sklearn = float((theirs[k] - exact.coef[k]).abs().max())
        print(f"{float(lambdas[k]):10.4g} {alpha:14.4g} {norm:8.3f} {off:16.1e} {off_sklearn:16.1e}")

    largest = max(
        float((weights - exact.coef).abs().max() + (bias - exact.intercept).abs().max())
        for weights, bias in ((trained, trained_bias), (theirs, their_bias))
    )
    print(f"\nlargest difference from the exact weights and intercepts: {largest:.1e}")


if __name__ == "__main__":
    main()

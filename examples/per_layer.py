"""One strength for each layer: patterns, weights only, and the product of two grids.

Scikit-learn's breast cancer data, an MLP whose two layers get lambdas of their own.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional as F

import l2path


def load() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Training and validation rows, standardised on the training rows."""
    features, labels = load_breast_cancer(return_X_y=True)
    x_train, x_val, y_train, y_val = train_test_split(features, labels, train_size=150, random_state=0, stratify=labels)
    scaler = StandardScaler().fit(x_train)

    def tensors(x: object, y: object) -> tuple[Tensor, Tensor]:
        return torch.as_tensor(scaler.transform(x), dtype=torch.float32), torch.as_tensor(y)

    return tensors(x_train, y_train), tensors(x_val, y_val)


def make() -> nn.Sequential:
    """An MLP with a normalisation layer."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(30, 32), nn.LayerNorm(32), nn.Tanh(), nn.Linear(32, 2))


def main() -> None:
    """Sweep the two layers separately and compare with one lambda for both."""
    train, validation = load()
    model = make()
    grid = l2path.lambda_grid(1e-3, 1.0, 6, zero=True)
    both = [{"0.weight": float(first), "3.weight": float(last)} for first in grid for last in grid]

    print("Which parameter gets which lambda (member 0 of the product):\n")
    print(l2path.lambda_table(model, both[0]))

    def run(lambdas: object) -> l2path.PathResult:
        return l2path.batch_train(
            model,
            train,
            loss_fn=F.cross_entropy,
            optimizer=l2path.adam(lr=3e-3),
            lambdas=lambdas,
            epochs=60,
            batch_size=32,
            validation=validation,
        )

    print(f"\nThe product of two grids, {len(both)} members in one run:\n")
    product = run(both)
    print(product)
    print("\nOne lambda for all weights, biases and normalisation layers free:\n")
    shared = run(l2path.weights_only(grid))
    print(shared)
    print(
        f"\nbest per layer: {product.best.lambdas}, validation loss {product.best.score:.4f}"
        f"\nbest shared:    {shared.best.lambdas:.4g}, validation loss {shared.best.score:.4f}"
        "\nChosen among more candidates on the same rows, the first is the more optimistic of the two figures."
    )


if __name__ == "__main__":
    main()

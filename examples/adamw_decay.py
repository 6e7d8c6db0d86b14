"""Which decay for AdamW? The decoupled decay is swept like a lambda, beside Adam with an L2 penalty.

Scikit-learn's digits with few training rows, weights only, as is usual for AdamW.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

import l2path


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Share of rows whose largest logit is the right class."""
    return (outputs.argmax(1) == targets).float().mean()


def main() -> None:
    """Sweep both kinds of shrinkage and print what they choose."""
    images, labels = load_digits(return_X_y=True)
    x_train, x_val, y_train, y_val = train_test_split(images / 16, labels, train_size=100, random_state=0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))

    def run(optimizer: l2path.Optimizer, **axis: object) -> l2path.PathResult:
        return l2path.batch_train(
            model,
            (x_train, y_train),
            loss_fn=F.cross_entropy,
            optimizer=optimizer,
            epochs=150,
            batch_size=32,
            validation=(x_val, y_val),
            metrics={"accuracy": l2path.Metric(accuracy, greater_is_better=True)},
            **axis,  # type: ignore[arg-type]  # lambdas= or sweep=
        )

    decays = l2path.lambda_grid(0.01, 10.0, 10, zero=True)
    print("AdamW, decoupled decay (no L2 objective: the penalty column stays 0):\n")
    decoupled = run(l2path.adamw(lr=3e-3), sweep={"decay": l2path.weights_only(decays)})
    print(decoupled)

    print("\nAdam, L2 penalty in the objective (what torch.optim.Adam(weight_decay=...) does):\n")
    coupled = run(l2path.adam(lr=3e-3), lambdas=l2path.weights_only(l2path.lambda_grid(1e-5, 1e-1, 10, zero=True)))
    print(coupled)

    print(
        f"\nbest decay {decoupled.best.hyper['decay']:.4g}: validation loss {decoupled.best.score:.4f}"
        f"\nbest lambda {coupled.best.lambdas:.4g}: validation loss {coupled.best.score:.4f}"
        "\nThe two are different methods on different scales: a decay is no lambda."
    )


if __name__ == "__main__":
    main()

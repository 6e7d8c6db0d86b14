"""32 lambdas of a real model at once: scikit-learn's digits, an MLP, and the honest price beside a plain loop.

Run it with ``python examples/digits_path.py``; it writes ``digits_path.png``.
"""

from __future__ import annotations

import math
import time

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

import l2path

EPOCHS, BATCH, LR, MOMENTUM = 60, 32, 0.05, 0.9


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Share of rows whose largest logit is the right class."""
    return (outputs.argmax(1) == targets).float().mean()


def wilson(p: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % confidence interval of a proportion (Wilson 1927)."""
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)


def make() -> nn.Module:
    """The model, the same weights at every call."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def torch_loop(x: Tensor, y: Tensor, decay: float) -> nn.Module:
    """What one has without l2path: one run for each candidate."""
    module = make()
    optimizer = torch.optim.SGD(module.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=decay)
    for epoch in range(EPOCHS):
        for rows in l2path.data_order(len(x), seed=0, epoch=epoch).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(module(x[rows]), y[rows]).backward()
            optimizer.step()
    return module


def main() -> None:
    """Train, choose, test, draw, and time both ways."""
    images, labels = load_digits(return_X_y=True)
    # Few training rows, so that the strength of the penalty matters.
    x_train, x_rest, y_train, y_rest = train_test_split(images / 16, labels, train_size=300, random_state=0)
    x_val, x_test, y_val, y_test = train_test_split(x_rest, y_rest, test_size=0.5, random_state=0)
    x, y = torch.as_tensor(x_train, dtype=torch.float32), torch.as_tensor(y_train)

    lambdas = l2path.lambda_grid(1e-5, 1.0, 32)
    start = time.perf_counter()
    result = l2path.batch_train(
        make(),
        (x, y),
        loss_fn=F.cross_entropy,
        optimizer=l2path.sgd(lr=LR, momentum=MOMENTUM),
        lambdas=lambdas,
        epochs=EPOCHS,
        batch_size=BATCH,
        validation=(x_val, y_val),
        metrics={"accuracy": l2path.Metric(accuracy, greater_is_better=True)},
    )
    batched = time.perf_counter() - start
    print(result)

    best = make()
    best.load_state_dict(result.best.state_dict(), strict=True)
    inputs, targets = torch.as_tensor(x_test, dtype=torch.float32), torch.as_tensor(y_test)
    with torch.no_grad():
        tested = float(accuracy(best.eval()(inputs), targets))
    low, high = wilson(tested, len(targets))
    print(
        f"\nbest lambda {result.best.lambdas:.4g}: test accuracy {tested:.3f} (95 % interval {low:.3f} to {high:.3f})"
    )

    start = time.perf_counter()
    loops = [torch_loop(x, y, float(lam)) for lam in lambdas]
    looped = time.perf_counter() - start
    difference = max(
        float((p.detach() - result.params[name][k]).abs().max())
        for k, module in enumerate(loops)
        for name, p in module.named_parameters()
    )
    print(
        f"{len(lambdas)} lambdas, {EPOCHS} epochs: {batched:.2f} s in one batched run (checks, validation and all), "
        f"{looped:.2f} s in a torch.optim loop (training alone): {looped / batched:.1f} times as fast; "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    )
    print(f"largest difference of any weight between the two: {difference:.1e} (float32 rounding)")
    result.plot().savefig("digits_path.png", dpi=130)
    print("wrote digits_path.png")


if __name__ == "__main__":
    main()

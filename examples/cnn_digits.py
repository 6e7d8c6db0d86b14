"""What does L2 buy a residual CNN with BatchNorm? Scikit-learn's digits, 300 training rows, eight lambdas, three seeds.

The lambda is chosen by the accuracy on validation rows. Test rows, which the choice has not seen, then say what it
bought over no penalty, and how sure that is. Needs the extra "sklearn".
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

import l2path

SEEDS, EPOCHS, BATCH = (0, 1, 2), 30, 50


class Block(nn.Module):
    """Two convolutions beside a shortcut, as in ResNet."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[B, C, H, W]`` from the same."""
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


def make() -> nn.Module:
    """A stem, two residual blocks and a linear head."""
    stem = [nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*stem, Block(16), Block(16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Share of rows whose largest logit is the right class."""
    return (outputs.argmax(1) == targets).float().mean()


def compare(name: str, rows: Tensor, result: l2path.PathResult) -> str:
    """Say what the chosen lambda bought over none: ``rows`` are test scores ``[K, n]``, paired over the rows."""
    best, none = rows[result.lambdas == result.best.lambdas], rows[result.lambdas == 0]  # [seeds, n]
    gain = (best - none).mean(0)
    by_seed = ", ".join(f"{d:+.3f}" for d in (best - none).mean(1).tolist())
    return (
        f"test {name} {best.mean():.3f} with lambda {result.best.lambdas:.4g}, {none.mean():.3f} with none: "
        f"{gain.mean():+.3f} ± {gain.std() / len(gain) ** 0.5:.3f} (paired, {len(gain)} test rows; by seed {by_seed})"
    )


def main() -> None:
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 1, 8, 8) / 16
    # Few training rows, so that regularisation matters.
    x, x_rest, y, y_rest = train_test_split(images, labels, train_size=300, random_state=0, stratify=labels)
    x_val, x_test, y_val, y_test = train_test_split(x_rest, y_rest, train_size=600, random_state=0, stratify=y_rest)

    # A lambda on weights in front of BatchNorm sets their effective learning rate (docs/conventions.md): its best value
    # belongs to this learning rate and this schedule.
    schedule = l2path.schedules.cosine(EPOCHS * len(y) // BATCH)
    result = l2path.batch_train(
        make,
        (x, y),
        loss_fn=F.cross_entropy,
        optimizer=l2path.sgd(lr=0.05, momentum=0.9, schedule=schedule),
        lambdas=l2path.weights_only(l2path.lambda_grid(1e-3, 1.0, 7, zero=True)),
        epochs=EPOCHS,
        batch_size=BATCH,
        seeds=SEEDS,
        validation=(x_val, y_val),
        metrics={"accuracy": l2path.Metric(accuracy, greater_is_better=True)},
        select="accuracy",
    )
    print(result)

    outputs, targets = result.predict(x_test), torch.as_tensor(y_test)  # [K, n, 10], [n]
    print()
    print(compare("accuracy", (outputs.argmax(2) == targets).double(), result))
    losses = torch.stack([F.cross_entropy(logits, targets, reduction="none") for logits in outputs])
    print(compare("loss (less is better)", losses.double(), result))


if __name__ == "__main__":
    main()

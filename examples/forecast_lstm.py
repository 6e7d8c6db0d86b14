"""What does L2 buy an LSTM that forecasts? The sea surface temperature of El Niño, monthly from 1950 to 2010.

From the last twelve months to three months ahead. Trained on the first 30 years, the lambda chosen on the next 15, and
what it bought over no penalty measured on the last 16. Needs statsmodels, for its data.
"""

from __future__ import annotations

import torch
from statsmodels.datasets import elnino
from torch import Tensor, nn
from torch.nn import functional as F

import l2path

SEEDS, PAST, AHEAD = (0, 1, 2), 12, 3


class Forecaster(nn.Module):
    """An LSTM over the past months, and a linear head on its last output."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, 32, batch_first=True)
        self.head = nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[B, 1]`` from ``[B, PAST, 1]``."""
        states, _ = self.lstm(x)
        out: Tensor = self.head(states[:, -1])
        return out


def load() -> list[tuple[Tensor, Tensor]]:
    """Windows and what follows them, for training, validation and test, split by the month that is forecast."""
    table = elnino.load_pandas().data.set_index("YEAR")
    celsius = torch.tensor(table.to_numpy(), dtype=torch.float32)  # [61 years, 12 months]
    train = celsius[:30]
    # Anomalies: each month in units of what is usual for it, by the training years alone.
    anomalies = ((celsius - train.mean(0)) / train.std(0)).flatten()
    windows = anomalies.unfold(0, PAST + AHEAD, 1)
    inputs, targets = windows[:, :PAST, None], windows[:, -1:]
    year = (torch.arange(len(targets)) + PAST + AHEAD - 1) // 12
    return [(inputs[part], targets[part]) for part in (year < 30, (year >= 30) & (year < 45), year >= 45)]


def main() -> None:
    train, validation, (x, y) = load()
    result = l2path.batch_train(
        Forecaster,
        train,
        loss_fn=F.mse_loss,
        optimizer=l2path.adam(lr=0.01),
        lambdas=l2path.weights_only(l2path.lambda_grid(1e-4, 0.1, 7, zero=True)),
        epochs=40,
        batch_size=64,
        seeds=SEEDS,
        validation=validation,
    )
    print(result)

    errors = (result.predict(x) - y).squeeze(2).square()  # [K, months]
    best, none = errors[result.lambdas == result.best.lambdas], errors[result.lambdas == 0]  # [seeds, months]
    # Neighbouring months have much in common: pair by years, which have less.
    gain = (best - none).mean(0).view(-1, 12).mean(1)  # [years]
    by_seed = ", ".join(f"{d:+.3f}" for d in (best - none).mean(1).tolist())
    print(
        f"\ntest error {best.mean():.3f} with lambda {result.best.lambdas:.4g}, {none.mean():.3f} with none: "
        f"{gain.mean():+.3f} ± {gain.std() / len(gain) ** 0.5:.3f} (paired, {len(gain)} test years; by seed {by_seed})"
    )
    print(
        f"for comparison: {(x[:, -1] - y).square().mean():.3f} for 'as in the last month', "
        f"{y.square().mean():.3f} for 'as usual in that month'; squared errors, in units of the usual variance"
    )


if __name__ == "__main__":
    main()

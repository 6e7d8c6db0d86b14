"""What is trained in the benchmarks: modules as a user writes them, random data, losses and optimizers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    import l2path


class Workload(NamedTuple):
    """A module, what it is trained on, and how."""

    make: Callable[[], nn.Module]
    inputs: tuple[int, ...]  # of one row
    classes: int  # 0: regression on one number
    batch: int  # rows
    batches: int = 64  # in an epoch: fewer where they are slow, so that a round of measurements stays short
    adam: bool = False  # else SGD with momentum
    dtype: torch.dtype = torch.float32
    scored: bool = False  # whether members are scored after each epoch, on a fifth as many rows as they are trained on

    @property
    def loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Mean loss of a batch."""
        return F.cross_entropy if self.classes else F.mse_loss

    def module(self) -> nn.Module:
        """Return a new module, always the same."""
        torch.manual_seed(0)
        return self.make().to(self.dtype)

    def data(self, batches: int) -> tuple[Tensor, Tensor]:
        """Return random inputs and targets for so many batches."""
        generator = torch.Generator().manual_seed(0)
        n = batches * self.batch
        inputs = torch.randn(n, *self.inputs, generator=generator, dtype=self.dtype)
        if self.classes:
            return inputs, torch.randint(0, self.classes, (n,), generator=generator)
        return inputs, torch.randn(n, 1, generator=generator, dtype=self.dtype)

    def validation(self, batches: int) -> tuple[Tensor, Tensor] | None:
        """Return what members are scored on, beside so many batches of training; None for nothing."""
        if not self.scored:
            return None
        inputs, targets = self.data(batches)
        n = len(inputs) // 5
        return inputs[:n].clone(), targets[:n].clone()

    def ours(self) -> l2path.Optimizer:
        """Return the optimizer of l2path."""
        import l2path  # here, so that a loop's process does without

        return l2path.adam(lr=1e-3) if self.adam else l2path.sgd(lr=0.01, momentum=0.9)

    def theirs(self, module: nn.Module, strength: float) -> torch.optim.Optimizer:
        """Return the same of torch.optim, its fused implementation."""
        settings: dict[str, Any] = {"weight_decay": strength, "fused": True}
        if self.adam:
            return torch.optim.Adam(module.parameters(), lr=1e-3, **settings)
        return torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9, **settings)


class Forecaster(nn.Module):
    """A recurrent layer of torch, and a linear layer on its last output."""

    def __init__(self, layer: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.recurrent, self.head = layer(4, 32, batch_first=True), nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[B, 1]``."""
        out: Tensor = self.head(self.recurrent(x)[0][:, -1])
        return out


class Encoder(nn.Module):
    """One encoder layer without dropout, and a linear layer on the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[B, 10]``."""
        out: Tensor = self.head(self.layer(x).mean(1))
        return out


def tiny() -> nn.Module:
    """13-32-1."""
    return nn.Sequential(nn.Linear(13, 32), nn.Tanh(), nn.Linear(32, 1))


def mlp(dropout: float = 0.0) -> nn.Module:
    """64-128-128-10."""
    widths, layers = (64, 128, 128), []
    for i in (0, 1):
        layers += [nn.Linear(widths[i], widths[i + 1]), nn.ReLU()]
        layers += [nn.Dropout(dropout)] * (dropout > 0)
    return nn.Sequential(*layers, nn.Linear(128, 10))


def cnn(norm: bool = False) -> nn.Module:
    """Two convolutions of 3 x 3."""
    layers: list[nn.Module] = []
    for channels, more in ((1, 16), (16, 32)):
        layers += [nn.Conv2d(channels, more, 3, padding=1)]
        layers += [nn.BatchNorm2d(more)] * norm
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10))


_MLP = Workload(mlp, (64,), 10, 128)
_CNN = Workload(cnn, (1, 16, 16), 10, 64, batches=16)
_TFM = Workload(Encoder, (16, 64), 10, 32, batches=16)
_LSTM = Workload(lambda: Forecaster(nn.LSTM), (24, 4), 0, 32, batches=16)

WORKLOADS = {
    "tiny": Workload(tiny, (13,), 0, 32),
    "mlp": _MLP,
    "lstm": _LSTM,
    "tfm": _TFM,
    "cnn": _CNN,
}
VARIATIONS = {
    "mlp-adam": _MLP._replace(adam=True),
    "mlp-float64": _MLP._replace(dtype=torch.float64),
    "mlp-8": _MLP._replace(batch=8),
    "mlp-1024": _MLP._replace(batch=1024, batches=16),
    "mlp-dropout": _MLP._replace(make=lambda: mlp(0.1)),
    "gru": _LSTM._replace(make=lambda: Forecaster(nn.GRU)),
    "cnn-bn": _CNN._replace(make=lambda: cnn(norm=True)),
    **{f"{name}-scored": workload._replace(scored=True) for name, workload in WORKLOADS.items()},
}
ALL = WORKLOADS | VARIATIONS
SAID = {
    "tiny": "MLP 13-32-1, tanh, batch 32",
    "mlp": "MLP 64-128-128-10, batch 128",
    "lstm": "LSTM, 4 features, 24 steps, hidden 32, batch 32",
    "tfm": "encoder layer, d 64, 4 heads, ff 128, 16 tokens, batch 32",
    "cnn": "CNN, two 3 x 3 convolutions on 16 x 16, batch 64",
    "mlp-adam": "mlp with Adam",
    "mlp-float64": "mlp in float64",
    "mlp-8": "mlp, batch 8",
    "mlp-1024": "mlp, batch 1024",
    "mlp-dropout": "mlp with dropout",
    "gru": "lstm with a GRU in its place",
    "cnn-bn": "cnn with BatchNorm",
    **{f"{name}-scored": f"{name}, scored after each epoch on a fifth as many rows" for name in WORKLOADS},
}

"""Small models, data and a handwritten torch loop that the suite compares with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import l2path

# A partial last batch of 3. With fewer rows the runs turn chaotic: rounding grows to percents in 200 steps.
ROWS, BATCH = 103, 20
GRID = l2path.lambda_grid(1e-3, 0.3, 3)


def smooth(seed: int = 0) -> nn.Module:
    """A smooth classifier with a normalisation layer, float64."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 3)).double()


def noisy(seed: int = 0) -> nn.Module:
    """The same with BatchNorm and dropout: buffers and random masks."""
    torch.manual_seed(seed)
    # No bias in front of BatchNorm: its gradient is pure rounding, which adaptive optimizers blow up.
    layers = (nn.Linear(5, 8, bias=False), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 3))
    return nn.Sequential(*layers).double()


def classes(rows: int = ROWS, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Inputs ``[rows, 5]`` float64 and three classes that depend on them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 5, generator=generator, dtype=torch.float64)
    return x, (x[:, 0] + x[:, 1] ** 2 > 0.5).long() + (x[:, 2] > 0.7).long()


def handwritten(
    make: Callable[[], nn.Module],
    data: tuple[Tensor, Tensor],
    build: Callable[[list[Tensor]], torch.optim.Optimizer],
    lambdas: Mapping[str, Tensor | float],
    *,
    epochs: int,
    batch: int = BATCH,
    seed: int = 0,
    clip: float | None = None,
) -> tuple[nn.Module, dict[str, list[float]]]:
    """Train as a user would without l2path: an explicit penalty in the loss, the published order and masks.

    With ``clip`` the data gradient is clipped before the penalty's is added, as torch's weight decay does it.
    """
    module = make()
    named = dict(module.named_parameters())
    optimizer = build(list(named.values()))
    history: dict[str, list[float]] = {"loss": [], "penalty": []}
    x, y = data
    step = 0
    for epoch in range(epochs):
        order = l2path.data_order(len(x), seed, epoch)
        sums = {"loss": 0.0, "penalty": 0.0}
        for start in range(0, len(x), batch):
            rows = order[start : start + batch]
            torch.manual_seed(l2path.step_seed(seed, step))
            optimizer.zero_grad()
            loss = F.cross_entropy(module(x[rows]), y[rows])
            penalty = torch.stack([0.5 * (lam * named[n] ** 2).sum() for n, lam in lambdas.items()]).sum()
            if clip is None:
                (loss + penalty).backward()
            else:
                loss.backward()
                nn.utils.clip_grad_norm_(named.values(), clip)
                penalty.backward()
            optimizer.step()
            step += 1
            sums["loss"] += len(rows) * loss.item()
            sums["penalty"] += len(rows) * penalty.item()
        for name, total in sums.items():
            history[name].append(total / len(x))
    return module, history


def train(**changes: Any) -> l2path.PathResult:
    """A short run of a small classifier with validation, with what differs."""
    settings: dict[str, Any] = {
        "module": smooth(), "data": classes(), "loss_fn": F.cross_entropy, "lambdas": GRID, "epochs": 3,
        "optimizer": l2path.sgd(lr=0.05, momentum=0.9), "batch_size": BATCH, "validation": classes(40, 2),
    }  # fmt: skip
    settings |= changes
    return l2path.batch_train(settings.pop("module"), settings.pop("data"), **settings)

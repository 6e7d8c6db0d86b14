"""``from_weight_decay`` against torch.optim: each strength refitted with the optimizer that has it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import l2path
from tests.helpers import assert_trees_close
from tests.models import BATCH, classes, smooth

DECAYS = torch.tensor([0.1, 0.01, 0.0], dtype=torch.float64)
EPOCHS = 20
CASES: dict[str, tuple[l2path.Optimizer, Callable[..., torch.optim.Optimizer]]] = {
    "sgd": (l2path.sgd(lr=0.05), lambda p, **decay: torch.optim.SGD(p, lr=0.05, **decay)),
    "momentum": (
        l2path.sgd(lr=0.05, momentum=0.9, nesterov=True),
        lambda p, **decay: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, **decay),
    ),
    "adam": (l2path.adam(lr=0.01), lambda p, **decay: torch.optim.Adam(p, lr=0.01, **decay)),
}


def train_torch(build: Callable[..., torch.optim.Optimizer], decay: float) -> dict[str, Tensor]:
    module = smooth()
    optimizer = build(module.parameters(), weight_decay=decay)
    x, y = classes()
    for epoch in range(EPOCHS):
        for rows in l2path.data_order(len(x), seed=0, epoch=epoch).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(module(x[rows]), y[rows]).backward()
            optimizer.step()
    return dict(module.named_parameters())


def train(optimizer: l2path.Optimizer, lambdas: Tensor) -> l2path.PathResult:
    return l2path.batch_train(
        smooth(), classes(), loss_fn=F.cross_entropy, optimizer=optimizer, lambdas=lambdas, epochs=EPOCHS,
        batch_size=BATCH,
    )  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_weight_decay(name: str) -> None:
    optimizer, build = CASES[name]
    result = train(optimizer, l2path.from_weight_decay(DECAYS))
    for k, lam in enumerate(DECAYS):
        expected = train_torch(build, float(l2path.to_weight_decay(lam)))
        assert_trees_close(result.member(k).params, expected, 1e-10)
    with pytest.raises(AssertionError, match="relative difference"):  # the comparison can fail
        assert_trees_close(result.member(0).params, train_torch(build, 0.1001), 1e-6)


def test_that_of_adamw_is_another_thing() -> None:
    def adamw(parameters: Iterable[nn.Parameter], weight_decay: float) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=0.01, weight_decay=weight_decay)

    with pytest.raises(AssertionError, match="relative difference"):
        assert_trees_close(train(CASES["adam"][0], DECAYS[:1]).member(0).params, train_torch(adamw, 0.1), 1e-2)

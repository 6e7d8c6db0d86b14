"""Whole architectures as people train them: the contract, and one run of each with validation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.contract import MODES, by_hand, check_members, check_whole_run, solo_runs
from tests.families import LAMBDAS, SEED, Family, ResidualBlock, normal, seeded, whole
from tests.helpers import assert_trees_close


class ResNet(nn.Module):
    """A stem, two stages of residual blocks with BatchNorm, pooling and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.stages = nn.Sequential(ResidualBlock(4, 4), nn.MaxPool2d(2), ResidualBlock(4, 6))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(6, 3))

    def forward(self, x: Tensor) -> Any:
        return self.head(self.stages(self.stem(x)))


class Forecaster(nn.Module):
    """A recurrent encoder of a window with dropout between its layers, and a head for the next values."""

    def __init__(self, layer: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.rnn = layer(3, 5, num_layers=2, dropout=0.2, batch_first=True)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.rnn(x)[0][:, -1])


class Classifier(nn.Module):
    """Embedded tokens with positions, an ``nn.TransformerEncoder`` with dropout that sees no padding, and a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 8, padding_idx=0)
        self.position = nn.Parameter(torch.randn(6, 8) / 10)
        layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(8), enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor, padding: Tensor) -> Any:
        h = self.encoder(self.embedding(tokens) + self.position, src_key_padding_mask=padding)
        keep = (~padding).unsqueeze(-1)
        return self.head((h * keep).sum(1) / keep.sum(1))


def images() -> tuple[Tensor, Tensor]:
    return normal(2, 8, 8), whole(3)


def windows() -> tuple[Tensor, Tensor]:
    x = normal(7, 3)
    return x, x[:, -2:, 0] + 0.1 * normal(2, seed=2)


def sentences() -> tuple[dict[str, Tensor], Tensor]:
    tokens = whole(12, 6, low=1, seed=1)
    padding = torch.arange(6) >= (torch.arange(len(tokens)) % 4 + 3).unsqueeze(1)
    return {"tokens": tokens.masked_fill(padding, 0), "padding": padding}, whole(3)


def case(name: str, build: Callable[[], nn.Module], data: Callable[[], Any], loss_fn: Any, **expected: Any) -> Family:
    return Family(name, "architectures", seeded(build), data, loss_fn, **expected)


CASES = {
    family.name: family
    for family in (
        case("ResNet", ResNet, images, F.cross_entropy, replaces="dropout"),
        case("LSTM", lambda: Forecaster(nn.LSTM), windows, F.mse_loss),
        case("GRU", lambda: Forecaster(nn.GRU), windows, F.mse_loss),
        case("TransformerEncoder", Classifier, sentences, F.cross_entropy, replaces="dropout"),
    )
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CASES)
def test_every_member_equals_a_handwritten_loop(name: str, mode: str) -> None:
    check_members(CASES[name], mode)


@pytest.mark.parametrize("name", CASES)
def test_other_masks_are_noticed(name: str) -> None:
    # A dropout that did nothing would test nothing.
    wrong = by_hand(CASES[name], LAMBDAS[1], mask_seed=SEED + 1)
    with pytest.raises(AssertionError, match="relative difference"):
        assert_trees_close(wrong.module.state_dict(), solo_runs(CASES[name])[1].module.state_dict(), 1e-4)


@pytest.mark.parametrize("name", CASES)
def test_a_whole_run(name: str) -> None:
    result = check_whole_run(CASES[name])
    errors = result.uncertainty.difference_errors
    assert errors is not None
    assert bool((errors > 0).sum() == len(LAMBDAS) - 1)

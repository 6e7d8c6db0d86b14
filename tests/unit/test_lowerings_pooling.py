"""The native largest numbers of windows against torch's max pooling: values, places, gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn import functional as F

from l2path.functional import lowered as lowering
from l2path.functional.lowered import Lowered
from l2path.lowerings.pooling import max_pool
from tests.helpers import assert_trees_close
from tests.unit.lowerings_kernels import native_kernels

DTYPES = (torch.float32, torch.float64)


@pytest.fixture(scope="module", autouse=True)
def kernels() -> None:
    native_kernels()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What the native operation is given."""
    seen: list[Tensor] = []

    def noted(x: Tensor) -> Tensor:
        seen.append(x)
        return max_pool(x)

    monkeypatch.setattr(lowering, "max_pool", noted)
    return seen


def images(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Few different numbers, so that the largest one of a window often comes twice."""
    return torch.randint(0, 4, shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def value_and_gradient(call: Any, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = call(x)
    weight = torch.arange(1.0, y.numel() + 1, dtype=y.dtype).reshape(y.shape)
    return [y.detach(), *torch.autograd.grad((y * weight).sum(), x)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 3, 16, 21])
@pytest.mark.parametrize(("window", "size"), [(2, (6, 4)), ((1, 3), (2, 9)), ((3, 2), (3, 2)), (1, (3, 3))])
def test_it_is_torchs(
    window: Any, size: tuple[int, int], channels: int, dtype: torch.dtype, calls: list[Tensor]
) -> None:
    """Also the gradient of ties, which goes to the first of them."""
    x = images(2, channels, *size, dtype=dtype)
    want = value_and_gradient(nn.MaxPool2d(window), x)
    assert not calls
    with Lowered(native=True):
        found = value_and_gradient(nn.MaxPool2d(window), x)
    assert len(calls) == 1
    for a, b in zip(found, want, strict=True):
        assert torch.equal(a, b)


def test_one_axis(calls: list[Tensor]) -> None:
    x = images(2, 5, 12)
    for layer in (nn.MaxPool1d(3), nn.MaxPool1d(4, stride=4), nn.MaxPool1d(3, stride=2), nn.MaxPool1d(2, padding=1)):
        want = value_and_gradient(layer, x)
        with Lowered(native=True):
            found = value_and_gradient(layer, x)
        for a, b in zip(found, want, strict=True):
            assert torch.equal(a, b)
    assert len(calls) == 2
    with Lowered(native=True):
        assert torch.equal(nn.MaxPool1d(3)(x[0]), nn.MaxPool1d(3)(x)[0])
    assert len(calls) == 3


def test_nan_and_infinities_are_as_torch_has_them(calls: list[Tensor]) -> None:
    x = images(2, 3, 4, 4)
    x[0, 0, 0, 1] = x[0, 0, 1, 0] = x[1, 2, 3, 3] = torch.nan
    x[0, 1, 0, 0], x[0, 1, 2:, 2:] = torch.inf, -torch.inf
    want = value_and_gradient(nn.MaxPool2d(2), x)
    with Lowered(native=True):
        found = value_and_gradient(nn.MaxPool2d(2), x)
    assert len(calls) == 1
    for a, b in zip(found, want, strict=True):
        assert torch.equal(a.isnan(), b.isnan())
        assert torch.equal(a.nan_to_num(), b.nan_to_num())


@pytest.mark.parametrize(
    ("layer", "size"),
    [
        (nn.MaxPool2d(3, stride=2), (7, 7)), (nn.MaxPool2d(2, padding=1), (6, 6)), (nn.MaxPool2d(2), (7, 6)),
        (nn.MaxPool2d(2, dilation=2), (6, 6)), (nn.MaxPool2d(2, return_indices=True), (6, 6)),
        (nn.MaxPool2d(2, ceil_mode=True), (5, 6)),
    ],
)  # fmt: skip
def test_what_is_not_meant_stays_as_it_is(layer: nn.MaxPool2d, size: tuple[int, int], calls: list[Tensor]) -> None:
    x = images(2, 3, *size)
    with Lowered(native=True):
        found = layer(x)
    assert not calls
    assert_trees_close(list(found), list(layer(x)), 0.0)
    with Lowered(native=True):
        nn.MaxPool2d(2)(images(2, 3, 6, 6).bfloat16())
        nn.MaxPool2d(2)(images(3, 6, 6))
    assert not calls


@pytest.mark.parametrize("dim", [0, 2])
def test_members(dim: int) -> None:
    """Each member of a vmapped gradient equals one that is alone."""
    members = torch.stack([images(2, 3, 4, 6), images(2, 3, 4, 6).flip(-1)], dim)

    def loss(x: Tensor) -> Tensor:
        with Lowered(native=True):
            return F.max_pool2d(x, 2).square().sum()

    found = vmap(grad(loss), in_dims=dim)(members)
    for k in range(2):
        x = members.select(dim, k).clone().requires_grad_()
        (want,) = torch.autograd.grad(F.max_pool2d(x, 2).square().sum(), x)
        assert torch.equal(found[k], want)


def test_what_does_not_fit_is_refused() -> None:
    for x in (
        torch.ones(2, 2, 2, 2),
        torch.ones(1, 2, 2, 2, 2).mT,
        torch.ones(1, 0, 2, 2, 2),
        torch.ones(1, 2, 2, 2, 2).long(),
    ):
        with pytest.raises(RuntimeError, match=r"l2path::max_pool: got \[.*\]; expected contiguous floats"):
            torch.ops.l2path.max_pool(x)
    assert torch.ops.l2path.max_pool(torch.ones(0, 2, 2, 2, 3))[0].shape == (0, 2, 3)

"""Native kernels in steps that are not compiled, against torch's own operations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

from l2path.lowerings import eager, recurrent
from l2path.lowerings.eager import NativeOperations
from tests.helpers import assert_trees_close
from tests.unit.lowerings_kernels import native_kernels

TOLERANCE = {torch.float32: 3e-6, torch.float64: 1e-13}


@pytest.fixture(scope="module", autouse=True)
def kernels() -> None:
    native_kernels()


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every native product is taken; a list of those that were."""
    found: list[Any] = []

    def faster(candidate: Any, stock: Any, a: Any, b: Any, file: Any) -> bool:
        found.append((a, b))
        return True

    monkeypatch.setattr(eager, "faster", faster)
    return found


def random(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_vmapped_gradients_of_layers_and_products(dtype: torch.dtype, taken: list[Any]) -> None:
    members, steps, batch, width = 3, 4, 5, 6
    z, w = random(steps, batch, 4 * width, dtype=dtype), random(members, 4 * width, width, dtype=dtype) / 3
    state, head = random(batch, width, dtype=dtype), random(members, width, 2, dtype=dtype)

    def loss(weights: tuple[Tensor, Tensor]) -> Tensor:
        own, out = weights
        states, last = recurrent.lstm(z, own, state, state)
        hidden = recurrent.gru(z[..., : 3 * width], own[: 3 * width], own[0], state)
        return ((states + hidden) @ out).square().sum() + last.sum()

    def native(weights: tuple[Tensor, Tensor]) -> Any:
        with NativeOperations():
            return grad(loss)(weights)

    want = vmap(grad(loss))((w, head))
    assert_trees_close(vmap(native)((w, head)), want, TOLERANCE[dtype])
    assert taken
    assert {a.shape[0] for a, _ in taken} == {eager.STACK}  # whatever the number of members
    with NativeOperations():
        assert_trees_close(vmap(grad(loss))((w, head)), want, TOLERANCE[dtype])


@pytest.mark.parametrize("shapes", [((3, 4, 5), (3, 5, 6)), ((1, 1, 1), (1, 1, 1)), ((0, 4, 5), (0, 5, 6))])
def test_products_with_a_bias(shapes: Any, taken: list[Any]) -> None:
    a, b = (random(*shape) for shape in shapes)
    bias = random(a.shape[0], 1, b.shape[2])
    with NativeOperations():
        found = torch.baddbmm(bias, a, b)
        scaled = torch.baddbmm(bias, a, b, beta=0.5)  # is left to torch
    assert_trees_close(found, torch.baddbmm(bias, a, b), 1e-14)
    assert torch.equal(scaled, torch.baddbmm(bias, a, b, beta=0.5))
    assert len(taken) == 1


def test_other_dtypes_are_left_to_torch(taken: list[Any]) -> None:
    a, b = random(2, 3, 4).to(torch.bfloat16), random(2, 4, 3).to(torch.bfloat16)
    with NativeOperations():
        assert torch.equal(a @ b, torch.bmm(a, b))
    assert taken == []


def test_slower_products_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eager, "faster", lambda *_: False)
    a, b = random(2, 3, 4), random(2, 4, 3)
    with NativeOperations():
        found = a @ b
    assert torch.equal(found, torch.bmm(a, b))

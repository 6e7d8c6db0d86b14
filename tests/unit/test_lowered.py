"""Convolutions and attention as matrix products, against torch's own: values and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from l2path.functional.lowered import Lowered, convolution
from l2path.functional.random import RANDOM
from tests.helpers import assert_trees_close

CONVOLUTIONS: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((2, 3, 9), (4, 3, 3), {}),
    ((2, 3, 9), (4, 3, 3), {"stride": 2, "padding": 1, "dilation": 2}),
    ((2, 3, 7, 8), (4, 3, 3, 2), {}),
    ((2, 3, 7, 8), (4, 3, 3, 2), {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 3)}),
    ((1, 1, 5, 5), (1, 1, 5, 5), {"padding": [2]}),
    ((3, 2, 4, 4), (5, 2, 1, 1), {"stride": 3}),
    ((2, 3, 7, 8), (4, 3, 3, 5), {"padding": "same"}),
    ((2, 3, 7, 8), (4, 3, 2, 2), {"padding": "same", "dilation": 2}),
    ((2, 3, 9), (4, 3, 4), {"padding": "valid"}),
]


def both(call: Any, *tensors: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Value and gradients of a call without and with the replacements."""

    def one() -> list[Tensor]:
        leaves = [t.clone().requires_grad_() for t in tensors]
        y = call(*leaves)
        weight = torch.arange(y.numel(), dtype=y.dtype).reshape(y.shape).sin()
        return [y.detach(), *torch.autograd.grad((y * weight).sum(), leaves)]

    plain = one()
    with Lowered():
        return plain, one()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("x", "weight", "options"), CONVOLUTIONS)
def test_convolutions(x: Any, weight: Any, options: dict[str, Any], bias: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(s, dtype=dtype) for s in (x, weight, weight[:1])][: 2 + bias]
    conv = F.conv1d if len(x) == 3 else F.conv2d
    assert convolution(tensors[0], tensors[1], **options) is not None
    plain, lowered = both(lambda *t: conv(*t, **options), *tensors)
    assert_trees_close(lowered, plain, 1e-13 if dtype == torch.float64 else 2e-6)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_what_is_not_meant_stays_as_it_is() -> None:
    x, weight = torch.randn(2, 4, 6, 6), torch.randn(4, 2, 3, 3)
    for data, w, options in (
        (x, weight, {"groups": 2}),
        (x, torch.randn(4, 4, 2, 2), {"padding": "same"}),
        (x[0], torch.randn(4, 4, 3, 3), {}),
        (x[:0], torch.randn(4, 4, 3, 3), {}),
    ):
        assert convolution(data, w, **options) is None
        with Lowered():
            got = F.conv2d(data, w, **options)
        assert torch.equal(got, F.conv2d(data, w, **options))
    with Lowered(), pytest.raises(RuntimeError, match="Kernel size"):
        F.conv2d(x, torch.randn(4, 4, 7, 7))


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"scale": 0.3}, {"attn_mask": torch.rand(5, 5) > 0.3}])
def test_attention(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 5, 4, dtype=torch.float64) for _ in range(3))
    plain, lowered = both(lambda *t: F.scaled_dot_product_attention(*t, **options), q, k, v)
    assert_trees_close(lowered, plain, 1e-12)


def test_the_comparison_can_fail() -> None:
    x, weight = torch.randn(2, 3, 7, dtype=torch.float64), torch.randn(4, 3, 3, dtype=torch.float64)
    wrong = convolution(x, weight.flip(-1))
    with pytest.raises(AssertionError):
        assert_trees_close(wrong, F.conv1d(x, weight), 1e-3)


@pytest.mark.parametrize("kind", ["plain", "causal", "bool", "float", "scaled"])
def test_attention_with_dropout_is_torchs_formula(kind: str) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, n, 4, dtype=torch.float64) for n in (5, 6, 6))
    mask = torch.rand(5, 6) < 0.7
    mask[2] = False  # nothing to attend to
    every: dict[str, dict[str, Any]] = {
        "plain": {}, "causal": {"is_causal": True}, "bool": {"attn_mask": mask}, "scaled": {"scale": 0.3},
        "float": {"attn_mask": torch.randn(5, 6, dtype=torch.float64)},
    }  # fmt: skip
    options = every[kind]
    found = RANDOM[F.scaled_dot_product_attention](query, key, value, dropout_p=0.4, **options)
    assert found.draw is not None
    noise = found.draw(torch.empty_like(found.like))

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return RANDOM[F.scaled_dot_product_attention](q, k, v, dropout_p=0.4, **options).result(noise)

    def theirs(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        math = torch.ops.aten._scaled_dot_product_attention_math  # which takes numbers only
        own = dict(options)
        if kind == "bool":
            own["attn_mask"] = torch.zeros(5, 6, dtype=torch.float64).masked_fill(~mask, -torch.inf)
        result: Tensor = math(q, k, v, dropout_p=0.4, dropout_mask=noise != 0, **own)[0]
        return result

    for got, want in zip(*(both(f, query, key, value)[0] for f in (ours, theirs)), strict=True):
        assert_trees_close(got, want, 1e-12)
    assert 0 < int((noise == 0).sum()) < noise.numel()


def test_unflatten() -> None:
    x = torch.arange(24.0).reshape(2, 12)
    for found, want in zip(*both(lambda x: x.unflatten(-1, (3, -1)), x), strict=True):
        assert_trees_close(found, want, 0.0)

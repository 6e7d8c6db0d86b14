"""tanh as a quotient of polynomials, against torch's own in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from l2path.lowerings.tanh import rational_tanh, replace


def called(operation: Any, *operands: Any) -> Any:
    return operation(*operands)


def test_it_is_within_four_units_in_the_last_place() -> None:
    x = torch.cat([torch.linspace(-12, 12, 200_001), torch.logspace(-30, 1, 20_001), -torch.logspace(-30, 1, 20_001)])
    want = x.double().tanh()
    unit = want.abs() * 2.0**-23
    assert float(((rational_tanh(x, called).double() - want).abs() / unit.clamp_min(1e-45)).max()) < 4


def test_special_values() -> None:
    x = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, -0.0])
    assert str(rational_tanh(x, called).tolist()) == "[1.0, -1.0, nan, 0.0, -0.0]"


@pytest.mark.parametrize(("dtype", "count"), [(torch.float32, 2), (torch.float64, 0)])
def test_graphs(dtype: torch.dtype, count: int) -> None:
    def function(x: Tensor) -> Tensor:
        return (x.tanh() * 2).tanh()

    x = torch.linspace(-3, 3, 101, dtype=dtype)
    module = make_fx(function, tracing_mode="fake")(x)
    assert replace(module.graph) == count
    module.recompile()
    assert ("tanh" in module.code) == (count == 0)
    torch.testing.assert_close(module(x), function(x), rtol=1e-6, atol=0)

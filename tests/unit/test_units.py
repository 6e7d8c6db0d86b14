"""Golden values, kinds and errors of the converters; refits are in the parity tests."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from l2path import units
from l2path.errors import ArgumentError

# Converter (of a float, an array or a tensor, hence Any), its inverse, and their value at 3.
PAIRS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any], float]] = {
    "alpha": (
        lambda v: units.from_sklearn_alpha(v, n=50, targets=2),
        lambda v: units.to_sklearn_alpha(v, n=50, targets=2),
        0.06,
    ),
    "alpha on half mse": (
        lambda v: units.from_sklearn_alpha(v, n=50, targets=2, loss="half_mse"),
        lambda v: units.to_sklearn_alpha(v, n=50, targets=2, loss="half_mse"),
        0.03,
    ),
    "C": (lambda v: units.from_sklearn_C(v, n=50), lambda v: units.to_sklearn_C(v, n=50), 1 / 150),
    "keras": (units.from_keras, units.to_keras, 6.0),
    "weight decay": (units.from_weight_decay, units.to_weight_decay, 3.0),
    "glmnet": (lambda v: units.from_glmnet(v, sd_y=4.0), lambda v: units.to_glmnet(v, sd_y=4.0), 0.75),
}


@pytest.mark.parametrize("name", PAIRS)
def test_golden_values_round_trip_in_every_kind(name: str) -> None:
    there, back, golden = PAIRS[name]
    assert there(3.0) == pytest.approx(golden, rel=1e-15)
    assert there(3) == there(np.float32(3)) == there(3.0)
    assert type(there(3)) is type(there(np.int64(3))) is type(back(there(3.0))) is float
    assert back(there(3.0)) == pytest.approx(3.0, rel=1e-15)
    for make in (np.array, torch.tensor):
        values = make([3.0, 0.5])
        result = there(values)
        assert type(result) is type(values)
        assert result.dtype == values.dtype
        np.testing.assert_allclose(np.asarray(result), [there(3.0), there(0.5)], rtol=1e-6)
        np.testing.assert_allclose(np.asarray(back(result)), [3.0, 0.5], rtol=1e-6)
        np.testing.assert_array_equal(np.asarray(values), [3.0, 0.5])
        integers = there(make([3]))
        assert str(integers.dtype).endswith("float64")
        assert float(integers[0]) == there(3.0)


def test_no_penalty_is_an_infinite_C_and_back() -> None:
    assert units.to_sklearn_C(0.0, n=10) == math.inf
    assert units.from_sklearn_C(math.inf, n=10) == 0.0
    np.testing.assert_array_equal(units.to_sklearn_C(np.array([0.0, 0.1]), n=10), [math.inf, 1.0])
    assert units.to_sklearn_C(torch.tensor([0.0]), n=10).tolist() == [math.inf]
    assert units.from_sklearn_C(torch.tensor([math.inf]), n=10).tolist() == [0.0]


def test_results_are_differentiable_and_never_the_argument() -> None:
    strength = torch.tensor([0.5], requires_grad=True)
    units.to_sklearn_alpha(strength, n=10).sum().backward()
    assert strength.grad is not None
    assert strength.grad.tolist() == [5.0]
    assert units.to_weight_decay(strength) is not strength


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("bad", [-1.0, math.nan, True, "1", 1j, [1.0], None])
def test_what_is_no_strength_is_refused(name: str, bad: object) -> None:
    for convert in PAIRS[name][:2]:
        with pytest.raises(ArgumentError, match="real numbers >"):
            convert(bad)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("bad", [[1.0, -1.0], [math.nan], [True], [1j]])
def test_arrays_with_a_bad_entry_are_refused(name: str, bad: list[Any]) -> None:
    for convert in PAIRS[name][:2]:
        for make in (np.array, torch.tensor):
            with pytest.raises(ArgumentError, match="real numbers >"):
                convert(make(bad))


def test_messages_name_argument_and_remedy() -> None:
    with pytest.raises(ArgumentError, match=r"^C: got 0.0; expected real numbers > 0\. Remedy: pass a float"):
        units.from_sklearn_C(0.0, n=10)
    with pytest.raises(ArgumentError, match=r"^lambda_: got inf; expected real numbers >= 0, finite"):
        units.to_keras(math.inf)
    with pytest.raises(ArgumentError, match=r"^sd_y: got 0.0"):
        units.from_glmnet(1.0, sd_y=0.0)
    with pytest.raises(ArgumentError, match=r"^loss: got 'mae'"):
        units.to_sklearn_alpha(1.0, n=10, loss="mae")  # type: ignore[arg-type]  # what is tested
    for n in (0, 2.5, True):
        with pytest.raises(ArgumentError, match=f"^n: got {n}"):
            units.from_sklearn_C(1.0, n=n)  # type: ignore[arg-type]  # what is tested
    with pytest.raises(ArgumentError, match=r"^targets: got 0"):
        units.from_sklearn_alpha(1.0, n=10, targets=0)

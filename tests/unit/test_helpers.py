"""The comparison helper: that it passes what is equal and fails what is not."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers import assert_trees_close


class Pair(NamedTuple):
    """A NamedTuple to compare."""

    first: Tensor
    second: dict[str, Tensor]


def pair(value: float = 1.0) -> Pair:
    return Pair(torch.tensor([1.0, 2.0]), {"w": torch.tensor([[value]]), "empty": torch.zeros(0)})


def test_equal_trees_pass() -> None:
    assert_trees_close(pair(), pair(), rtol=0.0, check_dtype=True)
    assert_trees_close([None, 1.0, np.ones(2)], [None, 1, torch.ones(2)])
    assert_trees_close(torch.tensor([1j]), np.array([1j]))


def test_the_difference_is_relative_to_the_largest_element_of_the_leaf() -> None:
    expected = torch.tensor([1e6, 1.0], dtype=torch.float64)
    assert_trees_close(expected + torch.tensor([0.0, 1e-5]), expected, rtol=1e-10)
    with pytest.raises(AssertionError, match="relative difference 1e-09"):
        assert_trees_close(expected + torch.tensor([0.0, 1e-3]), expected, rtol=1e-10)


def test_a_difference_names_its_leaf() -> None:
    with pytest.raises(AssertionError, match=r"^tree\.second\['w'\]: relative difference 0.5 is beyond 1e-10"):
        assert_trees_close(pair(1.0), pair(2.0))


def test_small_differences_of_small_leaves_count() -> None:
    with pytest.raises(AssertionError, match="relative difference"):
        assert_trees_close(torch.tensor(2e-20), torch.tensor(1e-20))
    with pytest.raises(AssertionError, match="relative difference"):
        assert_trees_close(torch.tensor(1e-20), torch.tensor(0.0))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_are_close_to_nothing(value: float) -> None:
    for actual, expected in ((value, 1.0), (1.0, value), (value, value)):
        with np.errstate(invalid="ignore"), pytest.raises(AssertionError, match="relative difference"):
            assert_trees_close(torch.tensor(actual), torch.tensor(expected))


@pytest.mark.parametrize(
    ("actual", "expected", "message"),
    [
        ({"a": 1.0}, {"b": 1.0}, r"keys \['a'\] instead of \['b'\]"),
        ({"a": 1.0}, {}, "keys"),
        ({}, {"a": 1.0}, "keys"),
        ((1.0,), (1.0, 2.0), "1 entries instead of 2"),
        ((torch.zeros(2), {}), Pair(torch.zeros(2), {}), "other fields"),
        (torch.zeros(2), torch.zeros(2, 1), r"shape \(2,\) instead of \(2, 1\)"),
        (torch.zeros(()), torch.zeros(1), "shape"),
        (1.0, None, "instead of None"),
        (None, 1.0, "no leaf"),
        ({"a": 1.0}, 1.0, "no leaf"),
        (1.0, {"a": 1.0}, "instead of a mapping"),
        (1.0, (1.0,), "instead of a sequence"),
    ],
)
def test_other_structures_and_shapes_fail(actual: object, expected: object, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        assert_trees_close(actual, expected)


def test_dtypes_count_where_asked() -> None:
    assert_trees_close(torch.ones(1), torch.ones(1, dtype=torch.float64))
    with pytest.raises(AssertionError, match=r"torch.float32 instead of torch.float64"):
        assert_trees_close(torch.ones(1), torch.ones(1, dtype=torch.float64), check_dtype=True)

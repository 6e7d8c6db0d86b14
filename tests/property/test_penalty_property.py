"""What holds for every spec, every penalty and every grid."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from l2path import ArgumentError, expand_lambdas, l2_penalty, lambda_grid
from l2path.penalty import penalty_and_gradient

NAMES = ("body.0.weight", "body.0.bias", "body.1.weight", "body.1.bias", "head.weight", "head.bias")
PATTERNS = ("*", "body.*", "head.*", "*.bias", "*.weight", "body.?.weight", *NAMES)

strengths = st.floats(0.0, 1e3, allow_subnormal=False)
specs = st.dictionaries(st.sampled_from(PATTERNS), strengths, max_size=6)


@st.composite
def parameters(draw: st.DrawFn) -> dict[str, Tensor]:
    """Some parameters of small shapes, float64."""
    chosen = draw(st.lists(st.sampled_from(NAMES), min_size=1, unique=True))
    params = {}
    for name in chosen:
        shape = draw(st.sampled_from([(), (1,), (3,), (2, 3)]))
        size = math.prod(shape)
        values = draw(st.lists(st.floats(-10, 10, allow_subnormal=False), min_size=size, max_size=size))
        params[name] = torch.tensor(values, dtype=torch.float64).reshape(shape)
    return params


def expanded(params: dict[str, Tensor], spec: dict[str, float]) -> dict[str, float] | str:
    try:
        return {name: float(value) for name, value in expand_lambdas(params, spec).items()}
    except ArgumentError as error:
        return str(error.argument)


@given(parameters(), specs, st.randoms(use_true_random=False))
def test_the_order_of_patterns_and_of_parameters_is_irrelevant(params, spec, random) -> None:  # type: ignore[no-untyped-def]
    expected = expanded(params, spec)
    patterns, names = list(spec), list(params)
    random.shuffle(patterns)
    random.shuffle(names)
    assert expanded({n: params[n] for n in names}, {p: spec[p] for p in patterns}) == expected


@given(specs)
def test_what_a_spec_means_is_what_its_rules_say(spec: dict[str, float]) -> None:
    params = {name: torch.zeros(2) for name in NAMES}
    found = expanded(params, spec)
    if isinstance(found, str):
        assert found == "lambdas"  # an overlap; every pattern here matches something
        return
    for name, value in found.items():
        if name in spec:
            assert value == pytest.approx(spec[name], rel=1e-6)
        elif not any(p not in NAMES and p != "*" for p in spec):
            assert value == pytest.approx(spec.get("*", 0.0), rel=1e-6)
        else:
            assert any(value == pytest.approx(v, rel=1e-6) for v in [0.0, *spec.values()])


@given(parameters(), strengths)
def test_the_penalty_adds_up_over_parameters(params: dict[str, Tensor], lam: float) -> None:
    whole = float(l2_penalty(params, lam))
    parts = [float(l2_penalty({name: value}, lam)) for name, value in params.items()]
    by_hand = [0.5 * lam * float((value * value).sum()) for value in params.values()]
    assert whole == pytest.approx(math.fsum(parts), rel=1e-12)
    assert whole == pytest.approx(math.fsum(by_hand), rel=1e-12)


@given(parameters(), strengths, st.floats(0.0, 100.0, allow_subnormal=False))
def test_the_penalty_and_its_gradient_are_linear_in_lambda(params: dict[str, Tensor], lam: float, c: float) -> None:
    value, gradient = penalty_and_gradient(params, expand_lambdas(params, lam), {})
    scaled, scaled_gradient = penalty_and_gradient(params, expand_lambdas(params, c * lam), {})
    tiny = torch.finfo(torch.float64).tiny  # below it numbers have fewer digits
    assert float(scaled) == pytest.approx(c * float(value), rel=1e-12, abs=tiny)
    for name in params:
        torch.testing.assert_close(scaled_gradient[name], c * gradient[name], rtol=1e-12, atol=tiny)


@given(parameters())
def test_no_lambda_means_no_penalty(params: dict[str, Tensor]) -> None:
    value, gradient = penalty_and_gradient(params, expand_lambdas(params, 0.0), {})
    assert float(value) == 0.0
    assert all(not bool(g.any()) for g in gradient.values())


@given(parameters(), parameters(), strengths)
def test_an_anchor_is_a_shift(params: dict[str, Tensor], others: dict[str, Tensor], lam: float) -> None:
    anchor = {n: others[n] for n in params if n in others and others[n].shape == params[n].shape}
    shifted = {n: p - anchor[n] if n in anchor else p for n, p in params.items()}
    assert float(l2_penalty(params, lam, anchor)) == pytest.approx(float(l2_penalty(shifted, lam)), rel=1e-12)


@given(
    low=st.floats(1e-12, 1e3),
    factor=st.floats(1.01, 1e9),
    n=st.integers(2, 200),
    zero=st.booleans(),
)
def test_grids_fall_from_one_exact_end_to_the_other(low: float, factor: float, n: int, zero: bool) -> None:
    high = low * factor
    grid = lambda_grid(low, high, n, zero=zero).tolist()
    assert len(grid) == n + zero
    assert grid[0] == high
    assert grid[n - 1] == low
    assert all(a > b for a, b in itertools.pairwise(grid))
    assert not zero or grid[-1] == 0.0


@given(low=st.floats(1e-12, 1e3), ulps=st.integers(0, 4), n=st.integers(2, 8))
def test_grids_stay_between_ends_that_almost_meet(low: float, ulps: int, n: int) -> None:
    high = low * (1 + ulps * 2.0**-52)
    grid = lambda_grid(low, high, n).tolist()
    assert all(a >= b for a, b in itertools.pairwise(grid))
    assert (grid[0], grid[-1]) == (high, low)

"""Choosing from scores."""

from __future__ import annotations

import numpy as np
import pytest

from l2path.scores import best_index, boundary_side, monotone_order, standard_error

NAN, INF = float("nan"), float("inf")


def pick(scores: list[float], strength: list[float], **options: bool) -> int:
    return best_index(np.array(scores), np.array(strength), **options)


def test_the_smallest_score_wins() -> None:
    assert pick([0.3, 0.1, 0.2], [3.0, 2.0, 1.0]) == 1
    assert pick([0.3, -0.1, 0.2], [3.0, 2.0, 1.0]) == 1


def test_the_largest_score_wins_where_greater_is_better() -> None:
    assert pick([0.3, 0.1, 0.2], [3.0, 2.0, 1.0], greater_is_better=True) == 0
    assert pick([-0.3, -0.1, -0.2], [3.0, 2.0, 1.0], greater_is_better=True) == 1


@pytest.mark.parametrize("greater", [False, True])
def test_ties_go_to_the_largest_strength_wherever_it_stands(greater: bool) -> None:
    assert pick([0.5, 0.5, 0.5], [1.0, 3.0, 2.0], greater_is_better=greater) == 1
    assert pick([0.5, 0.5, 0.5], [1.0, 2.0, 3.0], greater_is_better=greater) == 2
    assert pick([0.5, 0.5, 0.5], [3.0, 2.0, 1.0], greater_is_better=greater) == 0


def test_equal_scores_and_strengths_give_the_first() -> None:
    assert pick([0.9, 0.5, 0.5], [9.0, 1.0, 1.0]) == 1


def test_a_better_score_beats_any_strength_however_close() -> None:
    assert pick([0.5, np.nextafter(0.5, 0.0)], [100.0, 0.0]) == 1


@pytest.mark.parametrize("greater", [False, True])
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_what_is_not_finite_ranks_last(bad: float, greater: bool) -> None:
    # -inf would be the best score of a diverged log-likelihood, and +inf that of an accuracy.
    assert pick([bad, 5.0, bad], [9.0, 1.0, 8.0], greater_is_better=greater) == 1


def test_no_finite_score_raises() -> None:
    with pytest.raises(ValueError, match="no finite score"):
        pick([NAN, INF], [1.0, 2.0])


def test_scores_are_not_changed() -> None:
    scores, strength = np.array([NAN, 1.0]), np.array([2.0, 1.0])
    best_index(scores, strength, greater_is_better=True)
    assert np.array_equal(scores, [NAN, 1.0], equal_nan=True)


@pytest.mark.parametrize(
    ("index", "values", "side"),
    [
        (0, [1.0, 0.1, 0.01], "high"),
        (1, [1.0, 0.1, 0.01], None),
        (2, [1.0, 0.1, 0.01], "low"),
        (2, [0.01, 0.1, 1.0], "high"),  # the order of the grid is no matter
        (0, [0.01, 0.1, 1.0], "low"),
        (2, [1.0, 0.1, 0.0], None),  # below 0 there is nothing
        (1, [1.0, 0.1, 0.0], None),
        (0, [0.1, 0.0], "high"),
        (0, [0.1], None),
        (1, [0.1, 0.1], None),
        (1, [0.1, 1.0, 1.0], "high"),
    ],
)
def test_boundaries(index: int, values: list[float], side: str | None) -> None:
    assert boundary_side(index, np.array(values)) == side


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ([], False),
        ([[3.0, 1.0, 2.0]], True),
        ([[3.0, 2.0, 1.0], [0.3, 0.2, 0.1]], True),
        ([[3.0, 1.0, 2.0], [0.3, 0.1, 0.2]], True),
        ([[1.0, 2.0], [2.0, 1.0]], False),
        ([[3.0, 3.0, 1.0], [0.2, 0.3, 0.1]], True),  # ties in one column, sorted by the other
        ([[2.0, 2.0, 1.0, 1.0], [2.0, 1.0, 2.0, 1.0]], False),  # the product of two grids
        ([[1.0, 1.0], [2.0, 2.0]], True),
        ([[1.0, 1.0, 2.0], [1.0, 2.0, 2.0], [5.0, 5.0, 5.0]], True),
        ([[1.0, 1.0, 1.0], [1.0, 2.0, 3.0], [3.0, 2.0, 1.0]], False),
    ],
)
def test_one_dimensional_paths(columns: list[list[float]], expected: bool) -> None:
    assert monotone_order([np.array(c) for c in columns]) is expected


def test_standard_errors_by_hand() -> None:
    # Squared deviations 1 + 0 + 1 over n - 1 = 2 make sd 1.
    assert standard_error(np.array([1.0, 2.0, 3.0])) == pytest.approx(1 / np.sqrt(3), rel=1e-15)


def test_standard_errors_are_numpys() -> None:
    rows = np.random.default_rng(0).normal(size=(4, 3, 20))
    expected = np.std(rows, axis=-1, ddof=1) / np.sqrt(20)
    found = standard_error(rows)
    assert found.shape == (4, 3)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-14)


def test_one_row_has_no_standard_error() -> None:
    found = standard_error(np.ones((2, 1)))
    assert found.shape == (2,)
    assert bool(np.isnan(found).all())

"""Choosing from scores."""

from __future__ import annotations

import numpy as np
import pytest

from l2path.scores import best_index, boundary_side, fold_summary, one_se_index, standard_error

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


def test_fold_summaries_by_hand() -> None:
    # Folds of 1, 1 and 2 rows: mean (1 + 2 + 2 * 6) / 4 = 3.75; squares 7.5625, 3.0625, 2 * 5.0625 over 4 are 5.1875,
    # and half of that (three folds) has the root 1.6105.
    cvm, cvsd = fold_summary(np.array([[1.0], [2.0], [6.0]]), np.array([1.0, 1.0, 2.0]))
    assert (cvm[0], cvsd[0]) == pytest.approx((3.75, np.sqrt(5.1875 / 2)), rel=1e-15)


def test_fold_summaries_are_glmnets() -> None:
    # cvstats of glmnet 4.1, line by line: cvm = apply(cvraw, 2, weighted.mean, w = weights);
    # cvsd = sqrt(apply(scale(cvraw, cvm, FALSE)^2, 2, weighted.mean, w = weights) / (N - 1)).
    rng = np.random.default_rng(0)
    cvraw, weights = rng.normal(size=(5, 7)), np.array([20.0, 20.0, 20.0, 19.0, 19.0])
    want_m = [np.average(column, weights=weights) for column in cvraw.T]
    want_sd = [np.sqrt(np.average((c - m) ** 2, weights=weights) / 4) for c, m in zip(cvraw.T, want_m, strict=True)]
    cvm, cvsd = fold_summary(cvraw, weights)
    np.testing.assert_allclose(cvm, want_m, rtol=1e-14)
    np.testing.assert_allclose(cvsd, want_sd, rtol=1e-14)


@pytest.mark.parametrize("bad", [NAN, INF])
def test_a_fold_without_a_score_leaves_none_for_the_point(bad: float) -> None:
    cvm, cvsd = fold_summary(np.array([[1.0, bad], [2.0, 1.0]]), np.ones(2))
    assert np.isnan(cvm).tolist() == np.isnan(cvsd).tolist() == [False, True]
    assert cvm[0] == 1.5


@pytest.mark.parametrize(
    ("cvm", "cvsd", "expected"),
    [
        ([0.9, 0.35, 0.30, 0.31], [0.0, 0.0, 0.1, 0.0], 1),
        ([0.9, 0.40, 0.30, 0.31], [0.0, 0.0, 0.1, 0.0], 1),  # exactly one standard error away
        ([0.9, 0.41, 0.30, 0.31], [9.0, 9.0, 0.1, 9.0], 2),  # the error of the best counts, and no other
        ([0.3, 0.41, 0.30, 0.31], [0.0, 0.0, 0.1, 0.0], 0),  # not only the neighbours
        ([NAN, NAN, 0.30, 0.31], [NAN, NAN, 0.1, 0.0], 2),
        ([0.9, 0.35, 0.30, 0.31], [0.0, 0.0, 0.0, 0.0], 2),
    ],
)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_one_standard_error(cvm: list[float], cvsd: list[float], expected: int, sign: float) -> None:
    strength = np.array([1.0, 0.1, 0.01, 0.001])
    found = one_se_index(sign * np.array(cvm), np.array(cvsd), strength, 2, greater_is_better=sign < 0)
    assert found == expected
    turned = one_se_index(
        sign * np.array(cvm)[::-1], np.array(cvsd)[::-1], strength[::-1], 1, greater_is_better=sign < 0
    )
    assert turned == 3 - expected


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

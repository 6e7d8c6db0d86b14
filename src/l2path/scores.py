"""Choosing from scores: pure arrays, no models."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


def best_index(scores: FloatArray, strength: FloatArray, *, greater_is_better: bool = False) -> int:
    """Return the position of the best score; ties go to the strongest shrinkage.

    Parameters
    ----------
    scores : array, [P]
        One score for each point of the path; NaN and infinite ones rank last.
    strength : array, [P]
        What "stronger" means: lambda, or the total ``sum(lambda * numel)`` of a per-layer sweep.
    greater_is_better : bool
        Whether the largest score is the best one.

    Returns
    -------
    int
        Among equal best scores the one of the largest strength, and of those the first.

    Raises
    ------
    ValueError
        If no score is finite.

    Examples
    --------
    >>> best_index(np.array([0.3, 0.2, 0.2, np.nan]), np.array([1.0, 0.1, 0.5, 2.0]))
    2
    """
    finite = np.isfinite(scores)
    if not finite.any():
        raise ValueError("no finite score")
    signed = np.where(finite, -scores if greater_is_better else scores, np.inf)
    tied = np.flatnonzero(signed == signed.min())
    return int(tied[np.argmax(strength[tied])])


def boundary_side(index: int, values: FloatArray) -> str | None:
    """Return ``"low"`` or ``"high"`` if ``values[index]`` is an end of the grid, else None.

    A lambda of 0 has nothing below it, so that it is no boundary; neither is a grid of one value.

    Examples
    --------
    >>> boundary_side(0, np.array([1.0, 0.1, 0.01]))
    'high'
    >>> boundary_side(2, np.array([1.0, 0.1, 0.0])) is None
    True
    """
    value = values[index]
    if np.unique(values).size < 2:
        return None
    if value == values.max():
        return "high"
    return "low" if value == values.min() and value > 0 else None


def fold_summary(scores: FloatArray, sizes: FloatArray) -> tuple[FloatArray, FloatArray]:
    r"""Return the cross-validated score of each point and its standard error, as glmnet's ``cv.glmnet`` does.

    .. math::

        \mathrm{cvm} = \frac{\sum_f n_f s_f}{\sum_f n_f}, \qquad
        \mathrm{cvsd} = \sqrt{\frac{1}{F - 1} \frac{\sum_f n_f (s_f - \mathrm{cvm})^2}{\sum_f n_f}}

    Parameters
    ----------
    scores : array, [F, P]
        Of each fold, seeds averaged.
    sizes : array, [F]
        Held-out rows of each fold.

    Returns
    -------
    cvm, cvsd : array, [P]
        NaN for a point that has no finite score in one of the folds.

    Notes
    -----
    Source: Friedman, Hastie and Tibshirani (2010), glmnet, ``cvstats``.

    Examples
    --------
    >>> fold_summary(np.array([[1.0], [2.0], [6.0]]), np.array([1.0, 1.0, 2.0]))
    (array([3.75]), array([1.61...]))
    """
    weight = (sizes / sizes.sum())[:, None]
    with np.errstate(invalid="ignore", over="ignore"):
        finite = np.isfinite(scores).all(axis=0)
        cvm = np.where(finite, (weight * scores).sum(axis=0), np.nan)
        variance = (weight * (scores - cvm) ** 2).sum(axis=0) / (len(scores) - 1)
    return cvm, np.sqrt(variance)


def one_se_index(
    cvm: FloatArray, cvsd: FloatArray, strength: FloatArray, best: int, *, greater_is_better: bool = False
) -> int:
    """Return the strongest point whose score is within one standard error of the best one's.

    Parameters
    ----------
    cvm, cvsd : array, [P]
        From :func:`fold_summary`.
    strength : array, [P]
        As for :func:`best_index`.
    best : int
        Position of the best point.
    greater_is_better : bool
        Whether the largest score is the best one.

    Returns
    -------
    int
        Of the points with ``cvm <= cvm[best] + cvsd[best]`` the one of the largest strength, and of those the first.

    Notes
    -----
    Source: Breiman, Friedman, Olshen and Stone (1984), section 3.4.3; glmnet's ``lambda.1se``.

    Examples
    --------
    >>> one_se_index(np.array([0.5, 0.32, 0.30]), np.array([0.1, 0.1, 0.03]), np.array([1.0, 0.1, 0.01]), best=2)
    1
    """
    sign = -1.0 if greater_is_better else 1.0
    within = np.flatnonzero(np.isfinite(cvm) & (sign * cvm <= sign * cvm[best] + cvsd[best]))
    return int(within[np.argmax(strength[within])])


def standard_error(rows: FloatArray) -> FloatArray:
    """Return the standard error of the mean over the last axis, ``sd / sqrt(n)`` with n - 1."""
    n = rows.shape[-1]
    if n < 2:
        return np.full(rows.shape[:-1], np.nan)
    return np.asarray(rows.std(axis=-1, ddof=1) / np.sqrt(n), dtype=np.float64)

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


def monotone_order(columns: list[FloatArray]) -> bool:
    """Return whether one ordering sorts every column: whether a zipped path is one-dimensional.

    Examples
    --------
    >>> monotone_order([np.array([3.0, 2.0, 1.0]), np.array([0.3, 0.3, 0.1])])
    True
    >>> monotone_order([np.array([1.0, 2.0]), np.array([2.0, 1.0])])
    False
    """
    if not columns:
        return False
    order = np.lexsort(columns[::-1])
    return all(bool((np.diff(c[order]) >= 0).all()) for c in columns)


def standard_error(rows: FloatArray) -> FloatArray:
    """Return the standard error of the mean over the last axis, ``sd / sqrt(n)`` with n - 1."""
    n = rows.shape[-1]
    if n < 2:
        return np.full(rows.shape[:-1], np.nan)
    return np.asarray(rows.std(axis=-1, ddof=1) / np.sqrt(n), dtype=np.float64)

"""Rows: their weights, their folds, and what standardises them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from numbers import Integral
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import KFold, StratifiedKFold, check_cv
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import _check_sample_weight

from l2path.errors import ArgumentError
from l2path.scores import FloatArray

Mask = npt.NDArray[np.bool_]
Pair = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


def weights_of(sample_weight: Any, X: FloatArray) -> tuple[FloatArray | None, Mask]:
    """Return the weights of the rows that count, scaled to a mean of 1, and which rows these are.

    Parameters
    ----------
    sample_weight : array-like, [n], or None
        Rows of weight 0 do not count.
    X : array, [n, D]

    Returns
    -------
    weights : array [kept], or None
        None where all of them are equal.
    kept : array of bool, [n]

    Raises
    ------
    ValueError
        For another shape, negative weights, and weights that are not finite.
    ArgumentError
        If no row is left.
    """
    if sample_weight is None:
        return None, np.ones(len(X), dtype=np.bool_)
    weights = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
    kept = weights > 0
    if not kept.any():
        raise ArgumentError(
            "sample_weight",
            got="zeros",
            expected="at least one weight above zero",
            remedy="leave it out, or drop the rows that shall not count",
        )
    weights = weights[kept]
    scaled = weights / weights.max()  # their sum may overflow
    return (None if np.ptp(scaled) == 0 else scaled / scaled.mean()), kept


def pairs_of(cv: Any, X: FloatArray, y: Any, kept: Mask, *, classifier: bool, seed: int) -> list[Pair]:
    """Return the folds as pairs (train, test) of positions among the rows that are kept.

    Parameters
    ----------
    cv : int, splitter, iterable of pairs, or None
        As in scikit-learn, but for a number, for which rows are shuffled; None is 5. Pairs are of positions among all
        rows.
    X, y : array, [kept, ...]
        What a splitter is given: the rows that are kept.
    kept : array of bool, [n]
    classifier : bool
        Whether a number keeps the proportions of the classes.
    seed : int
        Of the shuffling.
    """
    cv = 5 if cv is None else cv
    if isinstance(cv, Integral):
        cv = (StratifiedKFold if classifier else KFold)(int(cv), shuffle=True, random_state=seed)
    if hasattr(cv, "split") or not isinstance(cv, Iterable):
        return list(check_cv(cv, y, classifier=classifier).split(X, y))
    position = np.cumsum(kept) - 1

    def moved(part: Any) -> npt.NDArray[np.int64]:
        rows = np.asarray(part)
        rows = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
        try:
            return np.asarray(position[rows[kept[rows]]], dtype=np.int64)
        except IndexError as error:
            raise ArgumentError(
                "cv",
                got=f"pairs of positions that are not in the data: {error}",
                expected=f"positions from 0 to {len(kept) - 1}",
                remedy="make the pairs for the rows that fit is given",
            ) from error

    return [(moved(train), moved(test)) for train, test in cv]


def learn(standardize: bool, inputs: Any) -> Callable[[Any], Any]:
    """Learn to standardise inputs from training rows: what ``preprocess`` of ``cross_validate`` takes.

    Inputs are ``X``, or ``(X, weights)`` where rows have weights, which go no further.
    """
    scaler = scaler_of(standardize, *(x.cpu().numpy() for x in sides(inputs)))
    return lambda values: scaler.transform(sides(values)[0].cpu().numpy())


def sides(inputs: Any) -> tuple[Any, ...]:
    """Return ``(X,)`` or ``(X, weights)``."""
    return tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)


def scaler_of(standardize: bool, values: FloatArray, weights: FloatArray | None = None) -> Any:
    """Return a fitted StandardScaler, which leaves columns as they are where nothing shall be done.

    It divides constant columns by 1.
    """
    return StandardScaler(with_mean=standardize, with_std=standardize).fit(values, sample_weight=weights)

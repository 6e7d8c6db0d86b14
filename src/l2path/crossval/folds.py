"""Folds: which rows a model trains on, and which it is scored on."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from l2path.crossval.preprocess import as_array
from l2path.errors import ArgumentError, MissingClassWarning
from l2path.order import data_order

IndexArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Fold:
    """One split of the rows.

    Attributes
    ----------
    train, test : array of int64
        Positions of the rows to train on, and of those held out.
    """

    train: IndexArray
    test: IndexArray


def make_folds(folds: Any, rows: int, *, inputs: Any, targets: Any, groups: Any, seed: int) -> tuple[Fold, ...]:
    """Return the folds that a user asked for.

    Parameters
    ----------
    folds : int, splitter, fold numbers or pairs
        A number of folds, drawn by :func:`data_order` under ``seed``; an object with scikit-learn's
        ``split(X, y, groups)``; the number of each row's fold, ``[n]`` (glmnet's ``foldid``); or pairs
        ``(train, test)`` of positions.
    rows : int
        n.
    inputs, targets : Tensor, or whatever else
        What a splitter is given where it is one tensor; in its place, row numbers for ``X`` and None for ``y``.
    groups : array, [n], optional
        For splitters that keep groups together.
    seed : int

    Raises
    ------
    ArgumentError
        For more folds than rows, fewer than two folds, positions out of range, rows that are in both parts of a fold
        or twice in one, and an empty part.
    """
    if isinstance(folds, (str, bytes, dict, bool, type)):
        raise _refused(folds, rows)
    folds = as_array(folds) if isinstance(folds, torch.Tensor) else folds
    splits = callable(getattr(folds, "split", None))
    if groups is not None and not splits:
        raise ArgumentError(
            "groups",
            got="groups beside folds that are no splitter",
            expected="a splitter that knows groups",
            remedy="pass folds=sklearn.model_selection.GroupKFold(5)",
        )
    if isinstance(folds, (int, np.integer)):
        pairs = _drawn(int(folds), rows, seed)
    elif splits:
        x = as_array(inputs) if isinstance(inputs, torch.Tensor) else np.arange(rows)[:, None]
        y = as_array(targets) if isinstance(targets, torch.Tensor) else None
        try:
            pairs = list(folds.split(x, y, as_array(groups) if isinstance(groups, torch.Tensor) else groups))
        except (TypeError, ValueError) as error:
            raise ArgumentError(
                "folds",
                got=f"{folds!r}, whose split fails: {error}",
                expected="a splitter that can split these rows",
                remedy="stratified splitters need integer targets, grouped ones groups=; of a Dataset pass the pairs: "
                "list(splitter.split(x, y))",
            ) from error
    elif _is_fold_numbers(folds, rows):
        numbers = np.asarray(folds)
        pairs = [(np.flatnonzero(numbers != f), np.flatnonzero(numbers == f)) for f in np.unique(numbers)]
    elif isinstance(folds, Iterable):
        pairs = list(folds)
    else:
        raise _refused(folds, rows)
    found = tuple(_fold(pair, number, rows, folds) for number, pair in enumerate(pairs))
    if len(found) < 2:
        raise ArgumentError(
            "folds",
            got=f"{len(found)} fold" + ("" if len(found) == 1 else "s"),
            expected="at least 2",
            remedy="for one split use batch_train(..., validation=(inputs, targets))",
        )
    return found


def _drawn(folds: int, rows: int, seed: int) -> list[tuple[IndexArray, IndexArray]]:
    if not 2 <= folds <= rows:
        raise ArgumentError(
            "folds",
            got=f"{folds} folds of {rows} rows",
            expected=f"2 to {rows}, so that every fold holds a row",
            remedy="use for example folds=5",
        )
    order = data_order(rows, seed, 0).numpy()
    parts = [np.sort(part) for part in np.array_split(order, folds)]
    return [(np.sort(np.concatenate(parts[:f] + parts[f + 1 :])), parts[f]) for f in range(folds)]


def _is_fold_numbers(folds: Any, rows: int) -> bool:
    if not hasattr(folds, "__len__") or len(folds) != rows:
        return False
    try:
        array = np.asarray(folds)
    except ValueError:  # pairs of arrays of different lengths
        return False
    return array.ndim == 1 and array.dtype.kind in "iu"


def _refused(folds: Any, rows: int) -> ArgumentError:
    return ArgumentError(
        "folds",
        got=f"{folds!r}"[:200],
        expected=f"a number, a scikit-learn splitter, {rows} fold numbers, or pairs (train, test) of positions",
        remedy="use for example folds=5",
    )


def _fold(pair: Any, number: int, rows: int, folds: Any) -> Fold:
    """Check one pair of positions."""
    if not isinstance(pair, (Sequence, np.ndarray, torch.Tensor)) or len(pair) != 2:
        raise _refused(folds, rows)
    parts = []
    for name, part in zip(("train", "test"), pair, strict=True):
        array = as_array(part) if isinstance(part, torch.Tensor) else np.asarray(part)
        if array.ndim == 1 and array.dtype == np.bool_ and len(array) == rows:
            array = np.flatnonzero(array)
        argument = f"folds[{number}]"
        if array.ndim != 1 or array.dtype.kind not in "iu" or not array.size:
            raise ArgumentError(
                argument,
                got=f"a {name} part of {array.dtype} {list(array.shape)}",
                expected="at least one position of a row",
                remedy="give whole numbers from 0",
            )
        if array.min() < 0 or array.max() >= rows:
            raise ArgumentError(
                argument,
                got=f"position {array.min() if array.min() < 0 else array.max()} in the {name} part",
                expected=f"0 to {rows - 1}",
                remedy="positions count from 0; give none that is not in the data",
            )
        values, counts = np.unique(array, return_counts=True)
        if counts.max() > 1:
            raise ArgumentError(
                argument,
                got=f"row {values[counts.argmax()]} {counts.max()} times in the {name} part",
                expected="each row once",
                remedy="drop the repeats",
            )
        parts.append(array.astype(np.int64))
    both = np.intersect1d(parts[0], parts[1])
    if both.size:
        raise ArgumentError(
            f"folds[{number}]",
            got=f"{both.size} rows in train and test, the first is {both[0]}",
            expected="held-out rows that were not trained on",
            remedy="take them out of one of the two",
        )
    return Fold(*parts)


def warn_missing_classes(folds: Sequence[Fold], targets: Any) -> None:
    """Warn of classes that a fold holds out but does not train on."""
    if not isinstance(targets, torch.Tensor) or targets.ndim != 1 or targets.is_floating_point():
        return
    labels = targets.cpu().numpy()
    if np.unique(labels).size > len(labels) // 2:  # no classes: counts, or identities
        return
    missing = [np.setdiff1d(labels[fold.test], labels[fold.train]).tolist() for fold in folds]
    which = [number for number, classes in enumerate(missing) if classes]
    if which:
        first = which[0]
        warnings.warn(
            f"{len(which)} of {len(folds)} folds hold out classes of which they train on none (fold {first}: "
            f"{missing[first][:10]}): their scores say little. Use fewer folds, or "
            "folds=sklearn.model_selection.StratifiedKFold(5, shuffle=True)",
            MissingClassWarning,
            stacklevel=3,
        )

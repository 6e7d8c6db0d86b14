"""What a :class:`CVResult` consists of in a file: its members, its folds, and what was made of their scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from l2path.crossval.folds import Fold
from l2path.crossval.outcome import CVOutcome
from l2path.errors import ArgumentError
from l2path.path import PathResult
from l2path.path.saved import Factory, contents, outcome_fields

CV_KIND = "CVResult"


def cv_contents(cv: CVOutcome) -> dict[str, Any]:
    """Return a cross-validation as a tree that :func:`l2path.files.write_file` takes."""
    return {
        "members": contents(cv.members),
        "folds": [{"train": fold.train, "test": fold.test} for fold in cv.folds],
        "cvm": cv.cvm,
        "cvsd": cv.cvsd,
    }


def cv_fields(tree: Mapping[str, Any], module: Factory | None) -> dict[str, Any]:
    """Return the fields of the cross-validation that :func:`cv_contents` wrote down, but for its means."""
    return {
        "members": PathResult(**outcome_fields(tree["members"], module)),
        "folds": tuple(Fold(fold["train"], fold["test"]) for fold in tree["folds"]),
    }


def no_refit(point: int, seeds: Sequence[int], epochs: int) -> NoReturn:
    """Say what to do in place of a refit."""
    raise ArgumentError(
        "refit",
        got="a cross-validation that was loaded from a file, which holds neither data nor loss_fn nor optimizer",
        expected="the one that cross_validate returned",
        remedy=f"call batch_train on all rows with lambdas=[cv.point({point})['lambda']] (and what was swept), "
        f"seeds={tuple(seeds)} and epochs={epochs}, or cross_validate again",
    )

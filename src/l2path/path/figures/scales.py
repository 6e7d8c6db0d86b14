"""The axes of a path as numbers to draw along, and what its points are called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from l2path.path.members import is_monotone, total_strength
from l2path.path.outcome import Outcome
from l2path.path.report import show
from l2path.penalty import LambdaAxis
from l2path.scores import FloatArray

LOG_RATIO = 8  # of the largest to the smallest value, beyond which an axis is logarithmic
STRENGTHS = ("lambda", "decay")  # axes along which weights shrink
LONG_TEXT = 40  # characters; a point with a longer description is called by its number


@dataclass(frozen=True)
class Scale:
    """The values of one axis of the path.

    Attributes
    ----------
    values : array, [n]
    label : str
        What they are.
    ordered : bool
        Whether they are numbers with an order; else they count the points.
    log : bool
        Whether they belong on a logarithmic axis.
    texts : tuple of str, [n]
    """

    values: FloatArray
    label: str
    ordered: bool
    log: bool
    texts: tuple[str, ...]


def scale(members: Outcome, name: str) -> Scale:
    """Return the values of an axis of the path.

    They are what the user wrote, where that is numbers; of patterns those of the one that varies, or means over the
    parameters where all of them rise together; else the numbers of the points.
    """
    table = members.table
    if name == "member":
        return _counted(table.n_points, "member")
    axis: Any = table.lambdas if name == "lambda" else table.hyper[name]
    values, label = _numbers(axis.labels), name
    if values is None:
        varied = _varied(axis.labels)
        if varied is not None:
            values, label = varied[1], f"{name} of {varied[0]}"
    strengths = axis.strengths if isinstance(axis, LambdaAxis) else axis.values
    if values is None and isinstance(strengths, Mapping) and is_monotone(dict(strengths), members.names):
        weights = sum(p.numel() for p in members.names.params.values())
        values = np.asarray(total_strength(dict(strengths), members.names).numpy() / weights)
        label = f"{name}, mean over the parameters"
    if values is None:
        return _counted(len(axis.labels), "point" if len(table.long_axes) < 2 else f"number of the {name}")
    positive = values[values > 0]
    wide = positive.size > 0 and positive.max() > LOG_RATIO * positive.min()
    log = positive.size > 0 and bool(wide or name in (*STRENGTHS, "lr"))
    return Scale(values, label, True, log, tuple(f"{v:.3g}" for v in values))


def _counted(n: int, label: str) -> Scale:
    return Scale(np.arange(n, dtype=np.float64), label, False, False, tuple(map(str, range(n))))


def _numbers(labels: tuple[Any, ...]) -> FloatArray | None:
    return np.array(labels, dtype=np.float64) if all(isinstance(label, float) for label in labels) else None


def _varied(labels: tuple[Any, ...]) -> tuple[str, FloatArray] | None:
    """Return the one pattern whose value varies, and its values; None where there is no such one."""
    if not all(isinstance(label, Mapping) and list(label) == list(labels[0]) for label in labels):
        return None
    columns = {key: _numbers(tuple(label[key] for label in labels)) for key in labels[0]}
    varied = {key: column for key, column in columns.items() if column is None or np.ptp(column) > 0}
    if len(varied) != 1:
        return None
    ((key, column),) = varied.items()
    return None if column is None else (key, column)


def describe(members: Outcome, point: int, axes: tuple[str, ...] | None = None) -> str:
    """Return what a point of the path stands for, on some axes or on all that have several values."""
    table = members.table
    label = table.label(table.points.index(point))
    label.pop("seed")
    if table.axis_names != ("member",):
        names = axes or table.long_axes or table.axis_names
        label = {name: label[name] for name in names}
    parts = []
    for name, value in label.items():
        what = name
        if isinstance(value, Mapping) and table.axis_names != ("member",):
            own = scale(members, name)
            if own.label.startswith(f"{name} of "):
                what, value = own.label, float(own.values[table.index[name][table.points.index(point)]])
        parts.append(f"{what} {show(value)}")
    text = ", ".join(parts)
    return text if len(text) <= LONG_TEXT else f"point {point}"

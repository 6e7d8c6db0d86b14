"""The plot of a cross-validation; needs matplotlib, the extra ``plot``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from l2path.errors import MissingExtraError
from l2path.path.figures import BLUE, GREEN, GREY, LOG_RATIO, ORANGE, log_y, x_axis
from l2path.path.report import show
from l2path.scores import FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from l2path.path import PathResult

COLORS = [BLUE, "#CC79A7", "#E69F00", "#56B4E9", "#000000"]  # of Okabe and Ito, but for those of the choices
LARGEST = 1e30
Choices = dict[str, tuple[int, str]]


def draw(members: PathResult, scores: FloatArray, mean: FloatArray, spread: FloatArray, choices: Choices) -> Figure:
    """Draw mean score and standard error over the path, the folds beneath, and what was chosen.

    Parameters
    ----------
    members : PathResult
        For the axes of the path.
    scores : array, [F, P]
    mean, spread : array, [P]
    choices : {name: (point, text)}
        The best point and, where there is one, the strongest within a standard error.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("cv.plot() needs matplotlib. Remedy: pip install 'l2path[plot]'") from error
    # Members on the way to divergence have scores that no axis holds.
    scores, mean, spread = (np.where(np.abs(v) < LARGEST, v, np.nan) for v in (scores, mean, spread))
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    x, curves = _layout(axis, members)
    errors: dict[str, Any] = {"capsize": 2, "markersize": 4}
    if len(curves) == 1:
        line = "-" if members.path_values is not None else ""
        order = np.argsort(x, kind="stable")
        for f, own in enumerate(scores):
            label = "one fold" if f == 0 else None
            axis.plot(x[order], own[order], line or "_", color=GREY, alpha=0.4, linewidth=0.8, label=label)
        errors |= {"color": BLUE, "ecolor": "#9ecae1", "label": "mean ± 1 standard error"}
        axis.errorbar(x[order], mean[order], yerr=spread[order], fmt="o" + line, **errors)
    else:
        for (name, points), color in zip(curves.items(), COLORS, strict=False):
            order = points[np.argsort(x[points], kind="stable")]
            axis.errorbar(x[order], mean[order], spread[order], fmt="o-", color=color, label=name, **errors)
    _mark(axis, x, mean, spread, choices, greater_is_better=members.select.greater_is_better)
    axis.set_ylabel(members.select.name)
    axis.set_title(f"{len(scores)} folds" + (", means ± 1 standard error" if len(curves) > 1 else ""))
    finite = mean[np.isfinite(mean)]
    if finite.size and finite.min() > 0 and finite.max() > LOG_RATIO * finite.min():
        log_y(axis)
    axis.legend(fontsize=8, framealpha=0.8, edgecolor="none")
    return figure


def _layout(axis: Axes, members: PathResult) -> tuple[FloatArray, dict[str, Any]]:
    """Return where each point stands on the x axis, and the points of each curve by its name."""
    from matplotlib.ticker import MaxNLocator

    table, values = members.table, members.path_values
    points = np.arange(table.n_points)
    labels = [table.label(table.points.index(p)) for p in points.tolist()]
    last = table.main_axis if values is not None else table.axis_names[-1]
    plain = all(isinstance(label.get(last), float) for label in labels)
    if values is not None:
        return x_axis(axis, last if plain else f"{last}, mean over the parameters", values), {"": points}
    curves = points.reshape(-1, table.shape[-1])
    if plain and 1 < len(curves) <= len(COLORS):
        others = [name for name in table.axis_names if name != last]
        names = [", ".join(f"{name} {show(labels[c[0]][name])}" for name in others) for c in curves]
        return x_axis(axis, last, np.array([label[last] for label in labels])), dict(zip(names, curves, strict=True))
    axis.set_xlabel("point")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    return points.astype(np.float64), {"": points}


def _mark(
    axis: Axes, x: FloatArray, mean: FloatArray, spread: FloatArray, choices: Choices, *, greater_is_better: bool
) -> None:
    """Mark what was chosen, and the score within which the one-standard-error rule looks."""
    where = [index for index, _ in choices.values()]
    if len(where) > 1:
        limit = mean[where[0]] + (-1 if greater_is_better else 1) * spread[where[0]]
        axis.axhline(limit, color=GREEN, linewidth=0.8, linestyle=":")
    if len(where) > 1 and where[0] == where[1]:
        choices = {"best, and " + [*choices][1]: choices["best"]}
    for (name, (index, text)), color, style in zip(choices.items(), (ORANGE, GREEN), ("--", "-."), strict=False):
        axis.axvline(x[index], color=color, linewidth=1.5, linestyle=style, label=f"{name}: {text}", zorder=0)

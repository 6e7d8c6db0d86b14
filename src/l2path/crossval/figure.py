"""The plot of a cross-validation; needs matplotlib, the extra ``plot``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from l2path.errors import MissingExtraError
from l2path.path.figures import BLUE, GREEN, GREY, LOG_RATIO, ORANGE, log_y, x_axis
from l2path.scores import FloatArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from l2path.path import PathResult


def draw(
    members: PathResult, scores: FloatArray, mean: FloatArray, spread: FloatArray, choices: dict[str, tuple[int, str]]
) -> Figure:
    """Draw mean score and standard error over the path, the folds beneath, and the choices.

    Parameters
    ----------
    members : PathResult
    scores, mean, spread : array, [F, P], [P] and [P]
    choices : dict
        By name, the number of a point and what it stands for.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("plot() needs matplotlib. Remedy: pip install 'l2path[plot]'") from error
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    values = members.path_values
    x = x_axis(axis, members, np.arange(len(mean), dtype=np.float64) if values is None else values, "point")
    order = np.argsort(x, kind="stable")
    for fold in scores:
        axis.plot(x[order], fold[order], "-", color=GREY, alpha=0.35, linewidth=0.8)
    axis.plot([], [], "-", color=GREY, alpha=0.35, linewidth=0.8, label="one fold")
    axis.errorbar(
        x[order], mean[order], yerr=spread[order], fmt="o-", color=BLUE, ecolor="#9ecae1", capsize=2, markersize=4,
        label="mean ± 1 standard error",
    )  # fmt: skip
    for (name, (index, what)), (color, style) in zip(choices.items(), ((ORANGE, "--"), (GREEN, "-.")), strict=False):
        axis.axvline(x[index], color=color, linewidth=1.5, linestyle=style, label=f"{name}: {what}")
    axis.set_ylabel(members.select.name)
    axis.set_title(f"{len(scores)}-fold cross-validation")
    finite = mean[np.isfinite(mean)]
    if finite.size and finite.min() > 0 and finite.max() > LOG_RATIO * finite.min():
        log_y(axis)
    axis.legend(fontsize=8, frameon=False)
    return figure

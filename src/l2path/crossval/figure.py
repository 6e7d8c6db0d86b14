"""The plot of a cross-validation; needs matplotlib, the extra ``plot``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from l2path.errors import MissingExtraError
from l2path.path.figures import BLUE, GREEN, GREY, LOG_RATIO, ORANGE, log_y, x_axis
from l2path.path.report import show

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from l2path.crossval.result import CVResult


def draw(cv: CVResult) -> Figure:
    """Draw mean score and standard error over the path, the folds beneath, and both choices."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("cv.plot() needs matplotlib. Remedy: pip install 'l2path[plot]'") from error
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    values = cv.members.path_values
    n = cv.members.table.n_points
    x = x_axis(axis, cv.members, np.arange(n, dtype=np.float64) if values is None else values, "point")
    order = np.argsort(x, kind="stable")
    for scores in cv.fold_scores.reshape(len(cv.folds), -1):
        axis.plot(x[order], scores[order], "-", color=GREY, alpha=0.35, linewidth=0.8)
    axis.plot([], [], "-", color=GREY, alpha=0.35, linewidth=0.8, label="one fold")
    mean, spread = cv.cvm.ravel(), cv.cvsd.ravel()
    axis.errorbar(
        x[order], mean[order], yerr=spread[order], fmt="o-", color=BLUE, ecolor="#9ecae1", capsize=2, markersize=4,
        label="mean ± 1 standard error",
    )  # fmt: skip
    if np.isfinite(mean).any():
        choices = {"best": (cv.index_min, ORANGE, "--")}
        if cv.one_dimensional:
            choices["within 1 se"] = (cv.index_1se, GREEN, "-.")
        for name, (index, color, style) in choices.items():
            what = ", ".join(f"{k} {show(v)}" for k, v in cv.point(index).items())
            axis.axvline(x[index], color=color, linewidth=1.5, linestyle=style, label=f"{name}: {what}")
    axis.set_ylabel(cv.members.select.name)
    axis.set_title(f"{len(cv.folds)}-fold cross-validation")
    finite = mean[np.isfinite(mean)]
    if finite.size and finite.min() > 0 and finite.max() > LOG_RATIO * finite.min():
        log_y(axis)
    axis.legend(fontsize=8, frameon=False)
    return figure

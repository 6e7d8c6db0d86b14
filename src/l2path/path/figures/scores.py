"""Panels of scores: the validation curve and the learning curves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm, Normalize
from matplotlib.ticker import FixedLocator, MaxNLocator

from l2path.path.figures.axes import (
    CHOICES,
    COLORS,
    GREEN,
    GREY,
    PALE,
    far_off,
    legend,
    log_y,
    mark,
    places,
    set_ticks,
    title_over_legend,
    wide,
    x_axis,
)
from l2path.path.figures.view import IntArray, Line, View, presentable
from l2path.scores import FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKS = {"diverged": "x", "eliminated": "o", "no score": "x"}
CURVES = 40  # learning curves drawn, evenly spread over the path
SHADES = 0.92  # of viridis: what is beyond is too pale on white


def validation(axis: Axes, view: View) -> None:
    """Draw the scores over the path with their standard errors, the single runs, and what was chosen."""
    lines, shown = view.lines, view.lines
    if len(lines) > len(COLORS):  # as many colours as can be told apart, for the lines with the best scores
        sign = -1.0 if view.greater_is_better else 1.0
        scores = [np.nanmin(np.append(sign * view.scores[line.points], np.inf)) for line in lines]
        shown = tuple(lines[i] for i in sorted(np.argsort(scores, kind="stable")[: len(COLORS)]))
    x = x_axis(axis, lines[0].scale)
    if len(shown) == 1:
        _runs(axis, x, shown[0], view)
    for line, color in zip(shown, COLORS, strict=False):
        _curve(axis, x, line, view, color=color, several=len(shown) > 1)
    _limit(axis, view)
    _without_score(axis, x, shown, view)
    mark(axis, x, view.line, view, in_words=True)
    axis.set_ylabel(view.name)
    if len(shown) == 1 and len(view.runs) > 1:  # the runs leave no room
        title_over_legend(axis, _title(view), axis.get_legend_handles_labels()[0], columns=2)
        return
    axis.set_title(_title(view))
    title = None if len(shown) == len(lines) else f"{len(shown)} best of {len(lines)}"
    legend(axis, title, beside=len(shown) > 1)


def _title(view: View) -> str:
    if not view.validated:
        return "Training objective (no validation data)"
    if len(set(view.members.table.folds)) > 1:
        return f"Validation, {view.averaged}"
    return "Validation"


def _joined(line: Line) -> str:
    return "-" if line.scale.ordered else ""  # points without an order are no curve


def _runs(axis: Axes, x: FloatArray, line: Line, view: View) -> None:
    """Draw the single runs beneath: folds as lines, seeds as dots."""
    if len(view.runs) == 1:
        return
    for r, own in enumerate(view.runs):
        label = f"one {view.run}" if r == 0 else None
        if view.run == "fold":
            style: dict[str, Any] = {"linestyle": _joined(line), "marker": "" if line.scale.ordered else "_"}
        else:
            style = {"linestyle": "", "marker": "o", "markersize": 3}
        axis.plot(x, own[line.points], color=GREY, alpha=0.4, linewidth=0.8, label=label, **style)


def _curve(axis: Axes, x: FloatArray, line: Line, view: View, *, color: str, several: bool) -> None:
    y, form = view.scores[line.points], "o" + _joined(line)
    mean = "mean" if view.run == "fold" else view.averaged
    if view.errors is None:
        label = line.at if several else mean or None
        axis.plot(x, y, form, color=color, markersize=4, label=label)
        return
    label = line.at if several else f"{mean} ± 1 standard error".strip()
    errors: dict[str, Any] = {"capsize": 2, "elinewidth": 1, "markersize": 4, "label": label}
    axis.errorbar(x, y, view.errors[line.points], fmt=form, color=color, ecolor=None if several else PALE, **errors)


def _without_score(axis: Axes, x: FloatArray, lines: tuple[Line, ...], view: View) -> None:
    """Draw points that have no score in grey: where their members left, or at the bad edge of the axes.

    Scores that are far off are at the edge, too: the y axis does not reach that far.
    """
    spots, points = np.tile(x, len(lines)), np.concatenate([line.points for line in lines])
    status = np.array([view.status[p] for p in points])
    scores = np.where(status == "eliminated", view.last_scores[points], view.scores[points])
    beyond = far_off(scores)
    if wide(scores[~beyond], greater_is_better=view.greater_is_better):
        axis.set_yscale("log")
    if beyond.any():
        _set_range(axis, np.append(scores[~beyond], view.runs[:, points[~beyond & (status == "")]]))
    log_y(axis)
    if not view.validated:
        return
    style: dict[str, Any] = {"linestyle": "", "color": GREY, "markersize": 5, "markerfacecolor": "white"}
    left = (status == "eliminated") & np.isfinite(scores) & ~beyond
    if left.any():
        axis.plot(spots[left], scores[left], marker="o", label="score when eliminated", **style)
    edge, transform = 0.03 if view.greater_is_better else 0.97, axis.get_xaxis_transform()
    kinds = {name: (status == name) & ~left & ~beyond for name in MARKS} | {"beyond the axis": beyond}
    for name, own in kinds.items():
        if own.any():
            marker, y = MARKS.get(name, "v" if view.greater_is_better else "^"), np.full(own.sum(), edge)
            axis.plot(spots[own], y, transform=transform, marker=marker, label=name, **style)


def _set_range(axis: Axes, values: FloatArray) -> None:
    """Let the y axis reach over these values, with a margin."""
    finite = values[np.isfinite(values)]
    if not finite.size or np.ptp(finite) == 0:
        return
    low, high = float(finite.min()), float(finite.max())
    if axis.get_yscale() == "log":
        margin = (high / low) ** 0.06
        axis.set_ylim(low / margin, high * margin)
    else:
        axis.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))


def _limit(axis: Axes, view: View) -> None:
    """Mark the score within which the one-standard-error rule looks."""
    if len(view.choices) < 2 or view.errors is None:
        return
    best = next(iter(view.choices.values()))
    sign = -1.0 if view.greater_is_better else 1.0
    axis.axhline(view.scores[best] + sign * view.errors[best], color=GREEN, linewidth=0.8, linestyle=":", zorder=0.5)


def curves(axis: Axes, view: View) -> None:
    """Draw the score that decides (without validation the training loss) over the epochs, for points of the path."""
    name = view.name if view.validated else "loss"
    rows = presentable(view.by_point(view.members.history[name].numpy()))  # [epochs, P]
    line = view.line
    spots = places(line.scale)
    shown = np.unique(np.linspace(0, len(line.points) - 1, min(CURVES, len(line.points))).round().astype(int))
    low, high = float(spots.at.min()), float(spots.at.max())
    norm = LogNorm(low, high) if line.scale.log and high > low else Normalize(low, high)
    shades = ListedColormap(colormaps["viridis"](np.linspace(0, SHADES, 256)))
    epochs = np.arange(1, len(rows) + 1)
    dot: dict[str, Any] = {"marker": "o"} if len(rows) == 1 else {}
    for i in shown:
        axis.plot(epochs, rows[:, line.points[i]], color=shades(norm(spots.at[i])), linewidth=1.2, **dot)
    _mark_ends(axis, rows, line.points[shown], view)
    for (choice, point), (color, dash) in zip(view.distinct_choices.items(), CHOICES, strict=False):
        if point in line.points:
            chosen: dict[str, Any] = {"linewidth": 2, "linestyle": dash, "label": choice} | dot
            axis.plot(epochs, rows[:, point], color=color, zorder=2.5, **chosen)
    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True) if len(rows) > 2 else FixedLocator(epochs.tolist()))
    axis.set_ylabel(", ".join(text for text in (name, view.averaged) if text))
    axis.set_title("Learning curves" + (f" at {line.at}" if line.at else ""))
    _keep_in_sight(axis, rows, line, view)
    legend(axis)
    if len(shown) > 1 and axis.figure is not None:
        bar = axis.figure.colorbar(ScalarMappable(norm, shades), ax=axis, pad=0.02)
        set_ticks(bar.ax.yaxis, line.scale, spots)
        bar.set_label(line.scale.label)


def _mark_ends(axis: Axes, rows: FloatArray, points: IntArray, view: View) -> None:
    """Mark where curves end before the last epoch, and why."""
    ends: dict[str, list[tuple[int, float]]] = {}
    for point in points.tolist():
        alive = np.flatnonzero(np.isfinite(rows[:, point]))
        last = int(alive[-1]) if alive.size else 0
        if last + 1 < len(rows):
            ends.setdefault(_ending(view, point), []).append((last + 1, float(rows[last, point])))
    for why, at in ends.items():
        x, y = zip(*at, strict=True)
        style: dict[str, Any] = {"marker": "o", "markerfacecolor": "white", "markersize": 4}
        if why == "diverged":  # they end beyond the axes
            y = (0.03 if view.greater_is_better else 0.97,) * len(x)
            style = {"marker": "x", "markersize": 4, "transform": axis.get_xaxis_transform()}
        axis.plot(x, y, linestyle="", color=GREY, label=why, zorder=3, **style)


def _ending(view: View, point: int) -> str:
    """Return why the curve of a point ends before the last epoch."""
    own = view.members.status[point :: view.members.table.n_points]
    return next((s for s in ("diverged", "eliminated", "stopped") if s in own), "ended")


def _keep_in_sight(axis: Axes, rows: FloatArray, line: Line, view: View) -> None:
    """Let curves that diverge leave the axes, where others would be flat beside them."""
    tame = [p for p in line.points.tolist() if _ending(view, p) != "diverged"]
    shown = rows[:, tame or line.points].ravel()
    if wide(shown, greater_is_better=view.greater_is_better):
        axis.set_yscale("log")
    _set_range(axis, shown)
    log_y(axis)

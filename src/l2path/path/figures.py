"""Plots of a result; needs matplotlib, the extra ``plot``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from l2path.errors import MissingExtraError
from l2path.path.outcome import Outcome
from l2path.path.report import show
from l2path.scores import FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"  # Okabe and Ito 2008: colour-blind safe
LOG_RATIO = 8  # of the largest to the smallest value, beyond which an axis is logarithmic
CURVES = 12  # training curves drawn, evenly spread over the path


def draw(result: Outcome) -> Figure:
    """Draw a result in three panels: validation curve, weight norms, training curves."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("result.plot() needs matplotlib. Remedy: pip install 'l2path[plot]'") from error
    figure = Figure(figsize=(13, 4), layout="constrained")
    axes = figure.subplots(1, 3)
    chosen = result.chosen
    values = _positions(result)
    _validation(axes[0], result, values, chosen)
    _norms(axes[1], result, values, chosen)
    _curves(axes[2], result)
    return figure


def _positions(result: Outcome) -> FloatArray:
    """Return ``[K]`` positions on the x axis: the path's values, or member numbers where there are none."""
    values = result.path_values
    if values is None:
        return np.arange(len(result), dtype=np.float64)
    return values[list(result.table.points)]


def _x_axis(axis: Axes, result: Outcome, values: FloatArray) -> FloatArray:
    if result.path_values is None:
        axis.set_xlabel("member")
        return values
    return x_axis(axis, result.table.main_axis, values)


def x_axis(axis: Axes, name: str, values: FloatArray) -> FloatArray:
    """Make an x axis of strengths and return where to draw: 0 sits one step left of the smallest positive value."""
    axis.set_xlabel(name)
    positive = np.unique(values[values > 0])
    if positive.size == 0:
        return values
    axis.set_xscale("log")
    if (values > 0).all():
        return values
    ratio = positive[1] / positive[0] if positive.size > 1 else 10.0
    zero = positive[0] / max(ratio, 1.5) ** 1.5
    axis.axvline(zero * max(ratio, 1.5) ** 0.75, color=GREY, linewidth=0.8, linestyle=":")
    axis.text(zero, 0.02, "0", transform=axis.get_xaxis_transform(), ha="center", va="bottom", color=GREY)
    return np.where(values > 0, values, zero)


def log_y(axis: Axes) -> None:
    """Make the y axis logarithmic, with plain numbers at its ticks."""
    from matplotlib.ticker import LogLocator

    axis.set_yscale("log")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_locator(LogLocator(subs=(2, 3, 5)))
    axis.yaxis.set_minor_formatter("{x:g}")


def _mark(axis: Axes, x: FloatArray, chosen: int | None, result: Outcome) -> None:
    if chosen is not None:
        label = result.table.label(chosen)
        label.pop("seed")
        text = ", ".join(f"{k} {show(v)}" for k, v in label.items())
        axis.axvline(x[chosen], color=ORANGE, linewidth=1.5, linestyle="--", label=f"best: {text}")


def _validation(axis: Axes, result: Outcome, values: FloatArray, chosen: int | None) -> None:
    x = _x_axis(axis, result, values)
    axis.set_title("Validation" if chosen is not None else "Training objective (no validation data)")
    order = np.argsort(x, kind="stable")
    if chosen is None:
        y = _final(result, "objective")
        axis.plot(x[order], y[order], "o-", color=BLUE, markersize=4)
        axis.set_ylabel("objective")
        return
    y = result.scores
    errors = result.uncertainty.standard_errors
    if len(set(result.table.seeds)) > 1 and result.path_values is not None:
        axis.plot(x, y, "o", color=GREY, alpha=0.5, markersize=3, label="one seed")
        points = np.array([x[result.table.points.index(p)] for p in range(result.table.n_points)])
        mean = result.cvm.ravel()
        order = np.argsort(points, kind="stable")
        axis.plot(points[order], mean[order], "o-", color=BLUE, markersize=4, label="mean over seeds")
    elif errors is not None:
        axis.errorbar(
            x[order],
            y[order],
            yerr=errors.numpy()[order],
            fmt="o-",
            color=BLUE,
            ecolor="#9ecae1",
            capsize=2,
            markersize=4,
            label="± 1 standard error",
        )
    else:
        axis.plot(x[order], y[order], "o-", color=BLUE, markersize=4)
    axis.set_ylabel(result.select.name)
    finite = y[np.isfinite(y)]
    if finite.size and finite.min() > 0 and finite.max() > LOG_RATIO * finite.min():
        log_y(axis)
    _mark(axis, x, chosen, result)
    axis.legend(fontsize=8, frameon=False)


def _over_seeds(result: Outcome, rows: FloatArray) -> FloatArray:
    """Return ``[..., P]`` means over the seeds of ``[..., K]`` numbers, by point of the path."""
    points = np.array(result.table.points)
    means = [rows[..., points == p].mean(axis=-1) for p in range(result.table.n_points)]
    return np.stack(means, axis=-1)


def _norms(axis: Axes, result: Outcome, values: FloatArray, chosen: int | None) -> None:
    x = _x_axis(axis, result, values)
    positions = _over_seeds(result, x)
    order = np.argsort(positions, kind="stable")
    styles = ["-", "--", "-.", ":"]
    colors = [BLUE, GREEN, "#CC79A7", "#E69F00", "#56B4E9"]
    norms = {name: _over_seeds(result, norm.numpy()) for name, norm in result.weight_norms().items()}
    largest = sorted(norms, key=lambda n: -float(np.nan_to_num(norms[n]).max()))[:10]
    for i, name in enumerate(n for n in norms if n in largest):
        style: dict[str, Any] = {"color": colors[i % 5], "linestyle": styles[i // 5 % 4]}
        axis.plot(positions[order], norms[name][order], label=name, **style)
    _mark_plain(axis, x, chosen)
    axis.set_ylabel("Euclidean norm" + (", mean over seeds" if len(set(result.table.seeds)) > 1 else ""))
    axis.set_title("Weights" if len(norms) <= 10 else f"Weights (10 largest of {len(norms)})")
    axis.legend(fontsize=7, frameon=False)


def _mark_plain(axis: Axes, x: FloatArray, chosen: int | None) -> None:
    if chosen is not None:
        axis.axvline(x[chosen], color=ORANGE, linewidth=1.5, linestyle="--")


def _curves(axis: Axes, result: Outcome) -> None:
    from matplotlib import colormaps

    name = result.select.name if result.select.validation is not None else "loss"
    rows = _over_seeds(result, result.history[name].numpy())
    epochs = np.arange(1, len(rows) + 1)
    n = result.table.n_points
    shown = np.unique(np.linspace(0, n - 1, min(CURVES, n)).round().astype(int))
    cmap = colormaps["viridis"]
    best = result.chosen
    for i, point in enumerate(shown):
        label = result.table.label(result.table.points.index(int(point)))
        label.pop("seed")
        text = ", ".join(show(v) for v in label.values())
        axis.plot(epochs, rows[:, point], color=cmap(0.92 * i / max(1, len(shown) - 1)), linewidth=1.2, label=text)
    if best is not None:
        own = rows[:, result.table.points[best]]
        axis.plot(epochs, own, color=ORANGE, linewidth=2, linestyle="--", label="best")
    axis.set_xlabel("epoch")
    axis.set_ylabel(name)
    axis.set_title("Training")
    finite = rows[np.isfinite(rows)]
    if finite.size and finite.min() > 0 and finite.max() > LOG_RATIO * finite.min():
        log_y(axis)
    axis.legend(
        fontsize=7,
        frameon=False,
        title=" / ".join(result.table.axis_names),
        title_fontsize=8,
        loc="upper left",
        bbox_to_anchor=(1, 1),
    )


def _final(result: Outcome, name: str) -> FloatArray:
    rows = result.history[name].numpy()
    return np.array([rows[n - 1, k] if n else np.nan for k, n in enumerate(result.epochs_kept)])

"""Axes of a plot: where values stand, a place for 0 on a logarithmic axis, legends, marks of the choice."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from l2path.path.figures.scales import LOG_RATIO, Scale, describe
from l2path.path.figures.view import Line, View
from l2path.scores import FloatArray

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"  # Okabe and Ito 2008: colour-blind safe
COLORS = (BLUE, "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # the same palette, but for those of the choices
CHOICES = ((ORANGE, "--"), (GREEN, "-."))
DASHES = ("-", "--", "-.", ":")
PALE = "#9ecae1"  # error bars
SMALL = 8  # font size of legends
INSIDE = 6  # entries that a legend may have inside of the axes
FAR = 1000.0  # times the median magnitude of the scores: beyond that axes and colours do not reach
WRAP, WRAP_ABOVE = 28, 40  # characters of a line in a legend beside the axes, and above them
DECADES = 2  # axes of up to so many have numbers between the powers of ten, too


@dataclass(frozen=True)
class Places:
    """Where the values of an axis stand.

    Attributes
    ----------
    at : array, [n]
    zero : float or None
        Where a 0 stands that a logarithmic axis has no place for.
    gap : float
        Half-way between ``zero`` and the smallest positive value.
    """

    at: FloatArray
    zero: float | None = None
    gap: float = 0.0


def places(scale: Scale) -> Places:
    """Return where values stand: 0 is one step left of the smallest positive value on a logarithmic axis."""
    positive = np.unique(scale.values[scale.values > 0])
    if not scale.log or (scale.values > 0).all():
        return Places(scale.values)
    span = float(np.log(positive[-1] / positive[0]))
    own = float(np.log(positive[1] / positive[0])) if positive.size > 1 else float(np.log(10.0))
    # Wide enough to be told from the other steps, and for two tick labels; no wider than it has to be.
    step = max(np.log(1.8), 0.1 * span, min(1.5 * own, 0.25 * span) if span else own)
    zero = float(positive[0] * np.exp(-step))
    return Places(np.where(scale.values > 0, scale.values, zero), zero, float(positive[0] * np.exp(-step / 2)))


class _Ticks(LogLocator):
    """Ticks of a logarithmic axis above some value, and one for 0."""

    def __init__(self, low: float, zero: float | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.low, self.zero = low, zero

    def tick_values(self, vmin: float, vmax: float) -> Any:  # matplotlib's own type differs between versions
        low = max(vmin, self.low)
        ticks = np.asarray(super().tick_values(low, max(vmax, low * 1.01)))
        ticks = ticks[ticks >= self.low]
        return ticks if self.zero is None else np.append(self.zero, ticks)


def set_ticks(axis: Axis, scale: Scale, spots: Places) -> None:
    """Put ticks and their labels on an axis; 0 is a tick as well."""
    if not scale.ordered:
        axis.set_major_locator(MaxNLocator(integer=True))
        return
    if not scale.log:
        return
    positive = scale.values[scale.values > 0]
    decades = float(np.log10(positive.max() / positive.min()))
    # Without a decade inside, and on few of them, numbers between are needed.
    between = (2, 5) if decades <= 1 else (3,) if decades <= DECADES else ()

    def major(value: float, _: int | None = None) -> str:
        if spots.zero is not None and np.isclose(value, spots.zero, rtol=1e-6, atol=0.0):
            return "0"
        return f"{value:g}" if between else f"$10^{{{round(np.log10(value))}}}$"

    def minor(value: float, _: int | None = None) -> str:
        return f"{value:g}" if round(value / 10 ** np.floor(np.log10(value) + 1e-9)) in between else ""

    start = 0.0 if spots.zero is None else float(positive.min()) * (1 - 1e-9)  # nothing stands between it and 0
    axis.set_major_locator(_Ticks(start, spots.zero))
    axis.set_major_formatter(FuncFormatter(major))
    axis.set_minor_locator(_Ticks(start, subs=tuple(range(2, 10)) if between else "auto"))
    axis.set_minor_formatter(FuncFormatter(minor) if between else NullFormatter())


def x_axis(axis: Axes, scale: Scale) -> FloatArray:
    """Make an x axis and return where its values stand."""
    spots = places(scale)
    axis.set_xlabel(scale.label)
    if scale.log:
        axis.set_xscale("log")
        if np.ptp(spots.at) == 0:  # matplotlib finds limits around one value by itself, but not around its error bar
            axis.set_xlim(spots.at[0] / 3, spots.at[0] * 3)
    set_ticks(axis.xaxis, scale, spots)
    if spots.zero is not None:
        axis.axvline(spots.gap, color=GREY, linewidth=0.8, linestyle=":", zorder=0)
    return spots.at


def log_y(axes: Axes) -> None:
    """Put plain numbers at the ticks of the y axis if it is logarithmic."""
    axis, (low, high) = axes.yaxis, axes.get_ylim()
    if axes.get_yscale() != "log":
        return
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    short = low > 0 and np.log10(high / low) <= DECADES
    axis.set_minor_locator(LogLocator(subs=(2, 3, 5)))
    axis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}") if short else NullFormatter())


def wide(values: FloatArray, *, greater_is_better: bool = False) -> bool:
    """Return whether scores belong on a logarithmic axis: positive losses of different magnitudes."""
    finite = values[np.isfinite(values)]
    if greater_is_better or not finite.size:  # what rises to 1, or to any best value, has its detail there
        return False
    return bool(finite.min() > 0 and finite.max() > LOG_RATIO * finite.min())


def far_off(values: FloatArray) -> npt.NDArray[np.bool_]:
    """Return which scores are of another world, as those of members on their way to divergence."""
    size = np.abs(values)
    finite = size[np.isfinite(size)]
    typical = float(np.median(finite)) if finite.size else 0.0
    return np.asarray(size > (FAR * typical if typical > 0 else np.inf))


def line_style(i: int) -> dict[str, Any]:
    """Return colour and dashes of the i-th of up to 20 lines."""
    return {"color": COLORS[i % len(COLORS)], "linestyle": DASHES[i // len(COLORS) % len(DASHES)]}


def legend(axis: Axes, title: str | None = None, *, beside: bool = False) -> None:
    """Put a legend inside of the axes, or beside them if it is long, or if ``beside``."""
    handles, _ = axis.get_legend_handles_labels()
    options: dict[str, Any] = {"fontsize": SMALL, "title": title, "title_fontsize": SMALL}
    if beside or len(handles) > INSIDE:
        options |= {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0), "borderaxespad": 0.2}
        for text in axis.legend(**options, frameon=False).get_texts():
            text.set_text(textwrap.fill(text.get_text(), WRAP))
    elif handles:
        axis.legend(**options, framealpha=0.85, edgecolor="none")


def title_over_legend(axis: Axes, title: str, handles: Sequence[Artist], columns: int) -> None:
    """Put a legend between the axes and their title, where it hides nothing."""
    labels = [textwrap.fill(str(handle.get_label()), WRAP_ABOVE) for handle in handles]
    lines = [sum(text.count("\n") + 1 for text in own) for own in np.array_split(labels, columns)]
    axis.set_title(title, pad=8 + 14 * max(lines) if handles else None)
    if handles:
        options: dict[str, Any] = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "borderaxespad": 0.2}
        axis.legend(handles, labels, ncols=columns, fontsize=SMALL, frameon=False, handlelength=1.5, **options)


def mark(axis: Axes, x: FloatArray, line: Line, view: View, *, in_words: bool = False) -> None:
    """Mark the choices on the x axis, and say what they are if ``in_words``."""
    for (name, point), (color, dashes) in zip(view.distinct_choices.items(), CHOICES, strict=False):
        spot = x[np.flatnonzero(line.points == point)]
        if spot.size:
            label = f"{name}: {describe(view.members, point)}" if in_words else name
            axis.axvline(spot[0], color=color, linewidth=1.5, linestyle=dashes, label=label, zorder=0.5)

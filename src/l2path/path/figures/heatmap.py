"""The heat map of a path with two axes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.colors import LogNorm, Normalize
from matplotlib.patches import Patch, Rectangle

from l2path.path.figures.axes import GREY, ORANGE, SMALL, far_off, log_y, title_over_legend, wide
from l2path.path.figures.scales import Scale, describe
from l2path.path.figures.view import IntArray, View
from l2path.scores import FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.image import AxesImage

TICKS = 16  # labels along an axis
CELL = (0.4, 0.17)  # inches that a score takes in a cell
HATCHES = {"diverged": "////", "eliminated": "....", "no score": "xx"}


def heatmap(axis: Axes, view: View) -> None:
    """Draw the scores over two axes as cells, the best over the other axes where there are more."""
    rows, columns = view.axes[0], view.axes[-1]
    y, x = view.scale(rows), view.scale(columns)
    up, across = (np.argsort(scale.values, kind="stable") for scale in (y, x))
    cells, points = _cells(view, rows, columns)
    cells, points = cells[np.ix_(up, across)], points[np.ix_(up, across)]
    image = _colored(axis, cells, view)
    _write(axis, image, cells)
    _label(axis.yaxis, y, up)
    _label(axis.xaxis, x, across)
    for label in axis.get_xticklabels():
        if len(across) > 5 and max(map(len, x.texts)) > 3:
            label.set(rotation=45, ha="right", rotation_mode="anchor")
    handles = [*_outlined(axis, view, points), *_hatched(axis, view, cells, points)]
    others = view.axes[1:-1]
    title = "Validation" if view.validated else "Training objective (no validation data)"
    if len(set(view.members.table.folds)) > 1:
        title += f", {view.averaged}"
    title += f", best over {' and '.join(others)}" if others else ""
    title_over_legend(axis, title, handles, columns=max(1, len(handles)))


def _cells(view: View, rows: str, columns: str) -> tuple[FloatArray, IntArray]:
    """Return ``[rows, columns]`` scores, the best over the other axes, and the points that they are of."""
    table = view.members.table
    where = (table.axis_names.index(rows), table.axis_names.index(columns))
    sign = -1.0 if view.greater_is_better else 1.0

    def by_cell(by_point: npt.NDArray[Any]) -> npt.NDArray[Any]:
        moved = np.moveaxis(by_point.reshape(table.shape), where, (0, 1))
        return moved.reshape(*moved.shape[:2], -1)

    scores, points = by_cell(view.scores), by_cell(np.arange(table.n_points))
    best = np.argmin(np.where(np.isfinite(scores), sign * scores, np.inf), axis=-1)[..., None]
    return np.take_along_axis(scores, best, -1)[..., 0], np.take_along_axis(points, best, -1)[..., 0]


def _colored(axis: Axes, cells: FloatArray, view: View) -> AxesImage:
    """Color the cells, the better the brighter, and draw the colour bar."""
    finite = cells[np.isfinite(cells)]
    # A few scores that are far off would otherwise leave one colour for all of the others.
    near = finite[~far_off(finite)] if finite.size else np.array([0.0, 1.0])
    low, high = float(near.min()), float(near.max())
    extend = "neither" if len(near) >= len(finite) else "min" if view.greater_is_better else "max"
    log = wide(np.array([low, high]), greater_is_better=view.greater_is_better)
    image = axis.imshow(
        np.ma.masked_invalid(cells),
        norm=LogNorm(low, high) if log else Normalize(low, high),
        cmap=colormaps["viridis" if view.greater_is_better else "viridis_r"],
        aspect="auto",
        origin="lower",
        interpolation="nearest",
    )
    if finite.size and axis.figure is not None:
        bar = axis.figure.colorbar(image, ax=axis, extend=extend, pad=0.02)
        bar.set_label(f"{view.name} ({'greater' if view.greater_is_better else 'lower'} is better)")
        log_y(bar.ax)
    return image


def _write(axis: Axes, image: AxesImage, cells: FloatArray) -> None:
    """Write the scores into the cells where they are large enough."""
    box = axis.get_window_extent()
    dpi = axis.figure.dpi
    height, width = box.height / dpi / cells.shape[0], box.width / dpi / cells.shape[1]
    if width < CELL[0] or height < CELL[1]:
        return
    for i, j in np.argwhere(np.isfinite(cells)):
        red, green, blue, _ = image.cmap(image.norm(cells[i, j]))
        color = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"
        text = f"{cells[i, j]:.3g}" if abs(cells[i, j]) < 1000 else f"{cells[i, j]:.0e}".replace("e+0", "e")
        axis.text(j, i, text, ha="center", va="center", fontsize=SMALL, color=color)


def _label(axis: Axis, scale: Scale, order: IntArray) -> None:
    """Label the cells along an axis with their values; 0 is a cell like the others."""
    n = len(order)
    shown = [i for i in range(n) if i % -(-n // TICKS) == 0]
    axis.set_ticks(shown, [scale.texts[order[i]] for i in shown])
    axis.set_label_text(scale.label)


def _outlined(axis: Axes, view: View, points: IntArray) -> list[Patch]:
    """Outline the cell of each choice and return what to put into the legend."""
    handles = []
    for name, point in view.choices.items():
        found = np.argwhere(points == point)
        if not len(found):
            continue
        ((i, j),) = found
        # Two outlines: one of them stands out from any colour.
        for color, width in (("white", 4.0), (ORANGE, 2.0)):
            style: dict[str, Any] = {"edgecolor": color, "linewidth": width, "zorder": 3, "clip_on": False}
            axis.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, **style))
        label = f"{name}: {describe(view.members, point)}"
        handles.append(Patch(facecolor="none", edgecolor=ORANGE, linewidth=2, label=label))
    return handles


def _hatched(axis: Axes, view: View, cells: FloatArray, points: IntArray) -> list[Patch]:
    """Hatch the cells that have no score and return what to put into the legend."""
    handles = []
    for status, hatch in HATCHES.items():
        style: dict[str, Any] = {"facecolor": "#eeeeee", "edgecolor": GREY, "hatch": hatch, "linewidth": 0.0}
        own = [(i, j) for i, j in np.argwhere(~np.isfinite(cells)) if view.status[points[i, j]] == status]
        for i, j in own:
            axis.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, **style))
        if own:
            handles.append(Patch(**style, label=status))
    return handles

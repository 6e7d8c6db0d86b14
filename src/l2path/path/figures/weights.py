"""Panels of weights: norms, single coefficients, and how far each parameter has shrunk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from l2path.path.figures.axes import GREY, legend, line_style, mark, x_axis
from l2path.path.figures.view import Line, View
from l2path.scores import FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMED = 10  # lines with a style and a name of their own
DRAWN = 40  # coefficients
FEW_MORE = 2  # lines that are not worth to be left out
DOTTED = 50  # points up to which lines show them
TOO_LARGE = 2.0  # of a ratio that is 1 where the path is weakest


def norms(axis: Axes, view: View, parameter: str | None) -> None:
    """Draw the Euclidean norm of each parameter over the path."""
    rows = _norms(view, view.parameters(parameter))
    _draw(axis, view, rows, _largest(rows, view.line, NAMED), title="Weight norms")
    axis.set_ylabel(", ".join(text for text in ("Euclidean norm", view.averaged) if text))


def shrinkage(axis: Axes, view: View, parameter: str | None) -> None:
    """Draw the norm of each parameter relative to where the path shrinks least."""
    rows, ratios = _norms(view, view.parameters(parameter)), {}
    for name, own in rows.items():
        weakest = next((v for v in own[view.line.points].tolist() if np.isfinite(v)), 0.0)
        if weakest > 0:
            ratios[name] = own / weakest
    # The parameters with the largest norms, not with the largest ratios, which are those of small biases.
    _draw(axis, view, ratios, _largest({n: rows[n] for n in ratios}, view.line, NAMED), title="Shrinkage")
    axis.axhline(0.0, color=GREY, linewidth=0.8, zorder=0)
    axis.axhline(1.0, color=GREY, linewidth=0.8, linestyle=":", zorder=0)
    top = axis.get_ylim()[1]
    # What is not penalised may grow without end, and would press the others flat.
    axis.set_ylim(-0.05, min(max(top, 1.05), TOO_LARGE))
    scale = view.line.scale
    axis.set_ylabel(f"norm / norm at {scale.label} = {scale.texts[0]}")


def coefficients(axis: Axes, view: View, parameter: str | None) -> None:
    """Draw single numbers of the parameters over the path, the largest ones where there are many."""
    rows = {}
    for name in view.parameters(parameter):
        values = view.members.params[name].detach().double().cpu()
        shape = values.shape[1:]
        flat = _without_diverged(view, values.reshape(len(values), -1).T.numpy())
        for i, own in enumerate(flat):
            index = ", ".join(str(int(j)) for j in np.unravel_index(i, shape)) if shape else ""
            rows[f"{name}[{index}]" if shape else name] = own
    drawn = {name: rows[name] for name in _largest(rows, view.line, DRAWN)}
    title = "Coefficients" if len(drawn) == len(rows) else f"Coefficients ({len(drawn)} largest of {len(rows)})"
    axis.axhline(0.0, color=GREY, linewidth=0.8, zorder=0)
    _draw(axis, view, drawn, _largest(drawn, view.line, NAMED), title=title)
    axis.set_ylabel(", ".join(text for text in ("coefficient", view.averaged) if text))


def _norms(view: View, names: Sequence[str]) -> dict[str, FloatArray]:
    """Return ``[P]`` norms by parameter, means over the runs."""
    every = view.members.weight_norms()
    return {name: _without_diverged(view, every[name].numpy()[None])[0] for name in names}


def _without_diverged(view: View, rows: FloatArray) -> FloatArray:
    """Return ``[n, P]`` means over the runs of ``[n, K]``: members that diverged have weights that mean nothing."""
    gone = np.array([status == "diverged" for status in view.members.status])
    return view.by_point(np.where(gone, np.nan, rows))


def _largest(rows: dict[str, FloatArray], line: Line, n: int) -> list[str]:
    """Return the names of the n rows that are largest anywhere on the line, in their order; of few more, of all."""
    if len(rows) <= n + FEW_MORE:
        return list(rows)
    size = {name: float(np.nan_to_num(np.abs(own[line.points])).max()) for name, own in rows.items()}
    largest = set(sorted(size, key=lambda name: -size[name])[:n])
    return [name for name in rows if name in largest]


def _draw(axis: Axes, view: View, rows: dict[str, FloatArray], named: Sequence[str], *, title: str) -> None:
    """Draw ``[P]`` numbers by name over the line through the choice: some named, the others grey."""
    line = view.line
    x = x_axis(axis, line.scale)
    marks: dict[str, Any] = {"marker": "." if len(x) <= DOTTED else "", "markersize": 4.0}
    if not line.scale.ordered:
        marks = {"marker": "o", "markersize": 4.0, "linestyle": ""}
    for i, name in enumerate(named):
        axis.plot(x, rows[name][line.points], label=name, zorder=2.5, **(line_style(i) | marks))
    mark(axis, x, line, view)
    others = [name for name in rows if name not in named]
    for i, name in enumerate(others):
        label = f"{len(others)} smaller ones" if i == 0 else None
        axis.plot(x, rows[name][line.points], color=GREY, alpha=0.5, linewidth=0.8, label=label)
    axis.set_title(title + (f" at {line.at}" if line.at else ""))
    legend(axis)

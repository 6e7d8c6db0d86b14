"""Which panels there are, which of them a result can have, and the figure that they are drawn into."""

from __future__ import annotations

from typing import TYPE_CHECKING

from l2path.errors import ArgumentError, MissingExtraError
from l2path.path.figures.scales import STRENGTHS
from l2path.path.figures.view import View

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OF_WEIGHTS = ("norms", "coefficients", "shrinkage")
MANY = 10_000  # numbers of which it makes no sense any more to draw single ones


def draw(view: View, kind: str, ax: Axes | None = None, parameter: str | None = None) -> Figure:
    """Draw one panel, or the overview of three.

    Parameters
    ----------
    view : View
    kind : str
        A key of :func:`obstacles`.
    ax : Axes, optional
        What to draw one panel into; a new figure by default.
    parameter : str, optional
        Name or glob of parameters, for panels of weights.

    Returns
    -------
    Figure
        That of ``ax``, or the new one.

    Raises
    ------
    MissingExtraError
        Without matplotlib.
    ArgumentError
        For a kind that there is not, or that this result cannot have, and for arguments that do not fit the kind.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("plot() needs matplotlib. Remedy: pip install 'l2path[plot]'") from error
    check_kind(view, kind, parameter)
    if kind == "overview":
        if ax is not None:
            raise ArgumentError(
                "ax", got="one Axes for three panels", expected="None", remedy="name the panel, for example 'norms'"
            )
        figure = Figure(figsize=(15, 4.3), layout="constrained")
        panels = ("heatmap" if len(view.axes) > 1 else "validation", "norms", "curves")
        for axis, panel in zip(figure.subplots(1, 3), panels, strict=True):
            draw_panel(axis, view, panel, None)
        return figure
    if ax is None:
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        draw_panel(figure.subplots(), view, kind, parameter)
        return figure
    check_axes(ax)
    draw_panel(ax, view, kind, parameter)
    return root(ax)


def draw_panel(axis: Axes, view: View, kind: str, parameter: str | None) -> None:
    """Draw one panel into axes."""
    from l2path.path.figures import heatmap, scores, weights

    if kind in OF_WEIGHTS:
        {"norms": weights.norms, "coefficients": weights.coefficients, "shrinkage": weights.shrinkage}[kind](
            axis, view, parameter
        )
    else:
        {"validation": scores.validation, "curves": scores.curves, "heatmap": heatmap.heatmap}[kind](axis, view)


def obstacles(view: View, parameter: str | None = None) -> dict[str, str | None]:
    """Return the kinds of plots, and for each of them what to do to have it; None where it can be drawn."""
    names = view.parameters(parameter)
    numbers = sum(view.count(name) for name in names)
    small = min(names, key=view.count, default="")
    along = view.line.scale
    shrinks = view.axes[-1] in STRENGTHS and along.ordered and len(along.values) > 1
    return {
        "overview": None,
        "validation": None,
        "heatmap": None
        if len(view.axes) > 1
        else "a heat map is of two axes with several values each: train with lambdas= and sweep={'lr': [...]}",
        "norms": None,
        "coefficients": None
        if numbers <= MANY
        else f"{numbers} coefficients are too many: name some of the parameters, for example parameter={small!r}",
        "shrinkage": None
        if shrinks
        else "it compares with the weakest of several lambdas (or decays) that have one order: plot 'norms' instead",
        "curves": None,
    }


def check_kind(view: View, kind: str, parameter: str | None) -> None:
    """Refuse kinds that this result cannot have, and parameters for panels that show none."""
    found = obstacles(view, parameter)
    possible = ", ".join(repr(name) for name, reason in found.items() if reason is None)
    # Not every value can be a key of a dict.
    reason = found.get(kind, "write one of these") if isinstance(kind, str) else "write one of these"
    if reason is not None:
        raise ArgumentError("kind", got=repr(kind), expected=f"one of {possible}, for this result", remedy=reason)
    if parameter is not None and kind not in OF_WEIGHTS:
        raise ArgumentError(
            "parameter",
            got=f"{parameter!r} beside kind={kind!r}",
            expected=f"it beside one of {', '.join(map(repr, OF_WEIGHTS))}",
            remedy="leave it out",
        )


def check_axes(ax: object) -> None:
    """Refuse what is no Axes that belongs to a figure."""
    from matplotlib.axes import Axes

    if not isinstance(ax, Axes) or ax.figure is None:
        raise ArgumentError(
            "ax",
            got=f"a {type(ax).__name__}",
            expected="matplotlib Axes in a figure",
            remedy="leave it out for a new figure, or pass figure.subplots()",
        )


def root(ax: Axes) -> Figure:
    """Return the figure of axes, also of those in a subfigure."""
    from matplotlib.figure import Figure

    found = ax.figure
    while not isinstance(found, Figure):
        assert found is not None
        found = found.figure
    return found

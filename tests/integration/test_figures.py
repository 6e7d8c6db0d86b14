"""What ``plot`` draws is what the result holds, and can be read."""

from __future__ import annotations

import io
import itertools
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from torch import nn
from torch.nn import functional as F

import l2path
from tests.helpers import assert_trees_close
from tests.integration.pages import ROOT
from tests.models import BATCH, classes, smooth

pytestmark = [
    pytest.mark.filterwarnings(f"ignore::l2path.{name}")
    for name in ("BoundaryWarning", "DivergenceWarning", "StabilityWarning")
]
GRID = l2path.lambda_grid(1e-4, 0.3, 5)
KINDS = ("overview", "validation", "heatmap", "norms", "coefficients", "shrinkage", "curves")
BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#666666"
ACCURACY = l2path.Metric(lambda o, t: (o.argmax(1) == t).double().mean(), greater_is_better=True)
COMMON: dict[str, Any] = {
    "loss_fn": F.cross_entropy, "optimizer": l2path.sgd(lr=0.05, momentum=0.9), "epochs": 4, "batch_size": BATCH,
}  # fmt: skip
Floats = npt.NDArray[np.float64]


def train(module: Any = None, **changes: Any) -> l2path.PathResult:
    settings = {**COMMON, "lambdas": GRID, "validation": classes(40, 2), **changes}
    return l2path.batch_train(smooth() if module is None else module, classes(), **settings)


@cache
def path() -> l2path.PathResult:
    return train(lambdas=l2path.lambda_grid(1e-4, 0.3, 6, zero=True))


@cache
def seeds() -> l2path.PathResult:
    return train(smooth, seeds=(0, 1, 2))


@cache
def two() -> l2path.PathResult:
    return train(lambdas=[0.001, 0.1, 0.0], sweep={"lr": [0.1, 0.01, 0.03, 0.3]})


@cache
def exploding() -> l2path.PathResult:
    """The largest lambda diverges."""
    return train(lambdas=[1e-3, 1.0, 1e5], sweep={"lr": [0.01, 0.1]}, optimizer=l2path.sgd(lr=0.1), epochs=60)


@cache
def exploding_path() -> l2path.PathResult:
    return train(lambdas=[1e-3, 1e-2, 1.0, 1e5], optimizer=l2path.sgd(lr=0.1), epochs=60)


@cache
def three() -> l2path.PathResult:
    return train(lambdas=GRID[:3], sweep={"lr": [0.01, 0.1], "momentum": [0.0, 0.5, 0.9]})


@cache
def patterns() -> l2path.PathResult:
    return train(lambdas={"0.*": GRID, "3.*": 0.1})


@cache
def crossed() -> l2path.PathResult:
    return train(lambdas={"0.*": GRID, "3.*": GRID.flip(0)})


@cache
def deep() -> l2path.PathResult:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(5, 5), nn.Tanh()) for _ in range(9)]
    return train(nn.Sequential(*layers, nn.Linear(5, 3)).double(), epochs=1)


@cache
def unvalidated() -> l2path.PathResult:
    return train(validation=None)


@cache
def explicit() -> l2path.PathResult:
    return train(lambdas=None, members=[{"lambdas": 0.1, "lr": 0.1}, {"lambdas": 0.01, "lr": 0.2}])


@cache
def folds() -> l2path.CVResult:
    lambdas = l2path.lambda_grid(1e-4, 0.3, 16, zero=True)
    return l2path.cross_validate(smooth, classes(), **COMMON, lambdas=lambdas, folds=5, seeds=(0, 1))


@cache
def folds_of_two() -> l2path.CVResult:
    sweep, metrics = {"lr": [0.01, 0.1]}, {"accuracy": ACCURACY}
    return l2path.cross_validate(
        smooth(), classes(), **COMMON, lambdas=GRID, sweep=sweep, folds=3, metrics=metrics, select="accuracy"
    )


RESULTS: tuple[Callable[[], Any], ...] = (
    path, seeds, two, exploding, exploding_path, three, patterns, crossed, deep, unvalidated, explicit, folds,
    folds_of_two,
)  # fmt: skip


# --- reading a figure -------------------------------------------------------------------------------------------------


def draw(figure: Figure) -> FigureCanvasAgg:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]  # matplotlib leaves it without types
    return canvas


def xy(line: Line2D) -> tuple[Floats, Floats]:
    return np.asarray(line.get_xdata(), dtype=np.float64), np.asarray(line.get_ydata(), dtype=np.float64)


def labelled(axis: Axes, label: str) -> Line2D:
    (found,) = (line for line in axis.get_lines() if str(line.get_label()) == label)
    return found


def legend_texts(axis: Axes) -> list[str]:
    legend = axis.get_legend()
    return [] if legend is None else [text.get_text().replace("\n", " ") for text in legend.get_texts()]


def ticks(axis: Any) -> dict[str, float]:
    """Labels and places of the major ticks of an axis in sight."""
    low, high = sorted(axis.get_view_interval())
    return {
        label.get_text(): place
        for label, place in zip(axis.get_ticklabels(), axis.get_ticklocs(), strict=True)
        if label.get_text() and low <= place <= high
    }


def errorbar(axis: Axes) -> tuple[Floats, Floats, Floats]:
    """Places, values and half lengths of the one errorbar of an axis."""
    (container,) = (c for c in axis.containers if isinstance(c, ErrorbarContainer))
    line, _, (bars,) = container.lines
    assert line is not None
    segments = bars.get_segments()  # an empty one where there is no error
    half = np.array([np.ptp(segment[:, 1]) / 2 if len(segment) else np.nan for segment in segments])
    return *xy(line), half


def box(axis: Axes) -> tuple[float, float]:
    """Centre of the orange outline of a heat map."""
    (found,) = (
        p for p in axis.patches if isinstance(p, Rectangle) and not p.get_fill() and to_hex(p.get_edgecolor()) == ORANGE
    )
    return found.get_x() + 0.5, found.get_y() + 0.5


def cells(axis: Axes) -> Floats:
    (image,) = axis.images
    return np.ma.filled(np.ma.asarray(image.get_array(), dtype=np.float64), np.nan)


def assert_legible(figure: Figure) -> None:
    """Assert that nothing is cut, no tick labels overlap and no text is smaller than 8 points."""
    renderer = draw(figure).get_renderer()  # type: ignore[no-untyped-call]  # matplotlib leaves it without types
    width, height = figure.get_size_inches() * figure.dpi
    for axis in figure.axes:
        tight = axis.get_tightbbox(renderer)
        assert tight is not None
        assert tight.x0 > -1, "cut on the left"
        assert tight.y0 > -1, "cut below"
        assert tight.x1 < width + 1, "cut on the right"
        assert tight.y1 < height + 1, "cut above"
        for side in (axis.xaxis, axis.yaxis):
            low, high = sorted(side.get_view_interval())
            names = [*side.get_ticklabels(), *side.get_ticklabels(minor=True)]
            spots = [*side.get_ticklocs(), *side.get_ticklocs(minor=True)]
            near = [n for n, s in zip(names, spots, strict=True) if n.get_text() and low <= s <= high]
            assert all(float(n.get_fontsize()) >= 8 for n in near), "small tick labels"
            boxes = [n.get_window_extent(renderer) for n in near if not n.get_rotation()]
            assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2)), "tick labels overlap"
        legend = axis.get_legend()
        texts = [*axis.texts, *(legend.get_texts() if legend is not None else ())]
        assert all(float(text.get_fontsize()) >= 8 for text in texts), "small texts"


def test_the_check_of_legibility_can_fail() -> None:
    spoiled: list[tuple[Callable[[Axes], Any], str]] = [
        (lambda axis: axis.set_xticks([0.5, 0.51]), "tick labels overlap"),
        (lambda axis: axis.text(0.5, 1.5, "above"), "cut above"),
        (lambda axis: axis.tick_params(labelsize=5), "small tick labels"),
        (lambda axis: axis.text(0.5, 0.5, "inside", fontsize=5), "small texts"),
    ]
    for spoil, message in spoiled:
        figure = Figure()
        spoil(figure.subplots())
        with pytest.raises(AssertionError, match=message):
            assert_legible(figure)


# --- every plot of every result ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", RESULTS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("kind", KINDS[1:])
def test_every_panel_is_drawn_legibly_or_refused(make: Callable[[], Any], kind: str) -> None:
    result = make()
    two_axes = make in (two, exploding, three, folds_of_two)
    ordered = make not in (crossed, explicit)
    if (kind == "heatmap" and not two_axes) or (kind == "shrinkage" and not ordered):
        with pytest.raises(
            l2path.ArgumentError, match=rf"kind: got '{kind}'; expected one of 'overview', 'validation'"
        ):
            result.plot(kind)
        return
    assert_legible(result.plot(kind))


@pytest.mark.parametrize("make", [path, exploding, deep, folds], ids=lambda make: make.__name__)
def test_the_overview_is_legible(make: Callable[[], Any]) -> None:
    assert_legible(make().plot("overview"))


def test_the_overview_has_three_panels() -> None:
    titles = [axis.get_title() for axis in path().plot().axes if axis.get_title()]
    assert titles == ["Validation", "Weight norms", "Learning curves"]
    lr = two().best.hyper["lr"]
    figure = two().plot()
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert titles == ["Validation", f"Weight norms at lr {lr:g}", f"Learning curves at lr {lr:g}"]
    assert len(figure.axes[0].images) == 1
    assert len(folds().plot("overview").axes) == 4  # and a colour bar
    buffer = io.BytesIO()
    figure.savefig(buffer)
    assert buffer.getvalue().startswith(b"\x89PNG")


# --- scores -----------------------------------------------------------------------------------------------------------


def test_validation_curve_with_errors_and_zero() -> None:
    result = path()
    (axis,) = result.plot("validation").axes
    figure = axis.figure
    assert isinstance(figure, Figure)
    draw(figure)
    x, y, half = errorbar(axis)
    lambdas = np.array([0.0, *GRID_OF_SIX])
    assert_trees_close(x[1:], lambdas[1:], 1e-12)
    order = np.argsort(result.lambdas.numpy())
    assert_trees_close(y, result.scores[order], 0.0)
    assert result.uncertainty.standard_errors is not None
    assert_trees_close(half, result.uncertainty.standard_errors.numpy()[order], 1e-10)
    # 0 is left of everything, a tick of that name is there, and a dotted line is between it and the smallest one.
    assert axis.get_xscale() == "log"
    assert 0 < x[0] < lambdas[1]
    assert ticks(axis.xaxis)["0"] == x[0]
    assert [place for name, place in ticks(axis.xaxis).items() if name != "0"] == [1e-4, 1e-3, 1e-2, 1e-1]
    (separator,) = (line for line in axis.get_lines() if line.get_linestyle() == ":")
    assert x[0] < separator.get_xdata()[0] < lambdas[1]  # type: ignore[index]  # of two points
    best = labelled(axis, f"best: lambda {result.best.lambdas:.4g}")
    assert xy(best)[0][0] == x[lambdas.tolist().index(result.best.lambdas)]
    assert legend_texts(axis) == [str(best.get_label()), "± 1 standard error"]


GRID_OF_SIX = l2path.lambda_grid(1e-4, 0.3, 6).flip(0).tolist()


@pytest.mark.parametrize("lambdas", [[0.5, 0.2, 0.0], [0.1, 0.0], [0.5, 0.2]])
def test_axes_of_less_than_a_decade_have_numbers(lambdas: list[float]) -> None:
    figure = train(lambdas=lambdas, epochs=1).plot("validation")
    draw(figure)
    (axis,) = figure.axes
    x, _, _ = errorbar(axis)
    side = axis.xaxis
    major = {t.get_text(): s for t, s in zip(side.get_ticklabels(), side.get_ticklocs(), strict=True)}
    minor = {
        t.get_text(): s for t, s in zip(side.get_ticklabels(minor=True), side.get_ticklocs(minor=True), strict=True)
    }
    assert ("0" in major) is (0.0 in lambdas)
    for value in lambdas:
        assert_trees_close((major | minor)[f"{value:g}"], x[sorted(lambdas).index(value)], 1e-12)


def test_validation_over_seeds_shows_each_of_them() -> None:
    result = seeds()
    (axis,) = result.plot("validation").axes
    x, y = xy(labelled(axis, "mean over 3 seeds"))
    assert_trees_close(x, GRID.flip(0), 1e-12)
    assert_trees_close(y, result.scores.reshape(3, 5).mean(0)[::-1], 1e-12)
    dots = [xy(line)[1] for line in axis.get_lines() if line.get_color() == GREY]
    assert_trees_close(np.array(dots), result.scores.reshape(3, 5)[:, ::-1], 0.0)


def test_validation_over_folds_with_both_choices() -> None:
    cv = folds()
    (axis,) = cv.plot().axes
    x, y, half = errorbar(axis)
    order = np.argsort(cv.members.lambdas[:17].numpy())
    assert_trees_close(y, cv.cvm[order], 0.0)
    assert_trees_close(half, cv.cvsd[order], 1e-10)
    dots = [xy(line)[1] for line in axis.get_lines() if line.get_color() == GREY and len(xy(line)[0]) == 17]
    assert_trees_close(np.array(dots), cv.fold_scores[:, order], 0.0)
    assert cv.index_min != cv.index_1se
    for name, index, color in (("best", cv.index_min, ORANGE), ("strongest within 1 se", cv.index_1se, GREEN)):
        line = labelled(axis, f"{name}: lambda {float(cv.members.lambdas[index]):.4g}")
        assert xy(line)[0][0] == x[order.tolist().index(index)]
        assert str(line.get_color()).lower() == color
    (limit,) = (line for line in axis.get_lines() if line.get_linestyle() == ":" and np.ptp(xy(line)[1]) == 0)
    assert_trees_close(xy(limit)[1][0], cv.cvup[cv.index_min], 1e-12)
    assert axis.get_title() == "Validation, mean over 5 folds × 2 seeds"


def test_two_axes_are_curves_of_their_own() -> None:
    result = two()
    (axis,) = result.plot("validation").axes
    for i, lr in enumerate((0.1, 0.01, 0.03, 0.3)):
        (curve,) = (c for c in axis.containers if str(c.get_label()) == f"lr {lr:g}")
        assert isinstance(curve, ErrorbarContainer)
        assert curve.lines[0] is not None
        assert_trees_close(xy(curve.lines[0])[1], result.cvm[i, [2, 0, 1]], 0.0)
    many = train(sweep={"lr": np.geomspace(0.01, 0.1, 8)}, epochs=1)
    (axis,) = many.plot("validation").axes
    legend = axis.get_legend()
    assert legend is not None
    assert legend.get_title().get_text() == "5 best of 8"
    shown = sorted(float(text[3:]) for text in legend_texts(axis) if text.startswith("lr "))
    best = sorted(np.geomspace(0.01, 0.1, 8)[np.argsort(many.cvm.min(1))[:5]])
    assert_trees_close(np.array(shown), np.array(best), 1e-3)


def test_both_choices_in_one_point_have_one_mark() -> None:
    cv = l2path.cross_validate(smooth, classes(), **COMMON, lambdas=[0.05], folds=3)
    (axis,) = cv.plot().axes
    assert "best, and strongest within 1 se: lambda 0.05" in legend_texts(axis)
    assert sum(line.get_color() in (ORANGE.upper(), GREEN.upper()) for line in axis.get_lines()) == 2  # and the limit
    assert_legible(cv.plot("overview"))


def test_no_validation_shows_the_objective_and_no_choice() -> None:
    result = unvalidated()
    (axis,) = result.plot("validation").axes
    assert axis.get_title() == "Training objective (no validation data)"
    (line,) = axis.get_lines()
    assert_trees_close(xy(line)[1], result.history["objective"][-1].flip(0), 0.0)
    assert "best" not in "".join(legend_texts(axis))


def test_points_without_a_score_are_grey() -> None:
    result = exploding_path()
    assert result.status == ("trained",) * 3 + ("diverged",)
    (axis,) = result.plot("validation").axes
    crosses = labelled(axis, "diverged")
    assert (crosses.get_color(), crosses.get_marker()) == (GREY, "x")
    assert xy(crosses)[0].tolist() == [1e5]
    assert np.isnan(errorbar(axis)[1]).tolist() == [False, False, False, True]
    # Eliminated ones stand where they left, and are joined to nothing.
    history = {name: rows.clone() for name, rows in path().history.items()}
    for rows in history.values():
        rows[2:, 1] = float("nan")
    status = ("trained", "eliminated", *("trained",) * 5)
    gone = replace(path(), history=history, status=status, epochs_trained=(4, 2, 4, 4, 4, 4, 4))
    (axis,) = gone.plot("validation").axes
    left = labelled(axis, "score when eliminated")
    assert (left.get_color(), left.get_markerfacecolor()) == (GREY, "white")
    assert_trees_close(np.array(xy(left)).ravel(), np.array([GRID_OF_SIX[4], history["val_loss"][1, 1]]), 1e-12)
    assert np.isnan(errorbar(axis)[1][5])


def test_scores_on_their_way_to_divergence_do_not_flatten_the_others() -> None:
    history = {name: rows.clone() for name, rows in path().history.items()}
    history["val_loss"][-1, 0] = 1e12
    far = replace(path(), history=history)
    (axis,) = far.plot("validation").axes
    assert axis.get_ylim()[1] < 10
    assert xy(labelled(axis, "beyond the axis"))[0].tolist() == [pytest.approx(0.3)]


@pytest.mark.parametrize("make", [path, seeds, unvalidated], ids=lambda make: make.__name__)
def test_learning_curves(make: Callable[[], l2path.PathResult]) -> None:
    result = make()
    name = "loss" if make is unvalidated else "val_loss"
    rows = result.history[name].reshape(4, -1, result.table.n_points).mean(1)
    order = result.lambdas[: result.table.n_points].argsort()
    axis, bar = result.plot("curves").axes
    curves = [xy(line) for line in axis.get_lines() if str(line.get_label()).startswith("_")]
    assert_trees_close(np.array([y for _, y in curves]).T, rows[:, order], 1e-12)
    assert all(x.tolist() == [1, 2, 3, 4] for x, _ in curves)
    assert bar.get_ylabel() == "lambda"
    assert legend_texts(axis) == ([] if make is unvalidated else ["best"])
    if make is not unvalidated:
        point = result.table.points[result.best.index]
        assert_trees_close(xy(labelled(axis, "best"))[1], rows[:, point], 1e-12)


def test_curves_that_end() -> None:
    result = exploding_path()
    axis = result.plot("curves").axes[0]
    assert result.diverged_at[3] is not None
    assert labelled(axis, "diverged").get_marker() == "x"
    assert axis.get_ylim()[1] < 10  # what explodes leaves the axes
    history = {name: rows.clone() for name, rows in path().history.items()}
    for rows in history.values():
        rows[2:, 1] = float("nan")
    gone = replace(path(), history=history, status=("trained", "eliminated", *("trained",) * 5))
    axis = gone.plot("curves").axes[0]
    left = np.array(xy(labelled(axis, "eliminated"))).ravel()
    assert_trees_close(left, np.array([2.0, history["val_loss"][1, 1]]), 0.0)


# --- heat map ---------------------------------------------------------------------------------------------------------


def test_heat_map_by_hand() -> None:
    result = two()
    figure = result.plot("heatmap")
    draw(figure)
    axis, bar = figure.axes
    assert list(ticks(axis.xaxis)) == ["0", "0.001", "0.1"]
    assert list(ticks(axis.yaxis)) == ["0.01", "0.03", "0.1", "0.3"]
    assert axis.get_ylim()[0] < axis.get_ylim()[1]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("lambda", "lr")
    found = cells(axis)
    for k in range(len(result)):
        member = result.member(k)
        i = ticks(axis.yaxis)[f"{member.hyper['lr']:.3g}"]
        j = ticks(axis.xaxis)[f"{member.lambdas:.3g}"]
        assert found[round(i), round(j)] == member.score
        (text,) = (t for t in axis.texts if t.get_position() == (round(j), round(i)))
        assert_trees_close(float(text.get_text()), member.score, 1e-2)
    best = result.best
    assert box(axis) == (ticks(axis.xaxis)[f"{best.lambdas:.3g}"], ticks(axis.yaxis)[f"{best.hyper['lr']:.3g}"])
    assert bar.get_ylabel() == "val_loss (lower is better)"
    assert legend_texts(axis) == [f"best: lr {best.hyper['lr']:g}, lambda {best.lambdas:g}"]


@pytest.mark.parametrize("make", [two, folds_of_two], ids=lambda make: make.__name__)
def test_the_better_the_brighter(make: Callable[[], Any]) -> None:
    axis = make().plot("heatmap").axes[0]
    (image,) = axis.images
    found = cells(axis).ravel()
    colors = image.cmap(image.norm(found))[:, :3] @ np.array([0.2126, 0.7152, 0.0722])
    order = np.argsort(found if make is folds_of_two else -found)
    assert (np.diff(colors[order]) >= -1e-9).all()
    assert np.ptp(colors) > 0.4


def test_heat_map_over_folds() -> None:
    cv = folds_of_two()
    axis, bar = cv.plot("heatmap").axes
    assert_trees_close(cells(axis), cv.cvm[:, ::-1], 0.0)
    i, j = np.unravel_index(cv.index_min, cv.cvm.shape)
    assert box(axis) == (4 - int(j), int(i))
    assert bar.get_ylabel() == "val_accuracy (greater is better)"


def test_heat_map_of_diverged_members() -> None:
    result = exploding()
    lost = ~np.isfinite(result.cvm)
    assert lost.any()
    assert not lost.all()
    axis = result.plot("heatmap").axes[0]
    assert np.isnan(cells(axis)).tolist() == lost.tolist()
    hatched = {(round(p.get_y() + 0.5), round(p.get_x() + 0.5)) for p in axis.patches if p.get_hatch()}  # type: ignore[attr-defined]
    assert hatched == {(i, j) for i, j in np.argwhere(lost).tolist()}
    assert legend_texts(axis)[-1] == "diverged"


def test_heat_map_of_three_axes_is_the_best_over_the_third() -> None:
    result = three()
    assert result.cvm.shape == (2, 3, 3)
    axis = result.plot("heatmap").axes[0]
    assert_trees_close(cells(axis), result.cvm.min(1)[:, ::-1], 0.0)
    assert axis.get_title() == "Validation, best over momentum"
    lr, _, lam = np.unravel_index(result.best.index, (2, 3, 3))
    assert box(axis) == (2 - int(lam), int(lr))


def test_heat_map_of_learning_rate_and_decay() -> None:
    sweep = {"decay": [0.1, 0.0], "lr": [0.01, 0.1]}
    result = train(lambdas=None, sweep=sweep, optimizer=l2path.adamw(), epochs=1)
    axis = result.plot("heatmap").axes[0]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("decay", "lr")
    assert_trees_close(cells(axis), result.cvm.T[:, ::-1], 0.0)


# --- weights ----------------------------------------------------------------------------------------------------------


def by_hand(result: l2path.PathResult, name: str) -> Floats:
    """Mean norms over the runs by point of the path."""
    points = result.table.points
    norms = [float(result.member(k).state_dict()[name].norm()) for k in range(len(result))]
    return np.array([np.mean([n for n, p in zip(norms, points, strict=True) if p == q]) for q in sorted(set(points))])


@pytest.mark.parametrize("make", [path, seeds, folds], ids=lambda make: make.__name__)
def test_norms_and_shrinkage(make: Callable[[], Any]) -> None:
    result = make()
    members = result if isinstance(result, l2path.PathResult) else result.members
    order = np.argsort(members.lambdas[: members.table.n_points].numpy())
    (norms,), (shrinkage,) = result.plot("norms").axes, result.plot("shrinkage").axes
    for name in members.params:
        own = by_hand(members, name)[order]
        assert_trees_close(xy(labelled(norms, name))[1], own, 1e-10)
        assert_trees_close(xy(labelled(shrinkage, name))[1], own / own[0], 1e-10)
    averaged = ", mean over 5 folds × 2 seeds" if make is folds else ", mean over 3 seeds" if make is seeds else ""
    assert norms.get_ylabel() == "Euclidean norm" + averaged
    assert shrinkage.get_ylabel() == f"norm / norm at lambda = {'0.0001' if make is seeds else '0'}"


def test_weights_of_diverged_members_are_not_drawn() -> None:
    for kind in ("norms", "shrinkage"):
        (axis,) = exploding_path().plot(kind).axes
        assert np.isnan(xy(labelled(axis, "0.weight"))[1]).tolist() == [False, False, False, True]


def test_weights_of_two_axes_are_those_at_the_best_of_the_other() -> None:
    result = two()
    i = result.best.index // 3
    (axis,) = result.plot("norms", parameter="0.weight").axes
    assert_trees_close(
        xy(labelled(axis, "0.weight"))[1], by_hand(result, "0.weight").reshape(4, 3)[i, [2, 0, 1]], 1e-10
    )
    assert axis.get_title() == f"Weight norms at lr {result.best.hyper['lr']:g}"


def test_parameters_by_pattern() -> None:
    (axis,) = path().plot("norms", parameter="3.*").axes
    assert legend_texts(axis) == ["3.weight", "3.bias", "best"]
    with pytest.raises(l2path.ArgumentError, match="parameter: got the pattern 'head', which matches no parameter"):
        path().plot("norms", parameter="head")


def test_many_parameters_are_named_in_part() -> None:
    result = deep()
    assert len(result.params) == 20
    (axis,) = result.plot("norms").axes
    named = [line for line in axis.get_lines() if str(line.get_label()) in result.params]
    assert len(named) == 10
    assert len({(line.get_color(), line.get_linestyle()) for line in named}) == 10
    largest = sorted(result.params, key=lambda n: -float(result.weight_norms()[n].max()))[:10]
    assert {str(line.get_label()) for line in named} == set(largest)
    assert legend_texts(axis)[-1] == "10 smaller ones"
    assert len([line for line in axis.get_lines() if line.get_color() == GREY]) == 10


def test_every_coefficient_of_a_small_model() -> None:
    result = path()
    (axis,) = result.plot("coefficients", parameter="3.*").axes
    order = result.lambdas.argsort()
    drawn = {tuple(xy(line)[1].tolist()) for line in axis.get_lines() if len(xy(line)[0]) == 7}
    weight, bias = result.params["3.weight"][order], result.params["3.bias"][order]
    every = {tuple(weight[:, i, j].tolist()) for i in range(3) for j in range(8)}
    assert drawn == every | {tuple(bias[:, i].tolist()) for i in range(3)}
    largest = int(weight.abs().amax(0).argmax())
    named = labelled(axis, f"3.weight[{largest // 8}, {largest % 8}]")
    assert_trees_close(xy(named)[1], weight[:, largest // 8, largest % 8], 0.0)
    assert any(np.all(xy(line)[1] == 0) for line in axis.get_lines()), "no line at 0"
    assert axis.get_title() == "Coefficients"


def test_the_largest_of_many_coefficients() -> None:
    result = seeds()
    values = {n: p.reshape(3, 5, -1).mean(0) for n, p in result.params.items()}
    sizes = torch.cat([v.abs().amax(0) for v in values.values()])
    (axis,) = result.plot("coefficients").axes
    drawn = [xy(line)[1] for line in axis.get_lines() if len(xy(line)[0]) == 5]
    assert axis.get_title() == f"Coefficients (40 largest of {len(sizes)})"
    assert_trees_close(sorted(np.abs(y).max() for y in drawn), sizes.sort().values[-40:].tolist(), 1e-12)


def test_too_many_coefficients() -> None:
    result = train(nn.Sequential(nn.Linear(5, 4000), nn.Tanh(), nn.Linear(4000, 3)).double(), lambdas=[0.1], epochs=1)
    with pytest.raises(
        l2path.ArgumentError,
        match=r"kind: got 'coefficients'; expected one of 'overview', 'validation', 'norms', 'curves', for this .*"
        r"36003 coefficients are too many: name some of the parameters, for example parameter='2\.bias'",
    ):
        result.plot("coefficients")
    (axis,) = result.plot("coefficients", parameter="2.bias").axes
    assert legend_texts(axis) == ["2.bias[0]", "2.bias[1]", "2.bias[2]", "best"]


@pytest.mark.parametrize(
    ("make", "label", "text"),
    [
        (patterns, "lambda of 0.*", "lambda of 0.* {:.4g}"),
        (crossed, "point", "lambda {{0.*: {:.4g}, 3.*: {:.4g}}}"),
        (explicit, "member", "lr {:g}, lambda {:g}"),
    ],
    ids=["one pattern varies", "no order", "explicit"],
)
def test_what_is_on_the_x_axis(make: Callable[[], l2path.PathResult], label: str, text: str) -> None:
    result = make()
    (axis,) = result.plot("validation").axes
    assert axis.get_xlabel() == label
    lambdas = result.best.lambdas
    values = [result.best.hyper["lr"], lambdas] if make is explicit else [*lambdas.values()]
    assert f"best: {text.format(*values)}" in legend_texts(axis)
    x = errorbar(axis)[0]
    assert_trees_close(x, GRID.flip(0) if make is patterns else np.arange(len(result)), 1e-12)
    rising = train(lambdas={"0.*": GRID, "3.*": GRID * 10}, epochs=1).plot("validation").axes[0]
    assert rising.get_xlabel() == "lambda, mean over the parameters"


# --- the call itself --------------------------------------------------------------------------------------------------


def test_into_axes_of_the_users() -> None:
    figure = Figure(layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False)[0]
    axis = right.subplots()
    other = left.subplots()
    assert folds().plot("norms", ax=axis) is figure
    assert {"0.weight", "3.bias"} < set(legend_texts(axis))
    assert not other.has_data()
    assert two().plot("heatmap", ax=other) is figure
    assert len(figure.axes) == 3  # and a colour bar
    draw(figure)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "norm"}, r"kind: got 'norm'; expected one of 'overview', .* Remedy: write one of these"),
        ({"kind": ["norms"]}, r"kind: got \['norms'\]; expected one of 'overview'"),
        ({"kind": "heatmap"}, r"kind: got 'heatmap'; .* Remedy: a heat map is of two axes .* sweep=\{'lr': \[...\]\}"),
        ({"ax": Figure().subplots()}, "ax: got one Axes for three panels; expected None"),
        ({"kind": "norms", "ax": Figure()}, "ax: got a Figure; expected matplotlib Axes"),
        ({"kind": "curves", "parameter": "*"}, "parameter: got '\\*' beside kind='curves'; expected it beside one of"),
        ({"parameter": "*"}, "parameter: got '\\*' beside kind='overview'"),
        ({"kind": "norms", "parameter": 3}, "parameter: got the key 3"),
    ],
)  # fmt: skip
def test_errors(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(l2path.ArgumentError, match=message):
        path().plot(**arguments)


def test_shrinkage_needs_strengths() -> None:
    momentum = train(lambdas=[0.01], sweep={"momentum": [0.0, 0.9]}, epochs=1)
    for result in (momentum, crossed()):
        with pytest.raises(l2path.ArgumentError, match=r"got 'shrinkage'; .*compares with the weakest of several"):
            result.plot("shrinkage")


def test_nothing_global_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    def settings() -> dict[str, Any]:  # without the backend, which reading resolves
        return {key: matplotlib.rcParams._get(key) for key in matplotlib.rcParams}

    before = settings()
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # an import of it would raise
    for kind in KINDS:
        draw(two().plot(kind))
    assert settings() == before


@pytest.mark.parametrize("make", [path, folds], ids=lambda make: make.__name__)
def test_without_matplotlib(make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    result = make()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(l2path.MissingExtraError, match=r"pip install 'l2path\[plot\]'"):
        result.plot()


def test_the_pictures_of_the_page_are_those_that_its_code_writes() -> None:
    page = (ROOT / "docs" / "plots.md").read_text(encoding="utf-8")
    pictures = re.findall(r"!\[[^\]]+\]\(images/([\w-]+\.png)\)", page)
    assert len(pictures) >= 4
    assert set(pictures) <= set(re.findall(r'savefig\("([\w-]+\.png)"', page))
    assert all((ROOT / "docs" / "images" / name).is_file() for name in pictures)

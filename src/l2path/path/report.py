"""The printed table of a result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from l2path.path.outcome import Outcome
from l2path.penalty import WeightsOnly
from l2path.tables import Table


def report(result: Outcome) -> Table:
    """Return the table of a result, with what has to be said below it.

    A row for each member or, over several seeds, for each point of the path, with means over the seeds.
    """
    best = result.chosen
    table = result.table
    folds = len(set(table.folds)) > 1
    several = len(set(table.seeds)) > 1 and table.n_points < len(result) and not folds
    groups = [[k for k, p in enumerate(table.points) if p == point] for point in range(table.n_points)]
    if not several:
        groups = [[k] for k in range(len(result))]
    columns = [("members" if several else "member", [", ".join(map(str, g)) for g in groups])]

    def add(name: str, cells: list[str]) -> None:
        columns.append((name, cells))

    labels = [table.label(g[0]) for g in groups]
    if folds:
        add("fold", [str(table.folds[g[0]]) for g in groups])
    if not several and len(set(table.seeds)) > 1:
        add("seed", [str(table.seeds[g[0]]) for g in groups])
    for name in (*table.hyper, *(("lambda",) if table.lambdas is not None else ())):
        for title, cells in label_columns(name, [label[name] for label in labels]):
            add(title, cells)
    for name, rows in result.history.items():
        last = np.array([float(rows[n - 1, k]) if n else np.nan for k, n in enumerate(result.epochs_kept)])
        add(name, [number(float(last[g].mean())) for g in groups])
    if result.epochs_kept != result.epochs_trained:
        kept = result.epochs_kept
        add("epoch", [str(kept[g[0]]) if len(g) == 1 else f"{np.mean([kept[k] for k in g]):.1f}" for g in groups])
    if several and result.select.validation is not None:
        add("sd over seeds", [number(float(result.scores[g].std(ddof=1))) for g in groups])
    chosen = None if best is None else next(row for row, g in enumerate(groups) if best in g)
    sure = result.uncertainty
    if chosen is not None and not several and sure.differences is not None and sure.difference_errors is not None:
        pairs = zip(sure.differences.tolist(), sure.difference_errors.tolist(), strict=True)
        cells = [f"{d:+.4f} ± {e:.4f}" if np.isfinite(d) else "-" for d, e in pairs]
        cells[chosen] = "best"
        add(f"{result.select.name} - best ± se", cells)
    if set(result.status) != {"trained"}:
        add("status", [", ".join(dict.fromkeys(result.status[k] for k in g)) for g in groups])
    return Table(columns, () if chosen is None or folds else (chosen,), notes(result, best))


def notes(result: Outcome, best: int | None) -> list[str]:
    """Return the lines below the table."""
    lines = []
    if not result.complete:
        lines.append(
            f"Incomplete: interrupted after {max(result.epochs_trained)} epochs (the last one may be partial)."
        )
    if best is not None and len(set(result.table.folds)) > 1:
        lines.append("Members of several folds: which point to take is told by the cross-validation as a whole.")
    elif best is not None:
        lines.append(_verdict(result, best))
        if result.uncertainty.reason:
            lines.append(f"No standard errors: {result.uncertainty.reason}.")
        if result.boundary:
            lines.append(f"Careful: {result.boundary}.")
        elif result.path_values is None:
            lines.append("The path is not one-dimensional: whether the best lies on an edge was not checked.")
    elif result.select.validation is None:
        lines.append("No validation data: nothing here says which member to take.")
    else:
        lines.append(f"No member has a finite {result.select.name}.")
    gone = result.status.count("eliminated")
    if gone:
        lines.append(f"{gone} of {len(result)} members were eliminated early: their scores are of fewer epochs.")
    if result.table.lambdas is not None:
        strengths = result.lambdas_by_parameter
        free = [n for n, s in strengths.items() if not bool(s.any())]
        if free and len(free) < len(strengths):
            lines.append(f"Lambda 0 for every member: {', '.join(free)}.")
    if result.names.frozen:
        lines.append(f"Not trained: {', '.join(result.names.frozen)}.")
    return lines


def _verdict(result: Outcome, best: int) -> str:
    """Return the line that says which member was chosen, and by what."""
    name, errors = result.select.name, result.uncertainty.standard_errors
    direction = ", greater is better" if result.select.greater_is_better else ""
    error = f" ± {errors[best]:.4g}" if errors is not None else ""
    member = f"member {best}, {_what(result, best)}"
    score = f"{result.best.score:.4g}{error}"
    seeds = [k for k, p in enumerate(result.table.points) if p == result.table.points[best]]
    if len(seeds) == 1:
        return f"Best by {name}{direction}: {member}, {score}."
    mean = f"{result.cvm.ravel()[result.table.points[best]]:.4g}"
    return (
        f"Best mean of {name} over {len(seeds)} seeds{direction}: {mean}; of its seeds the best is {member}, {score}."
    )


def _what(result: Outcome, k: int) -> str:
    label = result.table.label(k)
    if len(set(result.table.seeds)) == 1:
        label.pop("seed")
    return ", ".join(f"{name} {show(value)}" for name, value in label.items())


def number(value: float) -> str:
    """Return a score as text."""
    return f"{value:.4f}" if 0.1 <= abs(value) < 1e5 or value == 0 else f"{value:.4g}"


def show(value: Any) -> str:
    """Return what a member trained with as text."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Tensor):
        if value.numel() == 0 or float(value.min()) == float(value.max()):
            return f"{float(value.flatten()[0]):.4g}" if value.numel() else "-"
        return f"{float(value.min()):.3g}..{float(value.max()):.3g}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {show(v)}" for k, v in value.items()) + "}"
    if isinstance(value, WeightsOnly):
        return f"weights {show(value.spec)}"
    return str(value)


def label_values(name: str, values: Sequence[Any]) -> list[tuple[str, list[Any]]]:
    """Return what members trained with by column: one, or one for each pattern that all of them name."""
    keys = list(values[0]) if isinstance(values[0], dict) else None
    if keys is not None and all(isinstance(v, dict) and list(v) == keys for v in values):
        return [(f"{name}[{key}]", [v[key] for v in values]) for key in keys]
    return [(name, list(values))]


def label_columns(name: str, values: Sequence[Any]) -> list[tuple[str, list[str]]]:
    """Return what members trained with as columns of text."""
    return [(title, [show(v) for v in column]) for title, column in label_values(name, values)]

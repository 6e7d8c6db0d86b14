"""The printed table of a cross-validation."""

from __future__ import annotations

import numpy as np

from l2path.crossval.outcome import CVOutcome
from l2path.path.report import label_columns, number
from l2path.scores import boundary_side
from l2path.tables import Table

SHOWN_FOLDS = 10  # columns of the table


def choices(cv: CVOutcome) -> dict[str, int]:
    """Return the points that are chosen, by "min" and, where the path is one-dimensional, "1se"."""
    if not np.isfinite(cv.cvm).any():
        return {}
    return {"min": cv.index_min} | ({"1se": cv.index_1se} if cv.one_dimensional else {})


def report(cv: CVOutcome) -> Table:
    """Return the table of a cross-validation, and below it the choice."""
    result, n = cv.members, cv.members.table.n_points
    cvm, cvsd, scores = cv.cvm.ravel(), cv.cvsd.ravel(), cv.fold_scores.reshape(len(cv.folds), -1)
    chosen = choices(cv)
    labels = [cv.point(p) for p in range(n)]
    columns = [("point", [str(p) for p in range(n)])]
    for name in labels[0]:
        columns += label_columns(name, [label[name] for label in labels])
    columns += [(result.select.name, [number(s) for s in cvm]), ("se", [number(s) for s in cvsd])]
    if len(scores) <= SHOWN_FOLDS:
        columns += [(f"fold {f}", [number(s) for s in own]) for f, own in enumerate(scores)]
    marks = [[word for word, p in chosen.items() if p == q] for q in range(n)]
    for p in eliminated_points(cv):
        marks[p].append("eliminated")
    columns.append(("", [", ".join(words) for words in marks]))
    return Table(columns, tuple(dict.fromkeys(chosen.values())), notes(cv, chosen))


def eliminated_points(cv: CVOutcome) -> list[int]:
    """Return the points that successive halving let go."""
    table, status = cv.members.table, cv.members.status
    return sorted({p for p, s in zip(table.points, status, strict=True) if s == "eliminated"})


def notes(cv: CVOutcome, chosen: dict[str, int]) -> list[str]:
    """Return the lines below the table."""
    result, name, seeds = cv.members, cv.members.select.name, cv.seed_scores.shape[1]
    averaged = f"{seeds} seeds" if seeds > 1 else "one seed" + " each" * cv.own_seeds
    lines = [f"{len(cv.folds)} folds, {averaged}, {len(result)} members."]

    def what(index: int) -> str:
        return f"point {index}, {cv.what(index)}"

    if not chosen:
        lines.append(f"No point has a finite {name} in every fold.")
    else:
        best = chosen["min"]
        direction = ", greater is better" if cv.greater_is_better else ""
        score = f"{number(cv.cvm.ravel()[best])} ± {number(cv.cvsd.ravel()[best])}"
        lines.append(f"Best by {name}{direction}: {what(best)}, {score}.")
        if "1se" in chosen:
            values = result.path_values
            end = values is not None and boundary_side(chosen["1se"], values) == "high"
            more = ", the high end of the grid: even stronger ones may be" if end else ""
            lines.append(f"Strongest within one standard error: {what(chosen['1se'])}{more}.")
        else:
            lines.append("The path is not one-dimensional: there is no strongest within one standard error.")
        if cv.boundary:
            lines.append(f"Careful: {cv.boundary}.")
    diverged = result.status.count("diverged")
    if diverged:
        lines.append(f"{diverged} of {len(result)} members diverged: their points have no score.")
    gone = len(eliminated_points(cv))
    if gone:
        lines.append(f"{gone} of {cv.members.table.n_points} points were eliminated early and have no final score.")
    if not result.complete:
        lines.append(f"Incomplete: interrupted after {max(result.epochs_trained)} epochs.")
    return lines

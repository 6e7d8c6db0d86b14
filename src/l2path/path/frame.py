"""A result as a pandas DataFrame; needs pandas, the extra ``pandas``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from l2path.errors import MissingExtraError
from l2path.path.outcome import Outcome
from l2path.path.report import label_values, show

if TYPE_CHECKING:
    from pandas import DataFrame


def pandas() -> Any:
    """Return the library, or say how to install it."""
    try:
        import pandas
    except ImportError as error:
        raise MissingExtraError("to_dataframe() needs pandas. Remedy: pip install 'l2path[pandas]'") from error
    return pandas


def label_frame(labels: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what members or points trained with as columns: of numbers where all of them are, else of text."""
    columns: dict[str, Any] = {}
    for name in labels[0]:
        for title, values in label_values(name, [label[name] for label in labels]):
            plain = all(isinstance(v, (int, float, np.number)) for v in values)
            columns[title] = values if plain else [show(v) for v in values]
    return columns


def _labels(result: Outcome) -> dict[str, Any]:
    """Return what each member is, ``[K]`` by column."""
    table = result.table
    labels = [table.label(k) for k in range(len(result))]
    seeds = [label.pop("seed") for label in labels]
    return {"fold": table.folds, "seed": seeds, "point": table.points, **label_frame(labels)}


def member_frame(result: Outcome) -> DataFrame:
    """Return a row for each member; see :meth:`PathResult.to_dataframe`."""
    pd = pandas()
    columns = _labels(result)
    if result.select.validation is not None:
        columns["score"] = result.scores
    kept = [(k, n) for k, n in enumerate(result.epochs_kept) if n and result.status[k] != "diverged"]
    for name, rows in result.history.items():
        columns[name] = np.full(len(result), np.nan)
        for k, n in kept:
            columns[name][k] = float(rows[n - 1, k])
    columns |= {
        "epochs_trained": result.epochs_trained,
        "epochs_kept": result.epochs_kept,
        "status": result.status,
        "diverged_at": pd.array(list(result.diverged_at), dtype="Int64"),  # whole numbers, and <NA> for the others
    }
    sure = result.uncertainty
    for name in ("standard_error", "difference", "difference_error"):
        values = getattr(sure, f"{name}s")
        if values is not None:
            columns[name] = values.numpy()
    return pd.DataFrame(columns, index=pd.RangeIndex(len(result), name="member"))


def history_frame(result: Outcome) -> DataFrame:
    """Return a row for each epoch that each member trained; see :meth:`PathResult.to_dataframe`."""
    pd = pandas()
    rows = [(k, n) for k, epochs in enumerate(result.epochs_trained) for n in range(epochs)]
    member, epoch = np.array(rows, dtype=np.int64).reshape(-1, 2).T
    columns: dict[str, Any] = {"epoch": epoch + 1, "member": member}
    labels = pd.DataFrame(_labels(result))
    columns |= {name: labels[name].to_numpy()[member] for name in labels}
    columns |= {name: values.numpy()[epoch, member] for name, values in result.history.items()}
    return pd.DataFrame(columns)

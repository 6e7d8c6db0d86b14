"""A cross-validation as a pandas DataFrame; needs pandas, the extra ``pandas``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from l2path.crossval.outcome import CVOutcome
from l2path.crossval.report import choices
from l2path.path.frame import label_frame, pandas

if TYPE_CHECKING:
    from pandas import DataFrame


def point_frame(cv: CVOutcome) -> DataFrame:
    """Return a row for each point; see :meth:`CVResult.to_dataframe`."""
    pd = pandas()
    points = np.arange(cv.members.table.n_points)
    columns: dict[str, Any] = label_frame([cv.point(int(p)) for p in points])
    columns |= {name: getattr(cv, name).ravel() for name in ("cvm", "cvsd", "cvup", "cvlo")}
    columns |= {f"fold_{f}": own.ravel() for f, own in enumerate(cv.fold_scores)}
    chosen = choices(cv)
    columns["is_min"] = points == chosen.get("min", -1)
    if cv.one_dimensional:
        columns["is_1se"] = points == chosen.get("1se", -1)
    return pd.DataFrame(columns, index=pd.RangeIndex(len(points), name="point"))

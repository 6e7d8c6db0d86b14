"""Going on where the best value is an end of the grid: what to train next, and one result of both runs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from l2path.errors import ArgumentError, DivergenceWarning, IncompleteWarning, L2PathWarning
from l2path.path.members import Members
from l2path.path.outcome import Outcome, edge
from l2path.path.result import PathResult, with_uncertainty
from l2path.penalty import LambdaAxis, WeightsOnly, lambda_grid
from l2path.scores import FloatArray
from l2path.trees import tree_map

EXTENSIONS = 3  # grids trained at most beyond the first one
SAME = 1e-9  # relative: values that are this near are one point


@contextmanager
def going_on(found: object) -> Iterator[None]:
    """Train a further grid: an error carries what was found before as ``partial_result``.

    What the first run warned of is not said again; members that diverge, and an interrupt, are.
    """
    with warnings.catch_warnings():
        for category in L2PathWarning.__subclasses__():
            if category not in (DivergenceWarning, IncompleteWarning):
                warnings.simplefilter("ignore", category)
        try:
            yield
        except Exception as error:
            error.partial_result = found  # type: ignore[attr-defined]  # an attribute of this one error
            raise


def check_extend(extend: object, data: Any) -> None:
    """Refuse to go on with data whose order another run would not see again."""
    if not isinstance(extend, bool):
        raise ArgumentError("extend", got=repr(extend), expected="True or False", remedy="write extend=True")
    if extend and isinstance(data, (DataLoader, IterableDataset)):
        raise ArgumentError(
            "extend",
            got=f"True, and a {type(data).__name__} as data",
            expected="rows that every run visits in the same order",
            remedy="pass the dataset itself with batch_size=, or train the grid of the boundary warning by yourself",
        )


def next_path(result: Outcome, point: int, scores: FloatArray, path: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what to train beyond the end of the grid, and the whole grid with it.

    Parameters
    ----------
    result : Outcome
        What has been trained.
    point : int
        The best point.
    scores : array, [P]
    path : dict
        Arguments of ``build_members``: "lambdas", "sweep" and "members".

    Returns
    -------
    list of dict
        ``[new, whole]``, arguments of ``build_members`` again; empty if the best value is inside, or the grid cannot
        be continued: where it is a list of specs, or a hyperparameter without a scale to move on.
    """
    found, values = edge(result, point, scores), result.path_values
    if found is None or found.grid is None or values is None:
        return []
    name = result.table.main_axis
    axis: Any = result.table.lambdas if name == "lambda" else result.table.hyper[name]
    spec = path["lambdas"] if name == "lambda" else path["sweep"][name]
    grid = lambda_grid(*found.grid).numpy()
    labels: list[Any]
    if all(isinstance(label, float) for label in axis.labels):
        labels = [float(v) for v in grid if not np.isclose(v, values, rtol=SAME, atol=0.0).any()]
        new = np.array(labels)
    elif isinstance(axis, LambdaAxis) and isinstance(axis.values, dict):
        beyond = grid > values[point] if found.side == "high" else grid < values[point]
        new = grid[beyond & ~np.isclose(grid, values[point], rtol=SAME, atol=0.0)]
        labels = [{k: v * factor for k, v in axis.labels[point].items()} for factor in new / values[point]]
    else:
        return []
    every = np.concatenate([values, new])
    steps = np.diff(values)
    order = np.argsort(-every, kind="stable") if (steps < 0).all() else np.arange(len(every))
    order = np.argsort(every, kind="stable") if (steps > 0).all() else order
    joined = [*axis.labels, *labels]
    out = []
    for chosen in (labels, [joined[i] for i in order]):
        own = _spec(spec, chosen)
        sweep = path["sweep"] if name == "lambda" else {**path["sweep"], name: own}
        out.append({**path, "lambdas": own if name == "lambda" else path["lambdas"], "sweep": sweep})
    return out


def _spec(like: Any, labels: list[Any]) -> Any:
    """Return labels as a spec of the form that they came in."""
    spec: Any = torch.tensor(labels, dtype=torch.float64) if isinstance(labels[0], float) else None
    if spec is None:
        spec = {k: torch.stack([torch.as_tensor(one[k], dtype=torch.float64) for one in labels]) for k in labels[0]}
    return WeightsOnly(spec) if isinstance(like, WeightsOnly) else spec


def joined(first: PathResult, second: PathResult, table: Members) -> PathResult:
    """Return members of two runs as one result, in the order of the table of both.

    Parameters
    ----------
    first, second : PathResult
        With the same folds and seeds.
    table : Members
        Of all members.
    """

    def keys(of: Members) -> list[tuple[int, int, Any]]:
        name = of.main_axis
        axis: Any = of.lambdas if name == "lambda" else of.hyper[name]
        shown = [repr(label) for label in axis.labels]
        return [(f, s, shown[i]) for f, s, i in zip(of.folds, of.seeds, of.index[name], strict=True)]

    row = {key: k for k, key in enumerate([*keys(first.table), *keys(second.table)])}
    rows = torch.tensor([row[key] for key in keys(table)])

    def pick(a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([a, b])[rows.to(a.device)]

    def own(name: str) -> tuple[Any, ...]:
        both = (*getattr(first, name), *getattr(second, name))
        return tuple(both[k] for k in rows.tolist())

    length = max(len(h) for result in (first, second) for h in result.history.values())

    def padded(h: Tensor) -> Tensor:
        return torch.cat([h, h.new_full((length - len(h), h.shape[1]), float("nan"))])

    live = None
    if first.live_params is not first.params:
        live = tree_map(pick, first.live_params, second.live_params)
    params = tree_map(pick, first.params, second.params)
    result = replace(
        first,
        history={n: torch.cat([padded(h), padded(second.history[n])], 1)[:, rows] for n, h in first.history.items()},
        params=params,
        buffers=tree_map(pick, first.buffers, second.buffers),
        live_params=params if live is None else live,
        table=table,
        status=own("status"),
        epochs_trained=own("epochs_trained"),
        epochs_kept=own("epochs_kept"),
        diverged_at=own("diverged_at"),
        complete=first.complete and second.complete,
    )
    return with_uncertainty(result)

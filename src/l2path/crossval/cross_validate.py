"""``cross_validate``: folds, seeds and lambdas as one batched run."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from l2path.batches import check_nan
from l2path.crossval.folds import make_folds, warn_missing_classes
from l2path.crossval.preprocess import Transform, check_preprocess, preprocessed
from l2path.crossval.result import CVResult
from l2path.data import Place, RowSource, Source, make_source
from l2path.engine import Engine
from l2path.errors import ArgumentError, BoundaryWarning
from l2path.losses import FullLoss, ModelLoss
from l2path.optimizers import Optimizer
from l2path.order import data_order
from l2path.path.chunks import EpochEvent
from l2path.path.evaluation import Metric, Validation, check_metrics
from l2path.path.extend import EXTENSIONS, check_extend, going_on, joined, next_path
from l2path.path.halving import SuccessiveHalving
from l2path.path.members import build_members
from l2path.path.outcome import Selection
from l2path.path.result import PathResult
from l2path.path.run import Key, Settings, check_settings, train_members
from l2path.path.setup import Anchor, check_seeds, device_of, prepare, quiet, selection_of
from l2path.path.stopping import EarlyStopping
from l2path.penalty import describe
from l2path.training import GradTransform
from l2path.trees import map_tensors
from l2path.types import LambdaSpec, LossFn, MetricFn, Sweep


def cross_validate(
    module: nn.Module | Callable[[], nn.Module],
    data: Any,
    *,
    loss_fn: LossFn | FullLoss,
    optimizer: Optimizer,
    lambdas: LambdaSpec | None = None,
    sweep: Sweep | None = None,
    members: Sequence[Mapping[str, Any]] | None = None,
    folds: Any = 5,
    groups: Any = None,
    preprocess: Any = None,
    epochs: int,
    batch_size: int | None = None,
    shuffle: bool = True,
    seed: int | None = None,
    seeds: Sequence[int] | None = None,
    metrics: Mapping[str, Metric | MetricFn] | None = None,
    select: str = "val_loss",
    early_stopping: EarlyStopping | None = None,
    halving: SuccessiveHalving | None = None,
    extend: bool = False,
    anchor: Anchor | None = None,
    grad_transform: GradTransform | None = None,
    unused: Literal["freeze", "train"] = "freeze",
    on_epoch: Callable[[EpochEvent], Any] | None = None,
    progress: bool | None = None,
    engine: Engine | Literal["auto", "vmap", "compiled", "loop"] = "auto",
    member_chunk: int | Literal["auto"] = "auto",
) -> CVResult:
    """Train every lambda in every fold under every seed, all at once, and say which lambda to take.

    A member sees the training rows of its fold only, picked by index: it equals a run of :func:`batch_train` on those
    rows. All lambdas share folds, seeds, order and random masks, so that their scores are compared in pairs.

    Parameters
    ----------
    module, loss_fn, optimizer, lambdas, sweep, epochs, batch_size, shuffle, seed, seeds
        As for :func:`batch_train`. A callable that makes the module is called once for each seed, and its weights start
        the seed's members in all folds.
    metrics, select, halving, extend, anchor, grad_transform, unused, on_epoch, progress, engine, member_chunk
        As for :func:`batch_train`; the held-out rows of each fold are what it is scored on.
    data : (inputs, targets) or Dataset
        Rows that can be picked by index; a DataLoader cannot be split into folds.
    members : list of dicts, optional
        As for :func:`batch_train`; every entry is trained in every fold.
    folds : int, splitter, fold numbers or pairs
        A number of folds, drawn under the first seed; an object with scikit-learn's ``split(X, y, groups)``
        (stratified, grouped, time series); the number of each row's fold, ``[n]``; or pairs ``(train, test)`` of
        positions.
    groups : ``[n]``, optional
        For a splitter that keeps groups together.
    early_stopping : EarlyStopping, optional
        Each member stops by itself. The rows of a fold that are scored must not decide when: a part of its training
        rows (``holdout``, drawn under the first seed, the same for all lambdas and seeds) is not trained on, but looked
        at. :meth:`CVResult.refit` trains for the median number of epochs that the point's members kept.
    preprocess : transformer or function, optional
        Fitted on the training rows of each fold alone: anything with scikit-learn's ``fit`` and ``transform``, or a
        function that is given the training inputs and returns the function to apply to inputs. NaN in the inputs is
        its to fill in. The transformed inputs of all folds are kept at once.

    Returns
    -------
    CVResult
        With K members ordered (fold, seed, swept hyperparameters ..., lambda), lambda fastest.

    Raises
    ------
    ArgumentError
        Before training starts: for folds that leak, are empty or more than the rows, and as :func:`batch_train`.

    Examples
    --------
    >>> import l2path
    >>> x = torch.linspace(-1, 1, 30).unsqueeze(1)
    >>> cv = cross_validate(
    ...     nn.Linear(1, 1), (x, 2 * x + x**3), loss_fn=nn.functional.mse_loss, optimizer=l2path.sgd(lr=0.1),
    ...     lambdas=[1.0, 0.1, 0.0], folds=3, epochs=100,
    ... )
    >>> cv.lambda_min, cv.fold_scores.shape
    (0.0, (3, 3))
    """
    settings = Settings(
        loss_fn=loss_fn,
        optimizer=optimizer,
        epochs=epochs,
        anchor=anchor,
        grad_transform=grad_transform,
        unused=unused,
        on_epoch=on_epoch,
        progress=progress,
        engine=engine,
        member_chunk=member_chunk,
        sweep=sweep or {},
        early_stopping=early_stopping,
        halving=halving,
    )
    check_settings(settings)
    check_extend(extend, data)
    check_preprocess(preprocess)
    seeds_ = check_seeds(seed, seeds)
    path: dict[str, Any] = {"lambdas": lambdas, "sweep": sweep, "members": members}
    with quiet(device_of(module)):
        fns, table, place = prepare(module, seeds_, **path)
        rows = all_rows(data, place, batch_size, nan=preprocess is not None)
        inputs, targets = sides(data, rows, loss_fn)
        found = make_folds(folds, rows.rows, inputs=inputs, targets=targets, groups=groups, seed=seeds_[0])
        warn_missing_classes(found, targets)
        table = table.in_folds(len(found))
        checked = check_metrics(metrics)
        sources: dict[Key, Source] = {}
        validations: dict[int, Validation] = {}
        monitors: dict[int, Validation] = {}
        for number, fold in enumerate(found):
            train, test = torch.from_numpy(fold.train), torch.from_numpy(fold.test)
            if early_stopping is not None:
                train, watched = held_apart(train, early_stopping.holdout, number, seeds_[0])
            pick = rows.pick
            if preprocess is not None:
                _, done = preprocessed(preprocess, inputs, targets, train, place)
                pick = partial(rows_of, (done, targets))
            own = rows.with_pick(partial(picked, pick, train), len(train), rows.batch_size)
            sources.update({(number, s): own.with_seed(s) if shuffle else own for s in dict.fromkeys(table.seeds)})
            held_out = rows.with_pick(partial(picked, pick, test), len(test), len(test))
            validations[number] = Validation(held_out, loss_fn, checked)
            if early_stopping is not None:
                source = rows.with_pick(partial(picked, pick, watched), len(watched), len(watched))
                monitors[number] = Validation(source, loss_fn, checked)
        selection = selection_of(select, metrics or {}, checked, validations[0])
        trained = train_members(fns, table, sources, validations, selection, settings, monitors or None)
        # The caller's module may have been trained, or loaded with a result, by the time of the refit.
        start = fns[table.seeds[0]].template if isinstance(module, nn.Module) else module
        alone = replace(settings, on_epoch=None, halving=None)  # a hook counts on the members of this run

        def concluded(members: PathResult) -> CVResult:
            again = partial(whole, start, data, preprocess, batch_size, shuffle, alone, path)
            return CVResult(members, found, again)

        cv = concluded(trained)
        for _ in range(EXTENSIONS if extend else 0):
            best = cv.index_min if np.isfinite(cv.cvm).any() else None
            grids = [] if best is None else next_path(cv.members, best, cv.cvm, path)
            if not grids or not cv.members.complete:
                break
            names = describe(fns[table.seeds[0]])
            new, both = (build_members(names, seeds=seeds_, **grid).in_folds(len(found)) for grid in grids)
            with going_on(cv):
                added = train_members(fns, new, sources, validations, selection, settings, monitors or None)
            path = grids[1]
            cv = concluded(joined(cv.members, added, both))
    if cv.boundary is not None:
        warnings.warn(cv.boundary, BoundaryWarning, stacklevel=2)
    return cv


@contextmanager
def whole(
    module: nn.Module | Callable[[], nn.Module],
    data: Any,
    preprocess: Any,
    batch_size: int | None,
    shuffle: bool,
    settings: Settings,
    path: Mapping[str, Any],
    point: int,
    seeds: Sequence[int],
    epochs: int,
) -> Iterator[tuple[tuple[Any, ...], Transform | None]]:
    """Yield what trains one point of the path on all rows, the arguments of ``train_members``, and the transform."""
    with quiet(device_of(module)):
        fns, table, place = prepare(module, seeds, **path)
        rows = all_rows(data, place, batch_size, nan=preprocess is not None)
        transform, pick = None, rows.pick
        if preprocess is not None:
            inputs, targets = sides(data, rows, settings.loss_fn)
            transform, done = preprocessed(preprocess, inputs, targets, torch.arange(rows.rows), place)
            pick = partial(rows_of, (done, targets))
        every = rows.with_pick(pick, rows.rows, rows.batch_size)
        sources: dict[Key, Source] = {(0, s): every.with_seed(s) if shuffle else every for s in seeds}
        own = {s: fns[s] for s in seeds}
        if settings.early_stopping is not None:  # there are no rows left to look at
            settings = replace(settings, early_stopping=None, epochs=epochs)
        yield (own, table.only(point, seeds), sources, {}, Selection("val_loss", False, None), settings), transform


def all_rows(data: Any, place: Place, batch_size: int | None, *, nan: bool) -> RowSource:
    """Return data whose rows can be picked by index."""
    if isinstance(data, (DataLoader, IterableDataset)):
        raise ArgumentError(
            "data",
            got=f"a {type(data).__name__}",
            expected="rows that can be picked by index: tensors, arrays or a map-style Dataset",
            remedy="pass the dataset of the loader, with batch_size= here",
        )
    source = make_source(data, argument="data", batch_size=batch_size, seed=0, place=place, nan=nan)
    assert isinstance(source, RowSource)  # of anything that is no stream
    return source


def sides(data: Any, rows: RowSource, loss_fn: LossFn | FullLoss) -> tuple[Any, Any]:
    """Return inputs and targets of all rows as tensors; None each where data do not come apart in memory."""
    plain = not isinstance(data, Dataset) or type(data) is TensorDataset
    if not plain or isinstance(loss_fn, ModelLoss):
        return None, None
    every = rows.pick(torch.arange(rows.rows))
    if not isinstance(every, (tuple, list)) or len(every) != 2:
        return None, None
    check_nan(every[1], "data")
    return every[0], every[1]


def held_apart(train: Tensor, part: float, fold: int, seed: int) -> tuple[Tensor, Tensor]:
    """Split the training rows of a fold in those to train on and those that early stopping looks at."""
    count = round(part * len(train))
    if not 1 <= count < len(train):
        raise ArgumentError(
            "early_stopping",
            got=f"holdout={part} of the {len(train)} training rows of fold {fold}",
            expected="at least one row to look at, and one to train on",
            remedy="change holdout, or use fewer folds",
        )
    order = data_order(len(train), seed, fold)
    return train[order[count:].sort().values], train[order[:count].sort().values]


def rows_of(tensors: Any, rows: Tensor) -> Any:
    """Return rows of a tree of tensors by their positions."""
    return map_tensors(lambda x: x.index_select(0, rows.to(x.device)), tensors)


def picked(pick: Callable[[Tensor], Any], rows: Tensor, index: Tensor) -> Any:
    """Return rows of a fold by their position in it."""
    return pick(rows[index])

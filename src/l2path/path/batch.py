"""``batch_train``: all candidates at once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from torch import nn

from l2path.data import make_source
from l2path.engine import Engine
from l2path.errors import ArgumentError, BoundaryWarning
from l2path.losses import FullLoss
from l2path.optimizers import Optimizer
from l2path.path.chunks import EpochEvent
from l2path.path.evaluation import Metric, Validation, check_metrics
from l2path.path.extend import EXTENSIONS, check_extend, going_on, joined, next_path
from l2path.path.halving import SuccessiveHalving
from l2path.path.members import build_members
from l2path.path.result import PathResult
from l2path.path.run import Settings, check_settings, train_members
from l2path.path.setup import (
    Anchor,
    check_seeds,
    device_of,
    is_stream,
    prepare,
    quiet,
    selection_of,
    sources_by_seed,
)
from l2path.path.stopping import EarlyStopping
from l2path.penalty import describe
from l2path.training import GradTransform
from l2path.types import LambdaSpec, LossFn, MetricFn, Sweep


def batch_train(
    module: nn.Module | Callable[[], nn.Module],
    data: Any,
    *,
    loss_fn: LossFn | FullLoss,
    optimizer: Optimizer,
    lambdas: LambdaSpec | None = None,
    sweep: Sweep | None = None,
    members: Sequence[Mapping[str, Any]] | None = None,
    epochs: int,
    batch_size: int | None = None,
    shuffle: bool = True,
    seed: int | None = None,
    seeds: Sequence[int] | None = None,
    validation: Any = None,
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
) -> PathResult:
    r"""Train one copy of a model for every lambda, all at once.

    Member k minimises :math:`J_k(\theta) = \text{mean data loss} + \tfrac12 \sum_p \lambda_{kp} |\theta_p - a_p|^2`,
    and equals, to rounding, a run with its lambda alone (*solo equivalence*): all members of a seed start from the
    same weights, and see the same batches in the same order (:func:`data_order`) and the same random masks
    (:func:`step_seed`).

    Parameters
    ----------
    module : nn.Module, or callable
        Its weights start every member. A callable without arguments is called once for each seed, under that seed.
        Left as it is.
    data : (inputs, targets), Dataset or DataLoader
        Tensors or arrays with a first axis of n rows; inputs may be a tuple (positional arguments) or a dict (keyword
        arguments). With ``model_loss`` all of it goes to the module in this way: a dict of tensors, for example. A
        DataLoader or an IterableDataset is read once an epoch for all seeds.
    loss_fn : callable, model_loss() or full_loss(f)
        ``loss_fn(outputs, targets) -> 0-d mean loss``; :func:`model_loss` for a model that computes its own.
    optimizer : Optimizer
        For example ``l2path.sgd(lr=0.1, momentum=0.9)``.
    lambdas : ``[L]``, {pattern: ``[L]``}, list of L specs, weights_only of one, or None
        The axis of lambdas. Patterns are zipped; a leaf is 0-d (shared) or has a leading axis of L (or 1: shared), and
        what follows broadcasts to the parameter.
    sweep : {hyperparameter: values}, optional
        Further axes, crossed with the lambdas: ``{"lr": [...]}``, ``{"decay": [...]}`` of AdamW.
    members : list of dicts, optional
        An explicit list in place of the product, each ``{"lambdas": spec, "seed": 0, "lr": 0.1}`` or a part of these.
    epochs : int
        Passes over the data.
    batch_size : int, optional
        Rows in a batch; all rows where it is left out. The last batch of an epoch may be smaller. A DataLoader brings
        its own; an IterableDataset yields rows to batch or, where it is left out, whole batches.
    shuffle : bool
        Visit the rows in the order :func:`data_order` (True) or as they come (False).
    seed, seeds : int, or sequence of int
        One seed (0 by default), or several, crossed with the path. With a module in place of a callable, seeds vary the
        order and the masks only.
    validation : like data, optional
        Scored at the end of every epoch, in eval mode.
    metrics : {name: Metric or function}, optional
        Scores beside the loss, recorded as ``val_<name>``. Only a :class:`Metric`, which says which way is better, can
        decide.
    select : str
        The score that decides: "val_loss", or a metric's name.
    early_stopping : EarlyStopping, optional
        Each member stops by itself when the score that decides gets no better, and the rest goes on faster.
    halving : SuccessiveHalving, optional
        The worst points of the path leave early, and the rest goes on faster.
    extend : bool
        If the best value is an end of a one-dimensional grid, train the grid that the boundary warning names as well,
        up to three times; what is trained already is not trained again. The result holds all of it. Data that bring
        their own order (a DataLoader) cannot be extended.
    anchor : dict of str to Tensor, or "init"
        Weights to shrink towards; "init" is each seed's starting weights (L2-SP).
    grad_transform : Optimizer or callable, optional
        As for :func:`make_train_step`.
    unused : {"freeze", "train"}
        What becomes of parameters that the loss does not depend on.
    on_epoch : callable, optional
        Called with an :class:`EpochEvent` after each epoch; it may return ``[K]`` booleans, and members at False stop.
    progress : bool, optional
        Show a progress bar; by default on a terminal only.
    engine : {"auto", "vmap", "compiled", "loop"} or Engine
        How members are executed; ``result.engine`` repeats a run. "auto" batches members with ``vmap``, and in a job
        that takes seconds it times a step of one member as well and takes what is faster; the step of a long job is
        compiled, if that is faster.
    member_chunk : int or "auto"
        The most members that are live at once; of a compiled program what it is made for.

    Returns
    -------
    PathResult
        With K members ordered (seed, swept hyperparameters ..., lambda), lambda fastest. After a keyboard interrupt it
        is valid and marked incomplete; a second interrupt raises.

    Raises
    ------
    ArgumentError
        Before training starts, for whatever cannot work; NaN in a stream on the batch where it appears. An error that
        ends a run half-way (of the data, a hook, the loss) carries what was trained as ``error.partial_result``.

    Examples
    --------
    >>> import torch
    >>> import l2path
    >>> x = torch.linspace(-1, 1, 20).unsqueeze(1)
    >>> result = batch_train(
    ...     nn.Linear(1, 1), (x, 2 * x), loss_fn=nn.functional.mse_loss, optimizer=l2path.sgd(lr=0.1),
    ...     lambdas=[1.0, 0.1, 0.0], epochs=3,
    ... )
    >>> result.params["weight"].shape
    torch.Size([3, 1, 1])
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
    path: dict[str, Any] = {"lambdas": lambdas, "sweep": sweep, "members": members}
    seeds_ = check_seeds(seed, seeds)
    with quiet(device_of(module)):
        fns, table, place = prepare(module, seeds_, **path)
        sources = {(0, s): source for s, source in sources_by_seed(data, table, batch_size, shuffle, place).items()}
        checked = check_metrics(metrics)
        val = None
        if validation is not None:
            source = make_source(
                validation,
                argument="validation",
                batch_size=None if is_stream(validation) else 4096,
                seed=None,
                place=place,
            )
            val = Validation(source, loss_fn, checked)
        elif checked:
            raise ArgumentError(
                "metrics",
                got=f"{sorted(checked)} without validation",
                expected="validation data to compute them on",
                remedy="pass validation=(inputs, targets)",
            )
        needs = {"early_stopping": early_stopping, "halving": halving, "extend": extend or None}
        for argument, rule in needs.items():
            if rule is not None and val is None:
                raise ArgumentError(
                    argument,
                    got=f"{rule} without validation data",
                    expected="validation data whose score decides",
                    remedy="pass validation=(inputs, targets)",
                )
        selection = selection_of(select, metrics or {}, checked, val)
        validations = {} if val is None else {0: val}
        result = train_members(fns, table, sources, validations, selection, settings)

        for _ in range(EXTENSIONS if extend else 0):
            best = result.chosen
            grids = [] if best is None else next_path(result, result.table.points[best], result.cvm, path)
            if not grids or not result.complete:
                break
            new, whole = (build_members(describe(fns[seeds_[0]]), seeds=seeds_, **grid) for grid in grids)
            with going_on(result):
                added = train_members(fns, new, sources, validations, selection, settings)
            result, path = joined(result, added, whole), grids[1]
    if result.boundary is not None:
        warnings.warn(result.boundary, BoundaryWarning, stacklevel=2)
    return result

"""``batch_train``: all candidates at once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import nn

import l2path.path.first_batch as first_batch
import l2path.path.preflight as preflight
import l2path.path.selfcheck as selfcheck
from l2path.data import Place, RowSource, Source, make_source
from l2path.engine import Engine, auto_chunk, choose_engine, repeat
from l2path.errors import ArgumentError, DivergenceWarning, IncompleteWarning
from l2path.functional import (
    Functional,
    forked_rng,
    functionalize,
    grad_with_autograd,
    grad_with_torch_func,
    vmap_hints_silenced,
)
from l2path.losses import FullLoss, check_loss, data_loss
from l2path.memory import free_memory
from l2path.optimizers import Optimizer
from l2path.optimizers.base import check_optimizer
from l2path.path.chunks import Chunk, EpochEvent, Group, weights_of
from l2path.path.driver import BLOCK_BYTES, Driver
from l2path.path.evaluation import Metric, Validation, check_metrics
from l2path.path.failure import explain, keep_partial
from l2path.path.members import Members, build_members
from l2path.path.outcome import Selection
from l2path.path.result import PathResult, finish
from l2path.path.setup import (
    Anchor,
    Peeked,
    anchor_of,
    check_plain,
    check_same_structure,
    check_seeds,
    device_of,
    functional_of,
    is_stream,
    selection_of,
    sources_by_seed,
    start_state,
    with_hyper,
)
from l2path.penalty import describe
from l2path.progress import Progress, deferred_interrupt
from l2path.training import GradTransform, TrainState, TrainStep, build_step, check_grad_transform
from l2path.trees import tensor_leaves
from l2path.types import LambdaSpec, LossFn, MetricFn, Params, Sweep


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
    anchor: Anchor | None = None,
    grad_transform: GradTransform | None = None,
    unused: Literal["freeze", "train"] = "freeze",
    on_epoch: Callable[[EpochEvent], Any] | None = None,
    progress: bool | None = None,
    engine: Engine | Literal["auto", "vmap", "loop"] = "auto",
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
    engine : {"auto", "vmap", "loop"} or Engine
        How members are executed; ``result.engine`` repeats a run.
    member_chunk : int or "auto"
        The most members that are live at once.

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
    >>> import l2path
    >>> x = torch.linspace(-1, 1, 20).unsqueeze(1)
    >>> result = batch_train(
    ...     nn.Linear(1, 1), (x, 2 * x), loss_fn=nn.functional.mse_loss, optimizer=l2path.sgd(lr=0.1),
    ...     lambdas=[1.0, 0.1, 0.0], epochs=3,
    ... )
    >>> result.params["weight"].shape
    torch.Size([3, 1, 1])
    """
    check_plain(epochs, on_epoch)
    check_loss(loss_fn)
    check_optimizer(optimizer)
    check_grad_transform(grad_transform)
    seeds_ = check_seeds(seed, seeds)
    with (
        forked_rng(device_of(module)),
        torch.inference_mode(False),
        torch.enable_grad(),
        vmap_hints_silenced(),
    ):
        device = device_of(module)
        # Of a module there is one copy, whatever the seeds; a callable makes one for each.
        same = functionalize(module) if isinstance(module, nn.Module) else None
        fns = {s: same or functional_of(module, s, device) for s in seeds_}
        table = build_members(describe(fns[seeds_[0]]), lambdas=lambdas, sweep=sweep, seeds=seeds_, members=members)
        for s in table.seeds:
            if s not in fns:
                fns[s] = same or functional_of(module, s, device)
        check_same_structure(fns)
        first = fns[table.seeds[0]]
        place = Place(first.device, first.dtype)
        sources = sources_by_seed(data, table, batch_size, shuffle, place)
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
        bare = [f"val_{n}" for n, m in (metrics or {}).items() if not isinstance(m, Metric)]
        selection = selection_of(select, checked, val, bare)
        return _train(
            fns,
            table,
            sources,
            val,
            selection,
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
        )


def _train(
    fns: dict[int, Functional],
    table: Members,
    sources: dict[int, Source],
    val: Validation | None,
    selection: Selection,
    *,
    loss_fn: LossFn | FullLoss,
    optimizer: Optimizer,
    epochs: int,
    anchor: Anchor | None,
    grad_transform: GradTransform | None,
    unused: str,
    on_epoch: Callable[[EpochEvent], Any] | None,
    progress: bool | None,
    engine: Engine | str,
    member_chunk: int | str,
    sweep: Sweep,
) -> PathResult:
    """Check everything on the first batch, then train."""
    seed = table.seeds[0]
    preflight.check_one_row(fns[seed], sources[seed])
    peeked: dict[int, Peeked] = {}
    for source in sources.values():
        if id(source) not in peeked:  # a stream is read once for all seeds
            peeked[id(source)] = Peeked(source)
    batch = peeked[id(sources[seed])].first
    loss = data_loss(fns[seed], loss_fn)
    first_batch.first_loss(fns[seed], loss_fn, batch)
    frozen = first_batch.freeze_unused(fns[seed], loss, batch, unused)
    anchors = {s: anchor_of(fn, anchor) for s, fn in fns.items()}
    if frozen:
        fns = {s: fn.freeze(frozen) for s, fn in fns.items()}
    first_batch.warn_sum_reduction(fns[seed], loss_fn, batch)
    names = describe(fns[seed])

    def stacked(members: Sequence[int], s: int) -> tuple[TrainState, Any]:
        state = repeat(start_state(fns[s], optimizer, grad_transform), len(members))
        return with_hyper(state, table, members, names), table.strengths(names, members)

    every = range(len(table))
    one_state = start_state(fns[seed], optimizer, grad_transform)
    member_bytes = sum(leaf.nbytes for leaf in tensor_leaves(one_state))
    # Storage is the state and, at the end, the result's own copy of the weights.
    result_bytes = sum(leaf.nbytes for leaf in tensor_leaves(weights_of(one_state)))
    preflight.check_memory(len(table), member_bytes + result_bytes, fns[seed].device)
    hyper_state = with_hyper(one_state._replace(opt_state=repeat(one_state.opt_state, len(table))), table, every, names)
    if not isinstance(grad_transform, Optimizer):
        strengths = table.strengths(names, every)
        preflight.warn_stability(optimizer, hyper_state, strengths)
        preflight.warn_mixed_decay(optimizer, one_state, strengths, {**sweep, **table.hyper})

    def auto() -> int:
        device = fns[seed].device
        # The state before and after a step, and what is alive in between.
        live = 2 * member_bytes + preflight.step_bytes(fns[seed], data_loss(fns[seed], loss_fn), batch)
        return auto_chunk(live, device, free_memory(device))

    chosen = choose_engine(engine, member_chunk, len(table), auto)
    if chosen.kind == "vmap":
        verdict = selfcheck.try_vmap(fns[seed], loss_fn, batch, seed)
        if not verdict.vmapped and engine == "vmap":
            raise ArgumentError(
                "engine",
                got=f"'vmap', but {verdict.reason}",
                expected="a module that torch.func.vmap can batch",
                remedy="leave engine at 'auto': the members are then trained one after the other",
            )
        if not verdict.vmapped:
            selfcheck.warn_looped(verdict.reason)
            chosen = Engine("loop", chosen.member_chunk, verdict.reason)
        elif engine == "auto":
            chosen = Engine("vmap", chosen.member_chunk, verdict.reason)
        fns = {s: fn.with_substitutes(verdict.substitutes) for s, fn in fns.items()}
    groups, chunks = {}, []
    for s in dict.fromkeys(table.seeds):
        fn = fns[s]
        towards = {n: a for n, a in anchors[s].items() if n in fn.params}

        def step(f: Functional, gradients: Any, towards: Params = towards) -> TrainStep:
            return build_step(data_loss(f.renormalising(), loss_fn), optimizer, grad_transform, towards, f, gradients)

        looped = step(fn.with_substitutes(None), grad_with_autograd)
        batched = looped if chosen.kind == "loop" else step(fn, grad_with_torch_func)
        spare = looped if chosen.kind == "vmap" and engine == "auto" else None
        groups[s] = Group(s, fn, fn.evaluation(), batched, peeked[id(sources[s])], spare)
        own = [k for k in every if table.seeds[k] == s]
        for start in range(0, len(own), chosen.member_chunk):
            part = own[start : start + chosen.member_chunk]
            chunks.append(Chunk(groups[s], part, *stacked(part, s)))
    eval_kind = selfcheck.evaluation_kind(fns[seed], groups[seed].eval_fn, batch, loss_fn, chosen.kind)
    if val is not None:
        if isinstance(val.source, RowSource):
            rows = preflight.evaluation_rows(groups[seed].eval_fn.with_substitutes(None), loss_fn, batch)
            val = replace(val, source=val.source.with_batch_size(rows))
            selection = replace(selection, validation=val)
        preflight.check_validation(fns[seed], groups[seed].eval_fn, val)

    first_block = max(1, min(8, BLOCK_BYTES // max(1, sum(leaf.nbytes for leaf in tensor_leaves(batch)))))
    driver = Driver([*groups.values()], chunks, chosen, eval_kind, len(table), val, epochs, on_epoch, first_block)
    bar = Progress(epochs, f"l2path: {len(table)} members", progress)
    try:
        with deferred_interrupt() as interrupt:
            complete = driver.run(interrupt, bar)
    except Exception as error:
        explain(error, driver, loss_fn)
        keep_partial(error, driver, table, names, selection)
        raise
    finally:
        bar.close()
    diverged = [k for k, status in enumerate(driver.record.status) if status == "diverged"]
    if diverged:
        warnings.warn(
            f"{len(diverged)} of {len(table)} members diverged and keep their last finite state: {diverged[:10]}"
            f"{'...' if len(diverged) > 10 else ''}, the first at step {driver.record.diverged_at[diverged[0]]}",
            DivergenceWarning,
            stacklevel=3,
        )
    if not complete:
        warnings.warn(
            f"interrupted after {driver.epoch} of {epochs} epochs: the result holds what was trained "
            "(result.complete is False), and the program goes on",
            IncompleteWarning,
            stacklevel=3,
        )
    return finish(driver, table, names, selection, complete=complete)

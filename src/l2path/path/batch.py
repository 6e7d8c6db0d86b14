"""``batch_train``: all candidates at once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from l2path.data import DataStream, Place, RowSource, Source, make_source
from l2path.engine import Engine, choose_engine, repeat
from l2path.errors import ArgumentError, DivergenceWarning, nearest
from l2path.functional import (
    Functional,
    check_module,
    forked_rng,
    functionalize,
    grad_with_autograd,
    seed_generators,
)
from l2path.optimizers import Optimizer, set_hyper
from l2path.path import preflight
from l2path.path.driver import BLOCK_BYTES, Chunk, Driver, EpochEvent, Group
from l2path.path.evaluation import Metric, Validation, check_metrics
from l2path.path.members import Members, build_members, check_seed
from l2path.path.outcome import Selection
from l2path.path.result import PathResult, finish
from l2path.penalty import Names, check_anchor, describe
from l2path.progress import Progress, deferred_interrupt
from l2path.training import (
    FullLoss,
    GradTransform,
    TrainState,
    build_step,
    check_grad_transform,
    check_loss,
    check_optimizer,
    data_loss,
    init_state,
)
from l2path.trees import tensor_leaves, tree_map
from l2path.types import LambdaSpec, LossFn, MetricFn, Params, Sweep

Anchor = Mapping[str, Tensor] | Literal["init"]


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
        arguments). A DataLoader or an IterableDataset is read once an epoch for all seeds.
    loss_fn : callable, or full_loss(f)
        ``loss_fn(outputs, targets) -> 0-d mean loss``.
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
        Scores beside the loss, recorded as ``val_<name>``; of a bare function less is better.
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
        Before training starts, for whatever cannot work; NaN in a stream on the batch where it appears.

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
    _check_plain(epochs, on_epoch)
    check_loss(loss_fn)
    check_optimizer(optimizer)
    check_grad_transform(grad_transform)
    seeds_ = _seeds(seed, seeds)
    with (
        forked_rng(_device_of(module)),
        torch.inference_mode(False),
        torch.enable_grad(),
        warnings.catch_warnings(),
    ):
        # vmap says so of operations that it runs member by member: they are right, and the user cannot help it.
        warnings.filterwarnings("ignore", message="There is a performance drop", category=UserWarning)
        device = _device_of(module)
        # Of a module there is one copy, whatever the seeds; a callable makes one for each.
        same = functionalize(module) if isinstance(module, nn.Module) else None
        fns = {s: same or _functional(module, s, device) for s in seeds_}
        table = build_members(describe(fns[seeds_[0]]), lambdas=lambdas, sweep=sweep, seeds=seeds_, members=members)
        for s in table.seeds:
            if s not in fns:
                fns[s] = same or _functional(module, s, device)
        _check_same_structure(fns)
        first = fns[table.seeds[0]]
        place = Place(first.device, first.dtype)
        sources = _sources(data, table, batch_size, shuffle, place)
        checked = check_metrics(metrics)
        val = None
        if validation is not None:
            source = make_source(
                validation,
                argument="validation",
                batch_size=None if _streams(validation) else 4096,
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
        selection = _selection(select, checked, val)
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
    peeked: dict[int, _Peeked] = {}
    for source in sources.values():
        if id(source) not in peeked:  # a stream is read once for all seeds
            peeked[id(source)] = _Peeked(source)
    batch = peeked[id(sources[seed])].first
    preflight.has_rows(batch)
    loss = data_loss(fns[seed], loss_fn)
    preflight.first_loss(loss, fns[seed], batch)
    frozen = preflight.freeze_unused(fns[seed], loss, batch, unused)
    anchors = {s: _anchor(fn, anchor) for s, fn in fns.items()}
    if frozen:
        fns = {s: fn.freeze(frozen) for s, fn in fns.items()}
    preflight.warn_sum_reduction(fns[seed], loss_fn, batch)
    names = describe(fns[seed])

    def stacked(members: Sequence[int], s: int) -> tuple[TrainState, Any]:
        state = repeat(_start(fns[s], optimizer, grad_transform), len(members))
        return _with_hyper(state, table, members, names), table.strengths(names, members)

    every = range(len(table))
    one_state = _start(fns[seed], optimizer, grad_transform)
    member_bytes = sum(leaf.nbytes for leaf in tensor_leaves(one_state))
    # Storage is the state and, at the end, the result's own copy of parameters and buffers.
    result_bytes = sum(leaf.nbytes for leaf in tensor_leaves((one_state.params, one_state.buffers)))
    preflight.check_memory(len(table), member_bytes + result_bytes, fns[seed].device)
    hyper_state = _with_hyper(
        one_state._replace(opt_state=repeat(one_state.opt_state, len(table))), table, every, names
    )
    if not isinstance(grad_transform, Optimizer):
        strengths = table.strengths(names, every)
        preflight.warn_stability(optimizer, hyper_state, strengths)
        preflight.warn_mixed_decay(optimizer, one_state, strengths, {**sweep, **table.hyper})

    steps = {}
    for s, fn in fns.items():
        parts = (
            data_loss(fn, loss_fn),
            optimizer,
            grad_transform,
            {n: a for n, a in anchors[s].items() if n in fn.params},
            fn,
        )
        steps[s] = (build_step(*parts), build_step(*parts, gradients=grad_with_autograd))

    chosen = choose_engine(engine, member_chunk, len(table), member_bytes)
    if chosen.kind == "vmap":
        verdict = preflight.try_vmap(fns[seed], data_loss(fns[seed], loss_fn), batch, seed)
        if not verdict.vmapped and engine == "vmap":
            raise ArgumentError(
                "engine",
                got=f"'vmap', but {verdict.reason}",
                expected="a module that torch.func.vmap can batch",
                remedy="leave engine at 'auto': the members are then trained one after the other",
            )
        if not verdict.vmapped:
            preflight.warn_looped(verdict.reason)
            chosen = Engine("loop", chosen.member_chunk, verdict.reason)
        elif engine == "auto":
            chosen = Engine("vmap", chosen.member_chunk, verdict.reason)
    groups, chunks = {}, []
    for s in dict.fromkeys(table.seeds):
        step = steps[s][1 if chosen.kind == "loop" else 0]
        groups[s] = Group(s, fns[s], fns[s].evaluation(), step, peeked[id(sources[s])])
        own = [k for k in every if table.seeds[k] == s]
        for start in range(0, len(own), chosen.member_chunk):
            part = own[start : start + chosen.member_chunk]
            chunks.append(Chunk(groups[s], part, *stacked(part, s)))
    eval_kind = preflight.evaluation_kind(fns[seed], groups[seed].eval_fn, batch, loss_fn, chosen.kind)
    if val is not None:
        preflight.check_validation(fns[seed], groups[seed].eval_fn, val)

    first_block = max(1, min(8, BLOCK_BYTES // max(1, sum(leaf.nbytes for leaf in tensor_leaves(batch)))))
    driver = Driver([*groups.values()], chunks, chosen, eval_kind, len(table), val, epochs, on_epoch, first_block)
    bar = Progress(epochs, f"l2path: {len(table)} members", progress)
    try:
        with deferred_interrupt() as interrupt:
            complete = driver.run(interrupt, bar)
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
    return finish(driver, table, names, selection, complete=complete)


class _Peeked:
    """A source whose first batch of epoch 0 has been looked at, without reading it twice."""

    def __init__(self, source: Source) -> None:
        self.source, self.rows, self.batch_size, self.seed = source, source.rows, source.batch_size, source.seed
        self.stream: DataStream | None = DataStream(source, 0)
        self.first = next(self.stream, None)
        if self.first is None:
            raise ArgumentError("data", got="a stream without batches", expected="at least one", remedy="check it")

    def epoch(self, epoch: int) -> Any:
        stream, first = self.stream, self.first
        if epoch > 0 or stream is None:
            yield from self.source.epoch(epoch)
            return
        self.stream = self.first = None
        yield first
        yield from stream  # with a generator state of its own


def _start(fn: Functional, optimizer: Optimizer, grad_transform: GradTransform | None) -> TrainState:
    """Return the state of one member; hyperparameters may carry a graph, which training has no use for."""
    state: TrainState = tree_map(torch.detach, init_state(fn, optimizer, grad_transform=grad_transform))
    return state


def _with_hyper(state: TrainState, table: Members, members: Sequence[int], names: Names) -> TrainState:
    """Set the swept hyperparameters of a stacked state."""
    opt_state = state.opt_state
    for name in table.hyper:
        try:
            opt_state = set_hyper(opt_state, name, table.hyper_values(names, name, members))
        except ArgumentError as error:  # say it of what the caller wrote
            raise ArgumentError(
                f"sweep[{name!r}]", got=error.got, expected=error.expected, remedy=error.remedy
            ) from None
    return state._replace(opt_state=opt_state)


def _check_same_structure(fns: dict[int, Functional]) -> None:
    """Refuse a factory whose modules differ in more than their numbers: members are stacked."""

    def structure(fn: Functional) -> dict[str, tuple[torch.Size, torch.dtype, bool]]:
        parts = ((fn.params, True), (fn.frozen, False), (fn.buffers, False))
        return {n: (t.shape, t.dtype, trained) for part, trained in parts for n, t in part.items()}

    (first, fn), *rest = fns.items()
    for seed, other in rest:
        if structure(other) != structure(fn):
            odd = sorted(n for n, _ in structure(fn).items() ^ structure(other).items())
            raise ArgumentError(
                "module",
                got=f"a callable whose modules for seeds {first} and {seed} differ in {sorted(set(odd))}",
                expected="the same names, shapes, dtypes and requires_grad for every seed",
                remedy="draw nothing that decides about the structure",
            )


def _functional(module: Callable[[], nn.Module], seed: int, device: torch.device) -> Functional:
    if isinstance(module, type) or not callable(module):
        raise ArgumentError(
            "module",
            got=f"{module!r}",
            expected="an nn.Module, or a callable without arguments that makes one",
            remedy="pass an instance, or for example lambda: Net(10)",
        )
    seed_generators(device, seed)
    made = module()
    check_module(made, training=True)
    return functionalize(made)


def _device_of(module: object) -> torch.device:
    if isinstance(module, nn.Module):
        return next((p.device for p in module.parameters()), torch.device("cpu"))
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_initialized() else torch.device("cpu")


def _seeds(seed: int | None, seeds: Sequence[int] | None) -> tuple[int, ...]:
    if seed is not None and seeds is not None:
        raise ArgumentError("seeds", got="seed and seeds", expected="one of the two", remedy="use seeds=(0, 1, 2)")
    if seeds is None:
        return (check_seed(0 if seed is None else seed, "seed"),)
    out = tuple(check_seed(s, "seeds") for s in seeds)
    if not out or len(set(out)) != len(out):
        raise ArgumentError("seeds", got=repr(seeds), expected="at least one, all different", remedy="use (0, 1, 2)")
    return out


def _anchor(fn: Functional, anchor: Anchor | None) -> Params:
    if not isinstance(anchor, str):
        return check_anchor(fn.params, anchor)
    if anchor != "init":
        raise ArgumentError(
            "anchor", got=repr(anchor), expected="'init' or weights by name", remedy="use anchor='init' for L2-SP"
        )
    return check_anchor(fn.params, fn.params)


def _streams(data: Any) -> bool:
    return isinstance(data, torch.utils.data.DataLoader)


def _sources(data: Any, table: Members, batch_size: int | None, shuffle: bool, place: Place) -> dict[int, Source]:
    """Return one source for each seed; a stream is one for all."""
    if _streams(data) or isinstance(data, torch.utils.data.IterableDataset):
        shared = make_source(data, argument="data", batch_size=batch_size, seed=None, place=place)
        return dict.fromkeys(table.seeds, shared)
    order = dict.fromkeys(table.seeds)
    base = make_source(data, argument="data", batch_size=batch_size, seed=0 if shuffle else None, place=place)
    return {s: base.with_seed(s) if shuffle and isinstance(base, RowSource) else base for s in order}


def _selection(select: str, metrics: dict[str, Metric], val: Validation | None) -> Selection:
    known = {"val_loss": False, **{f"val_{n}": m.greater_is_better for n, m in metrics.items()}}
    name = f"val_{select}" if f"val_{select}" in known else select
    if name not in known:
        raise ArgumentError("select", got=repr(select), expected=f"one of {list(known)}", remedy=nearest(select, known))
    return Selection(name, known[name], val)


def _check_plain(epochs: object, on_epoch: object) -> None:
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        raise ArgumentError("epochs", got=repr(epochs), expected="a whole number >= 1", remedy="use for example 20")
    if on_epoch is not None and not callable(on_epoch):
        raise ArgumentError(
            "on_epoch", got=repr(on_epoch), expected="a function of an EpochEvent, or None", remedy="leave it out"
        )

"""Training a table of members: checks on the first batch, the choice of an engine, the driver."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, TypeAlias

import torch

import l2path.path.first_batch as first_batch
import l2path.path.preflight as preflight
import l2path.path.selfcheck as selfcheck
from l2path.batches import describe_batch
from l2path.data import Source
from l2path.engine import Engine, auto_chunk, choose_engine, repeat
from l2path.errors import ArgumentError, DivergenceWarning, IncompleteWarning
from l2path.functional import Functional, alike, grad_with_autograd, grad_with_torch_func
from l2path.losses import FullLoss, check_loss, data_loss
from l2path.memory import free_memory
from l2path.optimizers import Optimizer
from l2path.optimizers.base import check_optimizer
from l2path.path.chunks import Chunk, EpochEvent, Group, weights_of
from l2path.path.driver import BLOCK_BYTES, Driver
from l2path.path.evaluation import Validation
from l2path.path.failure import explain, keep_partial
from l2path.path.fused import fused_as_asked, with_native_kernels
from l2path.path.halving import Halving, SuccessiveHalving
from l2path.path.job import Job, Steps
from l2path.path.members import Members
from l2path.path.outcome import Selection
from l2path.path.programs import Programs, noise_of
from l2path.path.result import PathResult, finish
from l2path.path.scored import settle
from l2path.path.setup import Anchor, Peeked, anchor_of, check_plain, start_state, with_hyper
from l2path.path.stopping import EarlyStopping
from l2path.path.tuning import compile_as_asked, tune
from l2path.penalty import describe
from l2path.progress import Progress, deferred_interrupt
from l2path.training import GradTransform, TrainState, TrainStep, build_step, check_grad_transform
from l2path.trees import tensor_leaves
from l2path.types import Batch, LossFn, Params, Sweep

Key: TypeAlias = tuple[int, int]
"""A fold and a seed: what members share their batches and masks by."""


@dataclass(frozen=True)
class Settings:
    """How members are trained: arguments of ``batch_train``, checked."""

    loss_fn: LossFn | FullLoss
    optimizer: Optimizer
    epochs: int
    anchor: Anchor | None
    grad_transform: GradTransform | None
    unused: str
    on_epoch: Callable[[EpochEvent], Any] | None
    progress: bool | None
    engine: Engine | str
    member_chunk: int | str
    sweep: Sweep
    early_stopping: EarlyStopping | None = None
    halving: SuccessiveHalving | None = None


def check_settings(settings: Settings) -> None:
    """Refuse arguments that make no sense whatever the data are."""
    check_plain(settings.epochs, settings.on_epoch)
    check_loss(settings.loss_fn)
    check_optimizer(settings.optimizer)
    check_grad_transform(settings.grad_transform)
    rules: dict[str, tuple[object, type, str]] = {
        "early_stopping": (settings.early_stopping, EarlyStopping, "patience"),
        "halving": (settings.halving, SuccessiveHalving, "min_epochs"),
    }
    for argument, (rule, kind, parameter) in rules.items():
        if rule is not None and not isinstance(rule, kind):
            raise ArgumentError(
                argument,
                got=repr(rule),
                expected=f"l2path.{kind.__name__}({parameter}=...), or None",
                remedy=f"write {argument}=l2path.{kind.__name__}({parameter}=5)",
            )


def train_members(
    fns: dict[int, Functional],
    table: Members,
    sources: Mapping[Key, Source],
    validations: Mapping[int, Validation],
    selection: Selection,
    settings: Settings,
    monitors: Mapping[int, Validation] | None = None,
) -> PathResult:
    """Check everything on the first batch, then train all members.

    Parameters
    ----------
    fns : dict
        By seed.
    table : Members
    sources : dict
        Rows to train on by (fold, seed).
    validations : dict
        Rows to score on by fold; empty where nothing is scored.
    selection : Selection
    settings : Settings
    monitors : dict, optional
        Rows that early stopping looks at by fold, where they are not those of ``validations``.
    """
    loss_fn, optimizer, grad_transform, engine = (
        settings.loss_fn,
        settings.optimizer,
        settings.grad_transform,
        settings.engine,
    )
    keys = list(dict.fromkeys(table.keys))
    seed = table.seeds[0]
    same = alike(list(fns.values()))  # before calls leave something behind in one of them
    templates = {s: id(fn) for s, fn in fns.items()}  # of one module for all seeds there is one
    for source in sources.values():
        preflight.check_one_row(fns[seed], source)
    peeked: dict[int, Peeked] = {}
    for source in sources.values():
        if id(source) not in peeked:  # a stream is read once for all seeds
            peeked[id(source)] = Peeked(source)
    batch = peeked[id(sources[keys[0]])].first
    loss = data_loss(fns[seed], loss_fn)
    first_batch.first_loss(fns[seed], loss_fn, batch)
    frozen = first_batch.freeze_unused(fns[seed], loss, batch, settings.unused)
    anchors = {s: anchor_of(fn, settings.anchor) for s, fn in fns.items()}
    if frozen:
        same = same and len(set(templates.values())) == 1
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
    if settings.early_stopping is not None and settings.early_stopping.restore_best:
        result_bytes *= 2  # the best epoch's as well
    preflight.check_memory(len(table), member_bytes + result_bytes, fns[seed].device)
    hyper_state = with_hyper(one_state._replace(opt_state=repeat(one_state.opt_state, len(table))), table, every, names)
    if not isinstance(grad_transform, Optimizer):
        strengths = table.strengths(names, every)
        preflight.warn_stability(optimizer, hyper_state, strengths)
        preflight.warn_mixed_decay(optimizer, one_state, strengths, {**settings.sweep, **table.hyper})

    @cache
    def live_bytes() -> int:
        # The state before and after a step, and what is alive in between.
        return 2 * member_bytes + preflight.step_bytes(fns[seed], data_loss(fns[seed], loss_fn), batch)

    def auto() -> int:
        return auto_chunk(live_bytes(), fns[seed].device, free_memory(fns[seed].device))

    chosen = choose_engine(engine, settings.member_chunk, len(table), auto)
    verdict = selfcheck.Verdict(False, "not asked for")
    if chosen.kind != "loop":
        verdict = selfcheck.try_vmap(fns[seed], loss_fn, batch, seed)
        if not verdict.vmapped and engine != "auto" and not isinstance(engine, Engine):
            raise ArgumentError(
                "engine",
                got=f"{engine!r}, but {verdict.reason}",
                expected="a module that torch.func.vmap can batch",
                remedy="leave engine at 'auto': the members are then trained one after the other",
            )
        if not verdict.vmapped:
            selfcheck.warn_looped(verdict.reason)
            chosen = Engine("loop", chosen.member_chunk, reason=verdict.reason)
        elif engine == "auto":
            chosen = Engine("vmap", chosen.member_chunk, reason=verdict.reason)
        fns = {s: fn.with_substitutes(verdict.substitutes) for s, fn in fns.items()}
    scored = settle(fns, loss_fn, batch, validations, monitors or {}, "vmap" if verdict.vmapped else "loop", alike=same)
    if validations:
        selection = replace(selection, validation=scored.validations[keys[0][0]])
    steps: dict[int, Steps] = {}
    for s in dict.fromkeys(table.seeds):  # an explicit list of members has seeds of its own
        fn = fns[s]
        towards = {n: a for n, a in anchors[s].items() if n in fn.params}

        def step(f: Functional, gradients: Any, towards: Params = towards) -> TrainStep:
            return build_step(data_loss(f.renormalising(), loss_fn), optimizer, grad_transform, towards, f, gradients)

        if templates[s] not in steps:
            looped = step(fn.with_substitutes(None), grad_with_autograd)
            traced = step(fn.with_substitutes(None).lowered(), grad_with_torch_func)
            fused = None
            if (lowered := fn.lowered()) is not fn and fn.device.type == "cpu":
                fused = with_native_kernels(step(lowered, grad_with_torch_func))
            steps[templates[s]] = Steps(step(fn, grad_with_torch_func), looped, traced, fused)
    owners = {templates[s]: s for s in reversed(table.seeds)}
    members = {key: [k for k in every if table.keys[k] == key] for key in keys}
    job = Job(
        steps=steps,
        groups=tuple(len(own) for own in members.values()),
        sources=[sources[key] for key in keys],
        epochs=settings.epochs,
        batch=batch,
        live_bytes=live_bytes,
        sample=lambda template, n: stacked([k % len(table) for k in range(n)], owners[template]),
        device=fns[seed].device,
        draws=verdict.draws,
        substituted=verdict.substitutes is not None,
        alike=same and not any(anchors.values()),
        what=what_runs(fns[seed], settings, batch),
        outputs=cache(lambda: scored.outputs(templates, {key: len(own) for key, own in members.items()})),
    )
    programs: dict[int, Programs] = {}
    if chosen.kind == "vmap" and engine == "auto":
        chosen, programs = tune(chosen, job, resize=settings.member_chunk == "auto")
    elif chosen.kind == "vmap" and chosen.native:
        chosen = fused_as_asked(chosen, job)
    elif chosen.kind == "compiled":
        asked = not isinstance(engine, Engine)
        resize = asked and settings.member_chunk == "auto"
        chosen, programs = compile_as_asked(chosen, job, asked=asked, resize=resize)
    groups: dict[Key, Group] = {}
    chunks = []
    for key in keys:
        fold, s = key
        fn, program = fns[s], programs.get(templates[s])
        own_steps = steps[templates[s]]
        groups[key] = Group(
            s,
            fn if chosen.kind != "loop" else fn.with_substitutes(None),
            scored.fns[s],
            own_steps.of(chosen),
            peeked[id(sources[key])],
            scored.validations.get(fold),
            scored.monitors.get(fold),
            compiled=program.steps if program else None,
            outputs=program.outputs if program else None,
            noise=noise_of(job, templates[s]) if programs else None,
            plain_step=own_steps.batched if chosen.kind == "vmap" and chosen.native else None,
            loop_step=own_steps.looped if chosen.kind != "loop" and engine == "auto" else None,
            scoring=(fold, id(program.steps)) if program and scored.joined else None,
        )
        own = members[key]
        for start in range(0, len(own), chosen.member_chunk):
            part = own[start : start + chosen.member_chunk]
            chunks.append(Chunk(groups[key], part, *stacked(part, s)))
    first_block = max(1, min(8, BLOCK_BYTES // max(1, sum(leaf.nbytes for leaf in tensor_leaves(batch)))))
    select, halving = (selection.name, selection.greater_is_better), None
    if settings.halving is not None:
        sizes = {fold: val.source.rows or 1 for fold, val in scored.validations.items()}
        strength = table.strength_rank(names)
        halving = Halving(settings.halving, select[1], table.points, table.folds, sizes, strength)
    driver = Driver(
        [*groups.values()],
        chunks,
        chosen,
        scored.kind,
        len(table),
        settings.epochs,
        settings.on_epoch,
        first_block,
        select,
        settings.early_stopping,
        halving,
    )
    bar = Progress(settings.epochs, f"l2path: {len(table)} members", settings.progress)
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
            f"interrupted after {driver.epoch} of {settings.epochs} epochs: the result holds what was trained "
            "(result.complete is False), and the program goes on",
            IncompleteWarning,
            stacklevel=3,
        )
    return finish(driver, table, names, selection, complete=complete)


def what_runs(fn: Functional, settings: Settings, batch: Batch) -> str:
    """Return in words what the seconds of a step depend on."""
    loss, transform = settings.loss_fn, settings.grad_transform
    parts = [
        *(f"{name} {p.dtype} {list(p.shape)}" for name, p in {**fn.params, **fn.frozen, **fn.buffers}.items()),
        *(getattr(f, "__qualname__", type(f).__name__) for f in (loss, transform)),
        settings.optimizer.name,
        describe_batch(batch),
    ]
    if torch.is_autocast_enabled(fn.device.type):
        parts.append(f"autocast to {torch.get_autocast_dtype(fn.device.type)}")
    return f"{fn.template}; " + ", ".join(parts)

"""Vmapped steps of modules with recurrent layers, with native kernels: for jobs that are not compiled."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from l2path.blocks import Block
from l2path.engine import Engine, Step, run_steps
from l2path.lowerings.eager import NativeOperations
from l2path.path.job import Job
from l2path.path.programs import WHOLE, agrees, native_kernels, sampled, seeded, smaller
from l2path.path.selfcheck import first_line
from l2path.types import Batch, Tree


def with_native_kernels(step: Step) -> Step:
    """Return a step, to be vmapped, whose recurrent layers and products have native kernels."""

    def run(state: Tree, batch: Batch, per_member: Tree) -> tuple[Tree, Tree]:
        with NativeOperations():
            return step(state, batch, per_member)

    return run


def refused(job: Job) -> str | None:
    """Return why native kernels are not for vmapped steps; None if they do what steps do without them.

    They must be there.
    """
    return next(filter(None, (_refused(job, module) for module in job.steps)), None)


def _refused(job: Job, module: int) -> str | None:
    fused = job.steps[module].fused
    if fused is None:
        return "there is no recurrent layer that has some"

    def call(state: Tree, block: Block, extra: Tree) -> tuple[Tree, Tree]:
        return run_steps("vmap", fused, state, block, extra, partial(seeded, job.device))

    try:
        if all(agrees(call, block, job, module, 2, None) for block in [sampled(job, module, WHOLE), *smaller(job)]):
            return None
    except Exception as error:  # of a layer that is called as it cannot be
        return first_line(error)
    return "steps with native kernels differ from those without"


def fused_as_asked(engine: Engine, job: Job) -> Engine:
    """Return an engine that was passed in, without native kernels (and why) where they cannot be had."""
    why = None if native_kernels(job.device) else "there are no native kernels here"
    why = why or refused(job)
    return replace(engine, native=False, reason=f"{engine.reason}; without native kernels: {why}") if why else engine

"""The compiled programs of a job: how large they are, and that they do what vmapped steps do."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch

from l2path import lowerings
from l2path.blocks import Block
from l2path.compiled import COMPILED_CHUNK_BYTES, Compiled, Piece
from l2path.compiling import does_many_steps, one_thread
from l2path.engine import Engine, auto_chunk, run_steps, take
from l2path.functional import forked_rng, seed_generators
from l2path.memory import free_memory
from l2path.order import step_seed
from l2path.outputs import CompiledOutputs
from l2path.path.chunks import TOGETHER
from l2path.path.job import Job
from l2path.path.noise import Noise
from l2path.path.outputs import compile_outputs
from l2path.path.selfcheck import TOLERANCE, agree, first_line, tolerance_for, tolerance_of
from l2path.trees import map_tensors, tensor_leaves, tree_map
from l2path.types import Batch, Tree

CHUNK_COST = 0.2  # members: what a chunk of a program costs beside its members, about
LEAST_CHUNK_BYTES = 2**17  # of state and activations: below, what a step costs beside its kernels is most of it
BUILD_SECONDS = 60.0  # to wait for native kernels, at most
CHECKED = 4  # steps of a call: the third is the first that writes where an earlier one has written
WHOLE = 2  # steps: a call of no more is compared as a whole
JOINED_BYTES = 2**26  # of the batches of members that do a step together, each with its own


def native_kernels(device: torch.device) -> bool:
    """Return whether there are native kernels, after waiting for them to be built (once on a machine)."""
    return device.type == "cpu" and lowerings.prepare(wait=BUILD_SECONDS).state == "ready"


def compiled_chunk(job: Job) -> int:
    """Return how many members a compiled program is for."""
    live = max(1, job.live_bytes())
    if not does_many_steps(job.device):  # there is one program at a time, and all that keeps the device busy is welcome
        return min(auto_chunk(live, job.device, free_memory(job.device)), max(job.groups))
    workers = max(1, min(torch.get_num_threads(), sum(job.groups) * live // LEAST_CHUNK_BYTES))
    most = min(max(1, COMPILED_CHUNK_BYTES // live), max(job.groups), math.ceil(sum(job.groups) / workers))

    def cost(size: int) -> float:  # all chunks count as full ones: the last of a group is filled up
        turns = math.ceil(sum(math.ceil(members / size) for members in job.groups) / workers)
        return turns * (size + CHUNK_COST)

    return min(range(most, most // 2, -1), key=cost)


def noise_of(job: Job, module: int) -> Noise | None:
    """Return what the steps of a module draw; None if that is nothing."""
    if not job.draws:
        return None
    state, extra = job.sample(module, 1)
    one, own = take(state, 0), take(extra, 0)
    return Noise(lambda batch: job.steps[module].traced(one, batch, own), job.device)


class Programs(NamedTuple):
    """Of one module: for its steps, and for the outputs that members are scored on."""

    steps: Compiled
    outputs: CompiledOutputs | None = None


def compile_all(engine: Engine, job: Job, *, measured: bool) -> tuple[Engine, dict[int, Programs]]:
    """Compile what an engine has programs for; those for outputs only where they work, and (if ``measured``) pay.

    Raises
    ------
    Exception
        As :func:`compile_steps`.
    """
    engine, steps = compile_steps(engine, job)
    outputs: dict[int, CompiledOutputs] = {}
    if engine.outputs:
        try:
            outputs = compile_outputs(job, engine.member_chunk, native=engine.native, measured=measured)
        except Exception as error:  # of the compiler, which is not needed
            reason = f"{engine.reason}; no program for outputs: {first_line(error)}"
            engine = replace(engine, outputs=False, reason=reason)
    return engine, {module: Programs(program, outputs.get(module)) for module, program in steps.items()}


def compile_steps(engine: Engine, job: Job) -> tuple[Engine, dict[int, Compiled]]:
    """Compile the step of every module and check it against the vmapped one.

    A program of one module is also for another that is made alike, where it gives what that one's vmapped step gives.

    Raises
    ------
    Exception
        Whatever torch says of a step that it cannot compile, and ValueError where the results differ.
    """
    programs: dict[int, Compiled] = {}
    busy = threading.RLock()
    for module, steps in job.steps.items():
        noise = noise_of(job, module)
        if noise is not None and (why := noise.refused(job.batch)):
            raise ValueError(why)
        blocks = [sampled(job, module, engine.steps), *(smaller(job) if engine.partial else ())]
        known = next(iter(programs.values()), None) if job.alike else None
        if known is not None and all(agrees(known.run, b, job, module, engine.member_chunk, noise) for b in blocks):
            programs[module] = known
            continue
        kind = {"noisy": noise is not None, "substituted": job.substituted}
        program = Compiled(steps.traced, engine.member_chunk, job.device, engine.native, busy=busy, **kind)
        for block in blocks:
            if not agrees(program.compile, block, job, module, engine.member_chunk, noise):
                raise ValueError("compiled steps differ from vmapped ones")
        if not does_many_steps(job.device):  # calls are recorded the second time and repeated from the third on
            several = sampled(job, module, CHECKED)
            if not agrees(program.run, several, job, module, engine.member_chunk, noise):
                raise ValueError("calls of a compiled step that follow each other differ from vmapped ones")
        program.joins = _may_join(program, job, module, noise)
        programs[module] = program
    workers = min(engine.workers, sum(math.ceil(m / engine.member_chunk) for m in job.groups))
    return replace(engine, workers=max(1, workers)), programs


def agrees(
    call: Callable[[Tree, Block, Tree], tuple[Tree, Tree]],
    block: Block,
    job: Job,
    module: int,
    members: int,
    noise: Noise | None,
) -> bool:
    """Whether a call that does the steps of a block agrees with a module's vmapped steps.

    In the metrics of its first steps, in the state of all members where it has one or two, and in the number of steps
    that it has counted: in many of them rounding grows, beyond all bounds where a learning rate is large.
    """
    state, extra = job.sample(module, members)
    few, found = Block(block.batches[:CHECKED]), list[tuple[Tree, Tree]]()

    def steps() -> None:
        found.append(run_steps("vmap", job.steps[module].batched, state, few, extra, partial(seeded, job.device)))

    with forked_rng(job.device):
        coarsest = tolerance_of(steps)
        want = found[0]
        given = block if noise is None else noise.beside(block, 0, 0)
    with one_thread(), forked_rng(job.device):
        got = call(state, given, extra)
    pairs = [(map_tensors(lambda m: m[: len(few)], got[1]), want[1])]
    pairs += [(got[0], want[0])] if len(block) <= WHOLE else []
    # Numbers that were rounded to half precision on their way, as under autocast, are no more exact for being wider.
    tolerance = max(tolerance_for(want), coarsest if coarsest > TOLERANCE[torch.float32] else 0.0)
    return bool((got[0].step == state.step + len(block)).all()) and all(agree(a, b, tolerance) for a, b in pairs)


def sampled(job: Job, module: int, count: int) -> Block:
    """Return so many batches to compile for, every other one with other rows: a program may mix them up."""
    state, extra = job.sample(module, 1)
    try:
        other = _other_rows(job.batch)
        with forked_rng(job.device):
            found = run_steps(
                "vmap", job.steps[module].batched, state, Block([other]), extra, partial(seeded, job.device)
            )
        usable = all(bool(x.isfinite().all()) for x in tensor_leaves((found[0].params, found[1])))
    except Exception:  # of a module to which they are no batch
        usable = False
    return Block([other if usable and t % 2 else job.batch for t in range(count)])


def smaller(job: Job) -> list[Block]:
    """Return blocks of one batch each, as small as the last ones of an epoch are."""
    return [Block([map_tensors(lambda x: x[:n], job.batch)]) for n in job.remainders]  # noqa: B023


def _other_rows(batch: Batch) -> Batch:
    """Return a batch of the same shape with another loss: each row of a half two times."""
    return map_tensors(lambda x: x[torch.arange(len(x), device=x.device) // 2], batch)


def _may_join(program: Compiled, job: Job, module: int, noise: Noise | None) -> bool:
    """Whether members of several groups, each with its own batch, may do a step outside of calls together."""
    members = min(TOGETHER * program.members, sum(job.groups))
    if len(job.groups) == 1 or members * sum(x.nbytes for x in tensor_leaves(job.batch)) > JOINED_BYTES:
        return False
    try:
        twice = _other_rows(job.batch)
        if agree(twice, job.batch, 0.0):
            return False
        blocks = [Block([job.batch]), Block([twice])]
        state, extra = job.sample(module, 2)
        step, rows = job.steps[module].batched, torch.arange(2, device=job.device).split(1)
        with forked_rng(job.device):
            want = [
                run_steps("vmap", step, take(state, c), block, take(extra, c), partial(seeded, job.device))
                for c, block in zip(rows, blocks, strict=True)
            ]
            given = blocks if noise is None else [noise.beside(block, 0, 0) for block in blocks]
        found, metrics = program.run_each(state, given, [1, 1], extra, Piece(0, 1, calls=False))
    except Exception:  # of vmap, to which a batch of each member's own is something else
        return False

    def change(new: Tree, old: Tree) -> Tree:
        return tree_map(lambda a, b: a - b if a.is_floating_point() else a, new, old)

    for c, (new, told) in zip(rows, want, strict=True):
        # What a step changes: beside the parameters themselves a wrong step is nothing.
        before = take(state, c)
        got, right = change(take(found, c), before), change(new, before)
        if not (agree(got, right, tolerance_for(new)) and agree([m[:, c] for m in metrics], told, tolerance_for(told))):
            return False
    return True


def seeded(device: torch.device, step: int) -> None:
    """Seed what is drawn at a step."""
    seed_generators(device, step_seed(0, step))

"""Which engine is fastest for a job: measured on its first batch, if the job is long enough to pay for it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace

import torch

from l2path import lowerings
from l2path.blocks import Block
from l2path.compiled import Compiled
from l2path.compiling import does_many_steps, one_thread
from l2path.engine import Engine, Kind, Step, run_steps
from l2path.errors import ArgumentError
from l2path.functional import forked_rng
from l2path.path.fused import refused
from l2path.path.job import Job
from l2path.path.outputs import FASTER, outputs_pay
from l2path.path.programs import (
    Programs,
    compile_all,
    compiled_chunk,
    native_kernels,
    noise_of,
)
from l2path.path.remembered import machine, note, recall
from l2path.path.selfcheck import first_line
from l2path.trees import tensor_leaves

PART = 0.05  # of the model-steps of a job: measuring does no more
TIMED = 2  # times that a slow step is done to measure it; the first one warms up
MEASURED = 1.0  # seconds: a shorter job is not measured
COMPILED = 1.5  # times its compilation: a job shorter than this is not compiled
COMPILED_LONG = 10.0  # the same where a step of a chunk is a long one, which is less likely to become faster
LONG = 0.1  # seconds
PARTIAL = 1.5  # times: what last batches must take for programs of their own
OUTPUTS_COST = 0.6  # times what it takes to compile a step: to compile outputs
COMPILE_SECONDS = 4.5  # that compiling takes whatever it is, where nothing is known of the machine,
SECONDS_PER_OPERATION = 0.02  # and for each operation of a step: as measured, with empty caches
PACES = (0.5, 4.0)  # times these, on a machine that has compiled something
BLOCK_BYTES = 2**26  # of the batches of one call
BLOCK_SECONDS = 1.0  # that a call of all members may take: an interrupt waits for it
GAIN = 4.0  # times that a compiled step is faster than a vmapped one, about
MOST_STEPS = 64  # in a call: more are no faster, but twice as many are done where that is an epoch


def tune(chosen: Engine, job: Job, *, resize: bool) -> tuple[Engine, dict[int, Programs]]:
    """Return the engine that is fastest for a job of vmapped members, and its compiled programs by module.

    With ``resize`` a compiled program may be for fewer members than a chunk is for otherwise.
    """
    first = next(iter(job.steps))
    members = min(chosen.member_chunk, max(job.groups), int((PART * job.model_steps - TIMED) / TIMED))
    if members < 1:
        return chosen, {}
    if job.steps[first].fused is not None:
        lowerings.prepare(wait=None, make=False)
    key = f"{machine(job.device)}; {job.what}; {members} members"
    known = recall(key)
    when = "measured before" if "looped" in known else "measured"
    if "vmapped" not in known:
        known["vmapped"] = _seconds("vmap", job.steps[first].batched, job, first, members) / members
    if known["vmapped"] * job.model_steps < MEASURED:
        return chosen, {}
    fused, why = job.steps[first].fused if lowerings.enabled() else None, None
    if fused is not None and (why := refused(job)):
        fused = None
    if "looped" not in known:
        known["looped"] = _seconds("loop", job.steps[first].looped, job, first, 1)
        note(key, known)
    if fused is not None and "fused" not in known:
        known["fused"] = _seconds("vmap", fused, job, first, members) / members
        note(key, known)
    vmapped, looped = known["vmapped"], known["looped"]
    said = f"vmapped {vmapped * 1e6:.3g} µs a model-step, looped {looped * 1e6:.3g}"
    if "fused" in known:
        said += f", with native kernels {known['fused'] * 1e6:.3g}"
    rates = said
    if "compiled" in known:
        said += f", compiled {known['compiled'] * 1e6:.3g}" if known["compiled"] < math.inf else ", compiling failed"
    seconds, engine = vmapped, replace(chosen, reason=f"{when}: {said}")
    if looped < FASTER * vmapped:
        seconds, engine = looped, Engine("loop", chosen.member_chunk, reason=f"{when}: {said}")
    if fused is not None and known.get("fused", math.inf) < FASTER * seconds:
        seconds, engine = known["fused"], replace(chosen, native=True, reason=f"{when}: {said}")
    if why:
        engine = replace(engine, reason=f"{engine.reason}; without native kernels: {why}")
    try:
        if not _may_pay(job, known, seconds * job.model_steps, vmapped * members):
            return engine, {}
    except Exception as error:  # of a step that only vmap's substitutes do
        return replace(engine, reason=f"{engine.reason}; not compiled: {first_line(error)}"), {}
    size = compiled_chunk(job) if resize else members
    wanted = _wanted(job, size, vmapped, native=native_kernels(job.device))
    started = time.perf_counter()
    try:
        found, programs = compile_all(wanted, job, measured=True)
    except Exception as error:  # of the compiler, which is not needed
        note(key, {"compiling": time.perf_counter() - started, "compiled": math.inf})
        return replace(engine, reason=f"{engine.reason}; not compiled: {first_line(error)}"), {}
    took = time.perf_counter() - started
    _note_pace(job, took, _compiling(job, wanted.partial) + wanted.outputs * _compiling_outputs(job))
    fast = _seconds("compiled", programs[first].steps, job, first, found.member_chunk)
    fast = fast / found.member_chunk / found.workers
    note(key, {"compiling": min(took, known.get("compiling", took)), "compiled": fast})  # with warm caches, once
    said = f"measured: {rates}, compiled {fast * 1e6:.3g} (in {took:.3g} s)"
    if fast > FASTER * seconds:
        return replace(engine, reason=said), {}
    return replace(found, reason=said + found.reason.removeprefix(wanted.reason)), programs


def _wanted(job: Job, members: int, seconds: float, *, native: bool) -> Engine:
    """Return the compiled engine for a job whose vmapped model-step takes so many seconds."""
    partial = _partial_pays(job, seconds)
    if not does_many_steps(job.device):
        return Engine("compiled", members, native=native, partial=partial)
    steps, outputs = _steps_of_a_call(job, seconds), outputs_pay(job, _compiling_outputs(job))
    workers = torch.get_num_threads()
    return Engine("compiled", members, workers=workers, steps=steps, native=native, partial=partial, outputs=outputs)


def _steps_of_a_call(job: Job, seconds: float) -> int:
    """Return how many steps to do in one call, where a vmapped model-step takes so many seconds.

    Of the most that do not keep an interrupt waiting, the number that leaves the fewest over at an epoch's end.
    """
    size = sum(x.nbytes for x in tensor_leaves(job.batch))
    most = min(BLOCK_SECONDS * GAIN / (seconds * sum(job.groups)), BLOCK_BYTES / max(1, size), MOST_STEPS)
    most = 2 ** int(math.log2(max(1.0, most)))  # so that noise in the seconds seldom makes a difference
    whole = [s.rows // s.batch_size for s in job.sources if s.rows and s.batch_size]
    n = min(whole, default=1)
    return max(1, n) if n < 2 * most else min(range(most, most // 2, -1), key=lambda t: n % t)


def _partial_pays(job: Job, seconds: float) -> bool:
    """Return whether smaller last batches take longer, vmapped, than it takes to compile for them as well."""
    return job.epochs * sum(job.groups) * seconds > PARTIAL * _program_seconds(job) * len(job.remainders)


def _may_pay(job: Job, known: Mapping[str, float], rest: float, chunk_step: float) -> bool:
    """Whether compiling pays in a job that takes ``rest`` seconds without.

    Where nothing is known of a job like it, it must be so long that a moderate gain pays.
    """
    if "compiled" in known:
        return known["compiling"] + known["compiled"] * job.model_steps < FASTER * rest
    cost = _compiling(job, _partial_pays(job, known["vmapped"]))
    return rest > (COMPILED if chunk_step < LONG else COMPILED_LONG) * cost


def compile_as_asked(engine: Engine, job: Job, *, asked: bool, resize: bool) -> tuple[Engine, dict[int, Programs]]:
    """Return a compiled engine with its programs by module; ``asked`` by name, and not with everything settled.

    Raises
    ------
    ArgumentError
        If the step cannot be compiled.
    """
    if not does_many_steps(job.device):
        engine = replace(engine, steps=1, workers=1, outputs=False)
    if resize:
        engine = replace(engine, member_chunk=compiled_chunk(job))
    try:
        if asked:
            first, members = next(iter(job.steps)), min(engine.member_chunk, max(job.groups))
            vmapped = _seconds("vmap", job.steps[first].batched, job, first, members) / members
            wanted = _wanted(job, engine.member_chunk, vmapped, native=native_kernels(job.device))
            engine = replace(wanted, reason=engine.reason)
        elif engine.native:
            engine = replace(engine, native=native_kernels(job.device))
        return compile_all(engine, job, measured=asked)
    except Exception as error:
        why = first_line(error)
    raise ArgumentError(
        "engine",
        got=f"'compiled', but {why}",
        expected="a step that torch.compile can turn into one program",
        remedy="leave engine at 'auto'",
    )


def _seconds(kind: Kind, step: Step | Compiled, job: Job, module: int, members: int) -> float:
    """Return the seconds that one step of a chunk takes, the best of a few."""
    state, extra = job.sample(module, members)
    best, count = math.inf, step.steps if isinstance(step, Compiled) else 1
    block = Block([job.batch] * count)
    if isinstance(step, Compiled) and (noise := noise_of(job, module)) is not None:
        with forked_rng(job.device):
            block = noise.beside(block, 0, 0)
    with forked_rng(job.device), one_thread() if isinstance(step, Compiled) else nullcontext():
        for _ in range(4):
            _wait(job.device)
            started = time.perf_counter()
            run_steps(kind, step, state, block, extra, lambda _: None)
            _wait(job.device)
            seconds = (time.perf_counter() - started) / count
            if best < math.inf and seconds * count > 0.25:  # the first one warms up
                return min(best, seconds)
            best = min(best, seconds)
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _compiling(job: Job, partial: bool) -> float:
    """Return how long it takes to compile all steps, about."""
    modules = 1 if job.alike else len(job.steps)
    return _program_seconds(job) * modules * (1 + len(job.remainders) * partial)


def _program_seconds(job: Job) -> float:
    """Return how long it takes to compile one program for steps, about."""
    pace = recall(_pace(job)).get("pace", 1.0)
    return pace * (COMPILE_SECONDS + SECONDS_PER_OPERATION * job.operations)


def _compiling_outputs(job: Job) -> float:
    """Return how long it takes to compile all outputs, about."""
    return OUTPUTS_COST * _compiling(job, partial=False)


def _note_pace(job: Job, took: float, expected: float) -> None:
    """Keep how the seconds that compiling took compare with what was expected of another machine."""
    pace = recall(_pace(job)).get("pace", 1.0) * took / expected
    note(_pace(job), {"pace": min(max(pace, PACES[0]), PACES[1])})


def _pace(job: Job) -> str:
    return f"{machine(job.device)}; compiling"

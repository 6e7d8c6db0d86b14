"""Which engine is fastest for a job: measured on its first batch, if the job is long enough to pay for it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch

from l2path import lowerings
from l2path.blocks import Block
from l2path.compiled import COMPILED_CHUNK_BYTES, Compiled, Piece, one_thread
from l2path.data import Source
from l2path.engine import Engine, Kind, Step, run_steps, take
from l2path.errors import ArgumentError
from l2path.functional import forked_rng, seed_generators
from l2path.memory import operations
from l2path.order import step_seed
from l2path.path.chunks import TOGETHER
from l2path.path.noise import Noise
from l2path.path.remembered import machine, note, recall
from l2path.path.selfcheck import TOLERANCE, agree, first_line
from l2path.trees import map_tensors, tensor_leaves, tree_map
from l2path.types import Batch, Tree

PART = 0.05  # of the model-steps of a job: measuring does no more
TIMED = 2  # times that a slow step is done to measure it; the first one warms up
MEASURED = 1.0  # seconds: a shorter job is not measured
COMPILED = 2.0  # times its compilation: a job shorter than this is not compiled
COMPILED_LONG = 10.0  # the same where a step of a chunk is a long one, which is less likely to become faster
LONG = 0.1  # seconds
PARTIAL = 1.5  # times: what last batches must take for programs of their own
SECONDS_PER_OPERATION = 0.06  # that compiling takes, at most, for each operation of a step
COMPILE_SECONDS = 8.0  # that it takes for the smallest program
BLOCK_BYTES = 2**26  # of the batches of one call
BLOCK_SECONDS = 1.0  # that a call of all members may take: an interrupt waits for it
GAIN = 4.0  # times that a compiled step is faster than a vmapped one, about
MOST_STEPS = 64  # in a call: more are no faster, but twice as many are done where that is an epoch
CHUNK_COST = 0.2  # members: what a chunk of a program costs beside its members, about
BUILD_SECONDS = 60.0  # to wait for native kernels, at most
FASTER = 0.9  # of the time: what is not clearly faster does not replace what is simpler


class Steps(NamedTuple):
    """The step of one member: to be batched, to be looped, and to be compiled."""

    batched: Step
    looped: Step
    traced: Step


@dataclass(frozen=True)
class Job:
    """What is to be done.

    Attributes
    ----------
    steps : dict of int to Steps
        Of each module: all folds share one, and all seeds too where the module is not made by a callable.
    groups : tuple of int
        Members of each fold and seed.
    sources : sequence of Source
    epochs : int
    batch
        The first one.
    live_bytes : callable
        Returns what one member takes at most during a step.
    sample : callable
        ``(module, members) -> (state, per_member)`` of so many members to measure with.
    device : torch.device
    draws : bool
        Whether a step draws random numbers.
    alike : bool
        Whether all modules are alike but for their parameters and buffers, as far as can be told.
    what : str
        What the seconds of a step depend on: the module, the shapes of parameters and batches, the optimizer.
    """

    steps: Mapping[int, Steps]
    groups: tuple[int, ...]
    sources: Sequence[Source]
    epochs: int
    batch: Batch
    live_bytes: Callable[[], int]
    sample: Callable[[int, int], tuple[Tree, Tree]]
    device: torch.device
    draws: bool
    alike: bool = False
    what: str = ""

    @property
    def model_steps(self) -> float:
        """Steps of single members in all; 0 where nobody knows how long the data are."""
        per_epoch = [math.ceil(s.rows / s.batch_size) if s.rows and s.batch_size else 0 for s in self.sources]
        return float(self.epochs * sum(n * m for n, m in zip(per_epoch, self.groups, strict=True)))

    def steps_of_a_call(self, seconds: float) -> int:
        """Return how many steps to do in one call, where a vmapped model-step takes so many seconds.

        Of the most that do not keep an interrupt waiting, the number that leaves the fewest over at an epoch's end.
        """
        size = sum(x.nbytes for x in tensor_leaves(self.batch))
        most = min(BLOCK_SECONDS * GAIN / (seconds * sum(self.groups)), BLOCK_BYTES / max(1, size), MOST_STEPS)
        most = 2 ** int(math.log2(max(1.0, most)))  # so that noise in the seconds seldom makes a difference
        whole = [s.rows // s.batch_size for s in self.sources if s.rows and s.batch_size]
        n = min(whole, default=1)
        return max(1, n) if n < 2 * most else min(range(most, most // 2, -1), key=lambda t: n % t)

    @property
    def remainders(self) -> list[int]:
        """Rows of the last batches of an epoch that are smaller than the others: of two kinds, at most."""
        return sorted({s.rows % s.batch_size for s in self.sources if s.rows and s.batch_size} - {0})[:2]

    def partial_pays(self, seconds: float) -> bool:
        """Return whether smaller last batches take longer, vmapped, than it takes to compile for them as well."""
        return self.epochs * sum(self.groups) * seconds > PARTIAL * COMPILE_SECONDS * len(self.remainders)


def tune(chosen: Engine, job: Job, *, resize: bool) -> tuple[Engine, dict[int, Compiled]]:
    """Return the engine that is fastest for a job of vmapped members, and its compiled programs by module.

    With ``resize`` a compiled program may be for fewer members than a chunk is for otherwise.
    """
    first = next(iter(job.steps))
    members = min(chosen.member_chunk, max(job.groups), int((PART * job.model_steps - TIMED) / TIMED))
    if members < 1:
        return chosen, {}
    key = f"{machine(job.device)}; {job.what}; {members} members"
    known = recall(key)
    when = "measured before" if "looped" in known else "measured"
    if "vmapped" not in known:
        known["vmapped"] = _seconds("vmap", job.steps[first].batched, job, first, members) / members
    if known["vmapped"] * job.model_steps < MEASURED:
        return chosen, {}
    if "looped" not in known:
        known["looped"] = _seconds("loop", job.steps[first].looped, job, first, 1)
        note(key, known)
    vmapped, looped = known["vmapped"], known["looped"]
    said = f"vmapped {vmapped * 1e6:.3g} µs a model-step, looped {looped * 1e6:.3g}"
    if "compiled" in known:
        said += f", compiled {known['compiled'] * 1e6:.3g}" if known["compiled"] < math.inf else ", compiling failed"
    seconds, engine = vmapped, replace(chosen, reason=f"{when}: {said}")
    if looped < FASTER * vmapped:
        seconds, engine = looped, Engine("loop", chosen.member_chunk, reason=f"{when}: {said}")
    if not _may_pay(job, known, seconds * job.model_steps, vmapped * members):
        return engine, {}
    why = cannot_compile(job)
    if job.device.type != "cpu":
        why = f"compiled programs have not been tried on {job.device.type}; engine='compiled' asks for them"
    if why:
        return replace(engine, reason=f"{engine.reason}; not compiled: {why}"), {}
    started = time.perf_counter()
    try:
        size = compiled_chunk(job) if resize else members
        native = native_kernels(job.device)
        found, programs = compiled(_wanted(job, size, vmapped, native=native), job)
    except Exception as error:  # of the compiler, which is not needed
        note(key, {"compiling": time.perf_counter() - started, "compiled": math.inf})
        return replace(engine, reason=f"{engine.reason}; not compiled: {first_line(error)}"), {}
    took = time.perf_counter() - started
    fast = _seconds("compiled", programs[first], job, first, found.member_chunk) / found.member_chunk / found.workers
    note(key, {"compiling": min(took, known.get("compiling", took)), "compiled": fast})  # with warm caches, once
    said = f"vmapped {vmapped * 1e6:.3g} µs a model-step, looped {looped * 1e6:.3g}, compiled {fast * 1e6:.3g}"
    said = f"measured: {said} (in {took:.3g} s)"
    if fast > FASTER * seconds:
        return replace(engine, reason=said), {}
    return replace(found, reason=said), programs


def _wanted(job: Job, members: int, seconds: float, *, native: bool) -> Engine:
    """Return the compiled engine for a job whose vmapped model-step takes so many seconds."""
    steps, partial = job.steps_of_a_call(seconds), job.partial_pays(seconds)
    return Engine("compiled", members, workers=_workers(job), steps=steps, native=native, partial=partial)


def _may_pay(job: Job, known: Mapping[str, float], rest: float, chunk_step: float) -> bool:
    """Whether compiling pays in a job that takes ``rest`` seconds without.

    Where nothing is known of a job like it, it must be so long that a moderate gain pays.
    """
    if "compiled" in known:
        return known["compiling"] + known["compiled"] * job.model_steps < FASTER * rest
    first = next(iter(job.steps))
    modules = 1 if job.alike else len(job.steps)
    programs = (1 + len(job.remainders) * job.partial_pays(known["vmapped"])) * modules
    cost = programs * max(COMPILE_SECONDS, SECONDS_PER_OPERATION * _operations(job, first))
    return rest > (COMPILED if chunk_step < LONG else COMPILED_LONG) * cost


def compile_as_asked(engine: Engine, job: Job, *, asked: bool, resize: bool) -> tuple[Engine, dict[int, Compiled]]:
    """Return a compiled engine with its programs by module; ``asked`` by name, and not with everything settled.

    Raises
    ------
    ArgumentError
        If the step cannot be compiled.
    """
    why = cannot_compile(job)
    if why is None:
        if resize:
            engine = replace(engine, member_chunk=compiled_chunk(job))
        if asked:
            first, members = next(iter(job.steps)), min(engine.member_chunk, max(job.groups))
            vmapped = _seconds("vmap", job.steps[first].batched, job, first, members) / members
            wanted = _wanted(job, engine.member_chunk, vmapped, native=native_kernels(job.device))
            engine = replace(wanted, reason=engine.reason)
        elif engine.native:
            engine = replace(engine, native=native_kernels(job.device))
        try:
            return compiled(engine, job)
        except Exception as error:
            why = first_line(error)
    raise ArgumentError(
        "engine",
        got=f"'compiled', but {why}",
        expected="a step that torch.compile can turn into one program",
        remedy="leave engine at 'auto'",
    )


def seeded(device: torch.device, step: int) -> None:
    """Seed what is drawn at a step."""
    seed_generators(device, step_seed(0, step))


def native_kernels(device: torch.device) -> bool:
    """Return whether there are native kernels, after waiting for them to be built (once on a machine)."""
    return device.type == "cpu" and lowerings.prepare(wait=BUILD_SECONDS).state == "ready"


def cannot_compile(job: Job) -> str | None:
    """Return why a step is not to be compiled; None if it may be."""
    if torch.is_autocast_enabled(job.device.type):
        return "autocast around the call"
    return None


def _workers(job: Job) -> int:
    """Return how many threads run chunks side by side: on an accelerator they would wait for each other."""
    return torch.get_num_threads() if job.device.type == "cpu" else 1


def compiled_chunk(job: Job) -> int:
    """Return how many members a compiled program is for."""
    workers = _workers(job)
    most = max(1, COMPILED_CHUNK_BYTES // max(1, job.live_bytes()))
    most = min(most, max(job.groups), math.ceil(sum(job.groups) / workers))

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


def compiled(engine: Engine, job: Job) -> tuple[Engine, dict[int, Compiled]]:
    """Compile the step of every module and check it against the vmapped one.

    A program of one module is also for another that is made alike, where it gives what that one's vmapped step gives.

    Raises
    ------
    Exception
        Whatever torch says of a step that it cannot compile, and ValueError where the results differ.
    """
    programs: dict[int, Compiled] = {}
    for module, steps in job.steps.items():
        noise = noise_of(job, module)
        if noise is not None and (why := noise.refused(job.batch)):
            raise ValueError(why)
        blocks = [Block([job.batch] * engine.steps)]
        if engine.partial:
            blocks += [Block([map_tensors(lambda x: x[:n], job.batch)]) for n in job.remainders]  # noqa: B023
        known = next(iter(programs.values()), None) if job.alike else None
        if known is not None and all(_right(known.run, b, job, module, engine.member_chunk, noise) for b in blocks):
            programs[module] = known
            continue
        program = Compiled(steps.traced, engine.member_chunk, job.device, engine.native, noisy=noise is not None)
        for block in blocks:
            if not _right(program.compile, block, job, module, engine.member_chunk, noise):
                raise ValueError("compiled steps differ from vmapped ones")
        program.joins = _may_join(program, job, module, noise)
        programs[module] = program
    workers = min(engine.workers, sum(math.ceil(m / engine.member_chunk) for m in job.groups))
    return replace(engine, workers=max(1, workers)), programs


def _right(
    call: Callable[[Tree, Block, Tree], tuple[Tree, Tree]],
    block: Block,
    job: Job,
    module: int,
    members: int,
    noise: Noise | None,
) -> bool:
    """Whether a compiled call agrees with a module's vmapped steps: in its metrics, and as a whole if it is short."""
    state, extra = job.sample(module, members)
    few = Block(block.batches[:2])
    with forked_rng(job.device):
        want = run_steps("vmap", job.steps[module].batched, state, few, extra, partial(seeded, job.device))
        given = block if noise is None else noise.beside(block, 0, 0)
    with one_thread():
        got = call(state, given, extra)
    pairs = [(map_tensors(lambda m: m[: len(few)], got[1]), want[1])]
    pairs += [(got[0], want[0])] if len(few) == len(block) else []
    return all(agree(a, b, _tolerance(want)) for a, b in pairs)


def _may_join(program: Compiled, job: Job, module: int, noise: Noise | None) -> bool:
    """Whether members of several groups, each with its own batch, may do a step outside of calls together."""
    members = min(TOGETHER * program.members, sum(job.groups))
    if len(job.groups) == 1 or members * sum(x.nbytes for x in tensor_leaves(job.batch)) > BLOCK_BYTES:
        return False
    try:
        # Each row of a half two times, which is a batch of another loss.
        twice = map_tensors(lambda x: x[torch.arange(len(x), device=x.device) // 2], job.batch)
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
        if not (agree(got, right, _tolerance(new)) and agree([m[:, c] for m in metrics], told, _tolerance(told))):
            return False
    return True


def _tolerance(tree: Tree) -> float:
    return max(TOLERANCE.get(x.dtype, 1e-3) for x in tensor_leaves(tree) if x.is_floating_point())


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


def _operations(job: Job, module: int) -> int:
    """Return how many operations one step to be compiled consists of."""
    state, extra = job.sample(module, 2)

    def step() -> Any:
        return run_steps("vmap", job.steps[module].traced, state, Block([job.batch]), extra, lambda _: None)

    with forked_rng(job.device):
        return operations(step)

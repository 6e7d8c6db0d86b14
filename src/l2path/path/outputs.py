"""Programs for the outputs that members are scored on: whether they pay, and that they are right."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch

from l2path.compiled import COMPILED_CHUNK_BYTES
from l2path.compiling import one_thread
from l2path.engine import take
from l2path.outputs import CompiledOutputs
from l2path.path.chunks import SCORED_BYTES
from l2path.path.job import Job, Outputs
from l2path.path.selfcheck import TOLERANCE, agree
from l2path.trees import tensor_leaves
from l2path.types import Tree

SAVED = 0.5  # of the time without a program, about
FASTER = 0.9  # of that time: a program that is not clearly faster is left out
TIMED = 3  # times that outputs are computed to measure how long that takes; the first one warms up


def outputs_pay(job: Job, cost: float) -> bool:
    """Return whether programs for outputs save more seconds than they cost."""
    wanted = job.outputs
    if wanted is None or not wanted.member_rows:
        return False
    return SAVED * eager_seconds(wanted) * wanted.member_rows * job.epochs > cost


def eager_seconds(wanted: Outputs) -> float:
    """Return what a member's outputs for a row take without a program, of as many members as are scored at once."""
    module = next(iter(wanted.calls))
    members = max(1, SCORED_BYTES // (wanted.row_bytes * wanted.rows))
    parts = wanted.parts(module, min(members, wanted.members))
    with one_thread():
        return _seconds(lambda: wanted.eager(module, parts)) / (min(members, wanted.members) * wanted.rows)


def compile_outputs(job: Job, members: int, *, native: bool, measured: bool) -> dict[int, CompiledOutputs]:
    """Compile the outputs of every module; none at all where one is wrong, or (if ``measured``) not faster.

    Raises
    ------
    Exception
        Whatever torch says of what it cannot compile.
    """
    wanted, programs = job.outputs, dict[int, CompiledOutputs]()
    if wanted is None:
        return programs
    eager = eager_seconds(wanted) if measured else math.inf
    for module, call in wanted.calls.items():
        parts = wanted.parts(module, members)
        like = wanted.eager(module, parts)
        known = next(iter(programs.values()), None) if job.alike else None
        with torch.no_grad(), one_thread():
            if known is not None and _right(known(parts, wanted.inputs, wanted.rows), like):
                programs[module] = known
                continue
            program = CompiledOutputs(call, members, rows_of_a_part(wanted, members), job.device, native=native)
            if not _right(program.compile(parts, wanted.inputs, wanted.rows, like), like):
                return {}
            took = _seconds(lambda: program(parts, wanted.inputs, wanted.rows))  # noqa: B023
        if took / (members * wanted.rows) > FASTER * eager:
            return {}
        programs[module] = program
    return programs


def rows_of_a_part(wanted: Outputs, members: int) -> int:
    """Return how many rows a program is for: so many that they stay in the caches, in parts of one length."""
    most = max(1, COMPILED_CHUNK_BYTES // (members * wanted.row_bytes))
    return math.ceil(wanted.most / math.ceil(wanted.most / most))


def _right(got: Tree | None, like: Tree) -> bool:
    """Whether outputs of members agree, each with its own."""
    if got is None:
        return False
    tolerance = max((TOLERANCE.get(x.dtype, 1e-3) for x in tensor_leaves(like)), default=1e-3)
    members = len(next(tensor_leaves(like)))
    return all(agree(take(got, c), take(like, c), tolerance) for c in range(members))


def _seconds(call: Callable[[], object]) -> float:
    best = math.inf
    for _ in range(TIMED):
        started = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - started)
    return best

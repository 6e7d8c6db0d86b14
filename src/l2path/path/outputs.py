"""Programs for the outputs that members are scored on: whether they pay, and that they are right."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from l2path.compiled import COMPILED_CHUNK_BYTES
from l2path.compiling import one_thread
from l2path.engine import take
from l2path.functional import Functional
from l2path.outputs import CompiledOutputs, Parts, first_rows
from l2path.path.chunks import SCORED_BYTES
from l2path.path.job import Job, Outputs
from l2path.path.selfcheck import agree, tolerance_for
from l2path.trees import map_tensors, tensor_leaves
from l2path.types import Tree

SAVED = 0.5  # of the time without a program, about
FASTER = 0.9  # of the time: what is not clearly faster does not replace what is simpler
TIMED = 3  # times that outputs are computed to measure how long that takes; the first one warms up


def outputs_pay(job: Job, cost: float) -> bool:
    """Return whether programs for outputs save more seconds than they cost; not where outputs cannot be batched."""
    try:
        wanted = job.outputs()
        if wanted is None or not wanted.member_rows:
            return False
        return SAVED * eager_seconds(wanted) * wanted.member_rows * job.epochs > cost
    except Exception:  # of these rows alone, or out of memory: scoring falls back by itself
        return False


def eager_seconds(wanted: Outputs) -> float:
    """Return what a member's outputs for a row take without a program, of as many members as are scored at once."""
    module = next(iter(wanted.fns))
    members = min(max(1, SCORED_BYTES // (wanted.row_bytes * wanted.rows)), wanted.members)
    parts = wanted.parts(module, members)
    with one_thread():
        return _seconds(lambda: wanted.eager(module, parts, wanted.inputs)) / (members * wanted.rows)


def compile_outputs(job: Job, members: int, *, native: bool, measured: bool) -> dict[int, CompiledOutputs]:
    """Compile the outputs of every module.

    Raises
    ------
    Exception
        Whatever torch says of what it cannot compile, and ValueError where outputs differ from those without a program
        or (if ``measured``) are not faster.
    """
    wanted, programs = job.outputs(), dict[int, CompiledOutputs]()
    if wanted is None:
        raise ValueError("nothing is scored that could be taken apart")
    eager = eager_seconds(wanted) if measured else math.inf
    for module, fn in wanted.fns.items():
        known = next(iter(programs.values()), None) if job.alike else None
        if known is not None and _right(known, wanted, module, compiling=False):
            programs[module] = known
            continue
        rows = rows_of_a_part(wanted, members)
        program = CompiledOutputs(partial(_call, fn), members, rows, job.device, native=native)
        changed: set[str] = set()
        with fn.places.restored(changed):
            right = _right(program, wanted, module, compiling=True)
        if changed:
            raise ValueError(f"forward sets the attributes {', '.join(sorted(changed))}")
        if not right:
            raise ValueError("they differ from those without a program, or their rows depend on each other")
        parts = wanted.parts(module, members)
        with torch.no_grad():
            took = _seconds(lambda: program(parts, wanted.inputs, wanted.rows))  # noqa: B023
        if took / (members * wanted.rows) > FASTER * eager:
            raise ValueError("a program is not faster")
        programs[module] = program
    return programs


def _call(fn: Functional, own: Parts, inputs: Any) -> Tree:
    return fn.call(own[0], own[1], inputs)[0]


def _right(program: CompiledOutputs, wanted: Outputs, module: int, *, compiling: bool) -> bool:
    """Whether outputs of members agree, each with its own: on all rows of the first batch, and on fewer than a part.

    Rows that depend on each other show where they are taken apart, or filled up.
    """
    parts = wanted.parts(module, program.members)
    few = min(wanted.rows, program.rows // 2 + 1)
    for rows in dict.fromkeys((wanted.rows, few)):
        inputs = map_tensors(lambda x: first_rows(x, wanted.rows, rows), wanted.inputs)  # noqa: B023
        like = wanted.eager(module, parts, inputs)
        with torch.no_grad(), one_thread():
            got = program.compile(parts, inputs, rows, like) if compiling else program(parts, inputs, rows)
        compiling = False
        if got is None or not _agree(got, like):
            return False
    return True


def rows_of_a_part(wanted: Outputs, members: int) -> int:
    """Return how many rows a program is for: so many that they stay in the caches, in parts of one length."""
    most = max(1, COMPILED_CHUNK_BYTES // (members * wanted.row_bytes))
    return math.ceil(wanted.most / math.ceil(wanted.most / most))


def _agree(got: Tree, like: Tree) -> bool:
    tolerance = tolerance_for(like)
    members = len(next(tensor_leaves(like)))
    return all(agree(take(got, c), take(like, c), tolerance) for c in range(members))


def _seconds(call: Callable[[], object]) -> float:
    best = math.inf
    for _ in range(TIMED):
        started = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - started)
    return best

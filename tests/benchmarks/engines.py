"""``batch_train`` on a user's plain modules beside what else there is: loops over torch.optim, and JAX.

    python -m tests.benchmarks.engines                  every workload at K = 8, 32 and 128: hours
    python -m tests.benchmarks.engines mlp tfm 8        some of them: a few minutes each
    python -m tests.benchmarks.engines --quick mlp      one of them in under a minute, written nowhere
    python -m tests.benchmarks.engines --switches mlp   one technique after the other switched off
    python -m tests.benchmarks.engines --scale          tiny at K from 1 to 4096
    python -m tests.benchmarks.engines --jobs lstm 32   whole jobs alone, beside the rates that are there already

Each contender has processes of its own, which stay for all rounds; in a round all contenders take turns, and who is not
in turn waits. A rate is model-steps (members x steps) per second of whole epochs while training goes on. The time of
the first epoch includes compilation, with empty caches; native kernels are built before (once on a machine). Whole jobs
run in fresh processes, and all but importing is timed.

* loops: one process per core with one thread each, torch.optim with its fused implementation;
* JAX: jit(scan(vmap(step))) over an epoch with donated state, in one process with all cores, and as one pinned process
  per core with a part of the members each; for a few members of the CNN also with convolutions that are written as
  such, and not as columns and a product;
* batch_train, with all cores: "vmap", "compiled", the same with torch's own kernels alone, and what "auto" takes.

Results are kept in docs/benchmarks, from which docs/benchmarks.md is written.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from l2path import lowerings
from tests.benchmarks import _report
from tests.benchmarks._processes import cores, machine, side_by_side, whole_job
from tests.benchmarks._worker import Task
from tests.benchmarks._workloads import ALL, SAID, VARIATIONS, WORKLOADS

ROUNDS, SECONDS = 3, 2.0
LIMIT = 600.0  # seconds that an answer may take
JOBS = (10**3, 10**4, 10**5)
LONG = 60.0  # seconds: a loop that would take longer is not run to its end
SIZES = (8, 32, 128)
PLAIN = 8  # members: an epoch of JAX's own convolutions takes seconds for so many
SCALE = (1, 4, 16, 64, 256, 1024, 4096)


def per_core(task: Task) -> list[Task]:
    """Return a task as one pinned process per core, with a part of the members each."""
    k, n = task.members, len(cores())
    shares = [k // n + (i < k % n) for i in range(n)]
    return [replace(task, members=m, core=core) for m, core in zip(shares, cores(), strict=True) if m]


def contenders(name: str, members: int) -> dict[str, list[Task]]:
    """Return the tasks of each contender, by label."""
    task = Task("l2path", name, members, ALL[name].batches)
    found = {"loops": per_core(replace(task, kind="loops", members=len(cores())))}
    if name in WORKLOADS:  # there are no variations in JAX
        jax = replace(task, kind="jax")
        found |= {"JAX": [jax], "JAX per core": per_core(jax)}
        if name == "cnn" and members <= PLAIN:
            found[_report.CONVOLUTIONS] = [replace(jax, plain=True)]
    compiled = replace(task, engine="compiled")
    return found | {
        "vmap": [replace(task, engine="vmap")],
        "compiled": [compiled],
        "stock kernels": [replace(compiled, native=False)],
        "auto": [task],
    }


def jobs(name: str, members: int, rows: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the seconds of whole jobs, by model-steps and label; ``rows`` hold the rates."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for total in JOBS:
        steps = max(1, round(total / members))
        batches = min(64, steps)
        task = Task("l2path", name, members, batches, epochs=max(1, round(steps / batches)))
        loop = replace(task, kind="loops")
        ways = {"loop": [loop], "loops": per_core(loop), "JAX": [replace(task, kind="jax")], "auto": [task]}
        done = found[str(total)] = {}
        for label, tasks in ways.items():
            before = found.get(str(total // 10), {}).get(label, {})
            seconds = 0.0
            rated = rows["loops" if label == "loop" else label]  # which has a core of them
            if label != "auto" and "steps" in before and rated.get("rates"):
                more = members * task.batches * task.epochs - before["steps"]
                seconds = before["seconds"] + more / _report.best(rated) * (len(cores()) if label == "loop" else 1)
            extrapolated = {"seconds": round(seconds, 1), "extrapolated": True}
            done[label] = extrapolated if seconds > LONG else whole_job(tasks, LIMIT)
            print(f"    {total} model-steps, {label}: {done[label].get('seconds', '-')} s", flush=True)
    return found


def switches(name: str, members: int) -> dict[str, list[Task]]:
    """Return tasks with one technique after the other switched off."""
    on = Task("l2path", name, members, ALL[name].batches, engine="compiled")
    return {
        "all": [on],
        "without native kernels": [replace(on, native=False)],
        "with tensors in its loops": [replace(on, tensors=True)],
        "one step per call": [replace(on, change={"steps": 1})],
        "with an on_epoch hook": [replace(on, hook=True)],
        "one worker": [replace(on, change={"workers": 1})],
        "all members in one chunk": [replace(on, change={"member_chunk": members})],
        "not compiled": [replace(on, engine="vmap")],
    }


def scale() -> dict[str, list[Task]]:
    """Return tasks of more and more members."""
    return {str(k): [Task("l2path", "tiny", k, 64)] for k in SCALE}


def show(title: str, rows: Mapping[str, dict[str, Any]]) -> None:
    """Print a table."""
    base = max(next(iter(rows.values())).get("rates", [0.0]), default=0.0)
    print(f"{title}\n{'':24s}    best  median  ratio  first epoch s   MiB  engine", flush=True)
    for label, row in rows.items():
        if "error" in row:
            print(f"{label:24s}  -  {row['error']}")
            continue
        best, middle = _report.best(row), _report.median(row)
        ratio = best / base if base else float("nan")
        print(f"{label:24s} {best:7.0f} {middle:7.0f} {ratio:6.2f} {row['first']:14.1f} {row['memory']:5d}", end="")
        print(f"  {_report.engine_of(row)}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description="Rates of batch_train beside loops and JAX.")
    parser.add_argument("what", nargs="*", help=f"names, and numbers of members: {', '.join(ALL)}")
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument(
        "--quick", action="store_true", help="one workload in under a minute, without auto and stock kernels"
    )
    modes.add_argument("--switches", action="store_true", help="one technique after the other switched off")
    modes.add_argument("--scale", action="store_true", help="the tiny workload at K from 1 to 4096")
    modes.add_argument("--jobs", action="store_true", help="whole jobs alone, kept beside the rates of before")
    parser.add_argument("--no-jobs", action="store_true", help="leave out whole jobs")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of a contender in a round")
    parser.add_argument("--out", type=Path, default=_report.RESULTS, help="folder of the results")
    asked = parser.parse_args(arguments)
    sizes = [int(a) for a in asked.what if a.isdigit()]
    names = [a for a in asked.what if not a.isdigit()]
    if unknown := sorted(set(names) - set(ALL)):
        parser.error(f"no workload called {', '.join(unknown)}; there are: {', '.join(ALL)}")
    lowerings.prepare(wait=None)
    if asked.quick:
        name, members = (names or ["mlp"])[0], (sizes or [8])[0]
        left_out = ("stock kernels", "auto")  # each would compile once more
        found = {label: tasks for label, tasks in contenders(name, members).items() if label not in left_out}
        show(f"{name}, K = {members}", side_by_side(found, 2, 0.7, LIMIT, together=True))
        print("The contenders warmed up at the same time: without --quick the first epoch is earlier.")
        return
    about = {"machine": machine(), "rounds": asked.rounds, "seconds": asked.seconds}
    if asked.scale:
        rows = side_by_side(scale(), asked.rounds, asked.seconds, LIMIT)
        show("tiny, by K", rows)
        _report.keep(asked.out, "scale-tiny", {"kind": "scale", "workload": "tiny", **about, "rows": rows})
    for name in [] if asked.scale else names or (["mlp", "tiny"] if asked.switches else ALL):
        few = [32] if asked.switches or name in VARIATIONS else SIZES
        for members in sizes or few:
            about["machine"] = machine()
            if asked.jobs:
                before = _report.kept(asked.out, f"{name}-{members}")
                print(f"{name}, K = {members}", flush=True)
                done = jobs(name, members, before["rows"])
                _report.keep(asked.out, f"{name}-{members}", before | {"jobs": done, "jobs_on": machine()})
                continue
            case = {"workload": name, "members": members, "said": SAID[name], "order": list(ALL).index(name), **about}
            tasks = switches(name, members) if asked.switches else contenders(name, members)
            rows = side_by_side(tasks, asked.rounds, asked.seconds, LIMIT)
            show(f"{name}, K = {members}", rows)
            if asked.switches:
                _report.keep(asked.out, f"switches-{name}-{members}", {"kind": "switches", **case, "rows": rows})
                continue
            done = jobs(name, members, rows) if name in WORKLOADS and not asked.no_jobs else {}
            _report.keep(asked.out, f"{name}-{members}", {"kind": "rates", **case, "rows": rows, "jobs": done})
    _report.write(asked.out)


if __name__ == "__main__":
    main()

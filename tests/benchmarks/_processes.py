"""Contenders in processes of their own, measured in turn: what is idle waits for an order and takes no core."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

from tests.benchmarks._worker import Task

ROOT = Path(__file__).resolve().parents[2]
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
Answers: TypeAlias = list[dict[str, Any]]  # of each process of a contender
SAMPLE = 0.25  # seconds between two looks at the memory of compilers


def cores() -> list[int]:
    """Return the cores that this process may use."""
    return sorted(os.sched_getaffinity(0))


def machine() -> dict[str, Any]:
    """Return what a measurement was made with."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor() or platform.machine()
    return {
        "processor": processor,
        "cores": len(cores()),
        "system": platform.system(),
        "versions": {"Python": platform.python_version()}
        | {n: version(n) for n in ("l2path", "torch", "jax", "joblib")},
        "date": datetime.date.today().isoformat(),
        "load": round(os.getloadavg()[0], 2),
    }


class Failed(Exception):
    """A contender that raised, ended or took too long; the message says which."""


class Contender:
    """The processes of a contender.

    Parameters
    ----------
    tasks : sequence of Task
        One for each process; they run at the same time.
    cache : Path
        Where torch keeps what it compiles; an empty folder, so that compilation is timed as a whole.
    limit : float
        Seconds that an answer may take.
    """

    def __init__(self, tasks: Sequence[Task], cache: Path, limit: float) -> None:
        self.limit, self.compilers = limit, 0.0
        self.processes = []
        for task in tasks:
            env = {k: v for k, v in os.environ.items() if k not in THREADS} | {"TORCHINDUCTOR_CACHE_DIR": str(cache)}
            env |= {name: "1" for name in THREADS if task.core is not None}
            env |= {"L2PATH_NATIVE": "1" if task.native else "0", "JAX_PLATFORMS": "cpu"}
            command = [sys.executable, "-m", "tests.benchmarks._worker", json.dumps(asdict(task))]
            self.processes.append(
                subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env, cwd=ROOT, bufsize=1
                )
            )

    def answers(self, *, sample: bool = False) -> Answers:
        """Return the next answer of each process; with ``sample`` look at what its children take, meanwhile."""
        found, end = [], time.monotonic() + self.limit
        for process in self.processes:
            assert process.stdout is not None
            while not select.select([process.stdout], [], [], SAMPLE if sample else max(0.0, end - time.monotonic()))[
                0
            ]:
                self.compilers = max(self.compilers, children_mib(process.pid))
                if time.monotonic() > end:
                    self.kill()
                    raise Failed(f"no answer within {self.limit:.0f} s")
            line = process.stdout.readline()
            answer = json.loads(line) if line else {"error": "the process ended"}
            if "error" in answer:
                self.kill()
                raise Failed(answer["error"])
            found.append(answer)
        return found

    def order(self, seconds: float) -> Answers:
        """Let all processes train for so long."""
        self.send(str(seconds))
        return self.answers()

    def finish(self) -> Answers:
        """End the processes, and return their last answers."""
        self.send("")
        return self.answers()

    def send(self, line: str) -> None:
        """Send a line to all processes."""
        for process in self.processes:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # its answer is missing then
                process.stdin.write(f"{line}\n")

    def summary(self, last: Answers) -> dict[str, Any]:
        """Return what the last answers say of memory, in MiB, and the engine."""
        return {
            "memory": round(sum(a["peak"] - a["imported"] for a in last)),  # beyond what importing takes
            "peak": round(sum(a["peak"] for a in last)),
            "compilers": round(self.compilers),
            "engine": last[0]["engine"],
        }

    def kill(self) -> None:
        """End the processes at once."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.communicate()

    def close(self) -> None:
        """Wait for the processes."""
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=10)
        self.kill()


def children_mib(pid: int) -> float:
    """Return the memory of the processes below one, in MiB, what they share counted once; 0 where nobody knows."""
    total, below = 0.0, [pid]
    while below:
        with contextlib.suppress(OSError, ValueError):
            folder = Path(f"/proc/{below.pop()}")
            below += [int(c) for task in (folder / "task").iterdir() for c in (task / "children").read_text().split()]
            if folder.name != str(pid):
                lines = (folder / "smaps_rollup").read_text().splitlines()
                total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 2**10
    return total


def side_by_side(
    contenders: Mapping[str, Sequence[Task]], rounds: int, seconds: float, limit: float, *, together: bool = False
) -> dict[str, dict[str, Any]]:
    """Measure contenders in turn, round by round, and return a row for each; ``together`` warms up all at once.

    Returns
    -------
    dict of dict
        "rates": model-steps per second in each round; "first": seconds until the first epoch was over, compilation
        included; memory and engine; or "error".
    """
    rows: dict[str, dict[str, Any]] = {label: {"rates": []} for label in contenders}
    alive: dict[str, Contender] = {}

    def tell(label: str, call: Callable[[], Answers]) -> Answers:
        try:
            return call()
        except Failed as error:
            rows[label] = {"error": str(error)}
            del alive[label]
            return []

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        try:
            for i, (label, tasks) in enumerate(contenders.items()):
                alive[label] = Contender(tasks, Path(folder) / str(i), limit)
            for label, contender in list(alive.items()):  # they import at the same time
                tell(label, contender.answers)
            for labels in [list(alive)] if together else [[label] for label in alive]:
                for label in labels:
                    alive[label].send("0")
                for label in labels:
                    if answers := tell(label, partial(alive[label].answers, sample=True)):
                        rows[label]["first"] = round(max(a["seconds"] for a in answers), 2)
            for label, contender in list(alive.items()):
                tell(label, partial(contender.order, 0.0))  # caches are filled, blocks have their length
            for _ in range(rounds):
                for label, contender in list(alive.items()):
                    if answers := tell(label, partial(contender.order, seconds)):
                        rows[label]["rates"].append(round(sum(a["steps"] / a["seconds"] for a in answers), 1))
            for label, contender in list(alive.items()):
                if last := tell(label, contender.finish):
                    rows[label] |= contender.summary(last)
        finally:
            for contender in alive.values():
                contender.close()
    return rows


def whole_job(tasks: Sequence[Task], limit: float) -> dict[str, Any]:
    """Run a job in fresh processes to its end; "seconds" include everything but importing."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        contender = Contender(tasks, Path(folder), limit)
        try:
            contender.answers()
            answers = contender.order(float("inf"))
        except Failed as error:
            return {"error": str(error)}
        finally:
            contender.close()
    seconds = max(a["seconds"] for a in answers)
    return {"seconds": round(seconds, 3), "steps": sum(a["steps"] for a in answers), **contender.summary(answers)}

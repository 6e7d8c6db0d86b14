"""One process of one contender: it trains on and on, and answers orders, which are lines of standard input.

An order is a number of seconds: to train for so long and to the end of that epoch (0: for one epoch; inf: to the end).
The answer is a line of JSON. Between orders the process waits for the next one, so that others can be measured; an
empty line ends it.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TextIO

ENDLESS = 10**6  # epochs


@dataclass(frozen=True)
class Task:
    """What a process does: ``kind`` is "loops", "jax" or "l2path"."""

    kind: str
    workload: str
    members: int
    batches: int  # in an epoch
    epochs: int = ENDLESS
    core: int | None = None  # None: all of them
    engine: str = "auto"
    native: bool = True  # False: torch's own kernels
    tensors: bool = False  # whether compiled loops make tensors, as inductor writes them
    plain: bool = False  # whether JAX's convolutions are written as such
    hook: bool = False  # whether there is one at the end of each epoch
    change: dict[str, Any] = field(default_factory=dict)  # fields of the Engine that would be taken


class Orders:
    """Called at the end of every epoch: answers an order that is done, and waits for the next one."""

    def __init__(self, answers: TextIO) -> None:
        self.answers = answers
        self.wanted, self.began, self.steps = 0.0, 0.0, 0
        self.settle: Callable[[], None] | None = None  # waits for what goes on by itself

    def __call__(self, steps: int) -> bool:
        """Count model-steps, and return whether to go on."""
        self.steps += steps
        if time.perf_counter() - self.began < self.wanted:
            return True
        if self.settle is not None:  # nothing runs while others are measured; what has been begun is paid for once
            self.settle()
        self.answer(**self.count())
        return self.wait()

    def wait(self) -> bool:
        """Wait for an order; False if there is none any more."""
        line = sys.stdin.readline().strip()
        self.wanted, self.began, self.steps = float(line or 0), time.perf_counter(), 0
        return bool(line)

    def count(self) -> dict[str, float]:
        """Return what was done for this order."""
        return {"steps": self.steps, "seconds": time.perf_counter() - self.began}

    def answer(self, **values: Any) -> None:
        """Send a line."""
        print(json.dumps(values), file=self.answers, flush=True)


def peak_mib() -> float:
    """Return the most memory that this process had resident so far, in MiB."""
    try:
        with open("/proc/self/status", encoding="ascii") as status:  # getrusage counts what its parent had, too
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 2**10
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def loops(task: Task, orders: Orders) -> str:
    """Train one member after the other with torch.optim, on one thread."""
    import torch

    from tests.benchmarks._workloads import ALL

    torch.set_num_threads(1)
    workload = ALL[task.workload]
    x, y = workload.data(task.batches)
    batches = list(zip(x.split(workload.batch), y.split(workload.batch), strict=True))
    validation = workload.validation(task.batches)
    orders.wait()
    for k in range(task.members):
        module, loss = workload.module(), workload.loss
        optimizer = workload.theirs(module, 10.0 ** (-2 - k % 5))
        for _ in range(task.epochs):
            for inputs, targets in batches:
                optimizer.zero_grad()
                loss(module(inputs), targets).backward()
                optimizer.step()
            if validation is not None:
                module.eval()
                with torch.no_grad():
                    loss(module(validation[0]), validation[1]).item()
                module.train()
            if not orders(len(batches)):
                return ""
    return ""


def jax(task: Task, orders: Orders) -> str:
    """Train all members at once with JAX."""
    from tests.benchmarks._jax_peers import train

    train(task.workload, task.members, task.batches, task.epochs, orders, plain=task.plain)
    return ""


def l2path(task: Task, orders: Orders) -> str:
    """Train all members with batch_train, and return the engine."""
    import torch

    import l2path
    from l2path.lowerings import loops
    from l2path.path.driver import Driver
    from tests.benchmarks._processes import cores
    from tests.benchmarks._workloads import ALL

    if task.tensors:
        loops.without_tensors = lambda source: source
    torch.set_num_threads(len(cores()))
    workload = ALL[task.workload]
    data, validation = workload.data(task.batches), workload.validation(task.batches)
    orders.wait()

    def train(engine: Any, epochs: int) -> l2path.PathResult:
        return l2path.batch_train(
            workload.module(), data, loss_fn=workload.loss, optimizer=workload.ours(), epochs=epochs, engine=engine,
            lambdas=torch.logspace(-2, -6, task.members), batch_size=workload.batch, progress=False,
            on_epoch=(lambda _: None) if task.hook else None, validation=validation,
        )  # fmt: skip

    engine: Any = task.engine
    if task.change:
        engine = replace(train(engine, 1).engine, **task.change)
    # Given an on_epoch hook, the driver would begin nothing of the next epoch before it: this is called in its place.
    hook = Driver._hook

    def hooked(self: Driver) -> None:
        hook(self)
        ahead = self.workers.next if self.workers else None
        orders.settle = ahead.wait if ahead else None
        if not orders(task.members * task.batches):
            raise KeyboardInterrupt  # which ends training and keeps what there is

    Driver._hook = hooked  # type: ignore[method-assign]
    used = train(engine, task.epochs).engine
    if task.engine not in ("auto", used.kind):  # it went on in another way: its rate is none of what was asked for
        raise RuntimeError(used.reason)
    return repr(used)


CONTENDERS = {"loops": loops, "jax": jax, "l2path": l2path}
IMPORTS = {
    "loops": ["tests.benchmarks._workloads"],
    "jax": ["tests.benchmarks._jax_peers"],
    "l2path": ["tests.benchmarks._workloads", "l2path"],
}


def main() -> None:
    """Do one task."""
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    task = Task(**json.loads(sys.argv[1]))
    if task.core is not None:
        os.sched_setaffinity(0, {task.core})  # before libraries count cores
    for name in IMPORTS[task.kind]:  # which is not timed
        importlib.import_module(name)
    orders, imported = Orders(answers), peak_mib()
    orders.answer(ready=asdict(task))
    try:
        engine = CONTENDERS[task.kind](task, orders)
    except Exception as error:
        orders.answer(error=" ".join(f"{type(error).__name__}: {error}".split())[:500])
        return
    orders.answer(**orders.count(), engine=engine, peak=peak_mib(), imported=imported)


if __name__ == "__main__":
    main()

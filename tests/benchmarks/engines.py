"""Rates of ``batch_train`` on a user's plain modules beside what else there is: torch.optim loops and JAX.

    python tests/benchmarks/engines.py                 every workload, K = 8 and 32
    python tests/benchmarks/engines.py mlp 8           one of them

All contenders run one after the other within one round, and rounds are repeated; what is printed is the best of the
rounds, in model-steps (members x steps) per second while training goes on: without compilation, whose seconds
stand beside it. Every contender may use all cores:

* loops: one process per core, one thread each, torch.optim with its fused implementation;
* JAX, one process: jit(scan(vmap(step))) with all cores, donated state; JAX, per core: the same with half of the
  members in each of two processes pinned to a core;
* batch_train: with as many threads as there are cores; "vmap", "compiled", and what "auto" takes.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import l2path

CORES = len(os.sched_getaffinity(0))
ROUNDS = 3
SECONDS = 2.0  # of training in a round, about


class Workload(NamedTuple):
    """A module, its batches and its loss."""

    make: Callable[[], nn.Module]
    inputs: tuple[int, ...]
    classes: int  # 0: regression
    batch: int


class Forecaster(nn.Module):
    """An LSTM and a linear layer on its last output."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 32, batch_first=True), nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[B, 1]``."""
        out: Tensor = self.head(self.lstm(x)[0][:, -1])
        return out


class Encoder(nn.Module):
    """One encoder layer without dropout, and a linear layer on the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[B, 10]``."""
        out: Tensor = self.head(self.layer(x).mean(1))
        return out


def mlp() -> nn.Module:
    """64-128-128-10."""
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))


def tiny() -> nn.Module:
    """13-32-1."""
    return nn.Sequential(nn.Linear(13, 32), nn.Tanh(), nn.Linear(32, 1))


def cnn() -> nn.Module:
    """Two convolutions of 3 x 3."""
    first = (nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(
        *first, nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(512, 10)
    )


WORKLOADS = {
    "tiny": Workload(tiny, (13,), 0, 32),
    "mlp": Workload(mlp, (64,), 10, 128),
    "lstm": Workload(Forecaster, (24, 4), 0, 32),
    "tfm": Workload(Encoder, (16, 64), 10, 32),
    "cnn": Workload(cnn, (1, 16, 16), 10, 64),
}
BATCHES = 64  # in an epoch


def data(workload: Workload) -> tuple[Tensor, Tensor]:
    """Return rows of random numbers for an epoch of whole batches."""
    torch.manual_seed(0)
    n = BATCHES * workload.batch
    targets = torch.randint(0, workload.classes, (n,)) if workload.classes else torch.randn(n, 1)
    return torch.randn(n, *workload.inputs), targets


def loss_of(workload: Workload) -> Any:
    """Return the loss of a workload."""
    return F.cross_entropy if workload.classes else F.mse_loss


def ours(name: str, members: int, engine: Any, epochs: int) -> tuple[float, float, Any]:
    """Return rate, seconds before the first epoch was over, and the engine, of one run."""
    workload, ends = WORKLOADS[name], []
    torch.manual_seed(0)
    started = time.perf_counter()
    result = l2path.batch_train(
        workload.make(), data(workload), loss_fn=loss_of(workload), optimizer=l2path.sgd(lr=0.01, momentum=0.9),
        lambdas=l2path.lambda_grid(1e-6, 1e-2, members), epochs=epochs, batch_size=workload.batch, engine=engine,
        on_epoch=lambda _: ends.append(time.perf_counter()),
    )  # fmt: skip
    spans = [b - a for a, b in itertools.pairwise(ends)]
    return members * BATCHES / sorted(spans)[len(spans) // 2], ends[0] - started, result.engine


def loop(name: str, seconds: float) -> float:
    """Return the rate of one torch.optim loop on one thread."""
    torch.set_num_threads(1)
    workload = WORKLOADS[name]
    x, y = data(workload)
    module, loss = workload.make(), loss_of(workload)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-3, fused=True)
    batches = list(zip(x.split(workload.batch), y.split(workload.batch), strict=True))
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        for inputs, targets in batches:
            optimizer.zero_grad()
            loss(module(inputs), targets).backward()
            optimizer.step()
        best = max(best, len(batches) / (time.perf_counter() - started))
    return best


def jax_rate(name: str, members: int, seconds: float) -> float:
    """Return the rate of jit(scan(vmap(step))) in this process."""
    from tests.benchmarks._jax_peers import rate

    return rate(name, members, seconds)


def pinned(core: int, call: str, arguments: list[Any]) -> subprocess.Popen[str]:
    """Start this script on one core to do one measurement."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path[1:]])}
    command = [sys.executable, __file__, "--peer", call, json.dumps(arguments)]
    if core >= 0:
        command = ["taskset", "-c", str(core), *command]
    else:
        env.pop("OMP_NUM_THREADS")
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)


def peer(call: str, arguments: list[Any], *, per_core: bool) -> float:
    """Return the rate of a peer, summed over the processes."""
    cores = sorted(os.sched_getaffinity(0)) if per_core else [-1]
    running = [pinned(core, call, arguments) for core in cores]
    return sum(float(process.communicate()[0].strip().splitlines()[-1]) for process in running)


def compare(name: str, members: int, *, with_jax: bool) -> None:
    """Print a row."""
    torch.set_num_threads(CORES)
    best: dict[str, float] = {}
    warm: dict[str, float] = {}
    rough = ours(name, members, "vmap", 3)[0]
    chosen: dict[str, Any] = {"vmap": "vmap", "compiled": "compiled", "compiled, stock kernels": "compiled"}
    for _ in range(ROUNDS):
        found = {"loops": peer("loop", [name, SECONDS], per_core=True)}
        if with_jax:
            found["JAX"] = peer("jax", [name, members, SECONDS], per_core=False)
            found["JAX per core"] = peer("jax", [name, max(1, members // CORES), SECONDS], per_core=True)
        for label, engine in chosen.items():
            os.environ["L2PATH_NATIVE"] = "0" if "stock" in label else "1"
            epochs = 4 + int(SECONDS * rough * (1 if label == "vmap" else 4) / (members * BATCHES))
            found[label], seconds, used = ours(name, members, engine, epochs)
            warm[label] = max(warm.get(label, 0.0), seconds)
            chosen[label] = used  # the same chunks in every round
        best = {label: max(rate, best.get(label, 0.0)) for label, rate in found.items()}
    print(f"{name} K {members}: " + ", ".join(f"{label} {rate:.0f}" for label, rate in best.items()))
    chunk = chosen["compiled"].member_chunk
    ratios = {label: best["compiled"] / rate for label, rate in best.items() if label != "compiled"}
    print("    compiled is faster by: " + ", ".join(f"{label} {ratio:.2f}" for label, ratio in ratios.items()))
    print(f"    chunk {chunk}, first epoch after {warm['compiled']:.1f} s (vmap {warm['vmap']:.1f} s)", flush=True)


def main() -> None:
    """Compare what was asked for."""
    warnings.simplefilter("ignore")
    if sys.argv[1:2] == ["--peer"]:
        call, arguments = sys.argv[2], json.loads(sys.argv[3])
        print(loop(*arguments) if call == "loop" else jax_rate(*arguments))
        return
    asked = [a for a in sys.argv[1:] if not a.isdigit()] or list(WORKLOADS)
    sizes = [int(a) for a in sys.argv[1:] if a.isdigit()] or [8, 32]
    print(f"{platform.processor() or platform.machine()}, {CORES} cores, torch {torch.__version__}")
    for name in asked:
        for members in sizes:
            compare(name, members, with_jax=name != "cnn")  # there a vmapped convolution takes JAX seconds a step


if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    main()

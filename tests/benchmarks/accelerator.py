"""``batch_train`` on a GPU beside loops over torch.optim there, in float32 and under autocast to bfloat16.

    python -m tests.benchmarks.accelerator                 every workload with 8, 32 and 128 members
    python -m tests.benchmarks.accelerator mlp tfm 32      some of them
    python -m tests.benchmarks.accelerator --device cpu    to try it without one

Loops train one member with the fused optimizer, as they are and through ``torch.compile(mode="reduce-overhead")``: a
GPU gains nothing from several at once. A rate is model-steps per second of whole epochs, the best of some; contenders
run one after the other in this process, and what they print is kept nowhere.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Literal

import torch

import l2path
from tests.benchmarks._workloads import WORKLOADS, Workload

Engine = Literal["vmap", "compiled"]
ENGINES: tuple[Engine, ...] = ("vmap", "compiled")
EPOCHS = 6  # the first one warms up


def autocast(device: torch.device, *, on: bool) -> AbstractContextManager[object]:
    """Autocast to bfloat16, or nothing."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if on else nullcontext()


def now(device: torch.device) -> float:
    """Return the time when all that was begun is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def loop(workload: Workload, device: torch.device, *, bfloat16: bool, compiled: bool) -> float:
    """Return the rate of one member that is trained as torch users do."""
    module, batches = workload.module().to(device), workload.batches
    optimizer = workload.theirs(module, 1e-4)
    x, y = (t.to(device) for t in workload.data(batches))
    pairs = list(zip(x.split(workload.batch), y.split(workload.batch), strict=True))

    def forward(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        with autocast(device, on=bfloat16):
            outputs = module(inputs)
        return workload.loss(outputs.float(), targets)

    call: Callable[..., torch.Tensor] = torch.compile(forward, mode="reduce-overhead") if compiled else forward
    ends = []
    for _ in range(EPOCHS):
        for inputs, targets in pairs:
            optimizer.zero_grad()
            call(inputs, targets).backward()
            optimizer.step()
        ends.append(now(device))
    return best(ends, batches)


def ours(
    workload: Workload, device: torch.device, members: int, engine: Engine, *, bfloat16: bool
) -> tuple[float, str]:
    """Return the rate of ``batch_train``, and the engine that it had."""
    x, y = (t.to(device) for t in workload.data(workload.batches))
    ends: list[float] = []
    with autocast(device, on=bfloat16):
        result = l2path.batch_train(
            workload.module().to(device), (x, y), loss_fn=lambda outputs, t: workload.loss(outputs.float(), t),
            optimizer=workload.ours(), lambdas=l2path.lambda_grid(1e-6, 1e-2, members), batch_size=workload.batch,
            epochs=EPOCHS, engine=engine, on_epoch=lambda _: ends.append(now(device)), progress=False,
        )  # fmt: skip
    return best(ends, workload.batches * members), repr(result.engine)


def best(ends: Sequence[float], steps: int) -> float:
    """Return the rate of the fastest epoch but the first."""
    return steps / min(b - a for a, b in pairwise(ends))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description="Rates of batch_train on a GPU beside loops.")
    parser.add_argument("what", nargs="*", help=f"names, and numbers of members: {', '.join(WORKLOADS)}")
    parser.add_argument("--device", default="cuda")
    asked = parser.parse_args(arguments)
    device = torch.device(asked.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("There is no GPU here: --device cpu tries the script without one.")
        return
    warnings.simplefilter("ignore", l2path.L2PathWarning)
    about = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{about}, torch {torch.__version__}, model-steps per second")
    for name in [a for a in asked.what if not a.isdigit()] or WORKLOADS:
        workload = WORKLOADS[name]
        for bfloat16 in (False, True):
            title = f"{name}, {'bfloat16' if bfloat16 else 'float32'}"
            for compiled in (False, True):
                rate = loop(workload, device, bfloat16=bfloat16, compiled=compiled)
                print(f"{title:18s} {'loop, compiled' if compiled else 'loop':16s} {rate:10.0f}", flush=True)
            for members in [int(a) for a in asked.what if a.isdigit()] or [8, 32, 128]:
                for engine in ENGINES:
                    try:
                        rate, said = ours(workload, device, members, engine, bfloat16=bfloat16)
                    except l2path.ArgumentError as error:
                        rate, said = float("nan"), str(error)
                    print(f"{title:18s} {engine:9s} K {members:4d} {rate:10.0f}  {said}", flush=True)


if __name__ == "__main__":
    main()

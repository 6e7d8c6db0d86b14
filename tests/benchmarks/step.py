"""Time one eager ``train_step`` against a handwritten torch.optim step, and ``batch_train`` against the loop.

Run it as ``python tests/benchmarks/step.py [repeats]``. All contenders of a row run in turn, so that a busy machine
disturbs them alike; what is printed are ratios of minimums (and of medians), with the machine and versions.
"""

from __future__ import annotations

import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

import l2path

MAKERS: dict[str, Callable[[], tuple[nn.Module, int, int, int]]] = {
    "mlp 64-128-128-10, batch 128": lambda: (
        nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)), 64, 10, 128,
    ),
    "tiny 13-32-2 tanh, batch 32": lambda: (nn.Sequential(nn.Linear(13, 32), nn.Tanh(), nn.Linear(32, 2)), 13, 2, 32),
}  # fmt: skip
OPTIMIZERS: dict[str, tuple[l2path.Optimizer, Callable[..., torch.optim.Optimizer]]] = {
    "sgd momentum": (
        l2path.sgd(lr=0.1, momentum=0.9),
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=1e-3),
    ),
    "adam": (l2path.adam(lr=1e-3), lambda p: torch.optim.Adam(p, 1e-3, weight_decay=1e-3)),
}
STEPS = 100


def in_turn(contenders: dict[str, Callable[[], None]], repeats: int) -> dict[str, list[float]]:
    """Return seconds of each contender, after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for i in range(repeats + 1):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            if i:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def one_step(repeats: int) -> None:
    """Print the cost of one eager step relative to torch.optim's."""
    print("\none eager step, relative to a handwritten torch.optim step (foreach, with weight decay)")
    for label, make in MAKERS.items():
        for name, (optimizer, build) in OPTIMIZERS.items():
            torch.manual_seed(0)
            module, width, classes, batch = make()
            x, y = torch.randn(batch, width), torch.randint(0, classes, (batch,))
            own = build(module.parameters())
            step = l2path.make_train_step(module, F.cross_entropy, optimizer)
            state = l2path.init_state(module, optimizer)
            lambdas = l2path.expand_lambdas(module, 1e-3)

            def loop(
                module: nn.Module = module, own: torch.optim.Optimizer = own, x: torch.Tensor = x, y: torch.Tensor = y
            ) -> None:
                for _ in range(STEPS):
                    own.zero_grad()
                    F.cross_entropy(module(x), y).backward()
                    own.step()

            def pure(
                step: Callable[..., tuple[l2path.TrainState, l2path.Metrics]] = step,
                state: l2path.TrainState = state,
                x: torch.Tensor = x,
                y: torch.Tensor = y,
                lambdas: dict[str, torch.Tensor] = lambdas,
            ) -> None:
                for _ in range(STEPS):
                    state, _ = step(state, (x, y), lambdas)

            times = in_turn({"loop": loop, "step": pure}, repeats)
            report(f"{label}, {name}", times, STEPS)


def batched(repeats: int) -> None:
    """Print how much faster all members at once are than one after the other."""
    print("\nbatch_train, relative to the same members in a torch.optim loop")
    for label, make in MAKERS.items():
        for members in (8, 32):
            torch.manual_seed(0)
            module, width, classes, batch = make()
            optimizer, build = OPTIMIZERS["sgd momentum"]
            x, y = torch.randn(10 * batch, width), torch.randint(0, classes, (10 * batch,))
            grid = l2path.lambda_grid(1e-6, 1e-2, members)
            epochs = 10

            def loop(
                make: Callable[[], tuple[nn.Module, int, int, int]] = make,
                build: Callable[..., torch.optim.Optimizer] = build,
                x: torch.Tensor = x,
                y: torch.Tensor = y,
                members: int = members,
                epochs: int = epochs,
                batch: int = batch,
            ) -> None:
                for _ in range(members):
                    own = make()[0]
                    opt = build(own.parameters())
                    for epoch in range(epochs):
                        for rows in l2path.data_order(len(x), 0, epoch).split(batch):
                            opt.zero_grad()
                            F.cross_entropy(own(x[rows]), y[rows]).backward()
                            opt.step()

            def all_at_once(
                module: nn.Module = module,
                optimizer: l2path.Optimizer = optimizer,
                x: torch.Tensor = x,
                y: torch.Tensor = y,
                grid: torch.Tensor = grid,
                epochs: int = epochs,
                batch: int = batch,
            ) -> None:
                l2path.batch_train(
                    module, (x, y), loss_fn=F.cross_entropy, optimizer=optimizer, lambdas=grid, epochs=epochs,
                    batch_size=batch,
                )  # fmt: skip

            times = in_turn({"loop": loop, "step": all_at_once}, max(2, repeats // 3))
            report(f"{label}, K = {members}", times, 10 * epochs * members)


def report(label: str, times: dict[str, list[float]], steps: int) -> None:
    """Print one row: seconds for each step, and the ratio step / loop."""
    best = {name: min(t) / steps * 1e6 for name, t in times.items()}
    median = {name: statistics.median(t) for name, t in times.items()}
    print(
        f"  {label:42s} loop {best['loop']:7.0f} us, l2path {best['step']:7.0f} us: "
        f"{best['step'] / best['loop']:.2f} (medians {median['step'] / median['loop']:.2f})"
    )


def imports(repeats: int) -> None:
    """Print what importing l2path costs beyond torch, in fresh processes."""
    code = "import time, torch\nstart = time.perf_counter()\nimport l2path\nprint(time.perf_counter() - start)"
    found = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        for _ in range(repeats)
    ]
    print(f"\nimporting l2path after torch: {min(found):.3f} s (median {statistics.median(found):.3f} s)")


def main() -> None:
    """Run everything."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    torch.set_num_threads(1)
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} thread")
    one_step(repeats)
    batched(repeats)
    imports(max(3, repeats // 2))


if __name__ == "__main__":
    main()

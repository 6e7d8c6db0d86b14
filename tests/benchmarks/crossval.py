"""Time cross_validate against the same members in a loop over torch.optim, on both cores.

Run it as ``python tests/benchmarks/crossval.py [repeats] [share]``. 5 folds x 3 seeds x 32 lambdas are 480 members of
an MLP on scikit-learn's breast cancer data, 30 epochs each, scored on their fold once an epoch. The loop is the one
most people write, over joblib's two processes with one thread each; it trains every ``share``-th lambda (4 by default)
of all folds and seeds, and its time is multiplied by that. cross_validate runs in one process, with one thread and
with two. Contenders run in turn, each in a fresh process, whose peak memory and what it was before training are
printed.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from typing import Any

FOLDS, SEEDS, LAMBDAS, EPOCHS, BATCH, LR, MOMENTUM = 5, (0, 1, 2), 32, 30, 64, 0.1, 0.9


def peak_mib() -> float:
    """Return the largest resident memory of this process so far, in MiB."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def data() -> tuple[Any, Any]:
    """Inputs ``[569, 30]`` float32, standardised, and classes."""
    import torch
    from sklearn.datasets import load_breast_cancer

    inputs, labels = load_breast_cancer(return_X_y=True)
    x = torch.tensor((inputs - inputs.mean(0)) / inputs.std(0), dtype=torch.float32)
    return x, torch.tensor(labels)


def make() -> Any:
    """An MLP of 1,602 parameters."""
    from torch import nn

    return nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 2))


def one_member(train: Any, test: Any, seed: int, strength: float) -> tuple[float, float]:
    """Train one member by hand, and return its last held-out loss and the peak memory of the process."""
    import torch
    from torch.nn import functional as F

    import l2path

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    module = make()
    optimizer = torch.optim.SGD(module.parameters(), LR, momentum=MOMENTUM, weight_decay=strength)
    (x, y), (held, labels) = train, test
    scores = []
    for epoch in range(EPOCHS):
        module.train()
        for rows in l2path.data_order(len(x), seed, epoch).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(module(x[rows]), y[rows]).backward()
            optimizer.step()
        module.eval()
        with torch.no_grad():
            scores.append(F.cross_entropy(module(held), labels).item())
    return scores[-1], peak_mib()


def contender(name: str, share: int) -> dict[str, Any]:
    """Run one contender, and return its seconds, memory and last scores."""
    import numpy as np
    import torch

    import l2path

    torch.set_num_threads(2 if name == "l2path, 2 threads" else 1)
    x, y = data()
    grid = l2path.lambda_grid(1e-5, 0.3, LAMBDAS)
    parts = np.array_split(l2path.data_order(len(x), 0, 0).numpy(), FOLDS)
    folds = [(np.setdiff1d(np.arange(len(x)), part), np.sort(part)) for part in parts]
    before, peak, start = peak_mib(), 0.0, time.perf_counter()
    if name.startswith("l2path"):
        cv = l2path.cross_validate(
            make, (x, y), loss_fn=torch.nn.functional.cross_entropy, optimizer=l2path.sgd(lr=LR, momentum=MOMENTUM),
            lambdas=grid, folds=folds, seeds=SEEDS, epochs=EPOCHS, batch_size=BATCH, progress=False,
        )  # fmt: skip
        scores, factor = cv.seed_scores[:, :, ::share], 1
        print(cv.members.engine, file=sys.stderr)
    else:
        from joblib import Parallel, delayed

        jobs = [
            ((x[train], y[train]), (x[test], y[test]), seed, float(strength))
            for train, test in folds for seed in SEEDS for strength in grid[::share]
        ]  # fmt: skip
        with Parallel(n_jobs=2) as pool:
            pool(delayed(abs)(i) for i in range(2))  # the processes start before the clock does
            start = time.perf_counter()
            found = pool(delayed(one_member)(*job) for job in jobs)
        last, peaks = zip(*found, strict=True)
        scores, factor, peak = np.array(last).reshape(FOLDS, len(SEEDS), -1), share, max(peaks)
    seconds = time.perf_counter() - start
    return {"seconds": factor * seconds, "before": before, "peak": peak or peak_mib(), "scores": scores.tolist()}


def main() -> None:
    """Run all contenders in turn and print a row for each."""
    import numpy as np

    repeats, share = (int(a) for a in (*sys.argv[1:3], *("3", "4")[len(sys.argv[1:3]) :]))
    print(f"{platform.processor() or platform.machine()}, torch {version('torch')}, joblib {version('joblib')}")
    print(f"load before: {os.getloadavg()[0]:.2f}; {FOLDS * len(SEEDS) * LAMBDAS} members, {EPOCHS} epochs")
    names = ("l2path, 1 thread", "l2path, 2 threads", "loop, 2 processes")
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(repeats):
        for name in names:
            command = [sys.executable, __file__, "--one", name, str(share)]
            env = os.environ | {"OMP_NUM_THREADS": "2" if name == "l2path, 2 threads" else "1"}
            out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=env).stdout
            runs[name].append(json.loads(out.splitlines()[-1]))
    slowest = min(run["seconds"] for run in runs["loop, 2 processes"])
    expected = np.array(runs["loop, 2 processes"][0]["scores"])
    print(f"{'':18s}  min s  median s  loop / this  before MiB  peak MiB  difference of scores")
    for name, own in runs.items():
        seconds = [run["seconds"] for run in own]
        apart = np.abs(np.array(own[0]["scores"]) - expected).max()
        print(
            f"{name:18s} {min(seconds):6.1f} {statistics.median(seconds):9.1f} {slowest / min(seconds):12.1f}"
            f" {own[0]['before']:11.0f} {own[0]['peak']:9.0f} {apart:21.1e}"
        )
    print(f"load after: {os.getloadavg()[0]:.2f}")
    print(f"The loop's time is {share} times that of every {share}th lambda, its peak memory that of one of its two")
    print("processes (before: of the parent, which has imported torch as well).")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(contender(sys.argv[2], int(sys.argv[3]))))
    else:
        main()

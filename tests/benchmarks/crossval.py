"""Time cross_validate against the same members in a loop over torch.optim, on all cores.

    python -m tests.benchmarks.crossval                 both models, three rounds
    python -m tests.benchmarks.crossval small --rounds 1 --epochs 5 --out trial/results

5 folds x 3 seeds x 32 lambdas are 480 members, scored on their fold once an epoch: "mlp" is 64-128-128-10 on
scikit-learn's digits, "small" 30-32-16-2 on its breast cancer data. The loop is the one most people write, over
joblib's processes, one for each core with one thread each. Contenders run in turn, each in a fresh process with empty
caches of compilers. Everything is timed but importing and the start of joblib's processes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.benchmarks import _report
from tests.benchmarks._processes import ROOT, THREADS, cores, machine
from tests.benchmarks._worker import peak_mib

FOLDS, SEEDS, LAMBDAS, LR, MOMENTUM = 5, (0, 1, 2), 32, 0.1, 0.9
NAMES = ("cross_validate", "loop")


class Case(NamedTuple):
    """Data of scikit-learn, and the widths of an MLP."""

    data: str
    widths: tuple[int, ...]
    batch: int

    def load(self) -> tuple[Any, Any]:
        """Return standardised inputs ``[n, D]`` float32 and classes."""
        import torch
        from sklearn import datasets

        inputs, labels = getattr(datasets, self.data)(return_X_y=True)
        x = torch.tensor((inputs - inputs.mean(0)) / (inputs.std(0) + 1e-6), dtype=torch.float32)
        return x, torch.tensor(labels)

    def make(self) -> Any:
        """Return the network."""
        from torch import nn

        layers = [layer for a, b in itertools.pairwise(self.widths) for layer in (nn.Linear(a, b), nn.ReLU())]
        return nn.Sequential(*layers[:-1])


CASES = {
    "mlp": Case("load_digits", (64, 128, 128, 10), 128),
    "small": Case("load_breast_cancer", (30, 32, 16, 2), 64),
}


def one_member(
    case: Case, train: Any, test: Any, seed: int, strength: float, epochs: int
) -> tuple[float, int, float, int]:
    """Train one member by hand, and return its last held-out loss, its steps, peak memory and process."""
    import torch
    from torch.nn import functional as F

    import l2path

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    module = case.make()
    optimizer = torch.optim.SGD(module.parameters(), LR, momentum=MOMENTUM, weight_decay=strength, fused=True)
    (x, y), (held, labels) = train, test
    score, steps = 0.0, 0
    for epoch in range(epochs):
        module.train()
        for rows in l2path.data_order(len(x), seed, epoch).split(case.batch):
            optimizer.zero_grad()
            F.cross_entropy(module(x[rows]), y[rows]).backward()
            optimizer.step()
            steps += 1
        module.eval()
        with torch.no_grad():
            score = F.cross_entropy(module(held), labels).item()
    return score, steps, peak_mib(), os.getpid()


def imported() -> float:
    """Import what a loop needs, and return the memory that this takes."""
    import l2path  # noqa: F401

    time.sleep(0.5)  # so that every process of the pool is asked
    return peak_mib()


def contender(name: str, case: Case, epochs: int) -> dict[str, Any]:
    """Run one contender, and return seconds, model-steps, memory and last scores."""
    import numpy as np
    import torch

    import l2path

    x, y = case.load()
    grid = l2path.lambda_grid(1e-5, 0.3, LAMBDAS)
    parts = np.array_split(l2path.data_order(len(x), 0, 0).numpy(), FOLDS)
    folds = [(np.setdiff1d(np.arange(len(x)), part), np.sort(part)) for part in parts]
    if name == "loop":
        from joblib import Parallel, delayed

        jobs = [
            (case, (x[train], y[train]), (x[test], y[test]), seed, float(strength), epochs)
            for train, test in folds for seed in SEEDS for strength in grid
        ]  # fmt: skip
        with Parallel(n_jobs=len(cores())) as pool:
            before = max(pool(delayed(imported)() for _ in cores()))  # the processes start before the clock does
            start = time.perf_counter()
            last, steps, peaks, pids = zip(*pool(delayed(one_member)(*job) for job in jobs), strict=True)
            seconds = time.perf_counter() - start
        memory = sum(max(p for p, i in zip(peaks, pids, strict=True) if i == pid) - before for pid in set(pids))
        scores = np.array(last).reshape(FOLDS, len(SEEDS), -1)
        return {
            "seconds": seconds, "steps": sum(steps), "memory": memory, "scores": scores.tolist(),
            "training": sum(steps) / seconds, "engine": "",
        }  # fmt: skip
    torch.set_num_threads(len(cores()))
    ends: list[float] = []
    before, start = peak_mib(), time.perf_counter()
    cv = l2path.cross_validate(
        case.make, (x, y), loss_fn=torch.nn.functional.cross_entropy, optimizer=l2path.sgd(lr=LR, momentum=MOMENTUM),
        lambdas=grid, folds=folds, seeds=SEEDS, epochs=epochs, batch_size=case.batch, progress=False,
        on_epoch=lambda _: ends.append(time.perf_counter()),
    )  # fmt: skip
    seconds = time.perf_counter() - start
    each = len(SEEDS) * LAMBDAS * sum(-(-len(train) // case.batch) for train, _ in folds)  # in an epoch
    span = statistics.median([b - a for a, b in itertools.pairwise(ends)] or [seconds])
    return {
        "seconds": seconds, "steps": epochs * each, "memory": peak_mib() - before, "training": each / span,
        "scores": cv.seed_scores.tolist(), "engine": repr(cv.members.engine),
    }  # fmt: skip


def run(name: str, case: str, asked: argparse.Namespace) -> dict[str, Any]:
    """Run one contender in a fresh process."""
    command = [sys.executable, "-m", "tests.benchmarks.crossval", case, "--one", name, "--epochs", str(asked.epochs)]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
        env = {k: v for k, v in os.environ.items() if k not in THREADS} | {"TORCHINDUCTOR_CACHE_DIR": cache}
        out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=env, cwd=ROOT).stdout
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def measure(case: str, asked: argparse.Namespace) -> None:
    """Run all contenders in turn, print a row for each and keep them."""
    import numpy as np

    about = machine()
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in NAMES}
    for _ in range(asked.rounds):
        for name in NAMES:
            runs[name].append(run(name, case, asked))
    expected, slow = np.array(runs["loop"][0]["scores"]), min(r["seconds"] for r in runs["loop"])
    rows = {}
    print(f"{case}, {FOLDS * len(SEEDS) * LAMBDAS} members, {asked.epochs} epochs")
    print(f"{'':16s}  min s  median  loop / this  rate in all  in training   MiB  difference of scores")
    for name, own in runs.items():
        seconds, fastest = [r["seconds"] for r in own], min(own, key=lambda r: float(r["seconds"]))
        row = rows[name] = {
            "seconds": round(min(seconds), 2), "all": [round(s, 2) for s in seconds],
            "ratio": round(slow / min(seconds), 3), "rate": round(fastest["steps"] / fastest["seconds"], 1),
            "training": round(max(r["training"] for r in own), 1), "memory": round(fastest["memory"]),
            "engine": fastest["engine"], "apart": float(np.abs(np.array(own[0]["scores"]) - expected).max()),
        }  # fmt: skip
        print(
            f"{name:16s} {row['seconds']:6.1f} {statistics.median(seconds):7.1f} {row['ratio']:12.2f}"
            f" {row['rate']:12.0f} {row['training']:12.0f} {row['memory']:5.0f} {row['apart']:21.1e}",
            flush=True,
        )
    print(rows["cross_validate"]["engine"])
    _report.keep(
        asked.out,
        f"crossval-{case}",
        {
            "kind": "crossval", "workload": case, "machine": about, "rounds": asked.rounds, "rows": rows,
            "said": f"MLP {'-'.join(map(str, CASES[case].widths))}, batch {CASES[case].batch}, {asked.epochs} epochs",
        },
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the models asked for."""
    parser = argparse.ArgumentParser(description="Cross-validation beside a loop over all cores.")
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--out", type=Path, default=_report.RESULTS, help="folder of the results")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if unknown := set(asked.cases) - set(CASES):
        parser.error(f"no model called {', '.join(sorted(unknown))}; there are: {', '.join(CASES)}")
    if asked.one:
        warnings.simplefilter("ignore")  # of the best lambda at an end of the grid
        print(json.dumps(contender(asked.one, CASES[asked.cases[0]], asked.epochs)))
        return
    for case in asked.cases or CASES:
        measure(case, asked)
    _report.write(asked.out)


if __name__ == "__main__":
    main()

"""Train members with native kernels, compiled and vmapped, beside vmapped ones without: `nox -s sanitize` runs it.

The compiler that the environment names puts the sanitizers into the native kernels and into what inductor writes; an
error of theirs ends the process.
"""

from __future__ import annotations

import warnings

import torch

import l2path
from l2path import lowerings
from tests.benchmarks._workloads import ALL

COMPILED = l2path.Engine("compiled", 3, workers=2, steps=4, native=True, outputs=True)
FUSED = l2path.Engine("vmap", 3, native=True)  # on two threads of torch's


def main() -> None:
    """Train some of the benchmarks' modules, with a last batch and a chunk that are smaller than the others."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(2)
    status = lowerings.prepare(wait=None)
    if status.state != "ready":
        raise SystemExit(f"no native kernels: {status}")
    runs = [(name, COMPILED) for name in ("tiny", "lstm", "cnn", "tfm")] + [(name, FUSED) for name in ("lstm", "gru")]
    for name, native in runs:
        workload = ALL[name]
        x, y = workload.data(9)
        rows = 8 * workload.batch + 3
        found, want = (
            l2path.batch_train(
                workload.module(), (x[:rows], y[:rows]), loss_fn=workload.loss, optimizer=workload.ours(), epochs=2,
                lambdas=torch.logspace(-2, -6, 5), batch_size=workload.batch, validation=(x[:50], y[:50]),
                engine=engine, progress=False,
            )
            for engine in (native, "vmap")
        )  # fmt: skip
        if found.engine != native:
            raise SystemExit(f"{name}: {found.engine}")
        for key, history in want.history.items():
            torch.testing.assert_close(found.history[key], history, rtol=1e-3, atol=1e-5)
        print(name, f"{native.kind}:", *(f"{loss:.6f}" for loss in found.history["val_loss"][-1]))


if __name__ == "__main__":
    main()

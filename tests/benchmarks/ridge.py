"""Time ridge_path against scikit-learn and himalaya on one grid of strengths, side by side.

Run it as ``python tests/benchmarks/ridge.py [repeats]``. Ratios are theirs over ours: above 1, ours is
faster. Each round runs every contender once, in turn, so that a busy machine disturbs all of them alike.

The contenders: a loop over the grid, as most people write it (scikit-learn's default solver, its most
accurate one "svd", himalaya's solve_ridge_svd), and each library's own best case, one call with the targets
repeated once per strength, since both take one alpha per target.
"""

from __future__ import annotations

import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version

import himalaya.ridge
import numpy as np
import numpy.typing as npt
import torch
from himalaya.backend import set_backend
from sklearn.linear_model import Ridge

from l2path.ridge import ridge_path
from l2path.units import to_sklearn_alpha

Floats = npt.NDArray[np.float64]
SIZES = [(2000, 50, 1), (5000, 200, 1), (500, 500, 5), (100, 2000, 1)]  # n, D, T
GRID = np.logspace(-6, 0, 50)


def contenders(X: Floats, Y: Floats) -> dict[str, Callable[[], Floats]]:
    """Return functions that compute all coefficients ``[K, D, T]``, each with its intercept."""
    (_, d), t = X.shape, Y.shape[1]
    k = len(GRID)
    alphas = to_sklearn_alpha(GRID, n=len(X), targets=t)
    per_target = np.repeat(alphas, t)
    repeated = np.tile(Y, (1, k))

    def himalaya_fit(targets: Floats, alpha: Floats) -> Floats:
        fit = himalaya.ridge.solve_ridge_svd(X, targets, alpha=alpha, fit_intercept=True, warn=False)
        return np.asarray(fit[0])

    def sklearn_loop(solver: str) -> Floats:
        return np.stack([Ridge(alpha=a, solver=solver).fit(X, Y).coef_.reshape(t, d).T for a in alphas])

    def unrepeat(weights: Floats) -> Floats:
        return weights.reshape(d, k, t).transpose(1, 0, 2)

    return {
        "l2path": lambda: ridge_path(X, Y, GRID).coef.numpy(),
        "sklearn loop": lambda: sklearn_loop("auto"),
        "sklearn svd loop": lambda: sklearn_loop("svd"),
        "sklearn svd once": lambda: unrepeat(Ridge(alpha=per_target, solver="svd").fit(X, repeated).coef_.T),
        "himalaya loop": lambda: np.stack([himalaya_fit(Y, np.array([a])) for a in alphas]),
        "himalaya once": lambda: unrepeat(himalaya_fit(repeated, per_target)),
    }


def measure(n: int, d: int, t: int, repeats: int) -> None:
    """Time one size and print a row per contender."""
    generator = np.random.default_rng(0)
    X = generator.standard_normal((n, d))
    Y = X @ generator.standard_normal((d, t)) + generator.standard_normal((n, t))
    functions = contenders(X, Y)
    expected = functions["sklearn svd loop"]()  # also the warm-up of the thread pools
    times: dict[str, list[float]] = {name: [] for name in functions}
    errors = {}
    for name, function in functions.items():
        errors[name] = float(np.abs(function() - expected).max() / np.abs(expected).max())
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    print(f"\nn={n} D={d} T={t}, {len(GRID)} strengths, {repeats} rounds")
    print(f"{'':18s}    min ms median ms ratio of mins of medians difference")
    ours = times["l2path"]
    for name, values in times.items():
        low, middle = min(values), statistics.median(values)
        print(
            f"{name:18s} {1e3 * low:9.2f} {1e3 * middle:9.2f} {low / min(ours):13.1f}"
            f" {middle / statistics.median(ours):10.1f} {errors[name]:10.1e}"
        )


def main(repeats: int = 5) -> None:
    """Print the machine, the versions and a table per size."""
    warnings.simplefilter("ignore")
    set_backend("torch")  # himalaya's faster backend on this kind of problem; it returns torch tensors
    packages = ("torch", "numpy", "scikit-learn", "himalaya")
    machine = platform.processor() or platform.machine()
    print(f"{machine}, {platform.system()}, Python {platform.python_version()}")
    print(", ".join(f"{name} {version(name)}" for name in packages))
    print(f"torch threads: {torch.get_num_threads()}")
    for size in SIZES:
        measure(*size, repeats=repeats)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

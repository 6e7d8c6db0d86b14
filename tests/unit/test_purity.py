"""Nothing of the caller's changes, and no global state does."""

from __future__ import annotations

import copy
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import l2path
from tests.helpers import assert_trees_close

OPT = l2path.adam(lr=0.01)


def make() -> nn.Module:
    """Dropout, BatchNorm (one of them frozen in eval mode), a tied and a frozen parameter, hooks."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.2), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)
    )
    module[3].weight = module[0].weight
    module[4].eval()
    module[5].bias.requires_grad_(False)
    module[0].register_forward_hook(lambda *_: None)
    return module


X = torch.randn(17, 4, generator=torch.Generator().manual_seed(1))
Y = torch.arange(17) % 3


def run_batch(module: nn.Module) -> Any:
    result = l2path.batch_train(
        module, (X, Y), loss_fn=F.cross_entropy, optimizer=OPT, lambdas=[1.0, 0.1, 0.0], epochs=2, batch_size=5,
        validation=(X, Y), anchor="init",
    )  # fmt: skip
    result.predict(X)
    result.member(0).state_dict()
    return str(result)


def run_step(module: nn.Module) -> Any:
    # Dropout draws from the default generator in a bare step: the one documented exception.
    module = copy.deepcopy(module)
    module[2].eval()  # type: ignore[index]  # Sequential
    step = l2path.make_train_step(module, F.cross_entropy, OPT)
    return step(l2path.init_state(module, OPT), (X, Y), {"*": 0.1})


def run_specs(module: nn.Module) -> Any:
    spec = {"0.*": torch.tensor(0.1), "*": 0.2}
    l2path.l2_penalty(dict(module.named_parameters()), 0.1)
    return l2path.expand_lambdas(module, spec), l2path.lambda_table(module, l2path.weights_only(0.1))


def run_ridge(module: nn.Module) -> Any:
    return l2path.ridge_path(X, X[:, 0], [1.0, 0.1])


RUNS: dict[str, Callable[[nn.Module], Any]] = {
    "batch_train": run_batch, "train_step": run_step, "specs": run_specs, "ridge_path": run_ridge,
}  # fmt: skip


def describe(module: nn.Module) -> dict[str, Any]:
    """Everything observable of a module; identities of its tensors included."""
    return {
        "class": type(module),
        "modes": {n: m.training for n, m in module.named_modules()},
        "hooks": {n: [len(m._forward_hooks), len(m._backward_hooks)] for n, m in module.named_modules()},
        "ids": {n: id(p) for n, p in module.named_parameters(remove_duplicate=False)},
        "requires_grad": {n: p.requires_grad for n, p in module.named_parameters(remove_duplicate=False)},
        "grads": {n: p.grad is None for n, p in module.named_parameters()},
        "versions": {n: p._version for n, p in module.named_parameters()},
        "keys": sorted(module.__dict__),
    }


@contextmanager
def unchanged(name: str, read: Callable[[], Any]) -> Iterator[None]:
    before = read()
    yield
    assert_same(read(), before, name)


def assert_same(after: Any, before: Any, name: str) -> None:
    if isinstance(before, (Tensor, np.ndarray)):
        assert np.array_equal(np.asarray(after), np.asarray(before)), name
    elif isinstance(before, tuple):
        for a, b in zip(after, before, strict=True):
            assert_same(a, b, name)
    else:
        assert after == before, name


GLOBALS: dict[str, Callable[[], Any]] = {
    "torch generator": torch.get_rng_state,
    "numpy generator": lambda: np.random.get_state(legacy=False)["state"]["key"],
    "python generator": random.getstate,
    "grad mode": torch.is_grad_enabled,
    "default dtype": torch.get_default_dtype,
    "threads": torch.get_num_threads,
    "deterministic": torch.are_deterministic_algorithms_enabled,
    "mkldnn": lambda: torch.backends.mkldnn.enabled,
    "interrupt handler": lambda: signal.getsignal(signal.SIGINT),
}


@pytest.mark.filterwarnings("ignore::l2path.BoundaryWarning")
@pytest.mark.parametrize("run", RUNS)
def test_nothing_changes(run: str) -> None:
    module = make()
    weights = copy.deepcopy(module.state_dict())
    x, y = X.clone(), Y.clone()
    before, globals_before = describe(module), {name: read() for name, read in GLOBALS.items()}
    RUNS[run](module)
    assert describe(module) == before
    assert_trees_close(dict(module.state_dict()), dict(weights), 0.0)
    assert_trees_close((X, Y), (x, y), 0.0)
    for name, read in GLOBALS.items():
        assert_same(read(), globals_before[name], name)


@pytest.mark.parametrize("name", ["torch generator", "grad mode", "default dtype"])
def test_the_check_can_fail(name: str) -> None:
    def change() -> None:
        torch.rand(1)
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)

    def changed() -> None:
        with unchanged(name, GLOBALS[name]):
            change()

    state, dtype = torch.get_rng_state(), torch.get_default_dtype()
    try:
        with pytest.raises(AssertionError, match=name):
            changed()
    finally:
        torch.set_rng_state(state)
        torch.set_grad_enabled(True)
        torch.set_default_dtype(dtype)


@pytest.mark.filterwarnings("ignore::l2path.BoundaryWarning")
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_results_do_not_depend_on_the_callers_grad_mode(mode: Callable[[], Any]) -> None:
    module = make()
    expected = run_batch(module)
    with mode():
        assert run_batch(module) == expected
        assert torch.is_grad_enabled() is (mode is torch.enable_grad)


@pytest.mark.filterwarnings("ignore::l2path.BoundaryWarning")
def test_results_do_not_depend_on_the_global_generator() -> None:
    module = make()
    expected = run_batch(module)
    torch.manual_seed(123)
    assert run_batch(module) == expected


def test_state_is_restored_when_the_model_raises() -> None:
    class Raises(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = make()

        def forward(self, x: Tensor) -> Tensor:
            out = self.inner(x)
            if x.shape[0] == 2:  # the last batch
                raise RuntimeError("midway")
            assert isinstance(out, Tensor)
            return out

    module = Raises()
    before = describe(module)
    globals_before = {name: read() for name, read in GLOBALS.items()}
    with pytest.raises(RuntimeError, match="midway"):
        l2path.batch_train(
            module, (X, Y), loss_fn=F.cross_entropy, optimizer=OPT, lambdas=[0.1], epochs=1, batch_size=5, shuffle=False
        )
    assert describe(module) == before
    for name, read in GLOBALS.items():
        assert_same(read(), globals_before[name], name)

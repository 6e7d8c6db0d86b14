"""``accumulate`` and ``ema``: the contract of optimizers, printing, hyperparameters, warnings and error texts."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import l2path
from l2path import accumulate, ema
from l2path.engine import take
from l2path.optimizers import Optimizer, adam, adamw, apply_updates, chain, clip_by_value, hyper_paths, set_hyper, sgd
from l2path.trees import tensor_leaves, tree_map
from l2path.types import Params
from tests.helpers import assert_trees_close

WRAPPED = {
    "accumulate": accumulate(sgd(0.1, momentum=0.9), 2),
    "ema": ema(adam(0.1), 0.7),
    "both": ema(accumulate(adamw(0.1), 2), 0.7),
}
each_wrapper = pytest.mark.parametrize("opt", WRAPPED.values(), ids=list(WRAPPED))


def normal(dtype: torch.dtype, seed: int) -> Params:
    rng = torch.Generator().manual_seed(seed)
    shapes = {"w": (3, 2), "b": ()}
    return {n: torch.randn(s, generator=rng, dtype=torch.float64).to(dtype) for n, s in shapes.items()}


@each_wrapper
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.complex64, torch.complex128])
def test_dtypes_shapes_and_inputs_stay(opt: Optimizer, dtype: torch.dtype) -> None:
    params = normal(dtype, 0)
    state = opt.init(params)
    expected = [(leaf.dtype, leaf.shape) for leaf in tensor_leaves(state)]
    assert all(leaf.data_ptr() != p.data_ptr() for leaf in tensor_leaves(state) for p in params.values())
    for t in range(4):
        inputs = (normal(dtype, t), state, params)
        before = tree_map(torch.clone, inputs)
        updates, state = opt.update(*inputs)
        assert_trees_close(inputs, before, 0.0)
        assert [(leaf.dtype, leaf.shape) for leaf in tensor_leaves(state)] == expected
        assert {n: (u.dtype, u.shape) for n, u in updates.items()} == {n: (p.dtype, p.shape) for n, p in params.items()}
        params = apply_updates(params, updates)


@each_wrapper
def test_vmapped_members_equal_solo_runs(opt: Optimizer) -> None:
    members = [normal(torch.float64, k) for k in range(3)]
    states = [set_hyper(opt.init(p), "lr", 0.1 * k) for k, p in enumerate(members)]
    params, state = (tree_map(lambda *x: torch.stack(x), *trees) for trees in (members, states))
    for t in range(5):
        grads = normal(torch.float64, 9 + t)
        updates, state = torch.func.vmap(opt.update, in_dims=(None, 0, 0))(grads, state, params)
        params = apply_updates(params, updates)
        for k in range(3):
            updates, states[k] = opt.update(grads, states[k], members[k])
            members[k] = apply_updates(members[k], updates)
            assert_trees_close(take(params, k), members[k], 1e-12)
            assert_trees_close(take(state, k), states[k], 1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex128])
def test_averages_of_every_dtype_equal_torch(dtype: torch.dtype) -> None:
    start = normal(dtype, 0)
    module = nn.ParameterDict({n: nn.Parameter(p.clone()) for n, p in start.items()})
    averaged = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.7))
    opt = ema(sgd(0.1), 0.7)
    params, state = start, opt.init(start)
    for t in range(6):
        updates, state = opt.update(normal(dtype, t), state, params)
        params = apply_updates(params, updates)
        with torch.no_grad():
            for name, p in module.items():
                p.copy_(params[name])
        averaged.update_parameters(module)
        expected = {n.removeprefix("module."): p.detach() for n, p in averaged.named_parameters()}
        tolerance = {torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float32: 1e-6}.get(dtype, 1e-14)
        assert_trees_close(state.average, expected, tolerance, check_dtype=True)


# --- the rest ---------------------------------------------------------------------------------------------------------


def test_they_print_as_the_call_that_builds_them() -> None:
    inner = "sgd(lr=0.5, momentum=0.0, dampening=0.0, nesterov=False)"
    assert repr(ema(accumulate(sgd(0.5), 4), 0.9)) == f"ema(accumulate({inner}, every=4), decay=0.9)"
    assert ema(sgd()).kind == accumulate(sgd(), 2).kind == "optimizer"


def test_hyperparameters_are_found_inside() -> None:
    state = ema(accumulate(chain(clip_by_value(1.0), adamw()), 4), 0.9).init(normal(torch.float32, 0))
    paths = hyper_paths(state)
    assert set(paths) == {"ema_decay", "max_value", "lr", "beta1", "beta2", "eps", "decay"}
    assert paths["decay"] == [("inner", "inner", 1, "hyper", "decay")]
    new = set_hyper(set_hyper(state, "decay", {"w": 0.5, "b": 0.25}), "ema_decay", 0.3)
    assert {n: d.item() for n, d in new.inner.inner[1].hyper["decay"].items()} == {"w": 0.5, "b": 0.25}
    assert (new.hyper["ema_decay"].item(), state.hyper["ema_decay"].item()) == (0.3, 0.9)


def test_averaged_params_finds_the_average_wherever_it_is() -> None:
    module, clip = nn.Linear(2, 1), clip_by_value(1.0)
    for opt in (ema(sgd()), accumulate(ema(sgd()), 2), chain(clip, ema(sgd()))):
        state = l2path.init_state(module, opt, grad_transform=clip)
        average = l2path.averaged_params(state)
        assert_trees_close(average, state.params, 0.0)
        assert all(average[n].data_ptr() != p.data_ptr() for n, p in state.params.items())
    state = l2path.init_state(module, sgd())
    assert l2path.averaged_params(state) is state.params
    with pytest.raises(l2path.ArgumentError, match="state: got a EmaState; expected a TrainState"):
        l2path.averaged_params(ema(sgd()).init({}))


@pytest.mark.parametrize("wrap", [lambda o: accumulate(o, 2), lambda o: ema(o, 0.9)], ids=["accumulate", "ema"])
def test_bad_optimizers_are_refused(wrap: Callable[[Any], Optimizer]) -> None:
    cases = {
        "optimizer: got the function l2path.sgd; expected the optimizer that it makes": sgd,
        "optimizer: got torch.optim.sgd.SGD; expected one of l2path's optimizers": torch.optim.SGD,
        "optimizer: got the gradient transform clip_by_value(max_value=1.0)": clip_by_value(1.0),
        "optimizer: got builtins.float": 0.1,
    }
    for message, bad in cases.items():
        with pytest.raises(l2path.ArgumentError, match=re.escape(message)):
            wrap(bad)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: accumulate(sgd(), 0), "every: got 0; expected an integer >= 1. Remedy: count batches"),
        (lambda: accumulate(sgd(), -2), "every: got -2"),
        (lambda: accumulate(sgd(), 2.0), "every: got 2.0"),  # type: ignore[arg-type]  # the test
        (lambda: accumulate(sgd(), True), "every: got True"),
        (lambda: accumulate(sgd(), None), "every: got None"),  # type: ignore[arg-type]  # the test
        (lambda: ema(sgd(), 1.0), "decay: got 1; expected a finite number >= 0 and < 1"),
        (lambda: ema(sgd(), -0.1), "decay: got -0.1"),
        (lambda: ema(sgd(), float("nan")), "decay: got nan"),
        (lambda: ema(sgd(), torch.tensor(1.5)), "decay: got 1.5"),
        (
            lambda: ema(sgd(), [0.9]),  # type: ignore[arg-type]  # the test
            "decay: got [0.9] (list); expected a finite number >= 0 and < 1, or a 0-d tensor of one. "
            'Remedy: give one number; to train members with several, use sweep={"ema_decay": [...]}',
        ),
        (lambda: ema(accumulate(ema(sgd()), 2)), "which averages already; expected an optimizer without an average"),
        (lambda: chain(ema(sgd()), clip_by_value(1.0)), "Remedy: wrap the whole chain: ema(chain(...), decay)"),
    ],
)
def test_bad_arguments_are_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(l2path.ArgumentError, match=re.escape(message)):
        build()


def call(optimizer: Optimizer, **changes: Any) -> l2path.PathResult:
    x = torch.linspace(-1, 1, 8).unsqueeze(1)
    settings: dict[str, Any] = {"loss_fn": F.mse_loss, "epochs": 1, "lambdas": [0.1]}
    return l2path.batch_train(nn.Linear(1, 1), (x, 2 * x), optimizer=optimizer, **(settings | changes))


def test_a_swept_decay_lies_below_1() -> None:
    with pytest.raises(l2path.ArgumentError, match=r"sweep\['ema_decay'\]: got \[0.9, 1.0\].*>= 0 and < 1"):
        call(ema(sgd()), sweep={"ema_decay": [0.9, 1.0]})


def test_warnings_see_through_the_wrappers() -> None:
    wrapped = ema(accumulate(sgd(lr=0.1, momentum=0.9), 2), 0.9)
    call(wrapped, lambdas=[37.0])  # the limit is 3.8
    with pytest.warns(l2path.StabilityWarning, match="Lower the largest lambda below 38"):
        call(wrapped, lambdas=[39.0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call(ema(chain(clip_by_value(1.0), sgd(lr=0.1))), lambdas=[39.0])  # a clip may save it
        call(ema(adam()))
    with pytest.warns(l2path.MixedDecayWarning):
        call(ema(accumulate(adamw(), 2)))

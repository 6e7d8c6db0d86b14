"""The train step: pure, exact, and composable."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import l2path
from l2path import ArgumentError, TrainState, full_loss, init_state, make_train_step
from l2path.engine import repeat, stack, take
from l2path.functional import forked_rng, grad_with_autograd, vmap
from l2path.losses import data_loss
from l2path.training import Metrics, build_step
from l2path.trees import tensor_leaves, tree_leaves
from tests.helpers import assert_trees_close
from tests.models import classes, noisy, smooth

F64 = torch.float64


def batch() -> tuple[Tensor, Tensor]:
    return classes(12)


def line() -> nn.Linear:
    """y = 2 x1 - x2 + 0.5, float64."""
    model = nn.Linear(2, 1).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[2.0, -1.0]]))
        model.bias.fill_(0.5)
    return model


def line_batch() -> tuple[Tensor, Tensor]:
    return torch.tensor([[1.0, 2.0], [3.0, 0.0]], dtype=F64), torch.tensor([[1.5], [5.5]], dtype=F64)


def snapshot(tree: Any) -> Any:
    return copy.deepcopy(tree)


OPTIMIZERS = [
    pytest.param(l2path.sgd(lr=0.1), id="sgd"),
    pytest.param(l2path.sgd(lr=0.1, momentum=0.9, dampening=0.1), id="momentum"),
    pytest.param(l2path.adam(lr=0.01), id="adam"),
    pytest.param(l2path.adamw(lr=0.01, decay={"*": 0.1}), id="adamw"),
    pytest.param(l2path.chain(l2path.clip_by_global_norm(1.0), l2path.sgd(lr=0.1)), id="chain"),
]


# States


@pytest.mark.parametrize("opt", OPTIMIZERS)
def test_every_leaf_of_a_state_is_an_owned_tensor(opt: l2path.Optimizer) -> None:
    model = noisy()
    state = init_state(model, opt, grad_transform=l2path.clip_by_value(1.0))
    leaves = list(tree_leaves(state))
    assert all(isinstance(leaf, Tensor) and not leaf.requires_grad for leaf in leaves)
    pointers = [leaf.untyped_storage().data_ptr() for leaf in leaves]
    assert len(set(pointers)) == len(pointers)
    assert not set(pointers) & {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    assert state.step.dtype == torch.int64
    assert state.step.shape == ()
    assert state.step.item() == 0


def test_states_of_one_functional_share_nothing() -> None:
    fn = l2path.functionalize(noisy())
    first, second = init_state(fn, l2path.sgd()), init_state(fn, l2path.sgd())
    first.params["0.weight"].zero_()
    first.buffers["1.running_mean"].fill_(9.0)
    assert not bool((second.params["0.weight"] == 0).all())
    assert second.buffers["1.running_mean"].unique().tolist() == [0.0]
    assert fn.buffers["1.running_mean"].unique().tolist() == [0.0]


def test_a_learning_rate_given_as_a_tensor_is_copied() -> None:
    lr = torch.tensor(0.1, dtype=F64)
    state = init_state(line(), l2path.sgd(lr=lr))
    lr.fill_(7.0)
    assert state.opt_state.hyper["lr"].item() == 0.1


# One step by hand


def test_one_step_by_hand() -> None:
    # Residuals: 2 - 2 + 0.5 - 1.5 = -1 and 6 + 0.5 - 5.5 = 1, so that the loss is 1;
    # d/dw = 2/2 * sum(r x) = (-1 + 3, -2 + 0) = (2, -2), d/db = sum(r) = 0.
    model = line()
    step = make_train_step(model, F.mse_loss, l2path.sgd(lr=0.1))
    state, metrics = step(init_state(model, l2path.sgd(lr=0.1)), line_batch(), {"weight": 0.4, "bias": 2.0})
    assert metrics.loss.item() == pytest.approx(1.0, rel=1e-14)
    assert metrics.penalty.item() == pytest.approx(0.2 * 5 + 1.0 * 0.25, rel=1e-14)
    assert metrics.objective.item() == pytest.approx(2.25, rel=1e-14)
    assert_trees_close(
        state.params["weight"], torch.tensor([[2 - 0.1 * (2 + 0.8), -1 - 0.1 * (-2 - 0.4)]]).double(), 1e-7
    )
    assert state.params["bias"].item() == pytest.approx(0.5 - 0.1 * (0 + 1.0), rel=1e-14)
    assert state.step.item() == 1


def test_the_anchor_is_what_parameters_shrink_towards() -> None:
    model = line()
    opt = l2path.sgd(lr=0.1)
    anchor = {"weight": torch.tensor([[1.0, 1.0]])}
    state, metrics = make_train_step(model, F.mse_loss, opt, anchor=anchor)(init_state(model, opt), line_batch(), 2.0)
    assert metrics.penalty.item() == pytest.approx(1.0 + 4.0 + 0.25)
    # The data gradient is (2, -2); the penalty's is 2 * (2 - 1, -1 - 1).
    assert state.params["weight"].tolist()[0] == pytest.approx([2 - 0.1 * 4, -1 - 0.1 * (-6)])


def test_the_anchor_is_read_once() -> None:
    model = line()
    opt = l2path.sgd(lr=0.1)
    step = make_train_step(model, F.mse_loss, opt, anchor=dict(model.named_parameters()))
    start = init_state(model, opt)
    with torch.no_grad():  # the caller goes on training the module
        model.weight += 5.0
    assert step(start, line_batch(), 1.0)[1].penalty.item() == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_the_objective_is_loss_plus_penalty(dtype: torch.dtype) -> None:
    model = smooth().to(dtype)
    x, y = batch()
    opt = l2path.adam()
    metrics = make_train_step(model, F.cross_entropy, opt)(init_state(model, opt), (x.to(dtype), y), 0.3)[1]
    assert isinstance(metrics, Metrics)
    assert torch.equal(metrics.objective, metrics.loss + metrics.penalty)
    assert_trees_close(metrics.loss, F.cross_entropy(model(x.to(dtype)), y), rtol=1e-6)
    assert_trees_close(metrics.penalty, 0.15 * sum(float(p.detach().square().sum()) for p in model.parameters()), 1e-6)
    assert {m.dtype for m in metrics} == {dtype}
    assert all(m.shape == () and not m.requires_grad for m in metrics)


def test_an_unused_parameter_is_shrunk_by_its_penalty_alone() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used = nn.Parameter(torch.tensor(2.0, dtype=F64))
            self.idle = nn.Parameter(torch.tensor(3.0, dtype=F64))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.used

    opt = l2path.sgd(lr=0.1)
    step = make_train_step(Half(), F.mse_loss, opt)
    one = torch.ones(1, dtype=F64)
    state, _ = step(init_state(Half(), opt), (one, 2 * one), 0.5)
    assert state.params["idle"].item() == pytest.approx(3.0 - 0.1 * 0.5 * 3.0, rel=1e-15)
    assert state.params["used"].item() == pytest.approx(2.0 - 0.1 * 0.5 * 2.0, rel=1e-15)
    state, _ = step(init_state(Half(), opt), (one, 2 * one), {"used": 0.5})
    assert state.params["idle"].item() == 3.0


def test_frozen_parameters_are_neither_updated_nor_penalised() -> None:
    model = line()
    model.bias.requires_grad_(False)
    opt = l2path.sgd(lr=0.1)
    state, metrics = make_train_step(model, F.mse_loss, opt)(init_state(model, opt), line_batch(), 0.4)
    assert list(state.params) == ["weight"]
    assert metrics.penalty.item() == pytest.approx(0.2 * 5)


def test_a_model_without_trainable_parameters_still_reports_its_loss() -> None:
    model = line().requires_grad_(False)
    opt = l2path.sgd(lr=0.1)
    state, metrics = make_train_step(model, F.mse_loss, opt)(init_state(model, opt), line_batch(), 0.4)
    assert state.params == {}
    assert metrics.objective.item() == pytest.approx(1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, F64])
@pytest.mark.parametrize("opt", OPTIMIZERS)
def test_dtypes_of_a_state_never_change(dtype: torch.dtype, opt: l2path.Optimizer) -> None:
    model = noisy().to(dtype)
    x, y = batch()
    start = init_state(model, opt)
    with forked_rng(torch.device("cpu")):
        strength = {"*": 0.1, "0.weight": torch.rand(8, 5, dtype=F64)}
        state, _ = make_train_step(model, F.cross_entropy, opt)(start, (x.to(dtype), y), strength)
    assert [t.dtype for t in tensor_leaves(state)] == [t.dtype for t in tensor_leaves(start)]
    assert [t.shape for t in tensor_leaves(state)] == [t.shape for t in tensor_leaves(start)]


# Purity


@pytest.mark.parametrize("opt", OPTIMIZERS)
def test_a_step_changes_nothing_of_the_callers(opt: l2path.Optimizer) -> None:
    model = noisy()
    clip = l2path.clip_by_global_norm(0.1)
    anchor = {"4.weight": torch.ones(3, 8, dtype=F64)}
    step = make_train_step(model, F.cross_entropy, opt, grad_transform=clip, anchor=anchor)
    start, data = init_state(model, opt, grad_transform=clip), batch()
    lambdas = {"*": 0.1, "0.weight": torch.rand(8, 5, dtype=F64, generator=torch.Generator().manual_seed(0))}
    arguments = (start, data, lambdas, anchor, model.state_dict())
    before = snapshot(arguments)
    grad_mode = torch.is_grad_enabled()
    with forked_rng(torch.device("cpu")):
        after, _ = step(start, data, lambdas)
    assert_trees_close(arguments, before, rtol=0.0, check_dtype=False)
    assert all(p.grad is None for p in model.parameters())
    assert torch.is_grad_enabled() == grad_mode
    assert after.step.item() == 1
    assert after.buffers["1.num_batches_tracked"].item() == 1
    assert after.step.dtype == torch.int64


def test_the_same_step_twice_is_bitwise_the_same() -> None:
    model = noisy()
    opt = l2path.adam(lr=0.01)
    step, start = make_train_step(model, F.cross_entropy, opt), init_state(model, opt)
    results = []
    for _ in range(2):
        with forked_rng(torch.device("cpu")):
            torch.manual_seed(3)
            results.append(step(start, batch(), 0.1))
    assert_trees_close(results[0], results[1], rtol=0.0)


def test_a_step_under_no_grad_is_the_same_step() -> None:
    model = smooth()
    opt = l2path.sgd(lr=0.1)
    step, start = make_train_step(model, F.cross_entropy, opt), init_state(model, opt)
    with torch.no_grad():
        quiet = step(start, batch(), 0.1)
    assert_trees_close(quiet, step(start, batch(), 0.1), rtol=0.0)


def test_an_in_place_first_layer_leaves_the_batch_alone() -> None:
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(5, 3)).double()
    opt = l2path.sgd(lr=0.1)
    data = batch()
    state, _ = make_train_step(model, F.cross_entropy, opt)(init_state(model, opt), data, 0.0)
    assert_trees_close(data, batch(), rtol=0.0)
    other = nn.Sequential(nn.ReLU(), nn.Linear(5, 3)).double()
    other.load_state_dict(model.state_dict())
    expected, _ = make_train_step(other, F.cross_entropy, opt)(init_state(other, opt), data, 0.0)
    assert_trees_close(state, expected)


def test_a_module_changed_later_changes_no_step() -> None:
    model = line()
    opt = l2path.sgd(lr=0.1)
    step, start = make_train_step(model, F.mse_loss, opt), init_state(model, opt)
    expected = step(start, line_batch(), 0.1)
    with torch.no_grad():
        model.weight.zero_()
    model.eval()
    assert_trees_close(step(start, line_batch(), 0.1), expected, rtol=0.0)


# Transforms


@pytest.mark.parametrize("make", [smooth, noisy])
@pytest.mark.parametrize("opt", OPTIMIZERS)
def test_vmap_over_states_and_lambdas_is_the_loop(make: Callable[[], nn.Module], opt: l2path.Optimizer) -> None:
    model = make()
    step, start = make_train_step(model, F.cross_entropy, opt), init_state(model, opt)
    members = stack([start, start._replace(params={k: 1.1 * p for k, p in start.params.items()}), start])
    lambdas = {"*": torch.tensor([1.0, 0.1, 0.0], dtype=F64), "0.weight": torch.arange(120.0).view(3, 8, 5).double()}
    with forked_rng(torch.device("cpu")):
        torch.manual_seed(3)
        mapped = vmap(step, in_dims=(0, None, 0))(members, batch(), lambdas)
        mapped = vmap(step, in_dims=(0, None, 0))(mapped[0], batch(), lambdas)
        looped = []
        for k in range(3):
            torch.manual_seed(3)
            one, _ = step(take(members, k), batch(), take(lambdas, k))
            looped.append(step(one, batch(), take(lambdas, k)))
    assert_trees_close(mapped, stack(looped), rtol=1e-12)


def test_vmap_over_lambdas_alone() -> None:
    model = smooth()
    opt = l2path.sgd(lr=0.1)
    step, start = make_train_step(model, F.cross_entropy, opt), init_state(model, opt)
    lambdas = torch.tensor([1.0, 0.1], dtype=F64)
    mapped, metrics = torch.func.vmap(step, in_dims=(None, None, 0))(start, batch(), lambdas)
    assert_trees_close(metrics.penalty, lambdas * metrics.penalty[0])
    for k in range(2):
        assert_trees_close(take(mapped.params, k), step(start, batch(), lambdas[k])[0].params)


def test_hyperparameters_differ_by_member() -> None:
    model = line()
    opt = l2path.sgd(lr=0.1)
    states = repeat(init_state(model, opt), 2)
    hyper = {"lr": torch.tensor([0.1, 0.2], dtype=F64)}
    states = states._replace(opt_state=states.opt_state._replace(hyper=hyper))
    after, _ = vmap(make_train_step(model, F.mse_loss, opt), in_dims=(0, None, None))(states, line_batch(), 0.0)
    assert after.params["weight"][:, 0].tolist() == [pytest.approx([1.8, -0.8]), pytest.approx([1.6, -0.6])]


def test_grad_of_the_loss_with_respect_to_inputs_and_parameters() -> None:
    model = smooth()
    opt = l2path.sgd(lr=0.1)
    step, start = make_train_step(model, F.cross_entropy, opt), init_state(model, opt)
    x, y = batch()

    def of_inputs(x: Tensor) -> Tensor:
        return step(start, (x, y), 0.1)[1].objective

    def of_params(params: dict[str, Tensor]) -> Tensor:
        return step(start._replace(params=params), (x, y), 0.1)[1].objective

    leaf = x.clone().requires_grad_()
    objective = (
        F.cross_entropy(model(leaf), y) + 0.05 * torch.stack([p.square().sum() for p in model.parameters()]).sum()
    )
    objective.backward()
    assert_trees_close(torch.func.grad(of_inputs)(x), leaf.grad)
    assert_trees_close(torch.func.grad(of_params)(start.params), {n: p.grad for n, p in model.named_parameters()})


def test_jvp_of_a_step_with_respect_to_lambda() -> None:
    model = line()
    opt = l2path.sgd(lr=0.1)
    step, start = make_train_step(model, lambda o, t: ((o - t) ** 2).mean(), opt), init_state(model, opt)
    one = torch.ones((), dtype=F64)
    moved = torch.func.jvp(lambda lam: step(start, line_batch(), lam)[0].params["weight"], (0.3 * one,), (one,))
    assert_trees_close(moved[1], torch.tensor([[-0.2, 0.1]], dtype=F64), rtol=1e-12)  # -lr * theta


@pytest.mark.parametrize(
    "opt",
    [pytest.param(l2path.sgd(lr=0.1, momentum=0.9), id="sgd"), pytest.param(l2path.adam(lr=0.01), id="adam")],
)
def test_compiled_steps_equal_eager_ones(opt: l2path.Optimizer) -> None:
    model = smooth()
    step, start = make_train_step(model, F.cross_entropy, opt), init_state(model, opt)
    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    strength = l2path.expand_lambdas(model, 0.1)
    eager, quick = step(start, batch(), strength), compiled(start, batch(), strength)
    assert_trees_close(quick, eager, rtol=1e-12)
    assert_trees_close(compiled(quick[0], batch(), strength), step(eager[0], batch(), strength), rtol=1e-12)


def test_a_compiled_step_takes_a_number_as_lambda() -> None:
    model = line()
    opt = l2path.sgd(lr=0.1)
    step, start = make_train_step(model, F.mse_loss, opt), init_state(model, opt)
    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert_trees_close(compiled(start, line_batch(), 0.1), step(start, line_batch(), 0.1), rtol=1e-12)


def test_both_ways_to_differentiate_agree() -> None:
    model = noisy()
    opt = l2path.sgd(lr=0.1)
    fn = l2path.functionalize(model)
    other = build_step(data_loss(fn, F.cross_entropy), opt, None, {}, fn, grad_with_autograd)
    start = init_state(model, opt)
    with forked_rng(torch.device("cpu")):
        torch.manual_seed(3)
        expected = make_train_step(model, F.cross_entropy, opt)(start, batch(), 0.1)
        torch.manual_seed(3)
        actual = other(start, batch(), 0.1)
    assert_trees_close(actual, expected, rtol=1e-12)
    assert not any(t.requires_grad for t in tensor_leaves(actual))


# Losses and batches


def test_full_loss_brings_its_own_buffers() -> None:
    model = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3)).double()
    fn = l2path.functionalize(model)

    def loss(params: Any, buffers: Any, data: Any) -> tuple[Tensor, Mapping[str, Any]]:
        outputs, buffers = fn.apply(params, buffers, data["x"])
        return F.cross_entropy(outputs, data["y"]), {"buffers": buffers, "other": 3}

    opt = l2path.sgd(lr=0.1)
    x, y = batch()
    start = init_state(model, opt)
    state, metrics = make_train_step(model, full_loss(loss), opt)(start, {"x": x, "y": y}, 0.1)
    expected = make_train_step(model, F.cross_entropy, opt)(start, (x, y), 0.1)
    assert_trees_close((state, metrics), expected, rtol=1e-12)
    assert state.buffers["1.num_batches_tracked"].item() == 1


@pytest.mark.parametrize("aux", [None, {}, {"buffers": None}, "text"])
def test_full_loss_without_buffers_keeps_them(aux: Any) -> None:
    model = nn.BatchNorm1d(2)
    opt = l2path.sgd(lr=0.1)
    step = make_train_step(model, full_loss(lambda p, b, data: (p["weight"].sum(), aux)), opt)
    state, _ = step(init_state(model, opt), None, 0.0)
    assert state.buffers["num_batches_tracked"].item() == 0
    assert state.params["weight"].tolist() == pytest.approx([0.9, 0.9])


def test_full_loss_evaluates_with_its_own_function() -> None:
    def train(params: Any, buffers: Any, data: Any) -> tuple[Tensor, None]:
        return torch.tensor(1.0), None

    def evaluate(params: Any, buffers: Any, data: Any) -> tuple[Tensor, None]:
        return torch.tensor(2.0), None

    fn = l2path.functionalize(nn.Linear(2, 1))
    for evaluation, expected in ((False, 1.0), (True, 2.0)):
        loss = data_loss(fn, full_loss(train, evaluate=evaluate), evaluation=evaluation)
        assert loss(fn.params, {}, None)[0].item() == expected
    assert data_loss(fn, full_loss(train), evaluation=True)(fn.params, {}, None)[0].item() == 1.0


@pytest.mark.parametrize("kind", ["tuple", "dict"])
def test_inputs_may_be_a_tuple_or_a_dict(kind: str) -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor(2.0))

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.w * a - b

    a, b = torch.tensor([1.0]), torch.tensor([5.0])
    inputs: Any = (a, b) if kind == "tuple" else {"b": b, "a": a}
    opt = l2path.sgd(lr=0.1)
    _, metrics = make_train_step(Sum(), F.mse_loss, opt)(init_state(Sum(), opt), (inputs, torch.zeros(1)), 0.0)
    assert metrics.loss.item() == 9.0


# Gradient transforms


def test_a_plain_function_transforms_the_data_gradient_before_the_penalty() -> None:
    model = line()
    opt = l2path.sgd(lr=0.1)
    step = make_train_step(model, F.mse_loss, opt, grad_transform=lambda g: {k: v.clamp(-1, 1) for k, v in g.items()})
    state, _ = step(init_state(model, opt), line_batch(), 3.0)
    # Clamped to (1, -1); then 3 * (2, -1) is added, untouched.
    assert state.params["weight"].tolist()[0] == pytest.approx([2 - 0.1 * 7, -1 - 0.1 * (-4)], rel=1e-14)


def test_a_transform_with_a_state_keeps_it_beside_the_optimizers() -> None:
    model = line()
    opt, clip = l2path.sgd(lr=0.1), l2path.clip_by_value(1.0)
    step = make_train_step(model, F.mse_loss, opt, grad_transform=clip)
    state, _ = step(init_state(model, opt, grad_transform=clip), line_batch(), 3.0)
    assert state.params["weight"].tolist()[0] == pytest.approx([2 - 0.1 * 7, -1 - 0.1 * (-4)], rel=1e-14)
    assert state.opt_state.grad_transform.count.item() == 1
    assert state.opt_state.optimizer.count.item() == 1


def test_a_transform_chained_in_the_optimizer_sees_the_penalty() -> None:
    model = line()
    opt = l2path.chain(l2path.clip_by_value(1.0), l2path.sgd(lr=0.1))
    state, _ = make_train_step(model, F.mse_loss, opt)(init_state(model, opt), line_batch(), 3.0)
    assert state.params["weight"].tolist()[0] == pytest.approx([2 - 0.1, -1 + 0.1], rel=1e-14)


def refused(argument: str, call: Callable[[], object]) -> ArgumentError:
    with pytest.raises(ArgumentError, match=r": got .*; expected .*\. Remedy: .") as info:
        call()
    assert info.value.argument == argument
    return info.value


def test_a_state_without_the_transforms_is_refused() -> None:
    model = line()
    opt, clip = l2path.sgd(lr=0.1), l2path.clip_by_value(1.0)
    step = make_train_step(model, F.mse_loss, opt, grad_transform=clip)
    error = refused("state", lambda: step(init_state(model, opt), line_batch(), 0.1))
    assert "init_state(module, optimizer, grad_transform=...)" in error.remedy


def test_a_state_with_a_transforms_that_the_step_lacks_is_refused() -> None:
    model = line()
    opt, clip = l2path.sgd(lr=0.1), l2path.clip_by_value(1.0)
    step, state = make_train_step(model, F.mse_loss, opt), init_state(model, opt, grad_transform=clip)
    refused("state", lambda: step(state, line_batch(), 0.1))


@pytest.mark.parametrize("transform", [1.0, "clip", l2path.sgd(lr=0.1)], ids=["number", "string", "optimizer"])
def test_what_is_no_gradient_transform_is_refused(transform: Any) -> None:
    # An optimizer returns steps, downhill: taken for gradients they would climb.
    refused("grad_transform", lambda: make_train_step(line(), F.mse_loss, l2path.sgd(), grad_transform=transform))


# Refusals


@pytest.mark.parametrize(
    ("loss_fn", "got"),
    [
        (nn.CrossEntropyLoss(reduction="none"), "a result of shape [12], torch.float64"),
        (lambda o, t: 3.0, "a result of float"),
        (lambda o, t: o.argmax(), "a result of shape [], torch.int64"),
        (lambda o, t: o.sum().to(torch.complex128), "a result of shape [], torch.complex128"),
    ],
)
def test_losses_that_are_no_scalar_are_refused(loss_fn: Any, got: str) -> None:
    model = smooth()
    opt = l2path.sgd()
    step = make_train_step(model, loss_fn, opt)
    error = refused("loss_fn", lambda: step(init_state(model, opt), batch(), 0.1))
    assert got in error.got
    assert ".mean()" in error.remedy


def test_criteria_with_parameters_to_train_are_refused() -> None:
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.log_sigma = nn.Parameter(torch.zeros(()))

        def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return F.cross_entropy(outputs, targets) * self.log_sigma.exp()

    error = refused("loss_fn", lambda: make_train_step(smooth(), Weighted(), l2path.sgd()))
    assert "['log_sigma']" in error.got
    model, opt = smooth(), l2path.sgd()
    step = make_train_step(model, Weighted().requires_grad_(False), opt)
    assert step(init_state(model, opt), batch(), 0.0)[1].loss.item() == pytest.approx(
        F.cross_entropy(model(batch()[0]), batch()[1]).item()
    )


@pytest.mark.parametrize("loss_fn", [None, "mse", 3, nn.CrossEntropyLoss])  # the class, not a criterion
def test_what_is_no_loss_is_refused(loss_fn: Any) -> None:
    refused("loss_fn", lambda: make_train_step(smooth(), loss_fn, l2path.sgd()))


@pytest.mark.parametrize("make", [lambda m: torch.optim.SGD(m.parameters(), lr=0.1), lambda m: "sgd", lambda m: None])
def test_optimizers_of_others_are_refused(make: Callable[[nn.Module], Any]) -> None:
    model = smooth()
    for call in (lambda: make_train_step(model, F.mse_loss, make(model)), lambda: init_state(model, make(model))):
        error = refused("optimizer", call)
        assert "l2path.sgd(lr=...)" in error.remedy


def test_the_torch_optimizer_is_named() -> None:
    model = smooth()
    optimizer: Any = torch.optim.SGD(model.parameters(), lr=0.1)
    assert "torch.optim.sgd.SGD" in refused("optimizer", lambda: init_state(model, optimizer)).got


@pytest.mark.parametrize(
    "transform",
    [l2path.clip_by_global_norm(1.0), l2path.clip_by_value(1.0), l2path.chain(l2path.clip_by_value(1.0))],
    ids=["norm", "value", "chain"],
)
def test_a_bare_transform_is_no_optimizer(transform: l2path.Optimizer) -> None:
    # It returns gradients: added to the parameters they would climb.
    for call in (
        lambda: init_state(line(), transform),
        lambda: make_train_step(line(), F.mse_loss, transform),
    ):
        error = refused("optimizer", call)
        assert "transform" in error.got
        assert "chain" in error.remedy


@pytest.mark.parametrize(
    ("data", "got"),
    [
        (torch.zeros(3, 2), "a Tensor"),
        ((torch.zeros(3, 2),), "1 parts"),
        ((torch.zeros(3, 2),) * 3, "3 parts"),
        ({"inputs": torch.zeros(3, 2)}, "a dict of ['inputs']"),
        (None, "a NoneType"),
    ],
)
def test_batches_that_are_no_pair_are_refused(data: Any, got: str) -> None:
    model, opt = smooth(), l2path.sgd()
    step = make_train_step(model, F.mse_loss, opt)
    error = refused("batch", lambda: step(init_state(model, opt), data, 0.1))
    assert error.got == got
    assert "loss_fn=l2path.model_loss()" in error.remedy
    assert "full_loss" in error.remedy


def test_bad_lambdas_are_refused_by_the_step() -> None:
    model, opt = line(), l2path.sgd()
    step, state = make_train_step(model, F.mse_loss, opt), init_state(model, opt)
    for bad in (-1.0, {"wieght": 0.1}, torch.ones(3), "x"):
        with pytest.raises(ArgumentError, match=r"^lambdas"):
            step(state, line_batch(), bad)


@pytest.mark.parametrize("bad", [torch.tensor(-1.0), torch.tensor(float("nan")), torch.ones(5, 1, 2)])
def test_bad_lambdas_by_name_are_refused_by_the_step(bad: Tensor) -> None:
    # Of shape [5, 1, 2] they would silently turn the parameter into one of that shape.
    model, opt = line(), l2path.sgd()
    step, state = make_train_step(model, F.mse_loss, opt), init_state(model, opt)
    with pytest.raises(ArgumentError, match=r"^lambdas .*weight"):
        step(state, line_batch(), {"weight": bad, "bias": torch.tensor(0.0)})


def test_lambdas_of_every_kind_mean_the_same() -> None:
    model, opt = smooth(), l2path.sgd(lr=0.1)
    step, state = make_train_step(model, F.cross_entropy, opt), init_state(model, opt)
    expected = step(state, batch(), 0.25)
    by_element = {n: torch.full_like(p, 0.25) for n, p in state.params.items()}
    for lambdas in (torch.tensor(0.25), {"*": 0.25}, l2path.expand_lambdas(model, 0.25), by_element):
        assert_trees_close(step(state, batch(), lambdas), expected, rtol=1e-14)
    weights = {n: 0.25 for n in state.params if n.endswith("weight")}
    weights.pop("2.weight")  # of the LayerNorm
    assert_trees_close(step(state, batch(), l2path.weights_only(0.25)), step(state, batch(), weights), rtol=0.0)


def test_a_state_is_a_named_tuple() -> None:
    assert TrainState._fields == ("params", "buffers", "opt_state", "step")
    assert Metrics._fields == ("loss", "penalty", "objective")


def test_a_spec_that_is_written_to_between_steps_is_read_again() -> None:
    # The step expands and checks the same spec once in a row; what changes in it must still be seen.
    model = nn.Linear(2, 1).double()
    optimizer = l2path.sgd(lr=0.1)
    step = l2path.make_train_step(model, nn.functional.mse_loss, optimizer)
    state = l2path.init_state(model, optimizer)
    batch = (torch.ones(3, 2).double(), torch.zeros(3, 1).double())
    spec = {"weight": torch.tensor(0.5, dtype=torch.float64)}
    first = float(step(state, batch, spec)[1].penalty)
    spec["weight"].mul_(2)
    assert float(step(state, batch, spec)[1].penalty) == 2 * first
    spec["weight"] = torch.tensor(0.5, dtype=torch.float64)
    assert float(step(state, batch, spec)[1].penalty) == first
    spec["weight"].fill_(-1.0)
    with pytest.raises(l2path.ArgumentError, match="lambdas"):
        step(state, batch, spec)
    array = np.array([[0.5, 0.5]])
    assert float(step(state, batch, {"weight": array})[1].penalty) == first
    array *= 2
    assert float(step(state, batch, {"weight": array})[1].penalty) == 2 * first


def test_a_row_of_lambdas_in_one_step_is_refused() -> None:
    # Forgetting vmap would otherwise give every column of a square layer a lambda of its own, without a word.
    model = nn.Linear(3, 3)
    optimizer = l2path.sgd(lr=0.1)
    step = l2path.make_train_step(model, nn.functional.mse_loss, optimizer)
    batch = (torch.ones(2, 3), torch.zeros(2, 3))
    with pytest.raises(l2path.ArgumentError, match=r"lambdas: got shape \[3\], for all parameters at once.*vmap"):
        step(l2path.init_state(model, optimizer), batch, l2path.lambda_grid(0.1, 1.0, 3))
    step(l2path.init_state(model, optimizer), batch, {"weight": torch.rand(3, 3)})

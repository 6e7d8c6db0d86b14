"""One contract over every optimizer: equal to torch.optim, batchable, differentiable, of constant dtypes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, jacfwd, jacrev, vmap

from l2path.optimizers import (
    Optimizer,
    accumulate,
    apply_updates,
    chain,
    clip_by_global_norm,
    clip_by_value,
    ema,
    hyper_paths,
    set_hyper,
    sgd,
    warmup_cosine,
)
from l2path.trees import tensor_leaves, tree_leaves, tree_map
from l2path.types import OptState, Params
from tests.helpers import assert_trees_close
from tests.parity.optimizer_cases import CASES, Case

each_case = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
# torch's own forward-mode rules are scripted when they are first imported.
forward_mode = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
TRANSFORMS = (
    clip_by_global_norm(0.5),
    clip_by_value(0.3),
    chain(clip_by_value(0.3), sgd(0.1, 0.9)),
    accumulate(sgd(0.1, 0.9), 2),
    ema(accumulate(sgd(0.1, 0.9), 1), 0.9),
)


def problem(seed: int = 0) -> tuple[Params, Callable[[Params, int], Tensor]]:
    """Return parameters, a 0-d one among them, and the loss of a small network on the t-th batch."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, dtype=torch.float64)

    inputs, targets = normal(24, 5), normal(24)
    params = {"first.weight": normal(5, 3), "first.bias": normal(3), "last": normal(3), "bias": normal()}

    def loss(p: Params, t: int) -> Tensor:
        rows = slice(8 * (t % 3), 8 * (t % 3) + 8)
        hidden = torch.tanh(inputs[rows] @ p["first.weight"] + p["first.bias"])
        return ((hidden @ p["last"] + p["bias"] - targets[rows]) ** 2).mean()

    return params, loss


def train(opt: Optimizer, steps: int, seed: int = 0) -> Iterator[Params]:
    params, loss = problem(seed)
    state = opt.init(params)
    for t in range(steps):
        updates, state = opt.update(grad(loss)(params, t), state, params)
        params = apply_updates(params, updates)
        yield params


def train_torch(case: Case, steps: int, factor: Callable[[int], float] | None = None) -> Iterator[Params]:
    start, loss = problem()
    params = {name: value.clone().requires_grad_() for name, value in start.items()}
    opt = case.build_torch(list(params.values()), case.lr)
    scheduler = torch.optim.lr_scheduler.LambdaLR(opt, factor) if factor else None
    for t in range(steps):
        opt.zero_grad()
        loss(params, t).backward()
        opt.step()
        if scheduler:
            scheduler.step()
        yield {name: value.detach().clone() for name, value in params.items()}


def normal_tree(tree: Params, seed: int) -> Params:
    rng = torch.Generator().manual_seed(seed)
    return {n: torch.randn(p.shape, generator=rng, dtype=p.dtype) for n, p in tree.items()}


def stack(trees: list[Any]) -> Any:
    """Stack trees of one structure along a new leading axis of members."""
    return tree_map(lambda *leaves: torch.stack(leaves), *trees)


@each_case
def test_equals_torch_at_every_one_of_200_steps(case: Case) -> None:
    for t, (actual, expected) in enumerate(
        zip(train(case.build(case.lr, None), 200), train_torch(case, 200), strict=True)
    ):
        assert_trees_close(actual, expected, rtol=1e-10, where=f"step {t}")


@each_case
def test_equals_torch_with_a_schedule(case: Case) -> None:
    def factor(t: int) -> float:
        rise = 0.2 + 0.8 * min(t / 5, 1)
        return rise * (0.1 + 0.45 * (1 + math.cos(math.pi * min(max(t - 5, 0) / 25, 1))))

    opt = case.build(case.lr, warmup_cosine(5, 30, final=0.1, start=0.2))
    for t, (actual, expected) in enumerate(zip(train(opt, 40), train_torch(case, 40, factor), strict=True)):
        assert_trees_close(actual, expected, rtol=1e-10, where=f"step {t}")


@each_case
def test_complex_parameters_equal_torch(case: Case) -> None:
    rng = torch.Generator().manual_seed(1)
    start = {
        "z": torch.randn(3, 2, generator=rng, dtype=torch.complex128),
        "x": torch.randn(2, generator=rng, dtype=torch.float64),
    }
    params, opt = start, case.build(case.lr, None)
    state = opt.init(params)
    theirs = {name: value.clone().requires_grad_() for name, value in start.items()}
    torch_opt = case.build_torch(list(theirs.values()), case.lr)
    for t in range(20):
        grads = {name: value.conj() for name, value in normal_tree(start, t).items()}  # lazy conjugates
        updates, state = opt.update(grads, state, params)
        params = apply_updates(params, updates)
        for name, value in theirs.items():
            value.grad = grads[name].resolve_conj().clone()
        torch_opt.step()
    assert_trees_close(params, theirs, rtol=1e-10, check_dtype=True)


@each_case
def test_vmapped_members_equal_solo_runs(case: Case) -> None:
    rates = [case.lr * factor for factor in (0.0, 0.3, 1.0, 1.7, 2.0)]
    start, loss = problem()
    params = stack([start] * 5)
    opt = case.build(case.lr, warmup_cosine(3, 20))
    state = set_hyper(stack([opt.init(start)] * 5), "lr", torch.tensor(rates))
    for t in range(25):
        grads = vmap(grad(lambda p, t=t: loss(p, t)))(params)
        updates, state = vmap(opt.update)(grads, state, params)
        params = apply_updates(params, updates)
    for k, lr in enumerate(torch.tensor(rates).tolist()):
        *_, solo = train(case.build(lr, warmup_cosine(3, 20)), 25)
        assert_trees_close({n: p[k] for n, p in params.items()}, solo, rtol=1e-12, where=f"member {k}")


@each_case
def test_every_numeric_hyperparameter_may_differ_per_member(case: Case) -> None:
    start, _ = problem()
    opt = case.build(case.lr, None)
    before = opt.init(start)
    for name in hyper_paths(before):
        states = [set_hyper(before, name, value) for value in (0.1, 0.4)]
        state, params = stack(states), stack([start, start])
        for t in range(3):
            grads = normal_tree(start, t)
            updates, state = vmap(opt.update, in_dims=(None, 0, 0))(grads, state, params)
            for k in range(2):
                solo, states[k] = opt.update(grads, states[k], start)
                member = {n: u[k] for n, u in updates.items()}
                assert_trees_close(member, solo, rtol=1e-12, where=f"{name}, member {k}")


@each_case
@pytest.mark.parametrize(
    "dtype",
    [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128],
)
def test_dtypes_never_change(case: Case, dtype: torch.dtype) -> None:
    params = {name: value.to(dtype) for name, value in problem()[0].items()}
    opt = case.build(case.lr, warmup_cosine(3, 20))
    state = opt.init(params)
    expected = [(leaf.dtype, leaf.shape) for leaf in tensor_leaves(state)]
    for t in range(3):
        updates, state = opt.update(normal_tree(params, t), state, params)
        assert [(leaf.dtype, leaf.shape) for leaf in tensor_leaves(state)] == expected
        assert {n: (u.dtype, u.shape) for n, u in updates.items()} == {n: (p.dtype, p.shape) for n, p in params.items()}
    slots = {leaf.dtype for leaf in tensor_leaves(state) if leaf.ndim}
    assert slots <= {torch.zeros((), dtype=dtype).real.dtype, torch.float64}
    assert all(leaf.isfinite().all() for leaf in tensor_leaves(updates))


@each_case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_results_only(case: Case, dtype: torch.dtype) -> None:
    half = {name: value.to(dtype) for name, value in problem()[0].items()}
    full = {name: value.float() for name, value in half.items()}
    opt = case.build(case.lr, None)
    state = opt.init(half)
    actual, _ = opt.update(half, state, half)
    full_state = tree_map(lambda leaf: leaf.float() if leaf.dtype == dtype else leaf, state)
    expected, _ = opt.update(full, full_state, full)
    assert_trees_close(actual, {name: value.to(dtype) for name, value in expected.items()}, rtol=0.0)


@each_case
def test_state_leaves_are_owned_tensors_and_inputs_stay(case: Case) -> None:
    params, _ = problem()
    opt = case.build(case.lr, None)
    state = opt.init(params)
    grads = normal_tree(params, 0)
    for leaf in tree_leaves(state):
        assert isinstance(leaf, Tensor)
        assert not leaf.requires_grad
        assert all(leaf.data_ptr() != p.data_ptr() for p in params.values())
    for _ in range(2):
        inputs = (grads, state, params)
        copy = tree_map(torch.clone, inputs)
        versions = [leaf._version for leaf in tensor_leaves(inputs)]
        _, state = opt.update(*inputs)
        assert_trees_close(inputs, copy, rtol=0.0)
        assert [leaf._version for leaf in tensor_leaves(inputs)] == versions
    assert state.count == 2
    assert state.count.dtype == torch.int64


def steps_of(opt: Optimizer, state: OptState, params: Params) -> Callable[[Params, Tensor], Tensor]:
    """Return the sum of squares-like summary of one update, as a function of gradients and a factor."""

    def summary(grads: Params, factor: Tensor) -> Tensor:
        updates, new = opt.update({n: g * factor for n, g in grads.items()}, state, params)
        leaves = [*updates.values(), *(x for x in tensor_leaves(new) if x.is_floating_point())]
        return torch.cat([leaf.reshape(-1) for leaf in leaves])

    return summary


@forward_mode
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize(
    "opt", [case.build(case.lr, None) for case in CASES] + list(TRANSFORMS), ids=lambda opt: repr(opt)
)
def test_derivatives_are_finite_at_zero_gradient(opt: Optimizer, moved: bool, dtype: torch.dtype) -> None:
    params = {name: value.to(dtype) for name, value in problem()[0].items()}
    state = opt.init(params)
    if moved:
        _, state = opt.update(normal_tree(params, 0), state, params)
    summary = steps_of(opt, state, params)
    zeros = {name: torch.zeros_like(value) for name, value in params.items()}
    one = torch.ones((), dtype=dtype)
    backward = jacrev(summary, argnums=(0, 1))(zeros, one)
    forward = jacfwd(summary, argnums=(0, 1))(zeros, one)
    assert all(leaf.isfinite().all() for leaf in tensor_leaves(backward))
    assert_trees_close(forward, backward, rtol=1e-5)


@each_case
@forward_mode
def test_derivatives_agree_with_finite_differences(case: Case) -> None:
    params = {"w": torch.tensor([0.5, -1.2], dtype=torch.float64)}
    opt = case.build(case.lr, None)
    _, state = opt.update({"w": torch.tensor([0.3, 0.9], dtype=torch.float64)}, opt.init(params), params)

    def two_steps(gradient: Tensor, lr: Tensor, w: Tensor) -> Tensor:
        traced = state._replace(hyper={**state.hyper, "lr": lr})
        updates, traced = opt.update({"w": gradient}, traced, {"w": w})
        moved = apply_updates({"w": w}, updates)
        return apply_updates(moved, opt.update({"w": gradient**2}, traced, moved)[0])["w"]

    inputs = (torch.tensor([0.8, -0.4], dtype=torch.float64), torch.tensor(0.2).double(), params["w"])
    assert torch.autograd.gradcheck(two_steps, tuple(x.clone().requires_grad_() for x in inputs), check_forward_ad=True)


@pytest.mark.parametrize("max_norm", [0.1, 1.0, 100.0])
def test_clip_by_global_norm_equals_torch(max_norm: float) -> None:
    grads = normal_tree(problem()[0], 3)
    theirs = [torch.zeros_like(g) for g in grads.values()]
    for p, g in zip(theirs, grads.values(), strict=True):
        p.grad = g.clone()
    torch.nn.utils.clip_grad_norm_(theirs, max_norm)
    clip = clip_by_global_norm(max_norm)
    clipped, _ = clip.update(grads, clip.init(grads), grads)
    assert_trees_close(clipped, dict(zip(grads, [p.grad for p in theirs], strict=True)), rtol=1e-14)


def test_clip_by_value_equals_torch() -> None:
    grads = normal_tree(problem()[0], 3)
    theirs = [torch.zeros_like(g) for g in grads.values()]
    for p, g in zip(theirs, grads.values(), strict=True):
        p.grad = g.clone()
    torch.nn.utils.clip_grad_value_(theirs, 0.4)
    clip = clip_by_value(0.4)
    clipped, _ = clip.update(grads, clip.init(grads), grads)
    assert_trees_close(clipped, dict(zip(grads, [p.grad for p in theirs], strict=True)), rtol=0.0)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=repr)
def test_transforms_act_per_member(transform: Optimizer) -> None:
    start, _ = problem()
    members = [{n: g * size for n, g in normal_tree(start, k).items()} for k, size in enumerate((0.0, 0.01, 9.0))]
    state = stack([transform.init(start)] * 3)
    out, _ = vmap(transform.update, in_dims=(0, 0, None))(stack(members), state, start)
    for k, grads in enumerate(members):
        solo, _ = transform.update(grads, transform.init(start), start)
        assert_trees_close({n: g[k] for n, g in out.items()}, solo, rtol=1e-14, where=f"member {k}")


def test_a_chain_equals_clipping_before_torch() -> None:
    case = next(c for c in CASES if c.name == "sgd-momentum")
    start, loss = problem()
    theirs = {name: value.clone().requires_grad_() for name, value in start.items()}
    torch_opt = case.build_torch(list(theirs.values()), case.lr)
    for t in range(50):
        torch_opt.zero_grad()
        loss(theirs, t).backward()
        torch.nn.utils.clip_grad_norm_(list(theirs.values()), 0.5)
        torch_opt.step()
    *_, ours = train(chain(clip_by_global_norm(0.5), case.build(case.lr, None)), 50)
    assert_trees_close(ours, theirs, rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sgd-nesterov", "adamw-decay-amsgrad", "rmsprop-centered-momentum"])
def test_compiles_without_graph_breaks(name: str) -> None:
    case = next(c for c in CASES if c.name == name)
    opt = ema(accumulate(chain(clip_by_global_norm(1.0), case.build(case.lr, warmup_cosine(3, 20))), 2), 0.9)
    params, _ = problem()
    state = opt.init(params)
    grads = normal_tree(params, 0)
    compiled = torch.compile(opt.update, fullgraph=True, backend="aot_eager")
    assert_trees_close(compiled(grads, state, params), opt.update(grads, state, params), rtol=1e-12)
    batched = torch.compile(vmap(opt.update), fullgraph=True, backend="aot_eager")
    members = stack([(grads, state, params)] * 3)
    assert_trees_close(batched(*members), vmap(opt.update)(*members), rtol=1e-12)

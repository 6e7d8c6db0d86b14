"""Optimizers: values by hand, printing, hyperparameters in the state, and error texts."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import vmap

from l2path.errors import ArgumentError
from l2path.optimizers import (
    Optimizer,
    adagrad,
    adam,
    adamw,
    apply_updates,
    chain,
    clip_by_global_norm,
    clip_by_value,
    hyper_paths,
    rmsprop,
    set_hyper,
    sgd,
)
from l2path.types import Params
from tests.helpers import assert_trees_close


def scalar(value: float) -> Params:
    return {"w": torch.tensor(value, dtype=torch.float64)}


def two_updates(opt: Optimizer) -> list[float]:
    """Return the updates for the gradients 1 and 2 of a parameter that starts at 10."""
    params = scalar(10.0)
    state, steps = opt.init(params), []
    for gradient in (1.0, 2.0):
        updates, state = opt.update(scalar(gradient), state, params)
        params = apply_updates(params, updates)
        steps.append(updates["w"].item())
    return steps


ADAM_SECOND = -0.1 * ((0.5 * 0.5 + 0.5 * 2) / 0.75) / math.sqrt((0.25 * 0.75 + 0.25 * 4) / (1 - 0.75**2))
CENTERED = [1 / math.sqrt(0.25 - 0.0625), 2 / math.sqrt(0.75 * 0.25 + 1 - (0.75 * 0.25 + 0.5) ** 2)]


@pytest.mark.parametrize(
    ("opt", "expected"),
    [
        (sgd(0.1), [-0.1, -0.2]),
        (sgd(0.1, 0.5), [-0.1, -0.25]),
        (sgd(0.1, 0.5, dampening=0.25), [-0.1, -0.2]),
        (sgd(0.1, 0.5, nesterov=True), [-0.15, -0.1 * (2 + 0.5 * 2.5)]),
        (adam(0.1, (0.5, 0.75), 0.0), [-0.1, ADAM_SECOND]),
        (adamw(0.1, (0.5, 0.75), 0.0, decay=0.2), [-0.1 - 0.2, ADAM_SECOND - 0.02 * 9.7]),
        (rmsprop(0.1, 0.75, 0.0), [-0.2, -0.2 / math.sqrt(0.75 * 0.25 + 0.25 * 4)]),
        (rmsprop(0.1, 0.75, 0.0, centered=True), [-0.1 * x for x in CENTERED]),
        (rmsprop(0.1, 0.75, 0.0, 0.5, centered=True), [-0.1 * CENTERED[0], -0.1 * (CENTERED[1] + 0.5 * CENTERED[0])]),
        (adagrad(0.1, eps=0.0), [-0.1, -0.2 / math.sqrt(5)]),
        (adagrad(0.1, 0.5, 3.0, eps=0.5), [-0.1 / 2.5, -0.1 / 1.5 * 2 / (math.sqrt(8) + 0.5)]),
        (chain(clip_by_value(1.5), sgd(0.1)), [-0.1, -0.15]),
        (chain(sgd(0.1), clip_by_value(0.15)), [-0.1, -0.15]),
    ],
    ids=repr,
)
def test_two_updates_by_hand(opt: Optimizer, expected: list[float]) -> None:
    assert two_updates(opt) == pytest.approx(expected, rel=1e-12)


def test_amsgrad_keeps_the_largest_second_moment() -> None:
    opt, params = adam(1.0, (0.0, 0.5), 0.0, amsgrad=True), scalar(0.0)
    _, state = opt.update(scalar(4.0), opt.init(params), params)
    updates, state = opt.update(scalar(1.0), state, params)
    assert state.exp_avg_sq["w"].item() == 4.5
    assert state.max_exp_avg_sq["w"].item() == 8.0
    assert updates["w"].item() == pytest.approx(-1 / math.sqrt(8 / 0.75))


def test_decay_by_pattern_and_by_element() -> None:
    params = {"w": torch.ones(2, 2), "b": torch.ones(2), "z": torch.ones(2, dtype=torch.complex64)}
    zeros = {name: torch.zeros_like(p) for name, p in params.items()}
    opt = adamw(lr=0.1, decay={"w": torch.tensor([1.0, 2.0]), "z": torch.tensor([0.0, 3.0])})
    updates, state = opt.update(zeros, opt.init(params), params)
    assert_trees_close(updates["w"], [[-0.1, -0.2]] * 2 @ np.eye(2), rtol=1e-7)
    assert_trees_close(updates["b"], np.zeros(2))
    assert_trees_close(updates["z"], np.array([0.0, -0.3 + 0j]), rtol=1e-7)
    assert {name: d.dtype for name, d in state.hyper["decay"].items()} == dict.fromkeys("wbz", torch.float64)


def test_clipping_by_hand() -> None:
    grads = {"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}
    clip = clip_by_global_norm(1.0)
    clipped, state = clip.update(grads, clip.init(grads), grads)
    assert_trees_close(clipped, {"a": [0.6] @ np.eye(1), "b": [0.8] @ np.eye(1)}, rtol=1e-6)
    assert state.count == 1
    assert_trees_close(clip_by_global_norm(9.0).update(grads, clip_by_global_norm(9.0).init(grads), grads)[0], grads)


def test_clipping_complex_gradients_uses_the_modulus() -> None:
    grads = {"z": torch.tensor([3.0 + 4.0j], dtype=torch.complex128)}
    clip = clip_by_global_norm(1.0)
    clipped, _ = clip.update(grads, clip.init(grads), grads)
    assert_trees_close(clipped["z"], np.array([0.6 + 0.8j]), rtol=1e-6)


def test_no_parameters_give_no_updates() -> None:
    for opt in (sgd(0.1, 0.9), adam(), clip_by_global_norm(1.0)):
        updates, state = opt.update({}, opt.init({}), {})
        assert updates == {}
        assert state.count == 1


def test_optimizers_print_as_the_call_that_builds_them() -> None:
    assert repr(adam()) == "adam(lr=0.001, betas=(0.9, 0.999), eps=1e-08, amsgrad=False)"
    assert repr(sgd(torch.tensor(0.5))) == "sgd(lr=0.5, momentum=0.0, dampening=0.0, nesterov=False)"
    assert repr(adamw(decay={"*": torch.tensor(0.5), "w": torch.ones(2)})) == (
        "adamw(lr=0.001, betas=(0.9, 0.999), eps=1e-08, decay={'*': 0.5, 'w': tensor of shape (2,)}, amsgrad=False)"
    )
    assert repr(chain(clip_by_global_norm(1), adagrad(np.float64(0.5)))) == (
        "chain(clip_by_global_norm(max_norm=1.0), "
        "adagrad(lr=0.5, lr_decay=0.0, initial_accumulator_value=0.0, eps=1e-10))"
    )

    def halve(count: Tensor) -> Tensor:
        return torch.pow(0.5, count)

    assert repr(sgd(schedule=halve)).endswith(
        "schedule=test_optimizers_print_as_the_call_that_builds_them.<locals>.halve)"
    )


def test_the_kind_of_a_chain_follows_its_parts() -> None:
    assert clip_by_value(1.0).kind == "transform"
    assert chain(clip_by_value(1.0), clip_by_global_norm(1.0)).kind == "transform"
    assert chain(clip_by_value(1.0), chain(clip_by_value(1.0), sgd())).kind == "optimizer"


def test_a_tensor_learning_rate_is_owned_and_differentiable() -> None:
    lr = torch.tensor(0.5, requires_grad=True)
    params, opt = {"w": torch.tensor([2.0])}, sgd(lr)
    state = opt.init(params)
    assert state.hyper["lr"].dtype == torch.float64
    updates, _ = opt.update(params, state, params)
    (gradient,) = torch.autograd.grad(updates["w"].sum(), lr)
    assert gradient.item() == -2.0


def test_an_optimizer_can_be_built_inside_vmap() -> None:
    def step(lr: Tensor, momentum: Tensor) -> Tensor:
        params, opt = scalar(1.0), sgd(lr, momentum)
        assert repr(opt).startswith("sgd(lr=batched tensor")
        _, state = opt.update(params, opt.init(params), params)
        return opt.update(params, state, params)[0]["w"]

    actual = vmap(step)(*torch.tensor([[0.1, 0.2], [0.0, 0.5]], dtype=torch.float64))
    assert_trees_close(actual, np.array([-0.1, -0.3]), rtol=1e-12)


class TestHyperparameters:
    params: Params = {"w": torch.ones(3), "b": torch.ones(())}  # noqa: RUF012  # never changed

    def test_the_state_holds_them_as_0d_float64(self) -> None:
        state = adamw(0.5).init(self.params)
        assert set(state.hyper) == {"lr", "beta1", "beta2", "eps", "decay"}
        assert all(h.dtype == torch.float64 and h.ndim == 0 for h in state.hyper.values())
        assert state.hyper["lr"].item() == 0.5

    def test_structure_that_was_not_built_is_not_held(self) -> None:
        assert set(sgd().init(self.params).hyper) == {"lr"}
        assert set(sgd(momentum=0.9).init(self.params).hyper) == {"lr", "momentum"}
        assert set(sgd(momentum=0.9, dampening=0.1).init(self.params).hyper) == {"lr", "momentum", "dampening"}
        assert sgd().init(self.params).momentum_buffer == {}

    def test_paths_lead_through_nested_chains(self) -> None:
        opt = chain(clip_by_value(1.0), chain(clip_by_global_norm(1.0), sgd()), clip_by_value(2.0))
        assert hyper_paths(opt.init(self.params)) == {
            "max_value": [(0, "hyper", "max_value"), (2, "hyper", "max_value")],
            "max_norm": [(1, 0, "hyper", "max_norm")],
            "lr": [(1, 1, "hyper", "lr")],
        }

    def test_setting_one_leaves_the_old_state_and_the_rest(self) -> None:
        old = chain(clip_by_value(1.0), sgd(0.1, 0.9)).init(self.params)
        new = set_hyper(old, "lr", 3)
        assert old[1].hyper["lr"].item() == 0.1
        assert new[1].hyper["lr"].item() == 3.0
        assert new[1].hyper["lr"].dtype == torch.float64
        assert new[1].hyper["momentum"] is old[1].hyper["momentum"]
        assert new[0] is old[0]
        assert type(new[1]) is type(old[1])

    def test_a_stacked_state_takes_one_value_per_member(self) -> None:
        values = torch.tensor([0.1, 0.2])
        new = set_hyper(adam().init(self.params), "beta1", values)
        assert_trees_close(new.hyper["beta1"], values.double(), rtol=0.0, check_dtype=True)

    def test_values_by_parameter(self) -> None:
        opt = adamw(decay={"w": 0.1})
        new = set_hyper(opt.init(self.params), "decay", {"w": 0.5, "b": torch.tensor(0.25)})
        assert {k: v.item() for k, v in new.hyper["decay"].items()} == {"w": 0.5, "b": 0.25}
        one = set_hyper(opt.init(self.params), "decay", 0.5)
        zeros = {name: torch.zeros_like(p) for name, p in self.params.items()}
        assert opt.update(zeros, one, self.params)[0]["b"].item() == pytest.approx(-0.0005)

    def test_a_path_tells_parts_apart(self) -> None:
        state = chain(clip_by_value(1.0), sgd(), clip_by_value(2.0)).init(self.params)
        new = set_hyper(state, (2, "hyper", "max_value"), 5.0)
        assert [new[0].hyper["max_value"].item(), new[2].hyper["max_value"].item()] == [1.0, 5.0]

    @pytest.mark.parametrize(
        ("opt", "name", "value", "message"),
        [
            (
                adam(),
                "learning_rate",
                1.0,
                "name: got 'learning_rate'; expected a hyperparameter of the state: ['beta1'",
            ),
            (adam(), "beta", 1.0, "check the name; nearest names: 'beta"),
            (adam(), "betas", 1.0, "set 'beta1' and 'beta2'"),
            (sgd(), "momentum", 0.9, "build it with a non-zero momentum"),
            (adam(), "decay", 0.1, "or with one that knows it, such as sgd(momentum=0.9) or adamw(decay=0.01)"),
            (sgd(), "weight_decay", 0.1, "an L2 penalty is set by lambdas"),
            (
                chain(clip_by_value(1.0), sgd(), clip_by_value(1.0)),
                "max_value",
                1.0,
                "which 2 parts of the chain hold; expected a hyperparameter that one part holds. "
                "Remedy: give the path of the one you mean: (0, 'hyper', 'max_value') or (2,",
            ),
            (sgd(), (0, "hyper", "lr"), 1.0, "got the path (0, 'hyper', 'lr'); expected one of [('hyper', 'lr')]"),
            (adamw(), "decay", {"w": 0.1}, "value: got values for ['w']; expected one for each of"),
            (adamw(), "lr", {"w": 0.1}, "value: got values by parameter; expected one number"),
            (adamw(decay={"w": 0.1}), "decay", {"w": 0.1}, "value: got values for ['w']; expected one for each of"),
        ],
    )
    def test_what_cannot_be_set(
        self, opt: Optimizer, name: str, value: float | dict[str, float | Tensor], message: str
    ) -> None:
        with pytest.raises(ArgumentError, match=re.escape(message)):
            set_hyper(opt.init(self.params), name, value)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: sgd(-0.1), "lr: got -0.1; expected a finite number >= 0, or a 0-d tensor of one. Remedy: choose"),
        (lambda: adam(math.nan), "lr: got nan"),
        (lambda: adam(math.inf), "lr: got inf"),
        (lambda: adam(torch.tensor(-1.0)), "lr: got -1;"),
        (lambda: adam(torch.ones(2)), "lr: got a tensor of shape (2,); expected a finite number >= 0"),
        (
            lambda: adam([0.1, 0.2]),  # type: ignore[arg-type]  # the test
            "lr: got [0.1, 0.2] (list); expected a finite number >= 0, or a 0-d tensor of one. "
            'Remedy: give one number; to train members with several, use sweep={"lr": [...]}',
        ),
        (lambda: adam("fast"), "lr: got 'fast' (str)"),  # type: ignore[arg-type]  # the test
        (lambda: adam(True), "lr: got True (bool)"),
        (lambda: adam(betas=(0.9, 1.0)), "beta2: got 1; expected a finite number >= 0 and < 1"),
        (lambda: adam(betas=(-0.1, 0.9)), "beta1: got -0.1"),
        (lambda: adam(betas=0.9), "betas: got 0.9; expected two numbers"),  # type: ignore[arg-type]  # the test
        (lambda: adam(eps=-1e-8), "eps: got -1e-08"),
        (lambda: adam(amsgrad=1), "amsgrad: got 1; expected True or False"),  # type: ignore[arg-type]  # the test
        (lambda: adamw(decay=-0.1), "decay: got -0.1"),
        (lambda: adamw(decay=None), "decay: got None (NoneType)"),
        (lambda: adamw(decay=[0.1, 0.2]), 'use sweep={"decay": [...]}'),
        (lambda: sgd(momentum=-0.5), "momentum: got -0.5"),
        (lambda: sgd(nesterov=True), "nesterov: got True with momentum=0.0 and dampening=0.0; expected a momentum > 0"),
        (lambda: sgd(momentum=0.9, dampening=0.1, nesterov=True), "nesterov: got True"),
        (lambda: rmsprop(alpha=1.0), "alpha: got 1; expected a finite number >= 0 and < 1"),
        (lambda: rmsprop(centered=None), "centered: got None"),  # type: ignore[arg-type]  # the test
        (lambda: adagrad(initial_accumulator_value=-1.0), "initial_accumulator_value: got -1"),
        (lambda: adagrad(initial_accumulator_value=torch.ones(())), "initial_accumulator_value: got a tensor"),  # type: ignore[arg-type]  # the test
        (lambda: clip_by_global_norm(0.0), "max_norm: got 0; expected a finite number > 0"),
        (lambda: clip_by_value(-1.0), "max_value: got -1; expected a finite number > 0"),
        (lambda: chain(), "transforms: got nothing"),
        (lambda: chain(sgd(), adam()), "expected gradient transforms and at most one optimizer"),
        (lambda: adam(schedule=0.5), "schedule: got 0.5 (float); expected a function"),  # type: ignore[arg-type]  # the test
        (lambda: chain(sgd), "transforms: got sgd (function)"),  # type: ignore[arg-type]  # the test
    ],
)
def test_bad_arguments_are_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(message)):
        build()


@pytest.mark.parametrize("build", [sgd, adam, adamw, rmsprop, adagrad])
def test_there_is_no_weight_decay(build: Callable[..., Optimizer]) -> None:
    with pytest.raises(ArgumentError, match=r"weight_decay: got .* is set by lambdas"):
        build(weight_decay=0.1)
    assert build.__doc__ is not None
    assert "weight_decay" in build.__doc__


def test_bad_trees_are_refused() -> None:
    params = {"layer.weight": torch.ones(2), "layer.bias": torch.ones(1)}
    opt = sgd()
    state = opt.init(params)
    with pytest.raises(ArgumentError, match=r"grads: got no gradient of \['layer.bias'\]; expected one gradient"):
        opt.update({"layer.weight": torch.ones(2)}, state, params)
    with pytest.raises(ArgumentError, match=r"unknown parameters \['layer.wieght'\].*nearest names: 'layer.weight'"):
        opt.update({**params, "layer.wieght": torch.ones(2)}, state, params)
    with pytest.raises(ArgumentError, match=r"updates: got names \[\]; expected names \['layer.bias'"):
        apply_updates(params, {})
    with pytest.raises(ArgumentError, match=r"params: got 'n' of dtype torch.int64; expected floating"):
        opt.init({"n": torch.ones(2, dtype=torch.int64)})
    with pytest.raises(ArgumentError, match=r"decay.*'bias'"):
        adamw(decay={"bias": 0.1}).init(params)

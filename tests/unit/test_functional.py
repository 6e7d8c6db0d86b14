"""Modules as pure functions, and derivatives of members."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

import l2path
from l2path import ArgumentError, Functional, functionalize, member_gradients
from l2path.functional import as_arguments, check_module, first_members, forked_rng, unused_parameters
from l2path.functional.calling import parameters_held
from tests.helpers import assert_trees_close
from tests.models import noisy, smooth

F64 = torch.float64


class Tied(nn.Module):
    """A tied weight, a buffer that no state_dict holds, and inputs of several kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight
        self.shift: Tensor
        self.register_buffer("shift", torch.tensor([1.0, 2.0, 3.0]), persistent=False)

    def forward(self, index: Tensor, scale: Tensor | float = 1.0) -> Tensor:
        out: Tensor = self.head(scale * self.embed(index) + self.shift)
        return out


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 1), nn.Linear(3, 1)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        out: Tensor = self.a(first) - self.b(second)
        return out


def x_of(rows: int = 6, columns: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=F64)


def storages(tensors: Any) -> set[int]:
    return {t.untyped_storage().data_ptr() for t in tensors}


# functionalize


def test_the_module_stays_as_it_is() -> None:
    model = noisy()
    model.get_submodule("1").eval()
    model.get_parameter("4.bias").requires_grad_(False)
    called: list[str] = []
    handle = model.register_forward_hook(lambda *_: called.append("hook"))
    weights = {n: (id(p), p.clone(), p.requires_grad) for n, p in model.named_parameters()}
    buffers = {n: (id(b), b.clone()) for n, b in model.named_buffers()}
    modes, kind = [m.training for m in model.modules()], type(model)
    fn = functionalize(model)
    fn.apply(fn.params, fn.buffers, x_of())
    evaluation = functionalize(model, training=False)
    evaluation.apply(evaluation.params, evaluation.buffers, x_of())
    assert {n: id(p) for n, p in model.named_parameters()} == {n: w[0] for n, w in weights.items()}
    assert all(torch.equal(p, weights[n][1]) for n, p in model.named_parameters())
    assert {n: p.requires_grad for n, p in model.named_parameters()} == {n: w[2] for n, w in weights.items()}
    assert all(id(b) == buffers[n][0] and torch.equal(b, buffers[n][1]) for n, b in model.named_buffers())
    assert [m.training for m in model.modules()] == modes
    assert type(model) is kind
    assert all(p.grad is None for p in model.parameters())
    called.clear()
    model(x_of())
    assert called == ["hook"]
    handle.remove()


def test_state_is_owned_and_detached() -> None:
    model = noisy()
    fn = functionalize(model)
    mine = storages([*fn.params.values(), *fn.buffers.values()])
    assert len(mine) == len(fn.params) + len(fn.buffers)
    assert not mine & storages([*model.parameters(), *model.buffers()])
    assert not any(t.requires_grad for t in fn.params.values())
    before = fn.params["0.weight"].clone()
    with torch.no_grad():
        model.get_parameter("0.weight").add_(1.0)
    assert torch.equal(fn.params["0.weight"], before)


def test_apply_is_the_module() -> None:
    model = smooth()
    fn = functionalize(model)
    outputs, buffers = fn.apply(fn.params, fn.buffers, x_of())
    assert torch.equal(outputs, model(x_of()).detach())
    assert buffers == {}
    other = {k: 2 * p for k, p in fn.params.items()}
    doubled = copy.deepcopy(model)
    with torch.no_grad():
        for p in doubled.parameters():
            p.mul_(2)
    assert torch.equal(fn.apply(other, {}, x_of())[0], doubled(x_of()).detach())


def test_apply_updates_buffers_as_torch_does_and_not_its_arguments() -> None:
    model = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3)).double()
    fn = functionalize(model)
    params, buffers = copy.deepcopy((fn.params, fn.buffers))
    outputs, after = fn.apply(params, buffers, x_of())
    assert_trees_close((params, buffers), (fn.params, fn.buffers), rtol=0.0)
    assert_trees_close(outputs, model(x_of()), rtol=0.0)
    assert_trees_close(after, dict(model.named_buffers()), rtol=0.0, check_dtype=True)
    assert after["1.num_batches_tracked"].item() == 1
    second, _ = fn.apply(params, after, x_of(seed=1))
    assert_trees_close(second, model(x_of(seed=1)), rtol=0.0)


def test_buffers_that_a_module_rebinds_come_back() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))
            self.count: Tensor
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.count = self.count + 1
            return x * self.weight * self.count

    fn = functionalize(Counter())
    outputs, after = fn.apply(fn.params, fn.buffers, torch.tensor(3.0))
    assert outputs.item() == 3.0
    # functional_call swaps tensors by name: what is bound during the call is what comes back.
    assert after["count"].item() == 1.0
    assert fn.buffers["count"].item() == 0.0


def test_frozen_batchnorm_stays_frozen() -> None:
    model = noisy()
    model.get_submodule("1").eval()
    fn = functionalize(model)
    _, after = fn.apply(fn.params, fn.buffers, x_of())
    assert_trees_close(after, fn.buffers, rtol=0.0)
    assert fn.template.get_submodule("3").training


def test_evaluation_mode_on_the_copy_only() -> None:
    model = noisy()
    for fn in (functionalize(model, training=False), functionalize(model).evaluation()):
        first, after = fn.apply(fn.params, fn.buffers, x_of())
        assert torch.equal(first, fn.apply(fn.params, fn.buffers, x_of())[0])  # no dropout
        assert_trees_close(after, fn.buffers, rtol=0.0)
        assert_trees_close(first, copy.deepcopy(model).eval()(x_of()), rtol=0.0)
    trained = functionalize(model)
    trained.evaluation()
    assert trained.template.training


def test_a_module_in_eval_mode_can_be_taken_apart_for_evaluation() -> None:
    model = smooth().eval()
    fn = functionalize(model, training=False)
    assert_trees_close(fn.apply(fn.params, {}, x_of())[0], model(x_of()))


def test_tied_weights_appear_once_and_stay_tied() -> None:
    model = Tied()
    fn = functionalize(model)
    assert list(fn.params) == ["embed.weight"]
    assert fn.aliases == {"embed.weight": ("embed.weight", "head.weight")}
    index = torch.tensor([0, 3])
    assert torch.equal(fn.apply(fn.params, fn.buffers, index)[0], model(index).detach())
    other = {"embed.weight": fn.params["embed.weight"] + 1.0}
    by_hand = (other["embed.weight"][index] + fn.buffers["shift"]) @ other["embed.weight"].T
    assert_trees_close(fn.apply(other, fn.buffers, index)[0], by_hand, rtol=1e-6)


def test_frozen_parameters_are_outside_params() -> None:
    model = smooth()
    model.get_submodule("0").requires_grad_(False)
    fn = functionalize(model)
    assert set(fn.frozen) == {"0.weight", "0.bias"}
    assert set(fn.params) == {"2.weight", "2.bias", "3.weight", "3.bias"}
    assert torch.equal(fn.apply(fn.params, {}, x_of())[0], model(x_of()).detach())


def test_freeze_moves_parameters() -> None:
    fn = functionalize(smooth())
    some = fn.freeze(["0.weight", "3.bias"])
    assert list(some.params) == ["0.bias", "2.weight", "2.bias", "3.weight"]
    assert set(some.frozen) == {"0.weight", "3.bias"}
    assert len(fn.params) == 6  # the original is left alone
    assert torch.equal(some.apply(some.params, {}, x_of())[0], fn.apply(fn.params, {}, x_of())[0])
    assert list(fn.freeze(iter(["0.bias"])).frozen) == ["0.bias"]


@pytest.mark.parametrize("kind", ["tuple", "list", "dict", "bare"])
def test_inputs_become_arguments(kind: str) -> None:
    first, second = torch.ones(4, 2), torch.ones(4, 3)
    if kind == "bare":
        fn = functionalize(nn.Linear(2, 1))
        assert_trees_close(fn.call(fn.params, {}, first)[0], fn.apply(fn.params, {}, first)[0], rtol=0.0)
        return
    model = TwoInputs()
    fn = functionalize(model)
    inputs: Any = {"tuple": (first, second), "list": [first, second], "dict": {"second": second, "first": first}}[kind]
    assert torch.equal(fn.call(fn.params, {}, inputs)[0], model(first, second).detach())


def test_as_arguments() -> None:
    x = torch.zeros(1)
    assert as_arguments(x) == ((x,), {})
    assert as_arguments((x, 2)) == ((x, 2), {})
    assert as_arguments({"a": x}) == ((), {"a": x})


def test_keyword_arguments_reach_forward() -> None:
    fn = functionalize(Tied())
    index = torch.tensor([1])
    assert not torch.equal(
        fn.apply(fn.params, fn.buffers, index, scale=2.0)[0], fn.apply(fn.params, fn.buffers, index)[0]
    )


@pytest.mark.parametrize(
    ("rename", "message"),
    [({"0.weight": "0.wieght"}, "0.wieght"), ({"0.weight": None}, "0.weight")],
    ids=["misspelt", "missing"],
)
def test_wrong_names_raise(rename: dict[str, str | None], message: str) -> None:
    fn = functionalize(smooth())
    params = {new: p for k, p in fn.params.items() if (new := rename.get(k, k)) is not None}
    with pytest.raises(RuntimeError, match=re.escape(message)):
        fn.apply(params, {}, x_of())


def test_apply_leaves_its_inputs_alone() -> None:
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(5, 2)).double()
    fn = functionalize(model)
    x = x_of()
    fn.apply(fn.params, fn.buffers, x)
    assert torch.equal(x, x_of())


def test_dtype_and_device() -> None:
    fn = functionalize(smooth())
    assert fn.dtype == F64
    assert fn.device == torch.device("cpu")
    assert functionalize(nn.Linear(2, 1, dtype=torch.bfloat16).requires_grad_(False)).dtype == torch.bfloat16
    assert functionalize(nn.Identity()).dtype == torch.get_default_dtype()
    assert functionalize(nn.Linear(2, 1, device="meta")).device.type == "meta"


# materialize


def nonpersistent() -> nn.Module:
    return Tied()


def parametrized() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(weight_norm(nn.Linear(5, 4)), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()


def partly_frozen() -> nn.Module:
    model = noisy()
    model.get_submodule("0").requires_grad_(False)
    return model


@pytest.mark.parametrize("make", [smooth, noisy, nonpersistent, parametrized, partly_frozen])
def test_materialized_modules_hold_the_values_and_load_strictly(make: Callable[[], nn.Module]) -> None:
    model = make()
    fn = functionalize(model)
    params = {k: p + 0.5 for k, p in fn.params.items()}
    buffers = {k: b + 1 for k, b in fn.buffers.items()}
    made = fn.materialize(params, buffers)
    assert type(made) is type(model)
    assert_trees_close({k: p for k, p in made.named_parameters() if k in params}, params, rtol=0.0)
    assert_trees_close(dict(made.named_buffers()), buffers, rtol=0.0)
    assert made.state_dict().keys() == model.state_dict().keys()
    fresh = make()
    fresh.load_state_dict(made.state_dict(), strict=True)
    inputs = torch.tensor([0, 2]) if make is nonpersistent else x_of()
    expected, _ = fn.evaluation().apply(params, buffers, inputs)
    assert_trees_close(made.eval()(inputs), expected, rtol=1e-12)
    assert not storages(made.parameters()) & storages([*params.values(), *fn.frozen.values(), *model.parameters()])


def test_materialized_ties_are_ties() -> None:
    fn = functionalize(Tied())
    made = fn.materialize({"embed.weight": torch.full((5, 3), 2.0)}, fn.buffers)
    assert isinstance(made, Tied)
    assert made.head.weight is made.embed.weight
    assert made.head.weight.unique().tolist() == [2.0]


def test_materialize_takes_parameters_that_were_frozen_by_name() -> None:
    fn = functionalize(smooth()).freeze(["0.bias"])
    changed = {**fn.frozen, "0.bias": torch.full((8,), 7.0, dtype=F64)}
    made = Functional(fn.params, fn.buffers, changed, fn.aliases, fn.template).materialize(fn.params, {})
    assert dict(made.named_parameters())["0.bias"].unique().tolist() == [7.0]


# Refusals


def refused(call: Callable[[], object]) -> ArgumentError:
    with pytest.raises(ArgumentError, match=r"^module: got .*; expected .*\. Remedy: ") as info:
        call()
    return info.value


def test_a_root_in_eval_mode_is_refused_for_training() -> None:
    error = refused(lambda: functionalize(smooth().eval()))
    assert "eval mode" in error.got
    assert "module.train()" in error.remedy


@pytest.mark.parametrize("value", [None, 3, "model", lambda x: x, nn.Linear])
def test_what_is_no_module_is_refused(value: Any) -> None:
    assert "an nn.Module" in refused(lambda: functionalize(value)).expected


def test_lazy_parameters_are_refused_by_name() -> None:
    error = refused(lambda: functionalize(nn.Sequential(nn.LazyLinear(3))))
    assert error.got == "uninitialised lazy parameters ['0.weight', '0.bias']"
    assert "call the module once" in error.remedy


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.jit itself, which people still use
def test_script_modules_are_refused() -> None:
    scripted = torch.jit.trace(nn.Linear(2, 1), torch.zeros(1, 2))
    assert refused(lambda: functionalize(scripted)).got == "a ScriptModule"


def test_modules_that_cannot_be_copied_are_refused_with_the_cause() -> None:
    model = nn.Linear(2, 1)
    model.cache = model.weight * 2  # not a leaf: torch refuses to deepcopy it
    error = refused(lambda: functionalize(model))
    assert error.got.startswith("Linear, whose deepcopy fails: ")
    assert "not leaves" in error.remedy
    assert isinstance(error.__cause__, RuntimeError)


def test_check_module_changes_nothing() -> None:
    model = smooth().eval()
    check_module(model, training=False)
    assert not model.training


# Gradients


def test_unused_parameters_by_name() -> None:
    params = {"a": torch.ones(2), "b": torch.ones(2), "zero": torch.ones(2)}
    found = unused_parameters(lambda p: ((p["a"] + 0 * p["zero"]).sum(), {}), params)
    assert found == ["b"]  # a gradient of zero is still a gradient
    assert unused_parameters(lambda p: (torch.tensor(1.0), {}), params) == ["a", "b", "zero"]


def mean_squares(outputs: Tensor, targets: Tensor) -> Tensor:
    return ((outputs - targets) ** 2).mean()


def batchnorm() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4, bias=False), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)).double()


def instancenorm() -> nn.Module:
    torch.manual_seed(0)
    norm = nn.InstanceNorm1d(1, affine=True)
    return nn.Sequential(
        nn.Linear(5, 4), nn.Unflatten(1, (1, 4)), norm, nn.Flatten(), nn.Tanh(), nn.Linear(4, 3)
    ).double()


def unrolled(make: Callable[[], nn.Module]) -> Callable[[Any], Tensor]:
    """The loss on other rows after three steps, as a function of one member's lambdas."""
    model = make()
    opt = l2path.sgd(lr=0.1, momentum=0.9)
    step = l2path.make_train_step(model, mean_squares, opt)
    fn, start = functionalize(model), l2path.init_state(model, opt)
    inputs, others, targets = x_of(8), x_of(8, seed=2), torch.sin(x_of(8, 3, seed=1))

    def value(lambdas: Any) -> Tensor:
        state = start
        for _ in range(3):
            state, _ = step(state, (inputs, targets), lambdas)
        return mean_squares(fn.apply(state.params, state.buffers, others)[0], targets)

    return value


def finite_differences(function: Callable[[Tensor], Tensor], lambdas: Tensor, h: float = 1e-5) -> Tensor:
    return torch.stack([(function(lam + h) - function(lam - h)) / (2 * h) for lam in lambdas])


LAMBDAS = torch.tensor([1.0, 0.3, 0.01], dtype=F64)


@pytest.mark.parametrize("mode", ["reverse", "forward"])
@pytest.mark.parametrize("make", [smooth, batchnorm, instancenorm])
def test_member_gradients_through_steps_are_finite_differences(make: Callable[[], nn.Module], mode: Any) -> None:
    function = unrolled(make)
    gradients, values = member_gradients(function, LAMBDAS, mode=mode)
    assert_trees_close(gradients, finite_differences(function, LAMBDAS), rtol=1e-6)
    assert_trees_close(values, torch.stack([function(lam) for lam in LAMBDAS]))


@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_member_gradients_of_a_later_layer_alone(mode: Any) -> None:
    # The first step batches the parameter that the lambda reaches, and no earlier one; buffers have to follow.
    def deep() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3), nn.BatchNorm1d(3)).double()

    function = unrolled(deep)
    gradients, _ = member_gradients(lambda lam: function({"2.weight": lam}), LAMBDAS, mode=mode)
    expected = finite_differences(lambda lam: function({"2.weight": lam}), LAMBDAS)
    assert_trees_close(gradients, expected, rtol=1e-6)


@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_member_gradients_through_dropout_share_its_masks(mode: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3)).double()
    opt = l2path.sgd(lr=0.1)
    step, start = l2path.make_train_step(model, mean_squares, opt), l2path.init_state(model, opt)
    data = (x_of(), x_of(6, 3))

    def value(lam: Tensor) -> Tensor:
        torch.manual_seed(3)
        state, _ = step(start, data, lam)
        return step(state, data, lam)[1].loss

    with forked_rng(torch.device("cpu")):
        gradients, _ = member_gradients(value, LAMBDAS, mode=mode)
        assert_trees_close(gradients, finite_differences(value, LAMBDAS), rtol=1e-6)


@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_member_gradients_by_parameter(mode: Any) -> None:
    function = unrolled(smooth)
    torch.manual_seed(0)
    elements = torch.rand(3, 8, 5, dtype=F64)  # [K, *shape]
    lambdas = {"0.weight": elements, "3.weight": LAMBDAS}
    gradients, values = member_gradients(function, lambdas, mode=mode)
    assert gradients["0.weight"].shape == (3, 8, 5)
    assert values.shape == (3,)
    for k in range(3):

        def of_scale(t: Tensor, k: int = k) -> Tensor:
            return function({"0.weight": elements[k], "3.weight": t})

        def of_element(t: Tensor, k: int = k) -> Tensor:
            changed = elements[k].clone()
            changed[2, 1] = t
            return function({"0.weight": changed, "3.weight": LAMBDAS[k]})

        by_scale = finite_differences(of_scale, LAMBDAS[k : k + 1])[0]
        by_element = finite_differences(of_element, elements[k, 2, 1][None], h=1e-3)[0]
        assert_trees_close(gradients["3.weight"][k], by_scale, rtol=1e-6)
        assert_trees_close(gradients["0.weight"][k, 2, 1], by_element, rtol=1e-6)


@pytest.mark.parametrize("make", [smooth, instancenorm])
def test_differentiating_outside_vmap_is_wrong_which_is_why_the_helper_exists(make: Callable[[], nn.Module]) -> None:
    function = unrolled(make)
    exact = finite_differences(function, LAMBDAS)
    outside = torch.func.grad(lambda lambdas: torch.func.vmap(function)(lambdas).sum())(LAMBDAS)
    # When torch repairs its decompositions under vmap(grad) this fails, and the warning in the docs can go.
    assert float(((outside - exact) / exact).abs().max()) > 1e-4
    assert_trees_close(member_gradients(function, LAMBDAS)[0], exact, rtol=1e-6)


def test_member_gradients_by_hand() -> None:
    modes: tuple[Literal["reverse", "forward"], ...] = ("reverse", "forward")
    for mode in modes:
        lambdas = {"a": LAMBDAS, "b": 2 * LAMBDAS}
        gradients, values = member_gradients(lambda lam: lam["a"] ** 2 * lam["b"], lambdas, mode=mode)
        assert_trees_close(gradients, {"a": 4 * LAMBDAS**2, "b": LAMBDAS**2})
        assert_trees_close(values, 2 * LAMBDAS**3)


def test_another_mode_is_refused() -> None:
    with pytest.raises(ArgumentError, match="mode: got 'backward'; expected 'reverse' or 'forward'"):
        member_gradients(lambda lam: lam, LAMBDAS, mode="backward")  # type: ignore[arg-type]


def test_losses_without_a_forward_derivative_are_named() -> None:
    model, opt = smooth(), l2path.sgd(lr=0.1)
    step, start = l2path.make_train_step(model, F.mse_loss, opt), l2path.init_state(model, opt)
    data = (x_of(), x_of(6, 3))

    def value(lam: Tensor) -> Tensor:
        state, _ = step(start, data, lam)
        return step(state, data, lam)[1].loss

    assert bool(torch.isfinite(member_gradients(value, LAMBDAS)[0]).all())
    with pytest.raises(ArgumentError, match="mode='reverse'"):
        member_gradients(value, LAMBDAS, mode="forward")


# Random numbers


def test_forked_rng_leaves_the_generator_as_it_was() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with forked_rng(torch.device("cpu")):
        torch.manual_seed(1)
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)


def test_forked_rng_restores_after_an_error() -> None:
    def fail() -> None:
        with forked_rng(torch.device("cpu")):
            torch.rand(3)
            raise KeyError

    before = torch.get_rng_state()
    with pytest.raises(KeyError):
        fail()
    assert torch.equal(torch.get_rng_state(), before)


def test_functionalize_draws_no_random_numbers() -> None:
    model = noisy()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    functionalize(model).evaluation()
    assert torch.equal(torch.get_rng_state(), before)


# --- what a call leaves behind on its module -------------------------------------------------------------------------


class Base(nn.Module):
    """Two layers; a subclass says what else a call does to the module."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 1)
        self.more()

    def more(self) -> None:
        """What a subclass begins with."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(torch.tanh(self.a(self.during(x))))
        return out

    def during(self, x: Tensor) -> Tensor:
        """What a subclass does in a call."""
        return x


class Renamed(Base):
    """An attribute goes, and another one comes with the same value."""

    def more(self) -> None:
        self.fresh = True

    def during(self, x: Tensor) -> Tensor:
        if hasattr(self, "fresh"):
            del self.fresh
            self.used = True
            return 2 * x
        return x


class Added(Base):
    """A sub-module that is made at the first call."""

    def during(self, x: Tensor) -> Tensor:
        if not hasattr(self, "act"):
            self.act = nn.ReLU()
        out: Tensor = self.act(x)
        return out


class Taken(Base):
    """A buffer that a call takes away, or sets to None."""

    def more(self) -> None:
        self.register_buffer("first", torch.zeros(1))
        self.register_buffer("second", torch.zeros(1))

    def during(self, x: Tensor) -> Tensor:
        if hasattr(self, "first"):
            del self.first
        self.second = None
        return x


def losses_of(module: nn.Module, calls: int) -> list[float]:
    """What a module gives when one functional is called several times."""
    fn = functionalize(module)
    x = torch.ones(3, 4)
    return [float(fn.apply(fn.params, fn.buffers, x)[0].sum()) for _ in range(calls)]


@pytest.mark.parametrize("kind", [Renamed, Added, Taken])
def test_every_call_is_like_the_first(kind: type[Base]) -> None:
    assert len(set(losses_of(kind(), 3))) == 1
    fn, x = functionalize(kind()), torch.ones(3, 4)
    params, buffers = first_members(fn.params, fn.buffers)
    outputs, after = fn.apply(params, buffers, x)
    assert after.keys() == fn.buffers.keys()
    with parameters_held():  # as in a loop's gradient
        held, after = fn.apply(params, buffers, x)
    assert torch.equal(held, outputs)
    assert after.keys() == fn.buffers.keys()


class Swapped(Base):
    """Layers that change places at every call."""

    def more(self) -> None:
        self.c = nn.Linear(4, 4)

    def during(self, x: Tensor) -> Tensor:
        self.a, self.c = self.c, self.a
        return x


def test_layers_that_change_places_have_the_parameters_that_are_given() -> None:
    """As in torch, a module stays as a call has changed it; none of its own tensors takes part for that."""
    fn, x = functionalize(Swapped()), torch.ones(3, 4)
    for _ in range(3):
        outputs, _ = fn.apply({name: torch.zeros_like(p) for name, p in fn.params.items()}, fn.buffers, x)
        assert not bool(outputs.any())


class Both(Base):
    def more(self) -> None:
        self.register_buffer("w", self.a.weight)


class Late(Base):
    """A buffer that is made at the first call, and so has no name in a functional."""

    cache: Tensor | None

    def more(self) -> None:
        self.register_buffer("cache", None)

    def during(self, x: Tensor) -> Tensor:
        if self.cache is None:
            self.cache = self.a.weight.detach().clone()
        return x @ self.cache


def test_a_parameter_that_is_a_buffer_as_well_is_refused() -> None:
    with pytest.raises(ArgumentError, match="the buffer 'w', which is a parameter as well"):
        functionalize(Both())


def test_a_buffer_that_a_call_makes_is_noticed() -> None:
    fn, x = functionalize(Late()), torch.ones(3, 4)
    fn.apply(fn.params, fn.buffers, x)
    with pytest.raises(RuntimeError, match=r"missing \['cache'\]"):
        fn.apply(fn.params, fn.buffers, x)


def test_a_call_that_fails_leaves_the_module_as_it_was() -> None:
    fn = functionalize(Base())
    before = {name: id(p) for name, p in fn.template.named_parameters()}
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        fn.apply({name: 2 * p for name, p in fn.params.items()}, fn.buffers, torch.ones(3, 5))
    assert {name: id(p) for name, p in fn.template.named_parameters()} == before

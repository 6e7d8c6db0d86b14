"""Lambda specs, "weights only", the penalty, grids, tables and axes of lambdas."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import l2path
from l2path import ArgumentError, expand_lambdas, l2_penalty, lambda_grid, lambda_table, weights_only
from l2path.penalty import check_anchor, describe, lambda_axis, penalty_and_gradient
from tests.helpers import assert_trees_close

Dict: TypeAlias = dict[str, Tensor]

BAD_LEAVES = [
    pytest.param(-0.1, "the values -0.1", id="negative"),
    pytest.param(float("nan"), "the values nan", id="nan"),
    pytest.param(float("inf"), "the values inf", id="inf"),
    pytest.param(torch.tensor(-2.0), "the values -2", id="negative tensor"),
    pytest.param(True, "bool", id="bool"),
    pytest.param(torch.tensor(True), "torch.bool", id="bool tensor"),
    pytest.param(np.array([True, False]), "of bool", id="bool array"),
    pytest.param(1j, "complex", id="complex"),
    pytest.param(torch.tensor(1j), "torch.complex64", id="complex tensor"),
    pytest.param("0.1", "str", id="string"),
    pytest.param(None, "NoneType", id="none"),
]


class Tied(nn.Module):
    """An embedding whose weight is also the head's."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 7)
        self.head.weight = self.embed.weight


class LlamaRMSNorm(nn.Module):
    """A normalisation layer as model libraries write their own."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1))


def floats(strengths: Dict) -> dict[str, float]:
    return {name: float(value) for name, value in strengths.items()}


def refused(argument: str, match: str | None, call: Callable[[], object]) -> ArgumentError:
    with pytest.raises(ArgumentError, match=match) as info:
        call()
    error = info.value
    assert error.argument.startswith(argument)
    assert error.got
    assert error.expected
    assert error.remedy
    return error


# Specs


def test_one_number_reaches_every_parameter() -> None:
    strengths = expand_lambdas(mlp(), 0.25)
    assert list(strengths) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert all(value.shape == () and value.dtype == torch.float32 and value == 0.25 for value in strengths.values())


def test_exact_beats_glob_beats_default() -> None:
    spec = {"*": 1.0, "0.*": 2.0, "0.bias": 3.0}
    assert floats(expand_lambdas(mlp(), spec)) == {"0.weight": 2.0, "0.bias": 3.0, "2.weight": 1.0, "2.bias": 1.0}


def test_what_no_pattern_names_gets_zero() -> None:
    expected = {"0.weight": 1.0, "0.bias": 0.0, "2.weight": 1.0, "2.bias": 0.0}
    assert floats(expand_lambdas(mlp(), {"*.weight": 1.0})) == expected


def test_globs_are_case_sensitive_and_know_question_marks_and_classes() -> None:
    assert floats(expand_lambdas(mlp(), {"?.b*": 1.0, "[0-1].weight": 2.0}))["0.weight"] == 2.0
    refused("lambdas", "matches no parameter", lambda: expand_lambdas(mlp(), {"*.Weight": 1.0}))


def test_overlapping_globs_are_refused_with_the_parameter_that_they_share() -> None:
    error = refused("lambdas", "all match", lambda: expand_lambdas(mlp(), {"0.*": 1.0, "*.weight": 2.0}))
    assert error.got == "the patterns ['0.*', '*.weight'], which all match parameter '0.weight'"
    assert "add the exact name '0.weight'" in error.remedy


def test_an_exact_name_resolves_an_overlap() -> None:
    spec = {"0.*": 1.0, "*.weight": 2.0, "0.weight": 3.0}
    assert floats(expand_lambdas(mlp(), spec)) == {"0.weight": 3.0, "0.bias": 1.0, "2.weight": 2.0, "2.bias": 0.0}


def test_a_pattern_that_matches_nothing_is_refused_with_the_nearest_names() -> None:
    error = refused("lambdas", "matches no parameter", lambda: expand_lambdas(mlp(), {"0.wieght": 1.0}))
    assert "the pattern '0.wieght'" in error.got
    assert "'0.weight'" in error.remedy.partition("nearest names: ")[2]


def test_the_argument_is_called_what_the_caller_called_it() -> None:
    refused("decay", "matches no parameter", lambda: expand_lambdas(mlp(), {"x": 1.0}, argument="decay"))
    refused("decay", "finite values >= 0", lambda: expand_lambdas(mlp(), -1.0, argument="decay"))


def test_a_pattern_that_matches_frozen_parameters_only_is_refused() -> None:
    model = mlp()
    model[0].requires_grad_(False)
    error = refused("lambdas", "frozen", lambda: expand_lambdas(model, {"0.*": 1.0}))
    assert "['0.weight', '0.bias']" in error.got
    assert "requires_grad=True" in error.remedy
    assert floats(expand_lambdas(model, {"*.weight": 1.0})) == {"2.weight": 1.0, "2.bias": 0.0}


def test_keys_have_to_be_strings() -> None:
    refused("lambdas", "the key 0", lambda: expand_lambdas(mlp(), {0: 1.0}))


@pytest.mark.parametrize("pattern", ["embed.weight", "head.weight", "head.w*", "embed.*"])
def test_any_alias_of_a_tied_parameter_names_it_once(pattern: str) -> None:
    model = Tied()
    strengths = expand_lambdas(model, {pattern: 0.5})
    assert list(strengths) == ["embed.weight", "body.weight", "body.bias", "head.bias"]
    assert floats(strengths)["embed.weight"] == 0.5
    assert floats(expand_lambdas(l2path.functionalize(model), {pattern: 0.5})) == floats(strengths)


def test_an_exact_alias_beats_a_glob_over_another_alias() -> None:
    assert floats(expand_lambdas(Tied(), {"embed.*": 1.0, "head.weight": 2.0}))["embed.weight"] == 2.0


def test_two_names_of_one_tied_parameter_overlap() -> None:
    refused("lambdas", "all match", lambda: expand_lambdas(Tied(), {"embed.weight": 1.0, "head.weight": 2.0}))


def test_a_tied_parameter_is_penalised_once() -> None:
    model = Tied()
    params = l2path.functionalize(model).params
    expected = 0.5 * 2.0 * float(model.embed.weight.detach().square().sum())
    assert_trees_close(l2_penalty(params, expand_lambdas(model, {"head.weight": 2.0})), expected, rtol=1e-6)


def test_element_wise_leaves_broadcast_and_keep_their_smallest_form() -> None:
    params = {"w": torch.zeros(2, 3), "b": torch.zeros(3)}
    for leaf in (torch.ones(2, 3), torch.ones(3), torch.ones(2, 1), np.ones((1, 3)), [1.0, 2.0, 3.0], (1, 2, 3)):
        shape = leaf.shape if isinstance(leaf, (Tensor, np.ndarray)) else (3,)
        assert expand_lambdas(params, {"w": leaf})["w"].shape == shape
    assert expand_lambdas(params, [1.0, 2.0, 3.0])["b"].tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("shape", [(2,), (4, 3), (1, 2, 3), (0,), (3, 2)])
def test_a_leaf_that_does_not_broadcast_to_its_parameter_is_refused(shape: tuple[int, ...]) -> None:
    params = {"w": torch.zeros(2, 3)}
    error = refused("lambdas (parameter 'w')", "broadcasts to", lambda: expand_lambdas(params, torch.ones(shape)))
    assert error.got == f"shape {list(shape)}"
    assert "[2, 3]" in error.expected


def test_element_wise_zeros_of_an_empty_parameter_are_fine() -> None:
    assert expand_lambdas({"w": torch.zeros(0, 3)}, torch.ones(3))["w"].shape == (3,)


@pytest.mark.parametrize(
    ("param", "expected"),
    [
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.complex64, torch.float32),
        (torch.complex128, torch.float64),
    ],
)
@pytest.mark.parametrize(
    "leaf", [0.5, 1, np.float32(0.5), torch.tensor(0.5, dtype=torch.float64), torch.tensor([1, 2])]
)
def test_strengths_are_real_and_at_least_float32(param: torch.dtype, expected: torch.dtype, leaf: Any) -> None:
    assert expand_lambdas({"w": torch.zeros(2, dtype=param)}, leaf)["w"].dtype == expected


def test_strengths_are_on_the_device_of_their_parameter() -> None:
    params = {"w": torch.zeros(2, device="meta")}
    assert expand_lambdas(params, torch.tensor(0.5))["w"].device.type == "meta"  # a 0-d tensor is moved
    error = refused("lambdas['w']", "on cpu", lambda: expand_lambdas(params, torch.ones(2)))
    assert error.remedy == "move it: .to('meta')"


@pytest.mark.parametrize(("leaf", "message"), BAD_LEAVES)
def test_bad_leaves_are_refused_by_name(leaf: Any, message: str) -> None:
    params = {"w": torch.zeros(2), "b": torch.zeros(2)}
    for spec in (leaf, {"w": leaf}):
        error = refused("lambdas", None, lambda spec=spec: expand_lambdas(params, spec))  # type: ignore[misc]
        assert "'w'" in error.argument
        assert message in error.got


def test_the_first_bad_elements_are_shown() -> None:
    leaf = torch.tensor([0.0, -1.0, float("nan"), 2.0, -3.0, -4.0])
    error = refused("lambdas", None, lambda: expand_lambdas({"w": torch.zeros(6)}, leaf))
    assert error.got == "the values -1, nan, -3"


def test_what_is_no_model_is_refused() -> None:
    # The wrong type is the point.
    refused("module_or_params", "a list", lambda: expand_lambdas([torch.zeros(2)], 1.0))  # type: ignore[arg-type]


def test_specs_are_not_changed_and_stay_differentiable() -> None:
    lam = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    spec = {"w": lam}
    strengths = expand_lambdas({"w": torch.tensor([3.0, 4.0])}, spec)
    l2_penalty({"w": torch.tensor([3.0, 4.0])}, strengths).backward()
    assert spec == {"w": lam}
    assert lam.grad is not None
    assert lam.grad.tolist() == [4.5, 8.0]


# Weights only


def free(model: nn.Module) -> set[str]:
    """What weights_only leaves unpenalised, through both ways in."""
    strengths = floats(expand_lambdas(model, weights_only(1.0)))
    assert strengths == floats(expand_lambdas(l2path.functionalize(model), weights_only(1.0)))
    assert set(strengths.values()) <= {0.0, 1.0}
    return {name for name, value in strengths.items() if value == 0.0}


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (nn.Linear(2, 2), {"bias"}),
        (nn.Conv2d(2, 2, 1), {"bias"}),
        (nn.Bilinear(2, 2, 1), {"bias"}),
        (nn.BatchNorm2d(2), {"weight", "bias"}),
        (nn.LayerNorm(2), {"weight", "bias"}),
        (nn.GroupNorm(1, 2), {"weight", "bias"}),
        (nn.InstanceNorm1d(2, affine=True), {"weight", "bias"}),
        (nn.RMSNorm(2), {"weight"}),
        (LlamaRMSNorm(2), {"weight"}),
        (nn.LSTM(2, 2), {"bias_ih_l0", "bias_hh_l0"}),
        (nn.GRU(2, 2, bidirectional=True), {f"bias_{k}h_l0{r}" for k in "ih" for r in ("", "_reverse")}),
        (nn.MultiheadAttention(2, 1), {"in_proj_bias", "out_proj.bias"}),
        (nn.MultiheadAttention(2, 1, add_bias_kv=True), {"in_proj_bias", "out_proj.bias", "bias_k", "bias_v"}),
        (nn.Embedding(3, 2), set()),
        (nn.PReLU(), set()),
        (weight_norm(nn.Linear(2, 2)), {"bias"}),
        (nn.Sequential(weight_norm(nn.Linear(2, 2))), {"0.bias"}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_weights_only_by_type_and_name(model: nn.Module, expected: set[str]) -> None:
    assert free(model) == expected


def test_a_parametrized_bias_is_a_bias() -> None:
    model = nn.Sequential(weight_norm(nn.Linear(2, 2), name="bias"))
    assert {"0.parametrizations.bias.original0", "0.parametrizations.bias.original1"} <= free(model)


def test_a_bare_parameter_of_any_rank_is_a_weight() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))
            self.unbiased = nn.Parameter(torch.ones(3))

    assert free(Scale()) == set()


def test_a_tied_embedding_and_head_is_a_weight() -> None:
    assert free(Tied()) == {"body.bias", "head.bias"}


def test_a_parameter_tied_between_a_norm_and_a_layer_is_a_weight() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = LlamaRMSNorm(3)
            self.gate = nn.PReLU(3)
            self.gate.weight = self.norm.weight

    assert free(Shared()) == set()


def test_weights_only_restricts_patterns() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 1))
    strengths = floats(expand_lambdas(model, weights_only({"*": 1.0, "2.*": 3.0})))
    assert {name: value for name, value in strengths.items() if value} == {"0.weight": 1.0, "2.weight": 3.0}


def test_weights_only_needs_a_module() -> None:
    error = refused("lambdas", "weights_only", lambda: expand_lambdas({"w": torch.zeros(2)}, weights_only(1.0)))
    assert "pass the module" in error.remedy


# Tables


def test_the_table_says_why() -> None:
    model = Tied()
    model.body.bias.requires_grad_(False)
    spec = {"*": 0.1, "head.weight": 2, "body.*": torch.tensor([[1.0], [2.0], [2.0], [3.0]])}
    expected = """
parameter      shape  lambda  why
embed.weight  [7, 4]       2  alias 'head.weight'
body.weight   [4, 4]  1 to 3  pattern 'body.*'
head.bias        [7]     0.1  the default '*'
body.bias        [4]       0  frozen (requires_grad=False)"""
    assert str(lambda_table(model, spec)) == expected[1:]


def test_the_table_of_weights_only_names_the_reason() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    rows = {row.parameter: (row.strength, row.why) for row in lambda_table(model, weights_only(0.5)).rows}
    assert rows == {
        "0.weight": ("0.5", "one value for all"),
        "0.bias": ("0", "weights only: a bias"),
        "1.weight": ("0", "weights only: in LayerNorm"),
        "1.bias": ("0", "weights only: a bias"),
    }


def test_the_table_of_a_path_shows_ranges() -> None:
    rows = lambda_table(nn.Linear(2, 1), {"weight": [1.0, 0.1, 0.01], "bias": 0.5}, members=3).rows
    assert [(row.parameter, row.shape, row.strength) for row in rows] == [
        ("weight", (1, 2), "0.01 to 1"),
        ("bias", (1,), "0.5"),
    ]


# The penalty


def test_the_penalty_by_hand() -> None:
    params = {"w": torch.tensor([3.0, -4.0]), "b": torch.tensor([2.0])}
    assert float(l2_penalty(params, 0.1)) == pytest.approx(0.05 * 29)
    assert float(l2_penalty(params, {"w": 0.1, "b": 2.0})) == pytest.approx(0.05 * 25 + 4)
    assert float(l2_penalty(params, {"w": torch.tensor([1.0, 2.0])})) == pytest.approx(0.5 * (9 + 32))


def test_the_penalty_shrinks_towards_an_anchor_and_else_to_zero() -> None:
    params = {"w": torch.tensor([3.0, -4.0]), "b": torch.tensor([2.0])}
    anchor = {"w": torch.tensor([1.0, -1.0])}
    assert float(l2_penalty(params, 2.0, anchor)) == 4.0 + 9.0 + 4.0
    assert float(l2_penalty(params, 2.0, params)) == 0.0


def test_the_penalty_of_complex_parameters_is_of_the_modulus() -> None:
    params = {"w": torch.tensor([3 + 4j, 1j])}
    value = l2_penalty(params, 0.5, {"w": torch.tensor([0j, 1 + 1j])})
    assert value.dtype == torch.float32
    assert float(value) == 0.25 * (25 + 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_no_parameters_have_no_penalty(dtype: torch.dtype) -> None:
    assert float(l2_penalty({}, 1.0)) == 0.0
    assert float(l2_penalty({"w": torch.zeros(0, dtype=dtype)}, 1.0)) == 0.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_penalty_of_half_precision_parameters_is_in_float32(dtype: torch.dtype) -> None:
    # 301 is no bfloat16 number, and 300 * 300 overflows float16.
    value = l2_penalty({"w": torch.tensor([300.0, 1.0] + [1.0] * 300, dtype=dtype)}, 2.0)
    assert value.dtype == torch.float32
    assert float(value) == 90301.0


def test_the_gradient_of_half_precision_parameters_is_in_float32() -> None:
    params = {"w": torch.tensor([3.0], dtype=torch.bfloat16)}
    gradient = penalty_and_gradient(params, expand_lambdas(params, 1 / 3), {})[1]["w"]
    assert gradient.dtype == torch.float32
    assert float(gradient) == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("complex_", [False, True])
def test_the_exact_gradient_is_autograds(complex_: bool) -> None:
    torch.manual_seed(0)
    dtype = torch.complex128 if complex_ else torch.float64
    w, anchor = torch.randn(2, 3, dtype=dtype), torch.randn(2, 3, dtype=dtype)
    b = torch.randn(3, dtype=torch.float64)
    strengths = {"w": torch.rand(3, dtype=torch.float64), "b": torch.tensor(0.7, dtype=torch.float64)}
    leaves = {"w": w.clone().requires_grad_(), "b": b.clone().requires_grad_()}
    l2_penalty(leaves, strengths, {"w": anchor}).backward()
    exact = penalty_and_gradient({"w": w, "b": b}, strengths, {"w": anchor})[1]
    assert_trees_close({k: p.grad for k, p in leaves.items()}, exact, rtol=1e-14)
    assert_trees_close(exact, {"w": strengths["w"] * (w - anchor), "b": 0.7 * b}, rtol=1e-14)


def test_gradcheck_with_respect_to_parameters_and_lambdas() -> None:
    torch.manual_seed(0)
    w, b = torch.randn(2, 3, dtype=torch.float64), torch.randn((), dtype=torch.float64)
    lam, scalar = torch.rand(3, dtype=torch.float64) + 0.1, torch.tensor(0.3, dtype=torch.float64)
    anchor = {"w": torch.randn(2, 3, dtype=torch.float64)}

    def value(w: Tensor, b: Tensor, lam: Tensor, scalar: Tensor) -> Tensor:
        return l2_penalty({"w": w, "b": b}, {"w": lam, "b": scalar}, anchor)

    inputs = [x.requires_grad_() for x in (w, b, lam, scalar)]
    assert torch.autograd.gradcheck(value, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(value, inputs)


def test_the_penalty_under_vmap_and_grad() -> None:
    torch.manual_seed(0)
    params = {"w": torch.randn(4, 2, 3, dtype=torch.float64)}  # [K, ...]
    lambdas = torch.rand(4, dtype=torch.float64)
    gradients, values = torch.func.vmap(torch.func.grad_and_value(lambda p, lam: l2_penalty(p, lam)))(params, lambdas)
    assert_trees_close(values, 0.5 * lambdas * params["w"].square().sum((1, 2)))
    assert_trees_close(gradients["w"], lambdas[:, None, None] * params["w"])
    by_lambda = torch.func.vmap(torch.func.grad(lambda lam, p: l2_penalty(p, {"w": lam})))(lambdas, params)
    assert_trees_close(by_lambda, 0.5 * params["w"].square().sum((1, 2)))


def compiled_penalty(spec: Callable[[Tensor], Any]) -> float:
    params = {"w": torch.tensor([3.0, 4.0]), "b": torch.tensor([1.0])}
    torch.compiler.reset()
    compiled = torch.compile(lambda p, lam: l2_penalty(p, spec(lam)), backend="aot_eager", fullgraph=True)
    return float(compiled(params, torch.tensor(0.2)))


def test_the_penalty_compiles_without_graph_breaks() -> None:
    assert compiled_penalty(lambda lam: lam) == pytest.approx(0.1 * 26)
    assert compiled_penalty(lambda lam: {"w": lam, "b": 2 * lam}) == pytest.approx(0.1 * 25 + 0.2)


def test_a_spec_by_name_compiles_without_graph_breaks_and_warnings() -> None:
    # fnmatch caches its patterns with functools.lru_cache, of which dynamo warns.
    assert compiled_penalty(lambda lam: {"w": lam}) == pytest.approx(0.1 * 25)
    assert compiled_penalty(lambda lam: {"*": 1.0, "w": lam}) == pytest.approx(0.1 * 25 + 0.5)


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_strengths_by_parameter_name_are_checked_like_any_spec(bad: float) -> None:
    # A dict of one tensor for each parameter is also a spec that a user writes by hand.
    params = {"w": torch.ones(2)}
    refused("lambdas", "finite values >= 0", lambda: l2_penalty(params, {"w": torch.tensor(bad)}))


@pytest.mark.parametrize("bad", [torch.ones(3, 2), torch.ones(3), torch.tensor(1j), torch.tensor(True)])
def test_shapes_and_dtypes_of_strengths_by_name_are_checked(bad: Tensor) -> None:
    refused("lambdas", None, lambda: l2_penalty({"w": torch.ones(2)}, {"w": bad}))


def test_anchors_are_checked() -> None:
    params = {"weight": torch.zeros(2), "bias": torch.zeros(1)}
    error = refused("anchor", "the name 'wieght'", lambda: l2_penalty(params, 1.0, {"wieght": torch.zeros(2)}))
    assert "'weight'" in error.remedy
    error = refused("anchor", None, lambda: l2_penalty(params, 1.0, {"weight": torch.zeros(3)}))
    assert error.got == "[3] for 'weight'"
    assert "[2]" in error.expected
    # The wrong type is the point.
    refused("anchor", "float for 'bias'", lambda: l2_penalty(params, 1.0, {"bias": 1.0}))  # type: ignore[dict-item]


def test_an_anchor_without_finite_numbers_is_refused() -> None:
    refused("anchor", None, lambda: l2_penalty({"w": torch.ones(2)}, 1.0, {"w": torch.tensor([0.0, float("nan")])}))


def test_a_checked_anchor_is_owned_and_constant() -> None:
    weights = torch.zeros(2, requires_grad=True)
    checked = check_anchor({"w": torch.ones(2)}, {"w": weights})["w"]
    with torch.no_grad():
        weights += 1.0
    assert checked.tolist() == [0.0, 0.0]
    assert not checked.requires_grad


def test_an_anchor_takes_the_dtype_of_its_parameter() -> None:
    checked = check_anchor({"w": torch.ones(2)}, {"w": torch.zeros(2, dtype=torch.float64)})
    assert checked["w"].dtype == torch.float32


# Grids


@pytest.mark.parametrize(("low", "high"), [(1e-6, 1.0), (0.1, 0.3), (1e-12, 123.4), (3e-5, 7e3)])
@pytest.mark.parametrize("n", [2, 3, 32])
def test_grid_ends_are_exact_and_steps_are_even(low: float, high: float, n: int) -> None:
    grid = lambda_grid(low, high, n)
    assert grid.shape == (n,)
    assert grid.dtype == torch.float64
    assert grid[0].item() == high
    assert grid[-1].item() == low
    ratio = (low / high) ** (1 / (n - 1))
    assert_trees_close(grid[1:] / grid[:-1], torch.full((n - 1,), ratio, dtype=torch.float64), rtol=1e-9)


def test_a_grid_by_hand() -> None:
    assert_trees_close(lambda_grid(0.01, 1.0, 3), np.array([1.0, 0.1, 0.01]), rtol=1e-15)


def test_zero_comes_last_and_extra() -> None:
    grid = lambda_grid(0.01, 1.0, 3, zero=True)
    assert grid.shape == (4,)
    assert grid[3].item() == 0.0
    assert torch.equal(grid[:3], lambda_grid(0.01, 1.0, 3))


def test_one_value_needs_equal_ends() -> None:
    assert lambda_grid(0.3, 0.3, 1).tolist() == [0.3]
    refused("n", "at least 2 values", lambda: lambda_grid(0.1, 1.0, 1))


def test_equal_ends_give_equal_values() -> None:
    # 10 ** log10(0.3) is not 0.3: a value beyond the ends would be another lambda.
    assert lambda_grid(0.3, 0.3, 4).tolist() == [0.3] * 4


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (1.0, 0.1), (0.1, math.inf), (math.nan, 1.0), (0.1, math.nan)]
)
def test_bad_ends_are_refused(low: float, high: float) -> None:
    error = refused("low, high", None, lambda: lambda_grid(low, high, 3))
    assert error.got == f"low={low}, high={high}"
    assert "zero=True" in error.remedy


@pytest.mark.parametrize("n", [0, -3, 2.5, True, "3", None])
def test_bad_lengths_are_refused(n: Any) -> None:
    refused("n", None, lambda: lambda_grid(0.1, 1.0, n))


def test_ends_that_are_no_numbers_are_refused() -> None:
    # The wrong type is the point.
    refused("low, high", None, lambda: lambda_grid("0.1", 1.0, 3))  # type: ignore[arg-type]


# Axes

LINEAR = describe(nn.Linear(2, 1))  # weight [1, 2], bias [1]


@pytest.mark.parametrize(
    "spec", [[1.0, 0.1], (1, 0.1), np.array([1.0, 0.1]), torch.tensor([1.0, 0.1], dtype=torch.float64)]
)
def test_one_axis_for_all(spec: Any) -> None:
    axis = lambda_axis(LINEAR, spec)
    assert len(axis) == 2
    assert axis.labels == (1.0, 0.1)
    assert axis.values.tolist() == [1.0, 0.1]
    assert_trees_close(axis.strengths, {"weight": torch.tensor([1.0, 0.1]), "bias": torch.tensor([1.0, 0.1])}, rtol=0)


def test_a_list_of_0d_tensors_is_a_list_of_numbers() -> None:
    axis = lambda_axis(LINEAR, list(lambda_grid(0.1, 1.0, 2)))
    assert axis.labels == (1.0, 0.1)
    assert axis.strengths["weight"].tolist() == pytest.approx([1.0, 0.1])


def test_patterns_are_zipped_and_0d_leaves_are_shared() -> None:
    axis = lambda_axis(LINEAR, {"weight": [3.0, 2.0, 1.0], "bias": 0.5})
    assert len(axis) == 3
    assert axis.labels[1] == {"weight": 2.0, "bias": 0.5}
    assert {k: v.tolist() for k, v in axis.values.items()} == {"weight": [3.0, 2.0, 1.0], "bias": [0.5] * 3}
    assert {k: v.tolist() for k, v in axis.strengths.items()} == {"weight": [3.0, 2.0, 1.0], "bias": [0.5] * 3}


def test_what_no_pattern_names_gets_zero_along_the_axis() -> None:
    axis = lambda_axis(LINEAR, {"weight": [3.0, 2.0]})
    assert axis.strengths["bias"].tolist() == [0.0, 0.0]
    assert axis.labels[0] == {"weight": 3.0}


def test_element_wise_leaves_have_the_axis_in_front() -> None:
    each = torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]])  # [L, 1, 2]
    axis = lambda_axis(LINEAR, {"weight": each, "bias": [5.0, 6.0]})
    assert torch.equal(axis.strengths["weight"], each)
    assert torch.equal(axis.labels[1]["weight"], each[1].double())


def test_a_shared_element_wise_leaf_has_a_leading_one() -> None:
    shared = torch.tensor([[[1.0, 2.0]]])  # [1, *shape]
    axis = lambda_axis(LINEAR, {"weight": shared, "bias": [5.0, 6.0, 7.0]})
    assert axis.strengths["weight"].shape == (3, 1, 2)
    assert torch.equal(axis.strengths["weight"][2], shared[0])
    # Without it the first axis would be read as lambdas, and is refused where it has another length.
    refused(
        "lambdas", "leading axes", lambda: lambda_axis(LINEAR, {"weight": torch.ones(2, 2), "bias": [1.0, 2.0, 3.0]})
    )


def test_the_shape_behind_the_axis_has_to_broadcast() -> None:
    error = refused("lambdas (parameter 'weight')", None, lambda: lambda_axis(LINEAR, {"weight": torch.ones(4, 3)}))
    assert error.got == "shape [3] after the lambda axis"


def test_a_list_of_specs() -> None:
    specs = [0.5, {"weight": 1.0}, {"weight": torch.tensor([[2.0, 3.0]]), "bias": 4.0}, weights_only(6.0)]
    axis = lambda_axis(LINEAR, specs)
    assert axis.labels == tuple(specs)
    assert axis.strengths["weight"].tolist() == [[[0.5, 0.5]], [[1.0, 1.0]], [[2.0, 3.0]], [[6.0, 6.0]]]
    assert axis.strengths["bias"].tolist() == [0.5, 0.0, 4.0, 0.0]


def test_rows_of_a_list_are_element_wise_specs() -> None:
    axis = lambda_axis(LINEAR, [np.array([1.0]), np.array([2.0])])
    assert axis.strengths["bias"].tolist() == [[1.0], [2.0]]


@pytest.mark.parametrize("spec", [[2.0, 1.0], {"*": [2.0, 1.0]}, torch.tensor([2.0, 1.0])])
def test_weights_only_of_an_axis(spec: Any) -> None:
    axis = lambda_axis(LINEAR, weights_only(spec))
    assert len(axis) == 2
    assert axis.strengths["weight"].tolist() == [2.0, 1.0]
    assert axis.strengths["bias"].tolist() == [0.0, 0.0]


def test_weights_only_of_a_list_of_specs() -> None:
    axis = lambda_axis(LINEAR, weights_only([{"*": 2.0}, {"weight": 1.0, "bias": 3.0}]))
    assert axis.strengths["weight"].tolist() == [2.0, 1.0]
    assert axis.strengths["bias"].tolist() == [0.0, 0.0]


def test_lengths_that_differ_are_refused_with_all_lengths() -> None:
    error = refused("lambdas", None, lambda: lambda_axis(LINEAR, {"weight": [1.0, 2.0], "bias": [1.0, 2.0, 3.0]}))
    assert error.got == "leading axes of lengths {'weight': 2, 'bias': 3}"
    assert "list of L specs" in error.remedy


@pytest.mark.parametrize("spec", [[], (), np.zeros(0), torch.zeros(0), {"weight": []}])
def test_no_lambdas_are_refused(spec: Any) -> None:
    error = refused("lambdas", "no lambdas", lambda: lambda_axis(LINEAR, spec))
    assert "lambda_grid" in error.remedy


@pytest.mark.parametrize("spec", [0.1, torch.tensor(0.1), {"weight": 0.1}, "0.1", None, {}, weights_only(0.1)])
def test_specs_without_an_axis_are_refused(spec: Any) -> None:
    refused("lambdas", "an axis of lambdas", lambda: lambda_axis(LINEAR, spec))


@pytest.mark.parametrize(
    "spec",
    [
        [0.1, -0.1],
        [0.1, math.nan],
        torch.tensor([0.1, math.inf]),
        [True, False],
        [1j, 0.1],
        ["0.1", "0.2"],
        [None, 0.1],
        [[1.0], [1.0, 2.0]],
        {"weight": [0.1, -0.1]},
        [{"weight": 0.1}, {"weight": -0.1}],
        [{"weight": 0.1}, "x"],
        [{"weight": 0.1}, {"wieght": 0.1}],
    ],
    ids=str,
)
def test_bad_values_on_an_axis_are_refused(spec: Any) -> None:
    refused("sweep", None, lambda: lambda_axis(LINEAR, spec, "sweep"))

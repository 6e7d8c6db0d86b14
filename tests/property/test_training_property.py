"""What must hold of training whatever the numbers."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import l2path
from tests.helpers import assert_trees_close
from tests.models import handwritten

EXAMPLES = settings(max_examples=15)
strengths = st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=5)
X = torch.randn(22, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = (X.sum(1) > 0).long()


def make() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def train(lambdas: Any = None, **changes: Any) -> l2path.PathResult:
    options: dict[str, Any] = {
        "loss_fn": F.cross_entropy,
        "optimizer": l2path.sgd(lr=0.1, momentum=0.5),
        "epochs": 3,
        "batch_size": 8,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", l2path.L2PathWarning)
        return l2path.batch_train(make(), (X, Y), lambdas=lambdas, **(options | changes))


@EXAMPLES
@given(st.integers(0, 2**40), st.integers(1, 30))
def test_lambda_zero_is_the_unpenalised_run(seed: int, batch: int) -> None:
    result = train([0.3, 0.0], seed=seed, batch_size=batch)
    module, _ = handwritten(
        make,
        (X, Y),
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.5),
        {"0.weight": 0.0},
        epochs=3,
        batch=batch,
        seed=seed,
    )
    assert_trees_close(result.member(1).params, dict(module.named_parameters()), 1e-10)
    assert not result.history["penalty"][:, 1].any()


@EXAMPLES
@given(strengths, st.permutations(["0.weight", "0.bias", "2.*", "*"]))
def test_the_order_of_names_is_irrelevant(lambdas: list[float], order: list[str]) -> None:
    values = {"0.weight": lambdas, "0.bias": 0.1, "2.*": [2 * x for x in lambdas], "*": 0.5}
    first = train(values)
    again = train({name: values[name] for name in order})
    assert_trees_close(again.params, first.params, 0.0)


@EXAMPLES
@given(strengths, st.floats(0, 1), st.integers(0, 5), st.integers(1, 4))
def test_adding_a_member_changes_nothing_for_the_others(
    lambdas: list[float], extra: float, where: int, chunk: int
) -> None:
    where = min(where, len(lambdas))
    few = train(lambdas, member_chunk=chunk)
    many = train([*lambdas[:where], extra, *lambdas[where:]], member_chunk=chunk)
    others = [k for k in range(len(many)) if k != where]
    assert_trees_close({n: p[others] for n, p in many.params.items()}, few.params, 1e-10)
    assert_trees_close({n: h[:, others] for n, h in many.history.items()}, few.history, 1e-10)


@EXAMPLES
@given(st.lists(st.floats(0.01, 0.2), min_size=1, max_size=4), st.integers(0, 4), st.integers(1, 4))
def test_a_diverging_member_changes_nothing_for_the_others(rates: list[float], where: int, chunk: int) -> None:
    where = min(where, len(rates))
    few = train([0.01], sweep={"lr": rates}, member_chunk=chunk)
    many = train([0.01], sweep={"lr": [*rates[:where], 1e300, *rates[where:]]}, member_chunk=chunk)
    assert many.status[where] == "diverged"
    others = [k for k in range(len(many)) if k != where]
    assert_trees_close({n: p[others] for n, p in many.params.items()}, few.params, 1e-10)
    assert all(bool(torch.isfinite(p).all()) for p in many.params.values())


@EXAMPLES
@given(st.floats(1e-3, 1.0), st.floats(1.1, 3.0))
def test_the_trained_linear_model_is_the_exact_minimiser(lam: float, factor: float) -> None:
    # Full batch, until the slowest direction has converged: the smallest curvature is that of the bias, 2.
    y = X @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64) + 1
    torch.manual_seed(0)
    linear = nn.Linear(3, 1).double()
    grid = [lam * factor, lam]
    result = l2path.batch_train(
        linear,
        (X, y.unsqueeze(1)),
        loss_fn=F.mse_loss,
        optimizer=l2path.sgd(lr=0.1, momentum=0.7),
        lambdas={"weight": grid},
        epochs=250,
    )
    exact = l2path.ridge_path(X, y, grid)
    assert_trees_close(result.params["weight"][:, 0], exact.coef, 1e-8)
    assert_trees_close(result.params["bias"][:, 0], exact.intercept, 1e-8)
    norms = result.weight_norms()["weight"]
    assert float(norms[0]) <= float(norms[1])


def test_a_logistic_model_agrees_with_scikit_learn() -> None:
    # The 2-logit softmax has twice the lambda of the 1-logit sigmoid that scikit-learn fits.
    from sklearn.linear_model import LogisticRegression

    lam = 0.05
    y = (X[:, 0] + 0.5 * X[:, 1] > 0.2).double()
    y[:4] = 1 - y[:4]
    sigmoid = l2path.batch_train(
        nn.Linear(3, 1).double(),
        (X, y.unsqueeze(1)),
        loss_fn=F.binary_cross_entropy_with_logits,
        optimizer=l2path.sgd(lr=0.5, momentum=0.8),
        lambdas={"weight": [lam]},
        epochs=600,
    )
    softmax = l2path.batch_train(
        nn.Linear(3, 2).double(),
        (X, y.long()),
        loss_fn=F.cross_entropy,
        optimizer=l2path.sgd(lr=0.5, momentum=0.8),
        lambdas={"weight": [2 * lam]},
        epochs=600,
    )
    fitted = LogisticRegression(C=l2path.to_sklearn_C(lam, n=len(X)), tol=1e-12, max_iter=10_000)
    fitted.fit(X.numpy(), y.numpy())
    assert_trees_close(sigmoid.params["weight"][0], fitted.coef_, 1e-6)
    assert_trees_close(sigmoid.params["bias"][0], fitted.intercept_, 1e-6)
    weight = softmax.params["weight"][0]
    assert_trees_close(weight[1] - weight[0], fitted.coef_[0], 1e-6)


def smooth_with_norms(kind: str) -> nn.Module:
    torch.manual_seed(0)
    norm = {"layer": nn.LayerNorm(4), "batch": nn.BatchNorm1d(4)}[kind]
    return nn.Sequential(nn.Linear(3, 4), norm, nn.Tanh(), nn.Linear(4, 2)).double()


@pytest.mark.parametrize("mode", ["reverse", "forward"])
@pytest.mark.parametrize("optimizer", [l2path.sgd(lr=0.1, momentum=0.9), l2path.adam(lr=0.02)], ids=["sgd", "adam"])
@pytest.mark.parametrize("kind", ["layer", "batch"])
def test_lambda_derivatives_through_several_steps(kind: str, optimizer: l2path.Optimizer, mode: Any) -> None:
    module = smooth_with_norms(kind)
    step = l2path.make_train_step(module, F.cross_entropy, optimizer)
    fn = l2path.functionalize(module)
    start = l2path.init_state(module, optimizer)

    def validation(lambdas: dict[str, Tensor]) -> Tensor:
        state = start
        for i in range(4):
            state, _ = step(state, (X[i : i + 9], Y[i : i + 9]), lambdas)
        outputs, _ = fn.apply(state.params, state.buffers, X[12:])
        return F.cross_entropy(outputs, Y[12:])

    def lambdas_of(a: Tensor, b: Tensor) -> dict[str, Tensor]:
        return {"0.*": a, "1.*": b / 2, "3.weight": b, "3.bias": a}

    a = torch.tensor([0.3, 0.01, 0.1], dtype=torch.float64)
    b = torch.tensor([0.02, 0.2, 0.7], dtype=torch.float64)
    gradients, values = l2path.member_gradients(
        lambda pair: validation(lambdas_of(pair["a"], pair["b"])), {"a": a, "b": b}, mode=mode
    )
    for k in range(3):
        assert math.isclose(float(values[k]), float(validation(lambdas_of(a[k], b[k]))), rel_tol=1e-12)
        for name, h in (("a", 1e-6), ("b", 1e-6)):
            shift = {"a": torch.zeros_like(a[k]), "b": torch.zeros_like(a[k])}
            shift[name] = shift[name] + h
            up = validation(lambdas_of(a[k] + shift["a"], b[k] + shift["b"]))
            down = validation(lambdas_of(a[k] - shift["a"], b[k] - shift["b"]))
            difference = float(up - down) / (2 * h)
            assert math.isclose(float(gradients[name][k]), difference, rel_tol=1e-6, abs_tol=1e-9), (k, name)

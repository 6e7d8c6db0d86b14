"""What every exact ridge path obeys, whatever the data."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from l2path.ridge import ridge_path

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

Problem = tuple[Tensor, Tensor, Tensor]


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Draw X ``[n, D]``, of any rank, y ``[n, T]`` and a direction ``[D]`` with zeros."""
    n, d, t = draw(st.integers(1, 12)), draw(st.integers(1, 8)), draw(st.integers(1, 3))
    rank = draw(st.integers(1, 8))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x = randn(n, d) if rank >= min(n, d) else randn(n, rank) @ randn(rank, d)
    direction = draw(st.lists(st.sampled_from([0.0, 0.1, 1.0, 7.0]), min_size=d, max_size=d))
    return x + randn(1), randn(n, t), torch.tensor(direction, dtype=torch.float64)


scales = st.lists(st.sampled_from([0.0, 1e-6, 1e-3, 0.1, 1.0, 30.0, 1e4]), min_size=1, max_size=6)
common = settings(max_examples=60, deadline=None, derandomize=True)


def loss_and_penalty(problem: Problem, lambdas: Tensor, fit_intercept: bool) -> tuple[Tensor, Tensor]:
    """Return the data loss and ``sum_j d_j |w_j|^2`` of every member, both ``[K]``, with d the direction."""
    x, y, direction = problem
    path = ridge_path(x, y, lambdas, fit_intercept=fit_intercept)
    loss = (path.predict(x) - y).square().mean(dim=(1, 2))
    weight = direction if lambdas.ndim == 2 else torch.ones_like(direction)
    return loss, torch.einsum("d,kdt->k", weight, path.coef.square())


@common
@given(problem=problems(), scale=scales, per_feature=st.booleans(), fit_intercept=st.booleans())
def test_penalised_norm_falls_and_objective_rises_with_lambda(
    problem: Problem, scale: list[float], per_feature: bool, fit_intercept: bool
) -> None:
    strengths = torch.tensor(sorted(scale), dtype=torch.float64)
    lambdas = strengths[:, None] * problem[2] if per_feature else strengths
    loss, norm = loss_and_penalty(problem, lambdas, fit_intercept)
    slack = 1e-9 * (1 + problem[1].square().mean())
    assert (norm.diff() <= 1e-6 * (1e-6 + norm[:-1])).all()
    assert (loss.diff() >= -slack).all()
    assert ((loss + 0.5 * strengths * norm).diff() >= -slack).all()


@common
@given(problem=problems(), scale=scales, seed=st.integers(0, 1000), fit_intercept=st.booleans())
def test_permutations_of_features_lambdas_and_rows(
    problem: Problem, scale: list[float], seed: int, fit_intercept: bool
) -> None:
    x, y, direction = problem
    generator = torch.Generator().manual_seed(seed)
    columns = torch.randperm(x.shape[1], generator=generator)
    order = torch.randperm(len(scale), generator=generator)
    rows = torch.randperm(len(x), generator=generator)
    # Strengths of at least 0.1 keep rounding away from what is compared.
    lambdas = torch.tensor(scale, dtype=torch.float64)[:, None] * direction + 0.1
    path = ridge_path(x, y, lambdas, fit_intercept=fit_intercept)
    shuffled = ridge_path(x[rows][:, columns], y[rows], lambdas[order][:, columns], fit_intercept=fit_intercept)
    torch.testing.assert_close(shuffled.coef, path.coef[order][:, columns], rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(shuffled.intercept, path.intercept[order], rtol=1e-8, atol=1e-10)


@common
@given(problem=problems(), scale=scales, fit_intercept=st.booleans())
def test_no_neighbour_has_a_lower_objective(problem: Problem, scale: list[float], fit_intercept: bool) -> None:
    x, y, direction = problem
    lambdas = torch.tensor(scale, dtype=torch.float64)[:, None] * direction
    path = ridge_path(x, y, lambdas, fit_intercept=fit_intercept)
    residual = y - path.predict(x)  # [K, n, T]
    # Stationarity on the mean scale: -2/(nT) X'r + lambda w = 0 and, with an intercept, sum of r = 0.
    gradient = -2 / y.numel() * (x.T @ residual) + lambdas[:, :, None] * path.coef
    scale_of = 1 + x.square().sum().sqrt() * (y.square().sum().sqrt() + 1)
    assert float(gradient.abs().max()) <= 1e-9 * float(scale_of)
    if fit_intercept:
        assert float(residual.mean(1).abs().max()) <= 1e-9 * float(scale_of)

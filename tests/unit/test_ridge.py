"""ridge_path against hand-made values, a stacked least squares reference and its own stationarity."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from l2path.errors import ArgumentError
from l2path.ridge import RidgePath, ridge_path

Floats = npt.NDArray[np.float64]


def problem(n: int, d: int, t: int | None = None, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64) + 3.0
    y = torch.randn((n, t) if t else (n,), generator=generator, dtype=torch.float64) - 1.0
    return x, y


def reference(x: Tensor, y: Tensor, lambdas: Tensor, fit_intercept: bool = True) -> tuple[Floats, Floats]:
    """Solve the stacked least squares problem of each row of lambdas ``[K, D]`` on its own."""
    X, Y = x.numpy(), y.reshape(len(y), -1).numpy()
    (n, d), t = X.shape, Y.shape[1]
    x_mean, y_mean = (X.mean(0), Y.mean(0)) if fit_intercept else (np.zeros(d), np.zeros(t))
    coefs = []
    for row in lambdas.numpy():
        tall = np.vstack([X - x_mean, np.diag(np.sqrt(n * t * row / 2))])
        coefs.append(np.linalg.lstsq(tall, np.vstack([Y - y_mean, np.zeros((d, t))]), rcond=1e-13)[0])
    coef = np.stack(coefs)
    intercept = y_mean - np.einsum("d,kdt->kt", x_mean, coef)
    if y.ndim == 1:
        return coef[..., 0], intercept[..., 0]
    return coef, intercept


def assert_close(path: RidgePath, expected: tuple[Floats, Floats], rtol: float = 1e-10) -> None:
    for got, want in zip((path.coef.numpy(), path.intercept.numpy()), expected, strict=True):
        assert got.shape == want.shape
        assert np.abs(got - want).max() <= rtol * max(float(np.abs(want).max()), 1e-12)


SHAPES = [(60, 7, None), (60, 7, 3), (20, 20, 2), (12, 40, None), (12, 40, 3), (5, 1, None), (1, 1, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_global_lambdas_match_the_reference(shape: tuple[int, int, int | None], fit_intercept: bool) -> None:
    x, y = problem(*shape)
    lambdas = torch.tensor([0.1, 10.0, 1e-3, 0.0, 1.0], dtype=torch.float64)
    path = ridge_path(x, y, lambdas, fit_intercept=fit_intercept)
    assert_close(path, reference(x, y, lambdas[:, None].expand(-1, shape[1]), fit_intercept))
    assert torch.equal(path.lambdas, lambdas)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("kind", ["different", "proportional", "some free", "proportional and free", "mixed"])
def test_per_feature_lambdas_match_the_reference(
    shape: tuple[int, int, int | None], fit_intercept: bool, kind: str
) -> None:
    x, y = problem(*shape)
    generator = torch.Generator().manual_seed(1)
    lambdas = torch.rand(6, shape[1], generator=generator, dtype=torch.float64) + 0.01
    if kind.startswith("proportional"):
        lambdas = lambdas[0] * torch.tensor([[1e-3], [1e2], [1e-2], [1.0], [3.0], [0.1]], dtype=torch.float64)
    if kind.endswith("free"):
        lambdas[:, ::3] = 0.0
    if kind == "mixed":
        lambdas[0], lambdas[1], lambdas[2, 0], lambdas[3, 1:] = 0.0, 0.5, 0.0, 0.0
    path = ridge_path(x, y, lambdas, fit_intercept=fit_intercept)
    assert path.lambdas.shape == lambdas.shape
    assert_close(path, reference(x, y, lambdas, fit_intercept), rtol=1e-9)


def test_golden_values() -> None:
    # Xc = (-1, 0, 1), yc = (-1, 0, 1): w = 2 / (2 + 3 lambda / 2), b = 1 - 2 w.
    x, y = torch.tensor([[1.0], [2.0], [3.0]]).double(), torch.tensor([0.0, 1.0, 2.0]).double()
    path = ridge_path(x, y, [0.0, 4 / 3, 4.0])
    torch.testing.assert_close(path.coef, torch.tensor([[1.0], [0.5], [0.25]]).double())
    torch.testing.assert_close(path.intercept, torch.tensor([-1.0, 0.0, 0.5]).double())
    torch.testing.assert_close(path.predict(x[:2]), torch.tensor([[0.0, 1.0], [0.5, 1], [0.75, 1]]).double())


@pytest.mark.parametrize("lambdas", [[0.0, 1e-4, 1.0], [[0.0, 0.1, 2.0, 0.3], [1e-3, 0.0, 1.0, 5.0]]])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_autograd_gradient_of_the_objective_vanishes(lambdas: list[float], fit_intercept: bool) -> None:
    x, y = problem(30, 4, 2)
    path = ridge_path(x, y, lambdas, fit_intercept=fit_intercept)
    coef, intercept = path.coef.clone().requires_grad_(), path.intercept.clone().requires_grad_()
    loss = (y - x @ coef - intercept[:, None]).square().mean(dim=(1, 2)).sum()
    strengths = path.lambdas.reshape(len(lambdas), -1, 1)
    objective = loss + 0.5 * (strengths * coef.square()).sum()
    gradients = torch.autograd.grad(objective, [coef, intercept])
    for gradient in gradients if fit_intercept else gradients[:1]:
        assert float(gradient.abs().max()) < 1e-12


def test_zero_gives_the_least_norm_for_deficient_and_wide_inputs() -> None:
    x, y = problem(30, 6)
    deficient = torch.cat([x, x[:, :2] - x[:, 2:4], torch.full((30, 1), 0.1).double()], 1)
    for inputs, targets in ((deficient, y), problem(8, 30)):
        path = ridge_path(inputs, targets, [0.0])
        centred = inputs - inputs.mean(0)
        expected = torch.linalg.pinv(centred, rtol=1e-12) @ (targets - targets.mean())
        torch.testing.assert_close(path.coef[0], expected, rtol=1e-9, atol=1e-12)


def test_a_constant_column_of_any_size_gets_weight_zero() -> None:
    x, y = problem(100, 3)
    x[:, 1] = 1e6 + 0.1
    path = ridge_path(x, y, [0.0, 1e-12])
    assert (path.coef[:, 1] == 0).all()


def test_a_copied_unpenalised_feature_leaves_its_twin_nothing() -> None:
    # The twin explains nothing that is left once the free feature is fitted, however small its lambda.
    x, y = problem(50, 2)
    doubled = torch.cat([x, x[:, :1] * 3], 1)
    path = ridge_path(doubled, y, [[0.0, 1e-10, 1e-20], [0.0, 1.0, 1e-3]])
    expected = ridge_path(x, y, [[0.0, 1e-10], [0.0, 1.0]])
    assert float(path.coef[:, 2].abs().max()) < 1e-12
    torch.testing.assert_close(path.coef[:, :2], expected.coef)


@pytest.mark.parametrize("shape", [(40, 5, None), (5, 12, 2)])
def test_tiny_huge_and_wide_ranging_lambdas(shape: tuple[int, int, int | None]) -> None:
    x, y = problem(*shape)
    d = shape[1]
    huge = ridge_path(x, y, [1e300, 1.7e308])
    assert float(huge.coef.abs().max()) < 1e-290
    torch.testing.assert_close(huge.intercept[0], y.mean(0))
    # Collinear features all but free beside one at full strength: no factor of the normal equations exists.
    x[:, 1] = x[:, 0]
    free, tiny = torch.ones(2, d).double(), torch.ones(2, d).double()
    free[:, :2], tiny[0, :2], tiny[1, :2] = 0.0, 1e-30, 1e-320
    free[1, 2], tiny[1, 2] = 1e10, 1e10
    path, limit = ridge_path(x, y, tiny), ridge_path(x, y, free)
    torch.testing.assert_close(path.coef, limit.coef, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("shape", [(40, 5, None), (4, 9, 2)])
def test_huge_per_feature_lambdas_overflow_to_no_weights(shape: tuple[int, int, int | None]) -> None:
    lambdas = torch.full((2, shape[1]), 1.7e308, dtype=torch.float64)
    lambdas[:, 0], lambdas[1, 1] = 1e308, 1e300
    assert float(ridge_path(*problem(*shape), lambdas).coef.abs().max()) < 1e-290


def test_proportional_rows_of_a_wide_range_keep_their_digits() -> None:
    x, y = problem(40, 5)
    x[:, 4] += x[:, 3]
    strengths = torch.tensor([1e-3, 1e-2, 0.1, 1.0, 10.0], dtype=torch.float64)
    lambdas = strengths[:, None] * torch.tensor([1.0, 1e-20, 1e-6, 1e-28, 1e-27], dtype=torch.float64)
    assert_close(ridge_path(x, y, lambdas), reference(x, y, lambdas))


def test_rows_that_are_almost_proportional_are_told_apart() -> None:
    x, y = problem(40, 5)
    noise = torch.rand(6, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    lambdas = torch.linspace(1, 2, 5).double() * (1 + 1e-5 * noise)
    assert_close(ridge_path(x, y, lambdas), reference(x, y, lambdas))


def test_refinement_gives_back_what_normal_equations_lose() -> None:
    x, y = problem(60, 8)
    x = x * torch.logspace(0, -6, 8).double()  # units, which cost nothing
    x[:, 1] = x[:, 0] + 1e-3 * x[:, 1]  # near collinearity, which squares
    lambdas = 1e-10 * torch.linspace(1, 2, 8).double()[None]
    expected = reference(x, y, lambdas)
    assert np.abs(ridge_path(x, y, lambdas).coef.numpy() / expected[0] - 1).max() < 1e-10


def test_ill_conditioned_inputs_keep_the_digits_that_an_svd_keeps() -> None:
    generator = torch.Generator().manual_seed(3)
    u = torch.linalg.qr(torch.randn(40, 8, generator=generator, dtype=torch.float64))[0]
    v = torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=torch.float64))[0]
    x, y = (u * torch.logspace(0, -8, 8, dtype=torch.float64)) @ v.T, u.sum(1)
    lambdas = torch.tensor([[1e-18]], dtype=torch.float64).expand(1, 8)
    expected = reference(x, y, lambdas, fit_intercept=False)[0]
    for given in (lambdas[:, 0], lambdas * torch.linspace(1, 1.5, 8)):
        path = ridge_path(x, y, given, fit_intercept=False)
        scale = np.abs(expected).max()
        if given.ndim == 2:
            expected = reference(x, y, given, fit_intercept=False)[0]
        assert np.abs(path.coef.numpy() - expected).max() < 1e-6 * scale  # X'X alone would keep no digit


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.int64])
def test_result_takes_the_dtype_of_X(dtype: torch.dtype) -> None:
    x, y = problem(20, 3)
    path = ridge_path((10 * x).to(dtype), y, [0.1])
    expected = dtype if dtype.is_floating_point else torch.float64
    assert path.coef.dtype == path.intercept.dtype == expected
    assert path.predict((10 * x).to(dtype)).dtype == expected
    assert path.lambdas.dtype == torch.float64


def test_numpy_in_any_layout_gives_what_tensors_give() -> None:
    x, y = problem(20, 4, 2)
    expected = ridge_path(x, y, [0.1, 1.0])
    frozen = x.numpy().copy()
    frozen.flags.writeable = False
    wide = torch.empty(20, 8, dtype=torch.float64)
    wide[:, ::2] = x
    for inputs in (
        np.asfortranarray(x.numpy()),
        frozen,
        x.numpy()[::-1].copy()[::-1],
        wide[:, ::2],
        x.T.clone().T,
    ):
        for lambdas in ((0.1, 1.0), np.array([0.1, 1.0]), torch.tensor([0.1, 1.0], dtype=torch.float64)):
            path = ridge_path(inputs, y.numpy(), lambdas)
            torch.testing.assert_close(path.coef, expected.coef)
    assert ridge_path(x.numpy().astype(np.float32), y, [0.1]).coef.dtype == torch.float32
    assert ridge_path(x.numpy().astype(">f8"), y, [0.1]).coef.dtype == torch.float64


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_inputs_are_not_changed_and_not_shared(fit_intercept: bool) -> None:
    x, y = problem(20, 4)
    for lambdas in (torch.tensor([0.1, 1.0]).double(), torch.rand(2, 4).double()):
        before = [tensor.clone() for tensor in (x, y, lambdas)]
        path = ridge_path(x.requires_grad_(), y, lambdas, fit_intercept=fit_intercept)
        assert not path.coef.requires_grad
        for result in (path.coef, path.intercept, path.lambdas):
            result.fill_(7.0)
        for tensor, old in zip((x, y, lambdas), before, strict=True):
            assert torch.equal(tensor, old)


def test_members_do_not_depend_on_their_company() -> None:
    x, y = problem(30, 6)
    lambdas = torch.rand(5, 6, generator=torch.Generator().manual_seed(2)).double()
    together = ridge_path(x, y, lambdas)
    for k in range(5):
        torch.testing.assert_close(together.coef[k], ridge_path(x, y, lambdas[k : k + 1]).coef[0])


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    lambdas = torch.rand(7, 6, generator=torch.Generator().manual_seed(2)).double()
    for shape in ((30, 6), (4, 6)):
        x, y = problem(*shape)
        expected = ridge_path(x, y, lambdas)
        monkeypatch.setattr("l2path.ridge._CHUNK_BYTES", 2 * 8 * 3 * 36)
        torch.testing.assert_close(ridge_path(x, y, lambdas).coef, expected.coef)
        monkeypatch.undo()


def test_predict_and_repr() -> None:
    x, y = problem(20, 4, 2)
    path = ridge_path(x, y, [0.1, 1.0, 0.0])
    assert path.predict(x).shape == (3, 20, 2)
    torch.testing.assert_close(path.predict(x)[1], x @ path.coef[1] + path.intercept[1])
    assert ridge_path(x, y[:, 0], [0.1]).predict(x.numpy()).shape == (1, 20)
    assert repr(path) == "RidgePath(K=3, D=4, T=2, global lambdas 0 to 1)"
    assert "per-feature" in repr(ridge_path(x, y[:, 0], np.ones((2, 4))))
    with pytest.raises(ArgumentError, match=r"X: got shape \(20, 3\); expected \[n, 4\]"):
        path.predict(x[:, :3])


X, Y = problem(10, 3)
NAN = X.clone()
NAN[2, 1] = float("nan")


@pytest.mark.parametrize(
    ("x", "y", "lambdas", "message"),
    [
        (X[:, 0], Y, [0.1], r"X: got shape \(10,\)"),
        (X[:0], Y[:0], [0.1], r"X: got shape \(0, 3\)"),
        (X[:, :0], Y, [0.1], r"X: got shape \(10, 0\)"),
        (X, Y[:9], [0.1], r"y: got 9 rows; expected 10 rows"),
        (X, Y[0], [0.1], r"y: got shape \(\)"),
        (X, X[:, :0], [0.1], r"y: got shape \(10, 0\)"),
        (X, X[:, :, None], [0.1], r"y: got shape \(10, 3, 1\)"),
        (NAN, Y, [0.1], "X: got 1 NaN or infinite values"),
        (X, NAN, [0.1], "y: got 1 NaN or infinite values"),
        (X, Y / 0, [0.1], "y: got 10 NaN or infinite values"),
        (X, Y, [0.1, float("nan")], "lambdas: got 1 NaN"),
        (X, Y, [0.1, float("inf")], "lambdas: got 1 NaN or infinite"),
        (X, Y, [0.1, -0.5], "lambdas: got -0.5; expected values >= 0"),
        (X, Y, [], r"lambdas: got shape \(0,\)"),
        (X, Y, 0.1, r"lambdas: got shape \(\); .*pass a list"),
        (X, Y, [[0.1, 0.2]], "lambdas: got 2 columns; expected 3"),
        (X, Y, [[0.1, 0.2, 0.3], [0.1]], "lambdas: got a ragged sequence"),
        (X.to(torch.complex128), Y, [0.1], "X: got a strided tensor of complex128"),
        (X.to_sparse(), Y, [0.1], "X: got a sparse_coo tensor of float64"),
        (X.numpy() * 1j, Y, [0.1], "X: got an array of complex128"),
        (X, Y.numpy().astype(object), [0.1], "y: got an array of object"),
        (X, Y.to("meta"), [0.1], "y: got a tensor on meta; expected the device of X, cpu"),
    ],
)
def test_bad_arguments_are_refused(x: Tensor, y: Tensor, lambdas: list[float], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        ridge_path(x, y, lambdas)


def test_large_finite_inputs_are_no_infinities() -> None:
    x = torch.full((20, 1), 1e307, dtype=torch.float64)  # their sum overflows
    path = ridge_path(x, torch.ones(20), [0.0], fit_intercept=False)
    torch.testing.assert_close(path.coef, torch.tensor([[1e-307]], dtype=torch.float64), rtol=1e-9, atol=0.0)


def test_the_comparison_can_fail() -> None:
    x, y = problem(30, 4)
    path = ridge_path(x, y, [0.5])
    other = reference(x, y, torch.full((1, 4), 0.5001, dtype=torch.float64))
    with pytest.raises(AssertionError):
        assert_close(path, other)

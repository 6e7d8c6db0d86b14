"""The exact path of linear least squares with an L2 penalty, for many strengths at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from l2path.errors import ArgumentError
from l2path.ridge_input import Lambdas, as_float64, check_shapes
from l2path.types import Array

_EPS = torch.finfo(torch.float64).eps
_CHUNK_BYTES = 2**27  # working memory of one batch of Cholesky factors
_SPREAD = 1e8  # beyond this max/min of feature weights, an SVD of scaled columns loses over four digits
_SHARED = 4  # this many proportional rows pay for one SVD in place of a Cholesky factor each


@dataclass(frozen=True, repr=False, eq=False)
class RidgePath:
    """The exact solutions along a path of L2 strengths.

    Attributes
    ----------
    lambdas : Tensor, ``[K]`` or ``[K, D]``
        The strengths as given, in their order, float64 (float32 on a device without float64).
    coef : Tensor, ``[K, D]`` or ``[K, D, T]``
        Weights, one row per strength; the last axis is there if ``y`` had two dimensions.
    intercept : Tensor, ``[K]`` or ``[K, T]``
        Intercepts; zeros if none was fitted.
    """

    lambdas: Tensor
    coef: Tensor
    intercept: Tensor

    def predict(self, X: Array) -> Tensor:
        """Return the predictions ``X @ coef[k] + intercept[k]`` of every member.

        Parameters
        ----------
        X : Tensor or array, ``[n, D]``
            Inputs; converted to the dtype and device of ``coef``.

        Returns
        -------
        Tensor, ``[K, n]`` or ``[K, n, T]``

        Raises
        ------
        ArgumentError
            If ``X`` is not a real matrix with D columns.

        Examples
        --------
        >>> path = ridge_path(torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([1.0, 3.0, 5.0]), [0.0])
        >>> path.predict(torch.tensor([[10.0]]))
        tensor([[21.]])
        """
        inputs, _ = as_float64("X", X, self.coef.device)
        if inputs.ndim != 2 or inputs.shape[1] != self.coef.shape[1]:
            raise ArgumentError(
                "X",
                got=f"shape {tuple(inputs.shape)}",
                expected=f"[n, {self.coef.shape[1]}]",
                remedy="pass one row per sample with the features of the fit",
            )
        inputs = inputs.to(self.coef)
        if self.coef.ndim == 2:
            return self.coef @ inputs.T + self.intercept[:, None]  # [K, n]
        return inputs @ self.coef + self.intercept[:, None, :]  # [K, n, T]

    def __repr__(self) -> str:
        """Name the sizes and the range of the strengths, not the arrays."""
        k, d, *targets = self.coef.shape
        low, high = float(self.lambdas.min()), float(self.lambdas.max())
        kind = "per-feature" if self.lambdas.ndim == 2 else "global"
        t = targets[0] if targets else 1
        return f"RidgePath(K={k}, D={d}, T={t}, {kind} lambdas {low:.3g} to {high:.3g})"


def ridge_path(X: Array, y: Array, lambdas: Lambdas, *, fit_intercept: bool = True) -> RidgePath:
    r"""Solve ridge regression exactly for every L2 strength.

    Member k minimises

    .. math::
        J_k(W, b) = \frac{1}{nT} \sum_{i,t} (y_{it} - (X W)_{it} - b_t)^2
                    + \frac12 \sum_j \lambda_{kj} \sum_t W_{jt}^2 .

    With ``Xc`` and ``yc`` centred by their column means (as they are, without an intercept), W solves
    ``(Xc' Xc + diag(n T lambda_k / 2)) W = Xc' yc`` and ``b = mean(y) - mean(X) W``. Where several W
    minimise, which needs strengths of zero, W is the one of least norm.

    One SVD serves all global strengths, and all proportional per-feature rows; features with strength zero
    are projected out first, as the intercept is. Other rows take one Cholesky factor each, in the smaller
    of features and samples, with iterative refinement.

    Parameters
    ----------
    X : Tensor or array, ``[n, D]``
        Inputs, real and finite. Never changed.
    y : Tensor or array, ``[n]`` or ``[n, T]``
        Targets, real and finite. Never changed.
    lambdas : sequence, array or Tensor, ``[K]`` or ``[K, D]``
        Strengths, finite and >= 0, in any order; ``[K, D]`` gives every feature its own.
    fit_intercept : bool
        Whether to fit b. It is never penalised.

    Returns
    -------
    RidgePath
        ``coef`` and ``intercept`` have the floating dtype of ``X`` (float64 for integers) and its device.
        The work is done in float64, on the CPU where the device has no float64. No gradients flow.

    Raises
    ------
    ArgumentError
        For wrong shapes, no rows, features, targets or strengths, complex or sparse data, NaN or infinity,
        strengths below zero, and ``X`` and ``y`` on different devices.

    Notes
    -----
    Directions with singular values below ``max(n, D, 10) * eps`` times the largest are taken as absent.
    Forming ``X' X`` would square the condition number, so that small strengths lose twice the digits.

    References
    ----------
    Hoerl and Kennard (1970), Technometrics 12(1), eq. 2.1; filter factors: Hastie, Tibshirani and Friedman
    (2009), eq. 3.47; refinement: Björck (1987), Linear Algebra and its Applications 88/89.

    Examples
    --------
    >>> X = torch.tensor([[-1.0], [0.0], [1.0]])
    >>> path = ridge_path(X, torch.tensor([0.0, 1.0, 2.0]), [0.0, 4.0 / 3.0])
    >>> path.coef  # Xc'yc / (Xc'Xc + n lambda / 2) = 2 / (2 + 0), 2 / (2 + 2)
    tensor([[1.0000],
            [0.5000]])
    >>> path.intercept
    tensor([1., 1.])
    """
    device = X.device if isinstance(X, Tensor) else torch.device("cpu")
    inputs, dtype = as_float64("X", X, device)
    targets, _ = as_float64("y", y, device)
    strengths, _ = as_float64("lambdas", lambdas, inputs.device)
    check_shapes(inputs, targets, strengths)
    single = targets.ndim == 1
    if single:
        targets = targets[:, None]  # [n, 1]
    (n, d), t = inputs.shape, targets.shape[1]
    tolerance = max(n, d, 10) * _EPS

    x_mean, y_mean = inputs.new_zeros(d), inputs.new_zeros(t)
    if fit_intercept:
        x_mean, y_mean = inputs.mean(0), targets.mean(0)
        centred, targets = inputs - x_mean, targets - y_mean
        # A constant column leaves rounding of its mean behind, which lambda = 0 would blow up.
        low, high = torch.aminmax(centred, dim=0)
        centred[:, torch.maximum(high, -low) <= 8 * _EPS * x_mean.abs()] = 0.0
        inputs = centred
    if n > d:  # X = Q R, so that all that follows costs D rows: |y - X W|^2 = |Q'y - R W|^2 + constant
        factors, tau = torch.geqrf(inputs)
        targets = torch.ormqr(factors, tau, targets, transpose=True)[:d]
        inputs = factors[:d].triu()

    # On the sum-of-squares scale; finite, so that a row's ratio to its largest entry is a number.
    penalties = (strengths * (0.5 * n * t)).clamp(max=torch.finfo(torch.float64).max)
    if penalties.ndim == 1:
        coef = _spectral(inputs, targets, penalties, tolerance)
    else:
        coef = _per_feature(inputs, targets, penalties, tolerance)
    intercept = y_mean - torch.einsum("d,kdt->kt", x_mean, coef)
    if single:
        coef, intercept = coef[..., 0], intercept[..., 0]
    wide = torch.float32 if device.type == "mps" else torch.float64
    strengths = strengths.clone().to(wide).to(device)  # never the caller's memory
    return RidgePath(strengths, coef.to(dtype).to(device), intercept.to(dtype).to(device))


def _spectral(x: Tensor, y: Tensor, penalties: Tensor, tolerance: float) -> Tensor:
    """Solve for global penalties ``[K]``; x ``[m, D]``, y ``[m, T]``; gives ``[K, D, T]``."""
    m, d = x.shape
    basis = None
    if d > m:  # X' = Q R: the SVD then runs on m x m
        basis, r = torch.linalg.qr(x.T)
        x = r.T
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    keep = s > tolerance * s[:1]
    u, s, vh = u[:, keep], s[keep], vh[keep]
    if basis is not None:
        vh = vh @ basis.T
    # s / (s^2 + p), written so that s^2 neither overflows nor underflows.
    filters = 1.0 / (s + penalties[:, None] / s)  # [K, r]
    spectra = filters[:, None, :] * (y.T @ u)  # [K, T, r]
    coef: Tensor = spectra.flatten(0, 1) @ vh  # [K T, D]
    return coef.reshape(len(penalties), y.shape[1], d).transpose(1, 2).contiguous()


def _per_feature(x: Tensor, y: Tensor, penalties: Tensor, tolerance: float) -> Tensor:
    """Solve for penalties ``[K, D]`` >= 0, sharing work between rows alike; gives ``[K, D, T]``."""
    coef = x.new_empty(len(penalties), x.shape[1], y.shape[1])
    uniform = (penalties == penalties[:, :1]).all(1)
    if uniform.any():
        coef[uniform] = _spectral(x, y, penalties[uniform, 0], tolerance)
    rows = (~uniform).nonzero()[:, 0]
    patterns, pattern_of = torch.unique(penalties[rows] == 0, dim=0, return_inverse=True)
    for i, free in enumerate(patterns):
        members = rows[pattern_of == i]
        bound = penalties[members][:, ~free]
        if not free.any():
            coef[members] = _positive(x, y, bound, tolerance)
            continue
        # Unpenalised features z: whatever W_x is, W_z = pinv(Z)(y - X W_x), so W_x sees only what is
        # orthogonal to Z.
        kept = x[:, ~free]
        u, s, vh = torch.linalg.svd(x[:, free], full_matrices=False)
        keep = s > tolerance * s[:1]
        u, s, vh = u[:, keep], s[keep], vh[keep]
        rest = kept - u @ (u.T @ kept)
        rest[:, rest.norm(dim=0) <= tolerance * kept.norm(dim=0)] = 0.0  # rounding, not data
        weights = _positive(rest, y - u @ (u.T @ y), bound, tolerance)  # [k, D - z, T]
        free_weights = (vh.T / s) @ (u.T @ (y - kept @ weights))  # [k, z, T]
        coef[members[:, None], (~free).nonzero()[:, 0]] = weights
        coef[members[:, None], free.nonzero()[:, 0]] = free_weights
    return coef


def _positive(x: Tensor, y: Tensor, penalties: Tensor, tolerance: float) -> Tensor:
    """Solve for penalties ``[K, D]`` > 0: one SVD per proportional group, else Cholesky."""
    coef = x.new_empty(len(penalties), x.shape[1], y.shape[1])
    largest = penalties.amax(1)
    directions = penalties / largest[:, None]  # [K, D], the largest entry 1
    narrow = directions.amin(1) * _SPREAD >= 1.0
    lonely: list[int] = []
    todo = torch.ones(len(penalties), dtype=torch.bool, device=x.device)
    for i in range(len(penalties)):
        if not todo[i]:
            continue
        # Rows c * d agree to the rounding of one product and one quotient.
        alike = todo & ((directions - directions[i]).abs() <= 4 * _EPS * directions[i]).all(1)
        todo &= ~alike
        if int(alike.sum()) >= _SHARED and narrow[i]:
            coef[alike] = _scaled(x, y, directions[i], largest[alike], tolerance)
        else:
            lonely.extend(alike.nonzero()[:, 0].tolist())
    side = min(x.shape)
    size = max(1, _CHUNK_BYTES // (8 * 3 * side * side + 8 * x.numel() * (x.shape[1] > side)))
    for start in range(0, len(lonely), size):
        members = torch.tensor(lonely[start : start + size], device=x.device)
        solved, failed = _cholesky(x, y, penalties[members])
        for j in failed.nonzero()[:, 0].tolist():  # too close to singular for normal equations
            k = int(members[j])
            if narrow[k]:
                solved[j] = _scaled(x, y, directions[k], largest[k : k + 1], tolerance)[0]
            else:
                solved[j] = _stacked(x, y, penalties[k], tolerance)
        coef[members] = solved
    return coef


def _scaled(x: Tensor, y: Tensor, direction: Tensor, penalties: Tensor, tolerance: float) -> Tensor:
    """Solve for ``penalties[k] * direction`` as a global penalty on ``sqrt(direction) W``."""
    root = direction.sqrt()
    return _spectral(x / root, y, penalties, tolerance) / root[:, None]


def _stacked(x: Tensor, y: Tensor, penalty: Tensor, tolerance: float) -> Tensor:
    """Solve for one penalty ``[D]`` as plain least squares on ``[X; sqrt(P)]`` with columns of unit norm."""
    tall = torch.cat([x, penalty.sqrt().diag()])
    norms: Tensor = torch.linalg.vector_norm(tall, dim=0)
    zeros = y.new_zeros(len(penalty), y.shape[1])
    return _spectral(tall / norms, torch.cat([y, zeros]), y.new_zeros(1), tolerance)[0] / norms[:, None]


def _cholesky(x: Tensor, y: Tensor, penalties: Tensor) -> tuple[Tensor, Tensor]:
    """Solve for any penalties ``[C, D]`` > 0; gives ``[C, D, T]`` and which of them failed ``[C]``."""
    m, d = x.shape
    p = penalties[:, :, None]  # [C, D, 1]
    dual = d > m
    if dual:  # (X'X + P)^-1 = P^-1 - P^-1 X' (X P^-1 X' + I)^-1 X P^-1
        system = (x / penalties[:, None, :]) @ x.T  # [C, m, m]
        system.diagonal(dim1=-2, dim2=-1).add_(1.0)
    else:
        system = (x.T @ x).repeat(len(penalties), 1, 1)  # [C, D, D]
        system.diagonal(dim1=-2, dim2=-1).add_(penalties)
    lower, info = torch.linalg.cholesky_ex(system)

    def solve(b: Tensor) -> Tensor:
        if not dual:
            return torch.cholesky_solve(b, lower)
        direct = b / p
        return direct - x.T @ torch.cholesky_solve(x @ direct, lower) / p

    weights = solve((x.T @ y).expand(len(penalties), -1, -1))
    for _ in range(2):  # the residual from X itself, not from X'X, gives back the digits that squaring lost
        weights = weights + solve(x.T @ (y - x @ weights) - p * weights)
    # Pivots of the factor with a unit diagonal, which the units of the features do not change.
    pivot = (lower.diagonal(dim1=-2, dim2=-1) / system.diagonal(dim1=-2, dim2=-1).sqrt()).amin(1)
    # Refinement gains per step what the factor has right: pivot^2 of about 1e-8 leaves it eight digits.
    failed = (info != 0) | ~(pivot > 1e-4) | ~weights.isfinite().all(2).all(1)
    return weights, failed

"""The penalty, its gradient, and grids of lambdas."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from l2path.errors import ArgumentError, nearest
from l2path.penalty.specs import expand_lambdas
from l2path.types import Grads, Lambdas, LambdaSpec, Params


def is_expanded(params: Params, lambdas: LambdaSpec) -> bool:
    """Return whether ``lambdas`` already holds one tensor for each parameter."""
    return (
        isinstance(lambdas, dict)
        and lambdas.keys() == params.keys()
        and all(isinstance(v, Tensor) for v in lambdas.values())
    )


def l2_penalty(params: Params, lambdas: LambdaSpec, anchor: Mapping[str, Tensor] | None = None) -> Tensor:
    r"""Return the L2 penalty.

    .. math:: P(\theta) = \tfrac12 \sum_p \lambda_p \, |\theta_p - a_p|^2

    Parameters
    ----------
    params : dict of str to Tensor
        :math:`\theta`.
    lambdas : dict of str to Tensor, or any lambda spec
        :math:`\lambda`, each broadcastable to its parameter.
    anchor : dict of str to Tensor, optional
        :math:`a`, the weights to shrink towards (L2-SP: the pretrained weights; EWC: with the Fisher
        information as element-wise lambdas); a parameter that it does not name is shrunk towards zero.

    Returns
    -------
    Tensor, 0-d
        In the parameters' real dtype, at least float32.

    Raises
    ------
    ArgumentError
        As :func:`expand_lambdas`, and for an anchor that names or shapes no parameter.

    References
    ----------
    Hoerl and Kennard 1970 (ridge); Li, Grandvalet and Davoine 2018 (L2-SP); Kirkpatrick et al. 2017 (EWC).

    Examples
    --------
    >>> l2_penalty({"w": torch.tensor([3.0, 4.0])}, 0.1)
    tensor(1.2500)
    """
    strengths = expand_lambdas(params, lambdas)
    return penalty_and_gradient(params, strengths, check_anchor(params, anchor))[0]


def penalty_and_gradient(params: Params, lambdas: Lambdas, anchor: Mapping[str, Tensor]) -> tuple[Tensor, Grads]:
    """Return the penalty (0-d) and its exact gradient ``lambda * (theta - anchor)`` by name.

    Both are plain tensor operations, so that they stay differentiable with respect to the lambdas; the
    gradient keeps the lambda's dtype (at least float32).
    """
    parts, gradients = [], {}
    for name, p in params.items():
        offset = p - anchor[name] if name in anchor else p
        # Squares of half-precision numbers overflow and lose their sum: at least float32.
        if torch.finfo(offset.dtype).bits < 32:
            offset = offset.to(torch.promote_types(offset.dtype, torch.float32))
        gradient = lambdas[name] * offset
        gradients[name] = gradient
        product = (gradient.conj() * offset).real if p.is_complex() else gradient * offset
        parts.append(product.sum())
    if not parts:
        return torch.zeros(()), {}
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return 0.5 * total, gradients


def check_anchor(params: Params, anchor: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Return the anchor as a dict of owned constants, or say what is wrong with it."""
    if anchor is None:
        return {}
    checked = {}
    for name, value in anchor.items():
        if name not in params:
            raise ArgumentError(
                "anchor",
                got=f"the name {name!r}",
                expected="names of trainable parameters",
                remedy=f"leave it out; {nearest(name, params)}",
            )
        if not isinstance(value, Tensor) or value.shape != params[name].shape:
            got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ArgumentError(
                "anchor",
                got=f"{got} for {name!r}",
                expected=f"a tensor of the parameter's shape {list(params[name].shape)}",
                remedy="pass weights of this same architecture",
            )
        checked[name] = value.detach().to(params[name], copy=True)
        check_finite(checked[name], name)
    return checked


def check_finite(value: Tensor, name: str) -> None:
    """Refuse anchors that are not finite wherever their values can be read."""
    if torch.compiler.is_compiling():
        return
    try:
        good = bool(torch.isfinite(value).all())
    except RuntimeError:  # inside vmap values cannot be read
        return
    if not good:
        raise ArgumentError(
            "anchor",
            got=f"numbers for {name!r} that are not finite",
            expected="finite weights",
            remedy="leave that parameter out, or load the weights again",
        )


def lambda_grid(low: float, high: float, n: int, *, zero: bool = False) -> Tensor:
    """Return log-spaced lambdas, the largest first.

    Parameters
    ----------
    low, high : float
        Ends of the grid, ``0 < low <= high``; both are in it exactly.
    n : int
        Number of log-spaced values, at least 1 (one value needs ``low == high``).
    zero : bool
        Append a lambda of 0, the unpenalised run.

    Returns
    -------
    Tensor, [n] or [n + 1], float64

    Raises
    ------
    ArgumentError
        For ends or a number that make no grid.

    Examples
    --------
    >>> lambda_grid(0.01, 1.0, 3)
    tensor([1.0000, 0.1000, 0.0100], dtype=torch.float64)
    """
    numbers = all(isinstance(x, (int, float, np.number)) and not isinstance(x, bool) for x in (low, high))
    if not (numbers and math.isfinite(low) and math.isfinite(high) and 0 < low <= high):
        raise ArgumentError(
            "low, high",
            got=f"low={low}, high={high}",
            expected="finite values with 0 < low <= high",
            remedy="a log-spaced grid has no 0: add it with zero=True",
        )
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1 or (n == 1 and low != high):
        raise ArgumentError(
            "n", got=str(n), expected="at least 2 values between two ends", remedy="raise n, or let low == high"
        )
    grid = torch.logspace(math.log10(high), math.log10(low), n, dtype=torch.float64).clamp(low, high)
    grid[0], grid[-1] = high, low
    return torch.cat([grid, grid.new_zeros(1)]) if zero else grid

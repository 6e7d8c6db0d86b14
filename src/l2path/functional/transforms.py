"""Derivatives, and many members at once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.func import grad_and_value as _grad_and_value
from torch.func import jacfwd, vjp
from torch.func import vmap as _vmap

from l2path.errors import ArgumentError
from l2path.functional.calling import parameters_held
from l2path.trees import tree_map
from l2path.types import Grads, Params, Tree


def vmap(function: Callable[..., Any], in_dims: Any = 0, *, out_dims: Any = 0) -> Callable[..., Any]:
    """``torch.func.vmap`` with ``randomness="same"``: all members see the same random masks."""
    return _vmap(function, in_dims, out_dims, randomness="same")


@contextmanager
def vmap_hints_silenced() -> Iterator[None]:
    """Silence what vmap says of operations that it runs member by member: they are right, and nobody can help it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop", category=UserWarning)
        yield


def grad_with_torch_func(loss: Callable[[Params], tuple[Tensor, Tree]], params: Params) -> tuple[Grads, Tensor, Tree]:
    """Return gradients, loss and auxiliary output by ``torch.func``: composes with every transform."""
    grads, (value, aux) = _grad_and_value(loss, has_aux=True)(params)
    return grads, value, aux


def grad_with_autograd(loss: Callable[[Params], tuple[Tensor, Tree]], params: Params) -> tuple[Grads, Tensor, Tree]:
    """Return gradients, loss and auxiliary output by plain autograd: one member, no transform around."""
    with torch.enable_grad(), parameters_held():
        leaves = {k: p.detach().requires_grad_() for k, p in params.items()}
        value, aux = loss(leaves)
        found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(leaves, found, strict=True)), value.detach(), tree_map(lambda x: x.detach(), aux)


def at_grad_level(function: Callable[[Params], Tree], params: Params) -> Tree:
    """Return ``function(params)``, called inside a level of differentiation whose derivatives nobody asks for."""

    def with_aux(p: Params) -> tuple[Tensor, Tree]:
        return torch.zeros(()), function(p)

    found: Any = vjp(with_aux, params, has_aux=True)  # typed as a pair, which it is without has_aux
    return found[2]


def unused_parameters(loss: Callable[[Params], tuple[Tensor, Tree]], params: Params) -> list[str]:
    """Return the names of parameters that ``loss`` does not depend on (torch leaves their grad None)."""
    with torch.enable_grad():
        leaves = {k: p.detach().requires_grad_() for k, p in params.items()}
        value, _ = loss(leaves)
        if not value.requires_grad:
            return list(leaves)
        found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    return [k for k, g in zip(leaves, found, strict=True) if g is None]


def member_gradients(
    function: Callable[[Any], Tensor], lambdas: Any, *, mode: Literal["reverse", "forward"] = "reverse"
) -> tuple[Any, Tensor]:
    """Differentiate a function of each member's lambdas, with ``vmap`` outermost.

    Differentiating outside ``vmap(grad)`` is silently wrong for LayerNorm, InstanceNorm and BatchNorm, so
    that batched derivatives go through this function: it maps the derivative over the members.

    Parameters
    ----------
    function : callable
        Takes *one* member's lambdas (the same structure as ``lambdas`` without the member axis) and returns
        a scalar, for example the validation loss after several calls of a train step.
    lambdas : Tensor or dict of str to Tensor
        Leading axis K in every leaf.
    mode : {"reverse", "forward"}
        Reverse mode (one backward pass) or forward mode (one tangent for each entry of ``lambdas``).

    Returns
    -------
    gradients
        d function / d lambdas, structured and shaped like ``lambdas``.
    values : Tensor, [K]
        The function's values.

    Examples
    --------
    >>> gradients, values = member_gradients(lambda lam: lam**2, torch.tensor([1.0, 3.0]))
    >>> gradients
    tensor([2., 6.])
    """
    if mode == "reverse":
        gradients, values = vmap(_grad_and_value(function))(lambdas)
        return gradients, cast("Tensor", values)
    if mode != "forward":
        raise ArgumentError("mode", got=repr(mode), expected="'reverse' or 'forward'", remedy="choose one of the two")
    try:
        gradients = vmap(jacfwd(function, randomness="same"))(lambdas)
    except RuntimeError as error:
        if "ZeroTensors are immutable" not in str(error):
            raise
        raise ArgumentError(
            "function",
            got=f"an operation without a forward derivative in torch {torch.__version__} ({error})",
            expected="operations that forward mode can differentiate; F.mse_loss is none",
            remedy="write the loss as ((outputs - targets) ** 2).mean(), or use mode='reverse'",
        ) from error
    return gradients, cast("Tensor", vmap(function)(lambdas))

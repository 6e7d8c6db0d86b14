"""Gradient transforms, and how to chain them with an optimizer."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from l2path.errors import ArgumentError
from l2path.optimizers.base import Optimizer, check_names, holds
from l2path.optimizers.checks import Scalar, check_scalar
from l2path.optimizers.elementwise import (
    Scalars,
    Slots,
    cast,
    compute_dtype,
    elementwise,
    init_count,
    init_scalars,
    real_view,
)
from l2path.penalty import Names
from l2path.types import Grads, OptState, Params, Updates


class ClipState(NamedTuple):
    """State of :func:`clip_by_global_norm` (``hyper["max_norm"]``) and :func:`clip_by_value`."""

    hyper: dict[str, Tensor]  # 0-d, float64
    # Updates done: 0-d, int64. The name is the field's own (optax) and hides tuple.count on purpose.
    count: Tensor  # type: ignore[assignment]


def chain(*transforms: Optimizer) -> Optimizer:
    r"""Apply transforms one after the other: each one's output is the gradient of the next.

    .. math::

        u = T_n(\dots T_2(T_1(g)) \dots)

    Parameters
    ----------
    *transforms : Optimizer
        Gradient transforms and at most one optimizer, in the order of application. A transform after
        the optimizer acts on its updates.

    Returns
    -------
    Optimizer
        Its state is the tuple of the states of its parts. It is a transform itself if no part is an
        optimizer.

    Raises
    ------
    ArgumentError
        If there is nothing to chain, a part is no transform, more than one is an optimizer, or something follows
        an :func:`ema`, which would average weights that nothing has.

    Notes
    -----
    A transform chained here sees the gradient of the objective, penalty included. torch's order (clip
    the gradient of the loss, then add weight decay) is ``make_train_step(grad_transform=...)``.

    Source: optax (DeepMind, 2020), ``chain``.

    Examples
    --------
    >>> import torch
    >>> from l2path.optimizers import sgd
    >>> opt = chain(clip_by_value(1.0), sgd(lr=0.5))
    >>> params = {"w": torch.tensor([1.0, 1.0])}
    >>> updates, state = opt.update({"w": torch.tensor([9.0, 0.5])}, opt.init(params), params)
    >>> updates["w"]
    tensor([-0.5000, -0.2500])
    """
    for transform in transforms:
        if not isinstance(transform, Optimizer):
            raise ArgumentError(
                "transforms",
                got=f"{getattr(transform, '__name__', repr(transform))} ({type(transform).__name__})",
                expected="optimizers and gradient transforms of l2path",
                remedy="call its builder, for example clip_by_global_norm(1.0)",
            )
    steppers = [t for t in transforms if t.kind == "optimizer"]
    if not transforms or len(steppers) > 1:
        raise ArgumentError(
            "transforms",
            got=f"the optimizers {steppers}" if transforms else "nothing",
            expected="gradient transforms and at most one optimizer",
            remedy="keep one optimizer: the steps of one are no gradients for another",
        )

    for transform in transforms[:-1]:
        if holds(transform, "ema"):
            raise ArgumentError(
                "transforms",
                got=f"{transform!r} in front of {transforms[-1]!r}",
                expected="ema around what decides the weights, or at the end",
                remedy="wrap the whole chain: ema(chain(...), decay)",
            )

    def init(params: Params) -> tuple[OptState, ...]:
        return tuple(t.init(params) for t in transforms)

    def update(grads: Grads, state: tuple[OptState, ...], params: Params) -> tuple[Updates, OptState]:
        states: list[OptState] = []
        for transform, old in zip(transforms, state, strict=True):
            grads, new = transform.update(grads, old, params)
            states.append(new)
        return grads, tuple(states)

    def bind(names: Names) -> Optimizer:
        return chain(*(t.bound(names) for t in transforms))

    kind: Literal["optimizer", "transform"] = "optimizer" if steppers else "transform"
    return Optimizer(init, update, "chain", parts=transforms, kind=kind, bind=bind)


def clip_by_global_norm(max_norm: Scalar) -> Optimizer:
    r"""Build a transform that limits the norm of the whole gradient, as ``clip_grad_norm_`` does.

    .. math::

        g \leftarrow g \cdot \min\left(1, \frac{c}{|g| + 10^{-6}}\right), \qquad
        |g|^2 = \sum_p |g_p|^2

    with the gradients :math:`g_p` of all parameters and :math:`c` = ``max_norm``.

    Parameters
    ----------
    max_norm : float or 0-d Tensor
        The largest norm, > 0; it may differ per member.

    Returns
    -------
    Optimizer
        A transform with state :class:`ClipState`, for :func:`chain` or
        ``make_train_step(grad_transform=...)``. Under ``vmap`` each member has its own norm.

    Raises
    ------
    ArgumentError
        For a ``max_norm`` that is no finite number > 0.

    Notes
    -----
    As in torch, a norm that is not finite gives gradients that are not finite.

    Source: Pascanu, Mikolov and Bengio (2013), algorithm 1, with torch's 1e-6.

    Examples
    --------
    >>> import torch
    >>> clip = clip_by_global_norm(1.0)
    >>> grads = {"w": torch.tensor([3.0]), "b": torch.tensor([4.0])}
    >>> clip.update(grads, clip.init(grads), grads)[0]
    {'w': tensor([0.6000]), 'b': tensor([0.8000])}
    """
    max_norm = check_scalar("max_norm", max_norm, above=0.0)

    def init(params: Params) -> ClipState:
        return ClipState(init_scalars(params, max_norm=max_norm), init_count(params))

    def rule(grad: Tensor, param: Tensor, slots: Slots, s: Scalars) -> tuple[Tensor, Slots]:
        return grad * s["coefficient"], ()

    def update(grads: Grads, state: ClipState, params: Params) -> tuple[Updates, ClipState]:
        limit, count = state.hyper["max_norm"], state.count + 1
        check_names(grads, params)
        if not grads:
            return {}, ClipState(state.hyper, count)
        # vector_norm has a zero derivative, not an infinite one, at zero.
        norms = [cast(_norm(real_view(grad)), limit.dtype) for grad in grads.values()]
        norm = torch.linalg.vector_norm(torch.stack(norms))
        scalars = {"coefficient": (limit / (norm + 1e-6)).clamp(max=1.0)}
        updates, _ = elementwise(rule, grads, params, (), scalars)
        return updates, ClipState(state.hyper, count)

    return Optimizer(init, update, "clip_by_global_norm", {"max_norm": max_norm}, kind="transform")


def _norm(grad: Tensor) -> Tensor:
    # A dtype asked for that is the tensor's own would cost a conversion.
    dtype = compute_dtype(grad.dtype)
    norm: Tensor = torch.linalg.vector_norm(grad, dtype=None if grad.dtype == dtype else dtype)
    return norm


def clip_by_value(max_value: Scalar) -> Optimizer:
    r"""Build a transform that limits every element of the gradient, as ``clip_grad_value_`` does.

    .. math::

        g \leftarrow \min(\max(g, -c), c)

    with :math:`c` = ``max_value``; of complex gradients the real and the imaginary part.

    Parameters
    ----------
    max_value : float or 0-d Tensor
        The largest magnitude, > 0; it may differ per member.

    Returns
    -------
    Optimizer
        A transform with state :class:`ClipState`, for :func:`chain` or
        ``make_train_step(grad_transform=...)``.

    Raises
    ------
    ArgumentError
        For a ``max_value`` that is no finite number > 0.

    Notes
    -----
    Source: Mikolov (2012), section 3.2.2, in the form of ``torch.nn.utils.clip_grad_value_``.

    Examples
    --------
    >>> import torch
    >>> clip = clip_by_value(1.0)
    >>> grads = {"w": torch.tensor([3.0, -0.5])}
    >>> clip.update(grads, clip.init(grads), grads)[0]
    {'w': tensor([ 1.0000, -0.5000])}
    """
    max_value = check_scalar("max_value", max_value, above=0.0)

    def init(params: Params) -> ClipState:
        return ClipState(init_scalars(params, max_value=max_value), init_count(params))

    def rule(grad: Tensor, param: Tensor, slots: Slots, s: Scalars) -> tuple[Tensor, Slots]:
        return torch.clamp(grad, min=s["-max"], max=s["max"]), ()

    def update(grads: Grads, state: ClipState, params: Params) -> tuple[Updates, ClipState]:
        limit = state.hyper["max_value"]
        updates, _ = elementwise(rule, grads, params, (), {"max": limit, "-max": -limit})
        return updates, ClipState(state.hyper, state.count + 1)

    return Optimizer(init, update, "clip_by_value", {"max_value": max_value}, kind="transform")

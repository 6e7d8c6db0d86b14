"""Stochastic gradient descent with momentum."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from l2path.errors import ArgumentError
from l2path.optimizers.base import Optimizer
from l2path.optimizers.checks import Scalar, Schedule, check_flag, check_scalar, check_schedule, named_as_in_torch
from l2path.optimizers.elementwise import (
    Scalars,
    Slots,
    elementwise,
    init_count,
    init_scalars,
    init_slot,
    scheduled,
)
from l2path.types import Grads, Params, Updates


class SGDState(NamedTuple):
    """State of :func:`sgd`.

    ``momentum_buffer`` is empty without momentum; ``hyper`` holds ``lr``, and ``momentum`` and
    ``dampening`` where they were built non-zero.
    """

    hyper: dict[str, Tensor]  # 0-d, float64
    # Updates done: 0-d, int64. The name is the field's own (optax) and hides tuple.count on purpose.
    count: Tensor  # type: ignore[assignment]
    momentum_buffer: dict[str, Tensor]  # like the parameters


@named_as_in_torch
def sgd(
    lr: Scalar = 1e-3,
    momentum: Scalar = 0.0,
    dampening: Scalar = 0.0,
    nesterov: bool = False,
    *,
    schedule: Schedule | None = None,
) -> Optimizer:
    r"""Build stochastic gradient descent, equal to ``torch.optim.SGD``.

    .. math::

        b_t = \mu b_{t-1} + (1 - \tau) g_t, \quad b_1 = g_1, \qquad
        \theta_t = \theta_{t-1} - \gamma_t d_t, \quad
        d_t = g_t + \mu b_t \text{ (Nesterov), else } b_t

    with the gradient :math:`g_t`, :math:`\gamma_t` = ``lr * schedule(t - 1)``, :math:`\mu` =
    ``momentum`` and :math:`\tau` = ``dampening``, which as in torch leaves the first gradient whole.

    Parameters
    ----------
    lr : float or 0-d Tensor
        Learning rate, >= 0.
    momentum : float or 0-d Tensor
        Momentum factor, >= 0. Exactly 0 (a number) builds an optimizer without a buffer, whose
        momentum cannot be swept.
    dampening : float or 0-d Tensor
        Dampening of the momentum, >= 0. Exactly 0 (a number) leaves it out, as for momentum.
    nesterov : bool
        Nesterov's momentum; needs momentum and no dampening.
    schedule : callable, optional
        A function of the number of updates done to a factor of ``lr``, such as
        :func:`l2path.schedules.cosine`.

    Returns
    -------
    Optimizer
        With state :class:`SGDState`; ``lr``, ``momentum`` and ``dampening`` may differ per member.

    Raises
    ------
    ArgumentError
        For a number out of range, or Nesterov's momentum without momentum or with dampening.

    Notes
    -----
    There is no ``weight_decay``: an L2 penalty belongs to the objective, as the ``lambdas`` of the train
    step. With this optimizer ``lambdas=x`` equals ``torch.optim.SGD(weight_decay=x)`` exactly.

    Source: Polyak (1964); Sutskever, Martens, Dahl and Hinton (2013), equations 1-4, in the form that
    torch documents (the learning rate outside the buffer).

    Examples
    --------
    >>> import torch
    >>> opt = sgd(lr=0.1, momentum=0.9)
    >>> params, grads = {"w": torch.tensor([1.0])}, {"w": torch.tensor([1.0])}
    >>> updates, state = opt.update(grads, opt.init(params), params)
    >>> updates, state = opt.update(grads, state, params)
    >>> updates["w"], state.count
    (tensor([-0.1900]), tensor(2))
    """
    lr, momentum = check_scalar("lr", lr), check_scalar("momentum", momentum)
    dampening, nesterov = check_scalar("dampening", dampening), check_flag("nesterov", nesterov)
    buffered = isinstance(momentum, Tensor) or momentum != 0.0
    dampened = buffered and (isinstance(dampening, Tensor) or dampening != 0.0)
    if nesterov and (not buffered or dampened):
        raise ArgumentError(
            "nesterov",
            got=f"True with momentum={momentum} and dampening={dampening}",
            expected="a momentum > 0 and no dampening",
            remedy="set momentum, for example to 0.9, and leave dampening at 0",
        )

    def init(params: Params) -> SGDState:
        hyper = init_scalars(params, lr=lr)
        if buffered:
            hyper |= init_scalars(params, momentum=momentum)
        if dampened:
            hyper |= init_scalars(params, dampening=dampening)
        return SGDState(hyper, init_count(params), init_slot(params) if buffered else {})

    def rule(grad: Tensor, param: Tensor, slots: Slots, s: Scalars) -> tuple[Tensor, Slots]:
        if not buffered:
            return grad * s["-lr"], ()
        incoming = grad * s["weight"] if dampened else grad
        buffer = torch.addcmul(incoming, slots[0], s["momentum"])
        direction = torch.addcmul(grad, buffer, s["momentum"]) if nesterov else buffer
        return direction * s["-lr"], (buffer,)

    def update(grads: Grads, state: SGDState, params: Params) -> tuple[Updates, SGDState]:
        hyper, count = state.hyper, state.count
        scalars = {"-lr": -scheduled(hyper["lr"], schedule, count)}
        if buffered:
            scalars["momentum"] = hyper["momentum"]
        if dampened:
            # The first gradient enters the (zero) buffer whole, without a branch on the count.
            scalars["weight"] = 1.0 - hyper["dampening"] * (count > 0)
        slots = (state.momentum_buffer,) if buffered else ()
        updates, new = elementwise(rule, grads, params, slots, scalars)
        return updates, SGDState(hyper, count + 1, new[0] if buffered else {})

    config = {"lr": lr, "momentum": momentum, "dampening": dampening, "nesterov": nesterov}
    return Optimizer(init, update, "sgd", {**config, "schedule": check_schedule(schedule)})

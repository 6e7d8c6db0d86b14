"""RMSprop."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from l2path.optimizers.base import Optimizer
from l2path.optimizers.checks import Scalar, Schedule, check_flag, check_scalar, check_schedule, named_as_in_torch
from l2path.optimizers.elementwise import (
    Scalars,
    Slots,
    elementwise,
    init_count,
    init_scalars,
    init_slot,
    safe_sqrt,
    scheduled,
)
from l2path.types import Grads, Params, Updates


class RMSpropState(NamedTuple):
    """State of :func:`rmsprop`.

    ``grad_avg`` is empty unless centered, ``momentum_buffer`` without momentum; ``hyper`` holds ``lr``,
    ``alpha``, ``eps``, and ``momentum`` where it was built non-zero.
    """

    hyper: dict[str, Tensor]  # 0-d, float64
    # Updates done: 0-d, int64. The name is the field's own (optax) and hides tuple.count on purpose.
    count: Tensor  # type: ignore[assignment]
    square_avg: dict[str, Tensor]  # like the parameters
    grad_avg: dict[str, Tensor]  # like the parameters
    momentum_buffer: dict[str, Tensor]  # like the parameters


@named_as_in_torch
def rmsprop(
    lr: Scalar = 1e-2,
    alpha: Scalar = 0.99,
    eps: Scalar = 1e-8,
    momentum: Scalar = 0.0,
    centered: bool = False,
    *,
    schedule: Schedule | None = None,
) -> Optimizer:
    r"""Build RMSprop, equal to ``torch.optim.RMSprop``.

    .. math::

        v_t = \alpha v_{t-1} + (1 - \alpha) g_t^2, \qquad
        a_t = \alpha a_{t-1} + (1 - \alpha) g_t, \qquad
        b_t = \mu b_{t-1} + \frac{g_t}{\sqrt{v_t - a_t^2} + \epsilon}, \qquad
        \theta_t = \theta_{t-1} - \gamma_t b_t

    with the gradient :math:`g_t`, :math:`\gamma_t` = ``lr * schedule(t - 1)``, :math:`\alpha` =
    ``alpha``, :math:`\epsilon` = ``eps``, :math:`\mu` = ``momentum``, and :math:`a_t = 0` unless
    ``centered``.

    Parameters
    ----------
    lr : float or 0-d Tensor
        Learning rate, >= 0.
    alpha : float or 0-d Tensor
        Decay rate of the averages, in [0, 1).
    eps : float or 0-d Tensor
        What is added to the denominator, >= 0.
    momentum : float or 0-d Tensor
        Momentum factor, >= 0. Exactly 0 (a number) builds an optimizer without a buffer, whose
        momentum cannot be swept.
    centered : bool
        Whether to divide by an estimate of the standard deviation instead of the root mean square.
        Where rounding makes the variance negative it counts as 0, where torch gives NaN.
    schedule : callable, optional
        A function of the number of updates done to a factor of ``lr``, such as
        :func:`l2path.schedules.cosine`.

    Returns
    -------
    Optimizer
        With state :class:`RMSpropState`; ``lr``, ``alpha``, ``eps`` and ``momentum`` may differ per member.

    Raises
    ------
    ArgumentError
        For a number out of range.

    Notes
    -----
    There is no ``weight_decay``: an L2 penalty belongs to the objective, as the ``lambdas`` of the train
    step, which equals ``torch.optim.RMSprop(weight_decay=...)``.

    Source: Hinton, Srivastava and Swersky (2012), lecture 6e; centered: Graves (2013), equations 38-45,
    in the form that torch documents.

    Examples
    --------
    >>> import torch
    >>> opt = rmsprop(lr=0.1, alpha=0.75)
    >>> params = {"w": torch.tensor([1.0, 1.0])}
    >>> updates, state = opt.update({"w": torch.tensor([2.0, -5.0])}, opt.init(params), params)
    >>> updates["w"]
    tensor([-0.2000,  0.2000])
    """
    lr, alpha = check_scalar("lr", lr), check_scalar("alpha", alpha, below=1.0)
    eps, momentum = check_scalar("eps", eps), check_scalar("momentum", momentum)
    centered = check_flag("centered", centered)
    buffered = isinstance(momentum, Tensor) or momentum != 0.0

    def init(params: Params) -> RMSpropState:
        hyper = init_scalars(params, lr=lr, alpha=alpha, eps=eps)
        if buffered:
            hyper |= init_scalars(params, momentum=momentum)
        grad_avg = init_slot(params) if centered else {}
        buffer = init_slot(params) if buffered else {}
        return RMSpropState(hyper, init_count(params), init_slot(params), grad_avg, buffer)

    def rule(grad: Tensor, param: Tensor, slots: Slots, s: Scalars) -> tuple[Tensor, Slots]:
        square_avg = torch.lerp(slots[0], grad * grad, s["1-alpha"])
        new_slots: Slots = (square_avg,)
        variance = square_avg
        if centered:
            grad_avg = torch.lerp(slots[1], grad, s["1-alpha"])
            variance = torch.addcmul(square_avg, grad_avg, grad_avg, value=-1)
            new_slots += (grad_avg,)
        direction = grad / (safe_sqrt(variance) + s["eps"])
        if buffered:
            direction = torch.addcmul(direction, slots[-1], s["momentum"])
            new_slots += (direction,)
        return direction * s["-lr"], new_slots

    def update(grads: Grads, state: RMSpropState, params: Params) -> tuple[Updates, RMSpropState]:
        hyper, count = state.hyper, state.count
        scalars = {
            "-lr": -scheduled(hyper["lr"], schedule, count),
            "1-alpha": 1.0 - hyper["alpha"],
            "eps": hyper["eps"],
        }
        slots: tuple[dict[str, Tensor], ...] = (state.square_avg,)
        slots += (state.grad_avg,) if centered else ()
        if buffered:
            scalars["momentum"] = hyper["momentum"]
            slots += (state.momentum_buffer,)
        updates, new = elementwise(rule, grads, params, slots, scalars)
        grad_avg = new[1] if centered else {}
        return updates, RMSpropState(hyper, count + 1, new[0], grad_avg, new[-1] if buffered else {})

    config: dict[str, object] = {"lr": lr, "alpha": alpha, "eps": eps, "momentum": momentum}
    return Optimizer(init, update, "rmsprop", {**config, "centered": centered, "schedule": check_schedule(schedule)})

"""Adagrad."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from l2path.errors import ArgumentError
from l2path.optimizers.base import Optimizer
from l2path.optimizers.checks import Scalar, Schedule, check_scalar, check_schedule, named_as_in_torch
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


class AdagradState(NamedTuple):
    """State of :func:`adagrad`; ``hyper`` holds ``lr``, ``lr_decay`` and ``eps``."""

    hyper: dict[str, Tensor]  # 0-d, float64
    # Updates done: 0-d, int64. The name is the field's own (optax) and hides tuple.count on purpose.
    count: Tensor  # type: ignore[assignment]
    sum: dict[str, Tensor]  # like the parameters


@named_as_in_torch
def adagrad(
    lr: Scalar = 1e-2,
    lr_decay: Scalar = 0.0,
    initial_accumulator_value: float = 0.0,
    eps: Scalar = 1e-10,
    *,
    schedule: Schedule | None = None,
) -> Optimizer:
    r"""Build Adagrad, equal to ``torch.optim.Adagrad``.

    .. math::

        s_t = s_{t-1} + g_t^2, \qquad
        \theta_t = \theta_{t-1} - \frac{\gamma_t}{1 + (t - 1) \eta} \frac{g_t}{\sqrt{s_t} + \epsilon}

    with the gradient :math:`g_t`, :math:`\gamma_t` = ``lr * schedule(t - 1)``, :math:`\eta` =
    ``lr_decay``, :math:`s_0` = ``initial_accumulator_value`` and :math:`\epsilon` = ``eps``.

    Parameters
    ----------
    lr : float or 0-d Tensor
        Learning rate, >= 0.
    lr_decay : float or 0-d Tensor
        How fast the learning rate falls with the number of updates, >= 0. Not a decay of the
        parameters.
    initial_accumulator_value : float
        Where the sums of squares start, >= 0; it is no hyperparameter of the updates, so that it
        cannot be swept.
    eps : float or 0-d Tensor
        What is added to the denominator, >= 0.
    schedule : callable, optional
        A function of the number of updates done to a factor of ``lr``, such as
        :func:`l2path.schedules.cosine`.

    Returns
    -------
    Optimizer
        With state :class:`AdagradState`; ``lr``, ``lr_decay`` and ``eps`` may differ per member.

    Raises
    ------
    ArgumentError
        For a number out of range.

    Notes
    -----
    There is no ``weight_decay``: an L2 penalty belongs to the objective, as the ``lambdas`` of the train
    step, which equals ``torch.optim.Adagrad(weight_decay=...)``.

    Source: Duchi, Hazan and Singer (2011), figure 1 with diagonal matrices, in the form that torch
    documents.

    Examples
    --------
    >>> import torch
    >>> opt = adagrad(lr=0.1)
    >>> params = {"w": torch.tensor([1.0, 1.0])}
    >>> updates, state = opt.update({"w": torch.tensor([2.0, -5.0])}, opt.init(params), params)
    >>> updates["w"]
    tensor([-0.1000,  0.1000])
    """
    lr, lr_decay, eps = check_scalar("lr", lr), check_scalar("lr_decay", lr_decay), check_scalar("eps", eps)
    if isinstance(initial_accumulator_value, Tensor):
        raise ArgumentError(
            "initial_accumulator_value",
            got="a tensor",
            expected="a number >= 0",
            remedy="pass .item() of it: it fills the first state and is no hyperparameter to sweep",
        )
    start = float(check_scalar("initial_accumulator_value", initial_accumulator_value))

    def init(params: Params) -> AdagradState:
        hyper = init_scalars(params, lr=lr, lr_decay=lr_decay, eps=eps)
        return AdagradState(hyper, init_count(params), init_slot(params, start))

    def rule(grad: Tensor, param: Tensor, slots: Slots, s: Scalars) -> tuple[Tensor, Slots]:
        total = torch.addcmul(slots[0], grad, grad)
        return grad / (safe_sqrt(total) + s["eps"]) * s["-size"], (total,)

    def update(grads: Grads, state: AdagradState, params: Params) -> tuple[Updates, AdagradState]:
        hyper, count = state.hyper, state.count
        size = scheduled(hyper["lr"], schedule, count) / (1.0 + count * hyper["lr_decay"])
        updates, new = elementwise(rule, grads, params, (state.sum,), {"-size": -size, "eps": hyper["eps"]})
        return updates, AdagradState(hyper, count + 1, new[0])

    config: dict[str, object] = {"lr": lr, "lr_decay": lr_decay}
    config |= {"initial_accumulator_value": start, "eps": eps, "schedule": check_schedule(schedule)}
    return Optimizer(init, update, "adagrad", config)

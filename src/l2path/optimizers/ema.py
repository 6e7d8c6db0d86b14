"""Exponential moving average of the weights."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from l2path.errors import ArgumentError
from l2path.optimizers.accumulate import stepped
from l2path.optimizers.base import Optimizer, apply_updates, check_optimizer, holds, states_of
from l2path.optimizers.checks import Scalar, check_scalar
from l2path.optimizers.elementwise import Scalars, Slots, elementwise, init_count, init_scalars
from l2path.penalty import Names
from l2path.types import Grads, OptState, Params, Updates


class EmaState(NamedTuple):
    """State of :func:`ema`; ``hyper`` holds ``ema_decay``."""

    hyper: dict[str, Tensor]  # 0-d, float64
    # Weights averaged so far: 0-d, int64. The name is the field's own (optax) and hides tuple.count on purpose.
    count: Tensor  # type: ignore[assignment]
    average: Params  # like the parameters; before the first step the weights that training starts from
    inner: OptState  # of the optimizer inside


def ema(optimizer: Optimizer, decay: Scalar = 0.999) -> Optimizer:
    r"""Keep an exponential moving average of the weights beside the training, which it leaves as it is.

    .. math::

        a_1 = \theta_1, \qquad a_t = \beta a_{t-1} + (1 - \beta) \theta_t

    with :math:`\theta_t` the parameters after step t of ``optimizer`` and :math:`\beta` = ``decay``.

    Parameters
    ----------
    optimizer : Optimizer
        What takes the steps.
    decay : float or 0-d Tensor
        How much of the average is kept at each step, in [0, 1). As a hyperparameter it is called ``ema_decay``
        (``sweep={"ema_decay": [...]}``); AdamW's ``decay`` is another thing.

    Returns
    -------
    Optimizer
        With state :class:`EmaState`; ``ema_decay`` may differ per member, as may the hyperparameters of
        ``optimizer``, which are found in it by their names. :func:`averaged_params` returns the average.

    Raises
    ------
    ArgumentError
        If ``optimizer`` is no optimizer of l2path or averages already, or ``decay`` lies outside of [0, 1).

    Notes
    -----
    It equals ``torch.optim.swa_utils.AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(decay))`` with
    ``update_parameters`` after each ``optimizer.step()``: the first step copies the weights, later ones average.
    Steps are those that are taken: with :func:`accumulate`, inside or around, the average rests between them. Buffers
    are not averaged (``use_buffers=False``): BatchNorm's statistics are those of the live weights.

    ``batch_train`` validates, predicts with and returns the averaged weights; ``result.live_params`` are the others,
    and the losses and penalties of training are theirs.

    Source: Polyak and Juditsky (1992) for averaging; in this form Tarvainen and Valpola (2017), section 2, and torch.

    Examples
    --------
    >>> from l2path.optimizers import sgd
    >>> opt = ema(sgd(lr=1.0), decay=0.5)
    >>> params = {"w": torch.tensor([4.0])}
    >>> state = opt.init(params)
    >>> for _ in range(2):  # to 3, then to 2
    ...     updates, state = opt.update({"w": torch.tensor([1.0])}, state, params)
    ...     params = apply_updates(params, updates)
    >>> params["w"], state.average["w"]
    (tensor([2.]), tensor([2.5000]))
    """
    check_optimizer(optimizer)
    if holds(optimizer, "ema"):
        raise ArgumentError(
            "optimizer",
            got=f"{optimizer!r}, which averages already",
            expected="an optimizer without an average: one run returns one",
            remedy='keep one ema; to compare several decays, use sweep={"ema_decay": [...]}',
        )
    decay = check_scalar("decay", decay, below=1.0, swept="ema_decay")

    def init(params: Params) -> EmaState:
        average = {name: param.detach().clone() for name, param in params.items()}
        return EmaState(init_scalars(params, ema_decay=decay), init_count(params), average, optimizer.init(params))

    def blend(param: Tensor, average: Tensor, slots: Slots, s: Scalars) -> tuple[Tensor, Slots]:
        return torch.lerp(average, param, s["weight"]), ()

    def update(grads: Grads, state: EmaState, params: Params) -> tuple[Updates, EmaState]:
        updates, inner = optimizer.update(grads, state.inner, params)
        # The weight of the new parameters; lerp is exact at 1, which copies, and at 0, which keeps.
        weight = torch.where(state.count == 0, 1.0, 1.0 - state.hyper["ema_decay"])
        moved, count = stepped(inner), state.count + 1
        if moved is not None:
            weight, count = weight * moved, state.count + moved
        average, _ = elementwise(blend, apply_updates(params, updates), state.average, (), {"weight": weight})
        return updates, EmaState(state.hyper, count, average, inner)

    def bind(names: Names) -> Optimizer:
        return ema(optimizer.bound(names), decay)

    return Optimizer(init, update, "ema", {"decay": decay}, parts=(optimizer,), bind=bind)


def average_of(state: OptState) -> Params | None:
    """Return the average that an optimizer's state holds, if any."""
    return next((node.average for node in states_of(state, EmaState)), None)

"""Adam and AdamW."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple, NotRequired, TypedDict

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
    safe_sqrt,
    scheduled,
)
from l2path.penalty import Names, WeightsOnly, expand_lambdas
from l2path.types import Grads, LambdaSpec, Params, Updates


class AdamHyper(TypedDict):
    """Hyperparameters of :func:`adam` and :func:`adamw`: 0-d float64 tensors."""

    lr: Tensor
    beta1: Tensor
    beta2: Tensor
    eps: Tensor
    # AdamW alone: 0-d, or one tensor per parameter that broadcasts to it.
    decay: NotRequired[Tensor | dict[str, Tensor]]


class AdamState(NamedTuple):
    """State of :func:`adam` and :func:`adamw`; ``max_exp_avg_sq`` is empty without AMSGrad."""

    hyper: AdamHyper
    # Updates done: 0-d, int64. The name is the field's own (optax) and hides tuple.count on purpose.
    count: Tensor  # type: ignore[assignment]
    exp_avg: dict[str, Tensor]  # like the parameters
    exp_avg_sq: dict[str, Tensor]  # like the parameters
    max_exp_avg_sq: dict[str, Tensor]  # like the parameters


@named_as_in_torch
def adam(
    lr: Scalar = 1e-3,
    betas: tuple[Scalar, Scalar] = (0.9, 0.999),
    eps: Scalar = 1e-8,
    amsgrad: bool = False,
    *,
    schedule: Schedule | None = None,
) -> Optimizer:
    r"""Build Adam, equal to ``torch.optim.Adam``.

    .. math::

        m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t, \qquad v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2,
        \qquad \theta_t = \theta_{t-1}
        - \gamma_t \frac{m_t / (1 - \beta_1^t)}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon}

    with the gradient :math:`g_t`, :math:`\gamma_t` = ``lr * schedule(t - 1)``,
    :math:`(\beta_1, \beta_2)` = ``betas`` and :math:`\epsilon` = ``eps``. With ``amsgrad``,
    :math:`\max_{s \le t} v_s` takes the place of :math:`v_t` under the root.

    Parameters
    ----------
    lr : float or 0-d Tensor
        Learning rate, >= 0.
    betas : tuple of two floats or 0-d Tensors
        Decay rates of the two averages, in [0, 1); swept as ``"beta1"`` and ``"beta2"``.
    eps : float or 0-d Tensor
        What is added to the denominator, >= 0.
    amsgrad : bool
        Whether to divide by the largest second moment so far.
    schedule : callable, optional
        A function of the number of updates done to a factor of ``lr``, such as
        :func:`l2path.schedules.cosine`.

    Returns
    -------
    Optimizer
        With state :class:`AdamState`; ``lr``, ``beta1``, ``beta2`` and ``eps`` may differ per member.

    Raises
    ------
    ArgumentError
        For a number out of range.

    Notes
    -----
    There is no ``weight_decay``: an L2 penalty belongs to the objective, as the ``lambdas`` of the train
    step, and passes through Adam's preconditioner: ``lambdas=x`` equals
    ``torch.optim.Adam(weight_decay=x)``. Decoupled decay is another method: :func:`adamw`.

    Source: Kingma and Ba (2015), algorithm 1; AMSGrad: Reddi, Kale and Kumar (2018), with torch's bias
    correction.

    Examples
    --------
    >>> import torch
    >>> opt = adam(lr=0.1)
    >>> params = {"w": torch.tensor([1.0, 1.0])}
    >>> updates, state = opt.update({"w": torch.tensor([2.0, -5.0])}, opt.init(params), params)
    >>> updates["w"]
    tensor([-0.1000,  0.1000])
    """
    return _build("adam", lr, betas, eps, amsgrad, None, schedule)


@named_as_in_torch
def adamw(
    lr: Scalar = 1e-3,
    betas: tuple[Scalar, Scalar] = (0.9, 0.999),
    eps: Scalar = 1e-8,
    decay: LambdaSpec = 1e-2,
    amsgrad: bool = False,
    *,
    schedule: Schedule | None = None,
) -> Optimizer:
    r"""Build AdamW, equal to ``torch.optim.AdamW``: Adam with decoupled decay.

    .. math::

        \theta_t = (1 - \gamma_t \delta) \theta_{t-1}
        - \gamma_t \frac{m_t / (1 - \beta_1^t)}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon}

    with :math:`m_t, v_t` as in :func:`adam`, :math:`\gamma_t` = ``lr * schedule(t - 1)`` and
    :math:`\delta` = ``decay``, which is what torch calls ``weight_decay``.

    Parameters
    ----------
    lr, betas, eps, amsgrad, schedule
        As in :func:`adam`.
    decay : float, Tensor, or mapping of str to float or Tensor
        The decay, >= 0: one for all parameters, or a spec as in :func:`l2path.expand_lambdas`, whose
        keys are names or patterns and whose tensors broadcast to their parameters. It shrinks
        parameters directly and is no L2 penalty: the two have different minimisers.

    Returns
    -------
    Optimizer
        With state :class:`AdamState`, whose ``hyper["decay"]`` is a 0-d tensor, or ``{name: tensor}``
        if a spec was given; it may differ per member, as may ``lr``, ``beta1``, ``beta2`` and ``eps``.

    Raises
    ------
    ArgumentError
        For a number out of range, when built; for a spec that does not fit the parameters, when
        initialised.

    Notes
    -----
    Source: Loshchilov and Hutter (2019), algorithm 2, with torch's product of decay and learning rate.

    Examples
    --------
    >>> import torch
    >>> opt = adamw(lr=0.1, decay=0.5)
    >>> params = {"w": torch.tensor([1.0])}
    >>> updates, state = opt.update({"w": torch.zeros(1)}, opt.init(params), params)
    >>> updates["w"]
    tensor([-0.0500])
    """
    is_spec = isinstance(decay, (Mapping, WeightsOnly)) or getattr(decay, "ndim", 0) > 0
    decay = decay if is_spec else check_scalar("decay", decay)
    built = _build("adamw", lr, betas, eps, amsgrad, decay, schedule)
    if not is_spec:
        return built

    def bind(names: Names) -> Optimizer:
        resolved = expand_lambdas(names, decay, argument="decay")
        return _build("adamw", lr, betas, eps, amsgrad, resolved, schedule)

    return replace(built, bind=bind)


def _build(
    name: str,
    lr: Scalar,
    betas: tuple[Scalar, Scalar],
    eps: Scalar,
    amsgrad: bool,
    decay: LambdaSpec | None,
    schedule: Schedule | None,
) -> Optimizer:
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise ArgumentError(
            "betas",
            got=repr(betas),
            expected="two numbers",
            remedy="give (beta1, beta2), for example (0.9, 0.999)",
        )
    lr, eps, amsgrad = check_scalar("lr", lr), check_scalar("eps", eps), check_flag("amsgrad", amsgrad)
    beta1, beta2 = check_scalar("beta1", betas[0], below=1.0), check_scalar("beta2", betas[1], below=1.0)
    decays = decay is not None

    def init(params: Params) -> AdamState:
        scalars = init_scalars(params, lr=lr, beta1=beta1, beta2=beta2, eps=eps)
        hyper = AdamHyper(lr=scalars["lr"], beta1=scalars["beta1"], beta2=scalars["beta2"], eps=scalars["eps"])
        if isinstance(decay, float) or (isinstance(decay, Tensor) and decay.ndim == 0):
            hyper["decay"] = init_scalars(params, decay=decay)["decay"]
        elif decays:
            hyper["decay"] = {
                key: value.to(scalars["lr"].device, scalars["lr"].dtype, copy=True)
                for key, value in expand_lambdas(params, decay, argument="decay").items()
            }
        largest = init_slot(params) if amsgrad else {}
        return AdamState(hyper, init_count(params), init_slot(params), init_slot(params), largest)

    def rule(grad: Tensor, param: Tensor, slots: Slots, s: Scalars) -> tuple[Tensor, Slots]:
        exp_avg = torch.lerp(slots[0], grad, s["1-beta1"])
        exp_avg_sq = torch.lerp(slots[1], grad * grad, s["1-beta2"])
        new_slots: Slots = (exp_avg, exp_avg_sq)
        if amsgrad:
            new_slots += (torch.maximum(slots[2], exp_avg_sq),)
        update = exp_avg / (safe_sqrt(new_slots[-1]) + s["eps"]) * s["-size"]
        return torch.addcmul(update, param, s["-shrink"]) if decays else update, new_slots

    def update(grads: Grads, state: AdamState, params: Params) -> tuple[Updates, AdamState]:
        hyper, count = state.hyper, state.count + 1
        negative_lr = -scheduled(hyper["lr"], schedule, state.count)
        correction1 = -torch.expm1(count * hyper["beta1"].log())
        # Both corrections are moved from the tensors to the scalars of the ratio.
        root2 = (-torch.expm1(count * hyper["beta2"].log())).sqrt()
        scalars = {
            "1-beta1": 1.0 - hyper["beta1"],
            "1-beta2": 1.0 - hyper["beta2"],
            "-size": negative_lr * root2 / correction1,
            "eps": hyper["eps"] * root2,
        }
        own: dict[str, dict[str, Tensor]] = {}
        if decays:
            strength = hyper["decay"]
            if isinstance(strength, dict):
                own["-shrink"] = {key: negative_lr * value for key, value in strength.items()}
            else:
                scalars["-shrink"] = negative_lr * strength
        slots = (state.exp_avg, state.exp_avg_sq) + ((state.max_exp_avg_sq,) if amsgrad else ())
        updates, new = elementwise(rule, grads, params, slots, scalars, own)
        return updates, AdamState(hyper, count, new[0], new[1], new[2] if amsgrad else {})

    config: dict[str, object] = {"lr": lr, "betas": (beta1, beta2), "eps": eps}
    config |= {"decay": decay, "amsgrad": amsgrad, "schedule": check_schedule(schedule)}
    return Optimizer(init, update, name, config)

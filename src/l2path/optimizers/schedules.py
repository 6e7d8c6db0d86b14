"""Schedules: factors of the learning rate as branch-free functions of the number of updates done.

A factor, and not a learning rate, so that ``lr`` stays a hyperparameter that can be swept. The unit is an
optimizer update, not an epoch; the first update sees ``count = 0``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from l2path.errors import ArgumentError
from l2path.optimizers.base import call_repr
from l2path.optimizers.checks import check_count, check_scalar
from l2path.optimizers.elementwise import scalar_dtype


@dataclass(frozen=True, eq=False, repr=False)
class FactorSchedule:
    """A schedule with a name: ``schedule(count) -> factor``.

    Parameters
    ----------
    function : callable
        From the number of updates done, as a 0-d tensor of scalar dtype, to the factor.
    name : str
        The name of the function that built it.
    config : mapping
        The arguments it was built with, for ``repr``.
    parts : tuple of callables
        What a product is made of; empty otherwise.

    Examples
    --------
    >>> import torch
    >>> schedule = step_decay(10, gamma=0.5)
    >>> schedule
    step_decay(every=10, gamma=0.5)
    >>> schedule(torch.tensor(25))
    tensor(0.2500, dtype=torch.float64)
    """

    function: Callable[[Tensor], Tensor]
    name: str = "schedule"
    config: Mapping[str, object] = field(default_factory=dict)
    parts: tuple[Callable[[Tensor], Tensor], ...] = ()

    def __call__(self, count: Tensor) -> Tensor:
        """Return the factor of lr at ``count`` updates done (0-d int64), as a 0-d float64 tensor."""
        return self.function(count.to(scalar_dtype(count.device)))

    def __repr__(self) -> str:
        return call_repr(self.name, self.parts, self.config)


def constant() -> FactorSchedule:
    """Build the schedule whose factor is always 1.

    Returns
    -------
    FactorSchedule
        From a 0-d int64 count to a 0-d float64 factor.

    Examples
    --------
    >>> import torch
    >>> constant()(torch.tensor(7))
    tensor(1., dtype=torch.float64)
    """
    return FactorSchedule(torch.ones_like, "constant")


def linear_warmup(steps: int, start: float = 1.0 / 3.0) -> FactorSchedule:
    r"""Build a linear rise to 1, equal to ``torch.optim.lr_scheduler.LinearLR``.

    .. math::

        f(t) = s + (1 - s) \min(t / n, 1)

    with the updates done :math:`t`, :math:`n` = ``steps`` and :math:`s` = ``start``.

    Parameters
    ----------
    steps : int
        Updates until the factor is 1, where it stays.
    start : float
        The first factor, in [0, 1]. torch's is 1/3 as well; from 0 the first update does nothing.

    Returns
    -------
    FactorSchedule
        From a 0-d int64 count to a 0-d float64 factor.

    Raises
    ------
    ArgumentError
        For a number out of range.

    Examples
    --------
    >>> import torch
    >>> [round(linear_warmup(4, start=0.2)(torch.tensor(t)).item(), 3) for t in range(6)]
    [0.2, 0.4, 0.6, 0.8, 1.0, 1.0]
    """
    steps, start = check_count("steps", steps), _check_fraction("start", start)
    return FactorSchedule(lambda t: _rise(t, steps, start), "linear_warmup", {"steps": steps, "start": start})


def cosine(steps: int, final: float = 0.0) -> FactorSchedule:
    r"""Build half a cosine from 1 down to ``final``.

    .. math::

        f(t) = c + \frac{1 - c}{2} \left(1 + \cos(\pi \min(t / n, 1))\right)

    with the updates done :math:`t`, :math:`n` = ``steps`` and :math:`c` = ``final``. Up to ``steps`` it
    equals ``CosineAnnealingLR(T_max=steps, eta_min=final * lr)``; past the end it stays at ``final``, where
    torch's would rise again.

    Parameters
    ----------
    steps : int
        Updates until the factor is ``final``.
    final : float
        The last factor, in [0, 1].

    Returns
    -------
    FactorSchedule
        From a 0-d int64 count to a 0-d float64 factor.

    Raises
    ------
    ArgumentError
        For a number out of range.

    Notes
    -----
    Source: Loshchilov and Hutter (2017), equation 5, without restarts.

    Examples
    --------
    >>> import torch
    >>> [round(cosine(4, final=0.2)(torch.tensor(t)).item(), 3) for t in (0, 2, 4, 9)]
    [1.0, 0.6, 0.2, 0.2]
    """
    steps, final = check_count("steps", steps), _check_fraction("final", final)
    return FactorSchedule(lambda t: _fall(t, steps, final), "cosine", {"steps": steps, "final": final})


def step_decay(every: int, gamma: float = 0.1) -> FactorSchedule:
    r"""Build a fall by ``gamma`` at every so many updates, equal to ``torch.optim.lr_scheduler.StepLR``.

    .. math::

        f(t) = \gamma^{\lfloor t / n \rfloor}

    with the updates done :math:`t`, :math:`n` = ``every`` and :math:`\gamma` = ``gamma``.

    Parameters
    ----------
    every : int
        Updates between two falls.
    gamma : float
        The factor of one fall, > 0.

    Returns
    -------
    FactorSchedule
        From a 0-d int64 count to a 0-d float64 factor.

    Raises
    ------
    ArgumentError
        For a number out of range.

    Examples
    --------
    >>> import torch
    >>> [step_decay(2, gamma=0.5)(torch.tensor(t)).item() for t in range(5)]
    [1.0, 1.0, 0.5, 0.5, 0.25]
    """
    every, gamma = check_count("every", every), float(check_scalar("gamma", gamma, above=0.0))
    return FactorSchedule(
        lambda t: torch.pow(gamma, torch.floor(t / every)), "step_decay", {"every": every, "gamma": gamma}
    )


def exponential(gamma: float) -> FactorSchedule:
    r"""Build a fall by ``gamma`` at every update, equal to ``torch.optim.lr_scheduler.ExponentialLR``.

    .. math::

        f(t) = \gamma^t

    with the updates done :math:`t` and :math:`\gamma` = ``gamma``.

    Parameters
    ----------
    gamma : float
        The factor of one update, > 0.

    Returns
    -------
    FactorSchedule
        From a 0-d int64 count to a 0-d float64 factor.

    Raises
    ------
    ArgumentError
        For a number out of range.

    Examples
    --------
    >>> import torch
    >>> exponential(0.5)(torch.tensor(3))
    tensor(0.1250, dtype=torch.float64)
    """
    gamma = float(check_scalar("gamma", gamma, above=0.0))
    return FactorSchedule(lambda t: torch.pow(gamma, t), "exponential", {"gamma": gamma})


def warmup_cosine(warmup: int, steps: int, final: float = 0.0, *, start: float = 1.0 / 3.0) -> FactorSchedule:
    r"""Build a linear rise to 1, and half a cosine from there down to ``final``.

    .. math::

        f(t) = \left(s + (1 - s) \min(t / w, 1)\right)
        \left(c + \frac{1 - c}{2} (1 + \cos(\pi \tau))\right), \qquad
        \tau = \min\left(\frac{\max(t - w, 0)}{n - w}, 1\right)

    with the updates done :math:`t`, :math:`w` = ``warmup``, :math:`n` = ``steps``, :math:`s` = ``start`` and
    :math:`c` = ``final``; past the end it stays at ``final``.

    Parameters
    ----------
    warmup : int
        Updates until the factor is 1; 0 for none.
    steps : int
        Updates until the factor is ``final``, the warmup among them.
    final, start : float
        The last and the first factor, in [0, 1].

    Returns
    -------
    FactorSchedule
        From a 0-d int64 count to a 0-d float64 factor.

    Raises
    ------
    ArgumentError
        For a number out of range.

    Examples
    --------
    >>> import torch
    >>> schedule = warmup_cosine(2, 6, start=0.0)
    >>> [round(schedule(torch.tensor(t)).item(), 3) for t in range(8)]
    [0.0, 0.5, 1.0, 0.854, 0.5, 0.146, 0.0, 0.0]
    """
    warmup = check_count("warmup", warmup, minimum=0)
    steps = check_count("steps", steps, minimum=warmup + 1)
    final, start = _check_fraction("final", final), _check_fraction("start", start)

    def factor(t: Tensor) -> Tensor:
        # Each factor is 1 where the other one varies.
        fall = _fall((t - warmup).clamp(min=0.0), steps - warmup, final)
        return fall * _rise(t, warmup, start) if warmup else fall

    config = {"warmup": warmup, "steps": steps, "final": final, "start": start}
    return FactorSchedule(factor, "warmup_cosine", config)


def product(*schedules: Callable[[Tensor], Tensor]) -> FactorSchedule:
    """Multiply schedules.

    Parameters
    ----------
    *schedules : callable
        Each from a 0-d int64 count to a 0-d factor.

    Returns
    -------
    FactorSchedule
        From a 0-d int64 count to a 0-d float64 factor; 1 if there is nothing to multiply.

    Raises
    ------
    ArgumentError
        If a schedule cannot be called.

    Examples
    --------
    >>> import torch
    >>> product(exponential(0.5), step_decay(2, gamma=0.5))(torch.tensor(2))
    tensor(0.1250, dtype=torch.float64)
    """
    for schedule in schedules:
        if not callable(schedule):
            raise ArgumentError(
                "schedules",
                got=f"{schedule!r} ({type(schedule).__name__})",
                expected="schedules: functions of the number of updates done",
                remedy="put constant factors into lr",
            )

    def factor(t: Tensor) -> Tensor:
        count, result = t.to(torch.int64), torch.ones_like(t)
        for schedule in schedules:
            result = result * schedule(count)
        return result

    return FactorSchedule(factor, "product", parts=schedules)


def _rise(t: Tensor, steps: int, start: float) -> Tensor:
    return start + (1.0 - start) * (t / steps).clamp(max=1.0)


def _fall(t: Tensor, steps: int, final: float) -> Tensor:
    return final + (1.0 - final) * 0.5 * (1.0 + torch.cos(math.pi * (t / steps).clamp(max=1.0)))


def _check_fraction(argument: str, value: float) -> float:
    number = float(check_scalar(argument, value))
    if number > 1.0:
        raise ArgumentError(
            argument,
            got=f"{number:g}",
            expected="a factor of lr in [0, 1]",
            remedy="a factor is relative to lr: divide a learning rate by lr",
        )
    return number

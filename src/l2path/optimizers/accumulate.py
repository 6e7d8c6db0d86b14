"""Gradient accumulation."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from l2path.optimizers.base import Optimizer, check_optimizer, states_of
from l2path.optimizers.checks import check_count
from l2path.optimizers.elementwise import Scalars, Slots, elementwise, init_count
from l2path.penalty import Names
from l2path.trees import tree_map
from l2path.types import Grads, OptState, Params, Updates


class AccumulateState(NamedTuple):
    """State of :func:`accumulate`."""

    # Gradients of the current group, 0 after a step: 0-d, int64. It hides tuple.count on purpose.
    count: Tensor  # type: ignore[assignment]
    mean: dict[str, Tensor]  # like the parameters: their sum, divided by ``every``
    inner: OptState  # of the optimizer inside


def accumulate(optimizer: Optimizer, every: int) -> Optimizer:
    r"""Take a step with the mean gradient of ``every`` batches, and none on the calls between.

    .. math::

        u_t = \begin{cases}
            U\left(\frac1n \sum_{i=0}^{n-1} g_{t-i}\right) & \text{if } n \text{ divides } t \\
            0 & \text{otherwise}
        \end{cases}

    with the gradient :math:`g_t` of call t, :math:`n` = ``every`` and :math:`U` the update of ``optimizer``, whose
    state (counters and schedules included) stays as it is between the steps.

    Parameters
    ----------
    optimizer : Optimizer
        What takes the steps.
    every : int
        How many gradients make one step, >= 1. It cannot differ per member.

    Returns
    -------
    Optimizer
        With state :class:`AccumulateState`; the hyperparameters of ``optimizer`` are found in it by their names.

    Raises
    ------
    ArgumentError
        If ``optimizer`` is no optimizer of l2path, or ``every`` no whole number >= 1.

    Notes
    -----
    It equals the classic loop, ``(loss / every).backward()`` for each batch and ``optimizer.step()`` after every
    ``every``-th one. Each batch counts the same, whatever its number of rows. Parameters do not move within a group, so
    that the mean of data gradient plus penalty gradient is the mean data gradient plus the penalty gradient: lambda
    keeps its meaning. What ``make_train_step`` and ``batch_train`` count as steps are the calls, a schedule inside
    ``optimizer`` counts the steps taken.

    Groups run on across the ends of epochs, and what a run leaves of an unfinished one is not used: where that is
    unwanted, let ``every`` divide the number of batches in an epoch. Buffers (BatchNorm) move with each batch.

    A transform inside sees the mean, ``accumulate(chain(clip_by_global_norm(1.0), sgd(0.1)), every=4)``; in front, or
    as ``grad_transform=``, it sees the gradient of each batch.

    Source: optax (DeepMind, 2020), ``MultiSteps`` with ``use_grad_mean=True``.

    Examples
    --------
    >>> from l2path.optimizers import sgd
    >>> opt = accumulate(sgd(lr=0.5), every=2)
    >>> params = {"w": torch.tensor([1.0])}
    >>> updates, state = opt.update({"w": torch.tensor([1.0])}, opt.init(params), params)
    >>> updates["w"]
    tensor([0.])
    >>> updates, state = opt.update({"w": torch.tensor([3.0])}, state, params)
    >>> updates["w"], state.inner.count
    (tensor([-1.]), tensor(1))
    """
    check_optimizer(optimizer)
    every = check_count("every", every, remedy="count batches: every=4 takes one step in four")

    def init(params: Params) -> AccumulateState:
        zeros = {name: torch.zeros_like(param.detach()) for name, param in params.items()}
        return AccumulateState(init_count(params), zeros, optimizer.init(params))

    def add(grad: Tensor, mean: Tensor, slots: Slots, s: Scalars) -> tuple[Tensor, Slots]:
        return mean + grad / every, ()

    def update(grads: Grads, state: AccumulateState, params: Params) -> tuple[Updates, AccumulateState]:
        count = (state.count + 1) % every
        full = count == 0
        mean, _ = elementwise(add, grads, state.mean, (), {})
        # Nothing may branch on a value: the step is computed at every call, and taken where the group is full.
        updates, inner = optimizer.update(mean, state.inner, params)

        def taken(new: Tensor, old: Tensor) -> Tensor:
            return old if new is old else torch.where(full, new, old)

        inner = tree_map(taken, inner, state.inner)
        updates = {name: torch.where(full, value, 0.0) for name, value in updates.items()}
        return updates, AccumulateState(count, {n: torch.where(full, 0.0, m) for n, m in mean.items()}, inner)

    def bind(names: Names) -> Optimizer:
        return accumulate(optimizer.bound(names), every)

    return Optimizer(init, update, "accumulate", {"every": every}, parts=(optimizer,), bind=bind)


def stepped(state: OptState) -> Tensor | None:
    """Return whether the last update was a step (0-d bool); None where nothing accumulates, and each one is."""
    flags = [node.count == 0 for node in states_of(state, AccumulateState)]
    return torch.stack(flags).all() if flags else None

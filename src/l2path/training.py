"""The pure training step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from l2path.errors import ArgumentError
from l2path.functional import Functional, functionalize, grad_with_torch_func
from l2path.losses import DataLoss, FullLoss, data_loss
from l2path.optimizers.base import Optimizer, apply_updates, check_optimizer
from l2path.optimizers.elementwise import cast
from l2path.optimizers.ema import average_of
from l2path.penalty import check_anchor, describe, is_expanded, penalty_and_gradient
from l2path.penalty.expander import Expander
from l2path.trees import tree_map
from l2path.types import Batch, Buffers, Grads, Lambdas, LambdaSpec, LossFn, OptState, Params


class TrainState(NamedTuple):
    """Everything that a step changes; every leaf is a tensor that the state owns.

    Attributes
    ----------
    params : dict of str to Tensor
        Trainable parameters.
    buffers : dict of str to Tensor
        Buffers.
    opt_state : NamedTuple
        The optimizer's state, its hyperparameters included.
    step : Tensor, 0-d int64
        Number of calls of the training step; with :func:`accumulate` not each of them moves the parameters.
    """

    params: Params
    buffers: Buffers
    opt_state: OptState
    step: Tensor


class Metrics(NamedTuple):
    """What one step reports, all taken before its update; 0-d tensors.

    Attributes
    ----------
    loss : Tensor
        The data loss.
    penalty : Tensor
        ``1/2 * sum(lambda * |theta - anchor|^2)``.
    objective : Tensor
        Their sum.
    """

    loss: Tensor
    penalty: Tensor
    objective: Tensor


class WithGradTransform(NamedTuple):
    """Optimizer state beside the state of a transform of the data gradient."""

    optimizer: OptState
    grad_transform: OptState


GradTransform = Optimizer | Callable[[Grads], Grads]


class TrainStep(Protocol):
    """``(state, batch, lambdas) -> (state, metrics)``."""

    def __call__(self, state: TrainState, batch: Batch, lambdas: LambdaSpec) -> tuple[TrainState, Metrics]:
        """Do one step."""


def init_state(
    module: nn.Module | Functional, optimizer: Optimizer, *, grad_transform: GradTransform | None = None
) -> TrainState:
    """Return the state before the first step.

    Parameters
    ----------
    module : nn.Module
        Its weights are copied.
    optimizer : Optimizer
        For example ``l2path.sgd(lr=0.1)``.
    grad_transform : Optimizer or callable, optional
        The one given to :func:`make_train_step`, if any.

    Returns
    -------
    TrainState

    Raises
    ------
    ArgumentError
        As :func:`functionalize`.
    """
    fn = module if isinstance(module, Functional) else functionalize(module)
    check_optimizer(optimizer)
    params, buffers = tree_map(torch.clone, (fn.params, fn.buffers))
    opt_state = optimizer.bound(describe(fn)).init(params)
    if isinstance(grad_transform, Optimizer):
        opt_state = WithGradTransform(opt_state, grad_transform.init(params))
    return TrainState(params, buffers, opt_state, torch.zeros((), dtype=torch.int64, device=fn.device))


def averaged_params(state: TrainState) -> Params:
    """Return the weights to evaluate: the moving average where the optimizer keeps one, else the parameters.

    Parameters
    ----------
    state : TrainState
        Of one member, or stacked over members.

    Returns
    -------
    dict of str to Tensor
        Shaped like ``state.params``; they go with ``state.buffers``. Without :func:`ema` it is ``state.params`` itself.

    Raises
    ------
    ArgumentError
        If it is no such state.

    Examples
    --------
    >>> from l2path.optimizers import ema, sgd
    >>> model, opt = nn.Linear(2, 1), ema(sgd(lr=0.1), decay=0.9)
    >>> step, state = make_train_step(model, nn.functional.mse_loss, opt), init_state(model, opt)
    >>> for _ in range(3):
    ...     state, _ = step(state, (torch.ones(4, 2), torch.ones(4, 1)), 0.01)
    >>> fn = functionalize(model, training=False)
    >>> outputs, _ = fn.apply(averaged_params(state), state.buffers, torch.ones(4, 2))
    """
    if not isinstance(state, TrainState):
        raise ArgumentError(
            "state",
            got=f"a {type(state).__name__}",
            expected="a TrainState",
            remedy="pass the whole state that init_state or train_step returned",
        )
    average = average_of(state.opt_state)
    return state.params if average is None else average


def make_train_step(
    module: nn.Module | Functional,
    loss_fn: LossFn | FullLoss,
    optimizer: Optimizer,
    *,
    grad_transform: GradTransform | None = None,
    anchor: Mapping[str, Tensor] | None = None,
) -> TrainStep:
    r"""Return a pure training step.

    One step of gradient descent, as the optimizer shapes it, on

    .. math:: J(\theta) = \text{mean data loss} + \tfrac12 \sum_p \lambda_p |\theta_p - a_p|^2

    Parameters
    ----------
    module : nn.Module
        Left as it is.
    loss_fn : callable, model_loss() or full_loss(f)
        ``loss_fn(outputs, targets) -> 0-d mean loss``.
    optimizer : Optimizer
        For example ``l2path.adam(lr=1e-3)``.
    grad_transform : Optimizer or callable, optional
        Acts on the data gradient before the penalty's is added (torch's order: clip, then weight decay):
        ``l2path.clip_by_global_norm(1.0)``, or a pure function of the gradients. A transform with a state needs
        ``init_state(..., grad_transform=...)`` as well.
    anchor : dict of str to Tensor, optional
        :math:`a`, the weights to shrink towards.

    Returns
    -------
    callable
        ``train_step(state, batch, lambdas) -> (state, metrics)``. ``batch`` is ``(inputs, targets)``, where a tuple
        of inputs becomes positional arguments and a dict keyword arguments (with ``model_loss`` the whole batch goes
        to the module in this way); ``lambdas`` is any lambda spec. It
        changes nothing of the caller's, except that modules with random operations advance torch's default
        generator. It composes with ``torch.func.vmap``, ``grad``, ``jvp`` and ``torch.compile``; batched derivatives
        with respect to lambdas go through :func:`member_gradients`. A parameter that the loss does not depend on
        gets a zero data gradient, and so is shrunk by its penalty.

    Raises
    ------
    ArgumentError
        For a module or loss that cannot be used; from the step itself for a loss that is not scalar, and for a
        state made without the gradient transform.

    Examples
    --------
    >>> from l2path.optimizers import sgd
    >>> model, opt = nn.Linear(2, 1), sgd(lr=0.1)
    >>> step = make_train_step(model, nn.functional.mse_loss, opt)
    >>> state, metrics = step(init_state(model, opt), (torch.ones(4, 2), torch.ones(4, 1)), 0.01)
    >>> int(state.step)
    1
    """
    fn = module if isinstance(module, Functional) else functionalize(module)
    check_optimizer(optimizer)
    check_grad_transform(grad_transform)
    loss = data_loss(fn.renormalising(), loss_fn)
    return build_step(loss, optimizer, grad_transform, check_anchor(fn.params, anchor), fn, checked=False)


def build_step(
    loss: DataLoss,
    optimizer: Optimizer,
    grad_transform: GradTransform | None,
    anchor: Params,
    fn: Functional,
    gradients: Callable[..., tuple[Grads, Tensor, Buffers]] = grad_with_torch_func,
    checked: bool = True,
) -> TrainStep:
    """Assemble a step from checked parts.

    ``gradients`` is one of the two ways to differentiate; with ``checked`` the step takes lambdas that are already
    expanded as they are, which a driver has seen to.
    """
    expand = Expander(fn)
    transform = grad_transform if isinstance(grad_transform, Optimizer) else None

    def train_step(state: TrainState, batch: Batch, lambdas: LambdaSpec) -> tuple[TrainState, Metrics]:
        params, buffers, opt_state, step = state
        if fn.renormalised:  # a forward pass rewrites these in place, and the update starts from the rewritten ones
            params = {k: p.clone() if k in fn.renormalised else p for k, p in params.items()}
        strengths: Lambdas = lambdas if checked and is_expanded(params, lambdas) else expand(lambdas)
        grads, value, buffers = gradients(lambda p: loss(p, buffers, batch), params)
        transform_state: OptState = ()
        if transform is not None:
            if not isinstance(opt_state, WithGradTransform):
                raise ArgumentError(
                    "state",
                    got="an optimizer state without the gradient transform's",
                    expected="a state that knows grad_transform",
                    remedy="call init_state(module, optimizer, grad_transform=...) with the same transform",
                )
            opt_state, transform_state = opt_state
            grads, transform_state = transform.update(grads, transform_state, params)
        elif isinstance(opt_state, WithGradTransform):
            raise ArgumentError(
                "state",
                got="an optimizer state with a gradient transform's",
                expected="a state for a step without grad_transform",
                remedy="give make_train_step the grad_transform that init_state was given",
            )
        elif callable(grad_transform):
            grads = grad_transform(grads)
        penalty, shrink = penalty_and_gradient(params, strengths, anchor)
        grads = {k: cast(g + shrink[k], g.dtype) for k, g in grads.items()}
        updates, opt_state = optimizer.update(grads, opt_state, params)
        if transform is not None:
            opt_state = WithGradTransform(opt_state, transform_state)
        new_state = TrainState(apply_updates(params, updates), buffers, opt_state, step + 1)
        return new_state, Metrics(value, penalty, value + penalty)

    return train_step


def check_grad_transform(transform: object) -> None:
    """Refuse what does not map gradients to gradients."""
    if transform is None or (isinstance(transform, Optimizer) and transform.kind == "transform"):
        return
    if isinstance(transform, Optimizer) or not callable(transform):
        raise ArgumentError(
            "grad_transform",
            got=repr(transform),
            expected="a transform such as l2path.clip_by_global_norm(1.0), or a function of the gradients",
            remedy="an optimizer goes to optimizer=",
        )

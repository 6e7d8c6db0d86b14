"""The pure training step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from l2path.errors import ArgumentError
from l2path.functional import Functional, functionalize, grad_with_torch_func
from l2path.optimizers.base import Optimizer, apply_updates
from l2path.penalty import check_anchor, describe, expand_lambdas, is_expanded, penalty_and_gradient
from l2path.trees import map_tensors, tree_map
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
        Number of updates done.
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
DataLoss = Callable[[Params, Buffers, Batch], tuple[Tensor, Buffers]]


class TrainStep(Protocol):
    """``(state, batch, lambdas) -> (state, metrics)``."""

    def __call__(self, state: TrainState, batch: Batch, lambdas: LambdaSpec) -> tuple[TrainState, Metrics]:
        """Do one step."""


@dataclass(frozen=True)
class FullLoss:
    """A loss that calls the model itself; see :func:`full_loss`."""

    function: Callable[[Params, Buffers, Batch], tuple[Tensor, Any]]
    evaluate: Callable[[Params, Buffers, Batch], tuple[Tensor, Any]]


def full_loss(
    function: Callable[[Params, Buffers, Batch], tuple[Tensor, Any]],
    *,
    evaluate: Callable[[Params, Buffers, Batch], tuple[Tensor, Any]] | None = None,
) -> FullLoss:
    """Mark a function as a loss over parameters, buffers and a whole batch.

    Parameters
    ----------
    function : callable
        ``f(params, buffers, batch) -> (loss, aux)`` with a 0-d mean loss. ``aux`` is None or a dict, whose
        entry ``"buffers"`` holds the new buffers where the model changes them (BatchNorm).
    evaluate : callable, optional
        The same in evaluation mode, for validation; ``function`` itself where it is left out.

    Returns
    -------
    FullLoss
        To be passed as ``loss_fn``.

    Examples
    --------
    >>> fn = functionalize(nn.Linear(2, 1))
    >>> def loss(params, buffers, batch):
    ...     outputs, buffers = fn.apply(params, buffers, batch)
    ...     return outputs.square().mean(), {"buffers": buffers}
    >>> full_loss(loss).function is loss
    True
    """
    return FullLoss(function, evaluate or function)


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
    loss_fn : callable, or full_loss(f)
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
        of inputs becomes positional arguments and a dict keyword arguments; ``lambdas`` is any lambda spec. It
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
    loss = data_loss(fn, loss_fn)
    return build_step(loss, optimizer, grad_transform, check_anchor(fn.params, anchor), fn, checked=False)


class Expander:
    """Expands and checks lambda specs, the same one only once in a row.

    A loop passes the same spec at every step, and reading its values costs as much as a small update. A spec is the
    same if it holds the same numbers, or the same tensors with nothing written to them since.
    """

    def __init__(self, fn: Functional) -> None:
        self.names = describe(fn)
        self.last: tuple[object, LambdaSpec, Lambdas] | None = None

    def __call__(self, spec: LambdaSpec) -> Lambdas:
        """Return the strengths by parameter."""
        if torch.compiler.is_compiling():
            return expand_lambdas(self.names, spec)
        mark = fingerprint(spec)
        if self.last is not None and mark is not None and mark == self.last[0]:
            return self.last[2]
        strengths = expand_lambdas(self.names, spec)
        self.last = None if mark is None else (mark, spec, strengths)  # holds the spec: ids stay taken
        return strengths


def fingerprint(spec: LambdaSpec) -> object | None:
    """Return what tells whether a spec has changed, or None where that cannot be told."""
    if isinstance(spec, (int, float)):
        return spec
    if isinstance(spec, Tensor):
        try:
            return (id(spec), spec._version)
        except RuntimeError:  # inference tensors do not count writes
            return None
    if type(spec) is dict:
        parts = [(name, fingerprint(leaf)) for name, leaf in spec.items()]
        return None if any(part is None for _, part in parts) else tuple(parts)
    return None


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
        grads = {k: (g + shrink[k]).to(g.dtype) for k, g in grads.items()}
        updates, opt_state = optimizer.update(grads, opt_state, params)
        if transform is not None:
            opt_state = WithGradTransform(opt_state, transform_state)
        new_state = TrainState(apply_updates(params, updates), buffers, opt_state, step + 1)
        return new_state, Metrics(value, penalty, value + penalty)

    return train_step


def data_loss(fn: Functional, loss_fn: LossFn | FullLoss, *, evaluation: bool = False) -> DataLoss:
    """Return ``(params, buffers, batch) -> (loss, new_buffers)`` for either kind of loss."""
    check_loss(loss_fn)
    if isinstance(loss_fn, FullLoss):
        function = loss_fn.evaluate if evaluation else loss_fn.function

        def call_full(params: Params, buffers: Buffers, batch: Batch) -> tuple[Tensor, Buffers]:
            everything = {**{k: fn.frozen[k] for k in fn.unused}, **params}
            loss, aux = function(everything, buffers, map_tensors(torch.clone, batch))
            found = aux.get("buffers") if isinstance(aux, Mapping) else None
            return check_scalar(loss), buffers if found is None else dict(found)

        return call_full

    def call(params: Params, buffers: Buffers, batch: Batch) -> tuple[Tensor, Buffers]:
        inputs, targets = split_batch(batch)
        outputs, new_buffers = fn.call(params, buffers, inputs)
        # Copied, as the inputs are: a loss that works in place must not spoil the batch for the other members.
        return check_scalar(loss_fn(outputs, map_tensors(torch.clone, targets))), new_buffers

    return call


def split_batch(batch: Batch) -> tuple[Any, Any]:
    """Return ``(inputs, targets)`` of a batch, or say what a batch is."""
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    got = f"{len(batch)} parts" if isinstance(batch, (tuple, list)) else f"a {type(batch).__name__}"
    raise ArgumentError(
        "batch",
        got=got,
        expected="(inputs, targets), where inputs may be a tuple or a dict",
        remedy="regroup it, or compute the loss from the whole batch with l2path.full_loss",
    )


def check_scalar(loss: Any) -> Tensor:
    """Return the loss if it is a 0-d floating tensor."""
    if not isinstance(loss, Tensor) or loss.ndim != 0 or not loss.is_floating_point():
        got = f"shape {list(loss.shape)}, {loss.dtype}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ArgumentError(
            "loss_fn",
            got=f"a result of {got}",
            expected="a scalar (0-d, real, floating) tensor, the mean over the batch",
            remedy="use reduction='mean', or call .mean() on the losses",
        )
    return loss


def check_loss(loss_fn: object) -> None:
    """Refuse what is no loss, and criteria with parameters of their own to train."""
    if isinstance(loss_fn, nn.Module):
        trainable = [name for name, p in loss_fn.named_parameters() if p.requires_grad]
        if trainable:
            raise ArgumentError(
                "loss_fn",
                got=f"a criterion with trainable parameters {trainable}",
                expected="a function of outputs and targets alone",
                remedy="make the criterion a sub-module of the model, or set requires_grad=False on them",
            )
    if isinstance(loss_fn, type) or (not isinstance(loss_fn, FullLoss) and not callable(loss_fn)):
        raise ArgumentError(
            "loss_fn",
            got=f"a {type(loss_fn).__name__}",
            expected="loss_fn(outputs, targets) -> scalar, or l2path.full_loss(f)",
            remedy="pass for example torch.nn.functional.cross_entropy",
        )


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


def check_optimizer(optimizer: object) -> None:
    """Refuse what does not speak the ``init``/``update`` protocol, and bare gradient transforms."""
    if not isinstance(optimizer, Optimizer):
        kind = optimizer if isinstance(optimizer, type) else type(optimizer)
        raise ArgumentError(
            "optimizer",
            got=f"{kind.__module__}.{kind.__qualname__}",
            expected="one of l2path's optimizers",
            remedy="torch.optim cannot take one weight decay for each member: use l2path.sgd(lr=...), "
            "l2path.adam(...), ... with the same names and defaults",
        )
    if optimizer.kind == "transform":
        raise ArgumentError(
            "optimizer",
            got=f"the gradient transform {optimizer!r}, which takes no steps",
            expected="an optimizer",
            remedy=f"chain it in front of one: l2path.chain({optimizer!r}, l2path.sgd(lr=0.1))",
        )

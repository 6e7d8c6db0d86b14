"""The protocol that every optimizer and gradient transform follows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from torch import Tensor

from l2path.errors import ArgumentError, nearest
from l2path.penalty import Names
from l2path.types import Grads, OptState, Params, Updates

State = TypeVar("State")


@dataclass(frozen=True, eq=False, repr=False)
class Optimizer:
    """A pure optimizer: two functions, and the arguments it was built with.

    Parameters
    ----------
    init : callable
        ``init(params) -> state``. Every leaf of the state is a tensor, so that a driver can stack
        each along a leading member axis and batch it with ``torch.func.vmap(..., in_dims=0)``.
    update : callable
        ``update(grads, state, params) -> (updates, state)``; the new parameters are
        ``params + updates``. No argument is changed in place and nothing branches on values.
    name : str
        The name of the function that built it.
    config : mapping
        The arguments it was built with, for ``repr``. Nothing numeric is read from here during an
        update: numeric hyperparameters live in ``state.hyper``, where they can differ per member.
    parts : tuple of Optimizer
        What a chain is made of, or the optimizer inside a wrapper; empty otherwise.
    kind : {"optimizer", "transform"}
        An optimizer returns steps (downhill); a transform returns gradients (uphill), and has to be
        chained in front of an optimizer.
    bind : callable, optional
        See :meth:`bound`.

    Notes
    -----
    The protocol is the one of optax (DeepMind, 2020; ``GradientTransformationExtraArgs``), on
    dictionaries of tensors.

    Examples
    --------
    >>> import torch
    >>> from l2path.optimizers import apply_updates, sgd
    >>> opt = sgd(lr=0.5)
    >>> opt
    sgd(lr=0.5, momentum=0.0, dampening=0.0, nesterov=False)
    >>> params = {"w": torch.tensor([1.0, 2.0])}
    >>> updates, state = opt.update({"w": torch.tensor([1.0, 0.0])}, opt.init(params), params)
    >>> apply_updates(params, updates)
    {'w': tensor([0.5000, 2.0000])}
    """

    init: Callable[[Params], OptState]
    update: Callable[[Grads, OptState, Params], tuple[Updates, OptState]]
    name: str = "optimizer"
    config: Mapping[str, object] = field(default_factory=dict)
    parts: tuple[Optimizer, ...] = ()
    kind: Literal["optimizer", "transform"] = "optimizer"
    bind: Callable[[Names], Optimizer] | None = field(default=None, repr=False)

    def bound(self, names: Names) -> Optimizer:
        """Return this optimizer with specs by parameter resolved against a module's names.

        ``init`` sees a dict of parameters alone, which says nothing of aliases and of layer types.
        """
        return self if self.bind is None else self.bind(names)

    def __repr__(self) -> str:
        return call_repr(self.name, self.parts, self.config)


def call_repr(name: str, args: tuple[object, ...], kwargs: Mapping[str, object]) -> str:
    """Return the call that built an object; keyword arguments that are None are left out.

    Examples
    --------
    >>> call_repr("adam", (), {"lr": 0.1, "schedule": None})
    'adam(lr=0.1)'
    """
    shown = [_describe(value) for value in args]
    shown += [f"{key}={_describe(value)}" for key, value in kwargs.items() if value is not None]
    return f"{name}({', '.join(shown)})"


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        try:
            return repr(value.item()) if value.ndim == 0 else f"tensor of shape {tuple(value.shape)}"
        except RuntimeError:  # batched by vmap: it has no one value
            return "batched tensor"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_describe(v)}" for key, v in value.items()) + "}"
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return "(" + ", ".join(_describe(v) for v in value) + ("," if len(value) == 1 else "") + ")"
    # A function's repr carries its address, which would differ from run to run.
    return repr(value) if not hasattr(value, "__qualname__") else str(value.__qualname__)


def check_names(grads: Grads, params: Params) -> None:
    """Raise if the gradients are not those of the parameters, by name."""
    if grads.keys() == params.keys():
        return
    missing = [name for name in params if name not in grads]
    unknown = [name for name in grads if name not in params]
    got = f"no gradient of {missing}" if missing else f"gradients of the unknown parameters {unknown}"
    raise ArgumentError(
        "grads",
        got=got,
        expected="one gradient per parameter, under the same names",
        remedy=f"give zeros for parameters without a gradient; {nearest((missing + unknown)[0], params)}",
    )


def apply_updates(params: Params, updates: Updates) -> Params:
    r"""Add updates to parameters: :math:`\theta \leftarrow \theta + u`.

    Parameters
    ----------
    params : dict of str to Tensor
        The parameters :math:`\theta`, of any shapes and floating dtypes.
    updates : dict of str to Tensor
        What an optimizer returned, shaped like the parameters.

    Returns
    -------
    dict of str to Tensor
        New parameters; the old ones are left as they are.

    Raises
    ------
    ArgumentError
        If the names differ.

    Examples
    --------
    >>> import torch
    >>> apply_updates({"w": torch.ones(2)}, {"w": torch.tensor([-1.0, 1.0])})
    {'w': tensor([0., 2.])}
    """
    if updates.keys() != params.keys():
        raise ArgumentError(
            "updates",
            got=f"names {sorted(updates)}",
            expected=f"names {sorted(params)}",
            remedy="pass the updates that opt.update returned for these parameters",
        )
    return {name: param + updates[name] for name, param in params.items()}


def check_optimizer(optimizer: object) -> None:
    """Refuse what does not speak the ``init``/``update`` protocol, and bare gradient transforms."""
    if not isinstance(optimizer, Optimizer):
        if callable(optimizer) and str(getattr(optimizer, "__module__", "")).startswith("l2path."):
            name = getattr(optimizer, "__name__", "adam")
            raise ArgumentError(
                "optimizer",
                got=f"the function l2path.{name}",
                expected="the optimizer that it makes",
                remedy=f"call it: l2path.{name}(lr=...)",
            )
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


def holds(optimizer: Optimizer, name: str) -> bool:
    """Return whether an optimizer is, or is made of, one of this name."""
    return optimizer.name == name or any(holds(part, name) for part in optimizer.parts)


def states_of(state: OptState, kind: type[State]) -> Iterator[State]:
    """Yield the states of one type that an optimizer's state is made of, outer ones first."""
    if isinstance(state, kind):
        yield state
    if isinstance(state, tuple):
        for part in state:
            yield from states_of(part, kind)

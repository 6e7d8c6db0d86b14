"""Checks of the numbers that optimizers, transforms and schedules are built with."""

from __future__ import annotations

import functools
import inspect
import math
import numbers
import operator
from collections.abc import Callable
from typing import ParamSpec, TypeAlias, TypeVar

from torch import Tensor

from l2path.errors import ArgumentError

Scalar: TypeAlias = float | Tensor
"""A number or a 0-d tensor of one."""
Schedule: TypeAlias = Callable[[Tensor], Tensor]
"""``schedule(count) -> factor``: the number of updates done (0-d int64) to a factor of lr (0-d).

An integer, so that it can index a table; write ``count.double()`` before arithmetic with floats, which torch
does in float32 otherwise.
"""


def check_scalar(
    argument: str,
    value: Scalar,
    *,
    minimum: float = 0.0,
    above: float = -math.inf,
    below: float = math.inf,
    swept: str | None = None,
) -> Scalar:
    """Return ``value`` if it is a finite number in ``[minimum, below)`` and larger than ``above``.

    Parameters
    ----------
    argument : str
        The name that the error uses.
    value : float or Tensor
        A number or a 0-d tensor. The value of a tensor that ``torch.func.vmap`` has batched cannot
        be read, so that only its shape is checked.
    minimum, above, below : float
        The smallest value allowed, and what it must exceed and stay under.
    swept : str, optional
        What it is called as a hyperparameter, where that is not the argument's name.

    Returns
    -------
    float or Tensor
        The number as a float, or the tensor as it came.

    Raises
    ------
    ArgumentError
        If it is no number, not 0-d, not finite or out of range.

    Examples
    --------
    >>> check_scalar("momentum", 0.9, below=1.0)
    0.9
    """
    lowest = f"> {above:g}" if above >= minimum else f">= {minimum:g}"
    limits = lowest if below == math.inf else f"{lowest} and < {below:g}"
    expected = f"a finite number {limits}, or a 0-d tensor of one"
    several = f'to train members with several, use sweep={{"{swept or argument}": [...]}}'
    if isinstance(value, Tensor):
        if value.ndim != 0:
            raise ArgumentError(
                argument,
                got=f"a tensor of shape {tuple(value.shape)}",
                expected=expected,
                remedy=f"give one value; {several}",
            )
        try:
            number = float(value.detach())
        except RuntimeError:  # batched by vmap: nothing may branch on its values
            return value
    elif isinstance(value, numbers.Real) and not isinstance(value, bool):
        number = float(value)
    else:
        raise ArgumentError(
            argument,
            got=f"{value!r} ({type(value).__name__})",
            expected=expected,
            remedy=f"give one number; {several}",
        )
    if not (math.isfinite(number) and number >= minimum and above < number < below):
        raise ArgumentError(argument, got=f"{number:g}", expected=expected, remedy=f"choose a value {limits}")
    return value if isinstance(value, Tensor) else number


def check_schedule(schedule: Schedule | None) -> Schedule | None:
    """Return ``schedule`` if it is None or can be called.

    Raises
    ------
    ArgumentError
        If it is anything else.

    Examples
    --------
    >>> check_schedule(None) is None
    True
    """
    if schedule is not None and not callable(schedule):
        raise ArgumentError(
            "schedule",
            got=f"{schedule!r} ({type(schedule).__name__})",
            expected="a function from the number of updates done to a factor of lr",
            remedy="build one, for example l2path.schedules.cosine(steps=1000)",
        )
    return schedule


def check_count(
    argument: str,
    value: int,
    *,
    minimum: int = 1,
    remedy: str = "count optimizer updates: epochs times batches per epoch",
) -> int:
    """Return ``value`` if it is an integer of at least ``minimum``.

    Raises
    ------
    ArgumentError
        If it is no integer, or smaller.

    Examples
    --------
    >>> check_count("steps", 10)
    10
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = minimum - 1
    if isinstance(value, bool) or number < minimum:
        raise ArgumentError(
            argument,
            got=f"{value!r}",
            expected=f"an integer >= {minimum}",
            remedy=remedy,
        )
    return number


def check_flag(argument: str, value: bool) -> bool:
    """Return ``value`` if it is True or False.

    Raises
    ------
    ArgumentError
        If it is anything else; a flag decides the state's structure, so that it cannot vary by member.

    Examples
    --------
    >>> check_flag("nesterov", True)
    True
    """
    if not isinstance(value, bool):
        raise ArgumentError(
            argument,
            got=f"{value!r}",
            expected="True or False",
            remedy="train two optimizers to compare both: a flag is no hyperparameter to sweep",
        )
    return value


P = ParamSpec("P")
R = TypeVar("R")

_ELSEWHERE = {
    "weight_decay": "the L2 penalty of torch's SGD, Adam, RMSprop and Adagrad is set by lambdas; AdamW's is 'decay'",
    "learning_rate": "it is called lr, as in torch.optim",
    "decay": "decoupled decay is adamw's; an L2 penalty is set by lambdas",
}


def named_as_in_torch(build: Callable[P, R]) -> Callable[P, R]:
    """Say of keywords that a builder does not know where they went."""
    known = inspect.signature(build).parameters

    @functools.wraps(build)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name not in known and name in _ELSEWHERE:
                raise ArgumentError(
                    name,
                    got=f"{build.__name__}({name}=...)",
                    expected=f"keywords out of {list(known)}",
                    remedy=_ELSEWHERE[name],
                )
        return build(*args, **kwargs)

    return checked

"""Modules that may stand for each other, and modules that may not."""

from __future__ import annotations

import functools
import random
from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from l2path.functional import alike, functionalize


class Holds(nn.Module):
    """Keeps anything beside a layer."""

    def __init__(self, held: Any) -> None:
        super().__init__()
        self.layer, self.held = nn.Linear(2, 1), held

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[B, 1]``."""
        out: Tensor = self.layer(x)
        return out


def scaled(by: float) -> Callable[[float], float]:
    return lambda x: x * by


class Slotted:
    """Keeps a number where no dictionary shows it."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number


class Named(dict[str, int]):
    """Keeps something beside its items."""

    name = ""


class Whole(int):
    """A number of another class."""


class Closed:
    """Can be copied, but not be looked into."""

    def __deepcopy__(self, memo: object) -> Closed:
        return Closed()

    def __reduce_ex__(self, protocol: object) -> Any:
        raise TypeError("cannot be pickled")


def named(name: str) -> Named:
    held = Named(a=1)
    held.name = name
    return held


def seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return make()


def hooked(**options: Any) -> nn.Module:
    module = nn.Linear(2, 2)
    module.register_forward_hook(lambda *_: None, **options)
    return module


def outside(seed: int) -> list[nn.Module]:
    """A module that is not registered, whose weights are not given with a call."""
    return [seeded(lambda: nn.Linear(2, 2), seed)]


def closed_over(seed: int) -> Callable[[Tensor], Any]:
    module = outside(seed)[0]
    return lambda x: module(x)


HELD: list[tuple[Callable[[], Any], Callable[[], Any], bool]] = [
    (lambda: 1, lambda: 1, True),
    (lambda: 1, lambda: 2, False),
    (lambda: 1, lambda: 1.0, False),
    (lambda: "a", lambda: "b", False),
    (lambda: torch.ones(2), lambda: torch.ones(2), True),
    (lambda: torch.ones(2), lambda: torch.zeros(2), False),
    (lambda: torch.ones(2), lambda: torch.ones(2).double(), False),
    (lambda: torch.ones(2), lambda: torch.ones(3), False),
    (lambda: np.ones(2), lambda: np.ones(2), True),
    (lambda: np.ones(2), lambda: np.zeros(2), False),
    (lambda: [1, {"a": (2,)}], lambda: [1, {"a": (2,)}], True),
    (lambda: [1, {"a": (2,)}], lambda: [1, {"a": (3,)}], False),
    (lambda: [1], lambda: [1, 2], False),
    (lambda: {"a": 1}, lambda: {"b": 1}, False),
    (lambda: {1, 2}, lambda: {2, 1}, True),
    (lambda: scaled(2.0), lambda: scaled(2.0), True),
    (lambda: scaled(2.0), lambda: scaled(3.0), False),
    (lambda: functools.partial(round, ndigits=1), lambda: functools.partial(round, ndigits=1), True),
    (lambda: functools.partial(round, ndigits=1), lambda: functools.partial(round, ndigits=2), False),
    (lambda: SimpleNamespace(a=1), lambda: SimpleNamespace(a=1), True),
    (lambda: SimpleNamespace(a=1), lambda: SimpleNamespace(a=2), False),
    (lambda: torch.float32, lambda: torch.float64, False),
    (lambda: Slotted(1), lambda: Slotted(1), True),
    (lambda: Slotted(1), lambda: Slotted(2), False),
    (lambda: named("a"), lambda: named("a"), True),
    (lambda: named("a"), lambda: named("b"), False),
    (lambda: Whole(1), lambda: Whole(1), True),
    (lambda: Whole(1), lambda: Whole(2), False),
    (lambda: defaultdict(int), lambda: defaultdict(float), False),
    (lambda: random.Random(0), lambda: random.Random(0), True),
    (lambda: random.Random(0), lambda: random.Random(1), False),
    (lambda: int, lambda: float, False),
    (Closed, Closed, False),
    (lambda: outside(0), lambda: outside(0), True),
    (lambda: outside(0), lambda: outside(1), False),
    (lambda: closed_over(0), lambda: closed_over(0), True),
    (lambda: closed_over(0), lambda: closed_over(1), False),
    (lambda: seeded(lambda: nn.LSTM(2, 2), 0), lambda: seeded(lambda: nn.LSTM(2, 2), 1), True),
    (lambda: seeded(lambda: nn.GRU(2, 2), 0), lambda: nn.GRU(2, 2, batch_first=True), False),
    (lambda: hooked(), lambda: hooked(), True),
    (lambda: hooked(with_kwargs=True), lambda: hooked(with_kwargs=True), True),
    (lambda: hooked(with_kwargs=True), lambda: hooked(always_call=True), False),
    (lambda: hooked(), lambda: nn.Linear(2, 2), False),
    (lambda: nn.Dropout(0.1), lambda: nn.Dropout(0.1), True),
    (lambda: nn.Dropout(0.1), lambda: nn.Dropout(0.2), False),
    (lambda: nn.ReLU(), lambda: nn.Tanh(), False),
    (lambda: nn.BatchNorm1d(2), lambda: nn.BatchNorm1d(2).eval(), False),
    (lambda: nn.BatchNorm1d(2), lambda: nn.BatchNorm1d(3), False),
    (
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)),
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)),
        True,
    ),
]


@pytest.mark.parametrize(("one", "other", "expected"), HELD)
def test_what_modules_hold_beside_tensors_is_compared(
    one: Callable[[], Any], other: Callable[[], Any], expected: bool
) -> None:
    fns = [functionalize(Holds(make())) for make in (one, one, other)]
    assert alike(fns) is expected
    assert alike(fns[:1])


def test_frozen_parameters_are_compared_too() -> None:
    """They are not passed to a step of a member."""

    def frozen(seed: int) -> Any:
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        module[0].requires_grad_(False)
        return functionalize(module)

    assert alike([frozen(0), frozen(0)])
    assert not alike([frozen(0), frozen(1)])


def test_what_refers_to_itself_is_compared_once() -> None:
    def circle(number: int) -> Any:
        held = SimpleNamespace(number=number)
        held.own = held
        return functionalize(Holds(held))

    assert alike([circle(1), circle(1)])
    assert not alike([circle(1), circle(2)])


def test_tied_weights_are_no_others() -> None:
    def pair(*, tied: bool) -> Any:
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
        if tied:
            module[1].weight = module[0].weight
        return functionalize(module)

    assert alike([pair(tied=True), pair(tied=True)])
    assert not alike([pair(tied=True), pair(tied=False)])

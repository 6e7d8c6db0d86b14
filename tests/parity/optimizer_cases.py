"""Every optimizer and every structural variant, each beside its counterpart in torch.optim."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from l2path.optimizers import Optimizer, Schedule, adagrad, adam, adamw, rmsprop, sgd

Build = Callable[[float, Schedule | None], Optimizer]
BuildTorch = Callable[[list[Tensor], float], torch.optim.Optimizer]


@dataclass(frozen=True)
class Case:
    """One variant: how to build it here and in torch, given the learning rate.

    ``lr`` is a learning rate at which it trains the small problems of the suite.
    """

    name: str
    lr: float
    build: Build
    build_torch: BuildTorch


CASES = (
    Case("sgd", 0.1, lambda lr, s: sgd(lr, schedule=s), lambda p, lr: torch.optim.SGD(p, lr)),
    Case(
        "sgd-momentum",
        0.05,
        lambda lr, s: sgd(lr, momentum=0.9, schedule=s),
        lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9),
    ),
    Case(
        "sgd-dampening",
        0.1,
        lambda lr, s: sgd(lr, momentum=0.8, dampening=0.3, schedule=s),
        lambda p, lr: torch.optim.SGD(p, lr, momentum=0.8, dampening=0.3),
    ),
    Case(
        "sgd-nesterov",
        0.05,
        lambda lr, s: sgd(lr, momentum=0.9, nesterov=True, schedule=s),
        lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9, nesterov=True),
    ),
    Case("adam", 0.02, lambda lr, s: adam(lr, schedule=s), lambda p, lr: torch.optim.Adam(p, lr)),
    Case(
        "adam-betas-eps",
        0.02,
        lambda lr, s: adam(lr, (0.4, 0.7), 1e-3, schedule=s),
        lambda p, lr: torch.optim.Adam(p, lr, (0.4, 0.7), 1e-3),
    ),
    Case(
        "adam-amsgrad",
        0.02,
        lambda lr, s: adam(lr, amsgrad=True, schedule=s),
        lambda p, lr: torch.optim.Adam(p, lr, amsgrad=True),
    ),
    Case("adamw", 0.02, lambda lr, s: adamw(lr, schedule=s), lambda p, lr: torch.optim.AdamW(p, lr)),
    Case(
        "adamw-decay-amsgrad",
        0.02,
        lambda lr, s: adamw(lr, decay=0.7, amsgrad=True, schedule=s),
        lambda p, lr: torch.optim.AdamW(p, lr, weight_decay=0.7, amsgrad=True),
    ),
    Case(
        "adamw-decay-pattern",
        0.02,
        lambda lr, s: adamw(lr, decay={"*": 0.3}, schedule=s),
        lambda p, lr: torch.optim.AdamW(p, lr, weight_decay=0.3),
    ),
    Case("rmsprop", 0.005, lambda lr, s: rmsprop(lr, schedule=s), lambda p, lr: torch.optim.RMSprop(p, lr)),
    Case(
        "rmsprop-momentum",
        0.005,
        lambda lr, s: rmsprop(lr, alpha=0.9, momentum=0.5, schedule=s),
        lambda p, lr: torch.optim.RMSprop(p, lr, alpha=0.9, momentum=0.5),
    ),
    Case(
        "rmsprop-centered",
        0.005,
        lambda lr, s: rmsprop(lr, centered=True, schedule=s),
        lambda p, lr: torch.optim.RMSprop(p, lr, centered=True),
    ),
    Case(
        "rmsprop-centered-momentum",
        0.005,
        lambda lr, s: rmsprop(lr, momentum=0.5, centered=True, schedule=s),
        lambda p, lr: torch.optim.RMSprop(p, lr, momentum=0.5, centered=True),
    ),
    Case("adagrad", 0.1, lambda lr, s: adagrad(lr, schedule=s), lambda p, lr: torch.optim.Adagrad(p, lr)),
    Case(
        "adagrad-decay-start",
        0.1,
        lambda lr, s: adagrad(lr, lr_decay=0.02, initial_accumulator_value=0.1, schedule=s),
        lambda p, lr: torch.optim.Adagrad(p, lr, lr_decay=0.02, initial_accumulator_value=0.1),
    ),
)

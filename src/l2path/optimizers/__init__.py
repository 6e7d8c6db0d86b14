"""Pure optimizers, gradient transforms and schedules.

Every optimizer is an :class:`Optimizer`: ``opt.init(params) -> state`` and
``opt.update(grads, state, params) -> (updates, state)``. Names, defaults and results are those of
``torch.optim``; the protocol is optax's. Numeric hyperparameters are 0-d tensors in ``state.hyper``.
"""

from l2path.optimizers.accumulate import AccumulateState, accumulate
from l2path.optimizers.adagrad import AdagradState, adagrad
from l2path.optimizers.adam import AdamHyper, AdamState, adam, adamw
from l2path.optimizers.base import Optimizer, apply_updates
from l2path.optimizers.checks import Scalar, Schedule
from l2path.optimizers.ema import EmaState, ema
from l2path.optimizers.hyper import Path, hyper_paths, set_hyper
from l2path.optimizers.rmsprop import RMSpropState, rmsprop
from l2path.optimizers.schedules import (
    FactorSchedule,
    constant,
    cosine,
    exponential,
    linear_warmup,
    product,
    step_decay,
    warmup_cosine,
)
from l2path.optimizers.sgd import SGDState, sgd
from l2path.optimizers.transforms import ClipState, chain, clip_by_global_norm, clip_by_value

__all__ = [
    "AccumulateState",
    "AdagradState",
    "AdamHyper",
    "AdamState",
    "ClipState",
    "EmaState",
    "FactorSchedule",
    "Optimizer",
    "Path",
    "RMSpropState",
    "SGDState",
    "Scalar",
    "Schedule",
    "accumulate",
    "adagrad",
    "adam",
    "adamw",
    "apply_updates",
    "chain",
    "clip_by_global_norm",
    "clip_by_value",
    "constant",
    "cosine",
    "ema",
    "exponential",
    "hyper_paths",
    "linear_warmup",
    "product",
    "rmsprop",
    "set_hyper",
    "sgd",
    "step_decay",
    "warmup_cosine",
]

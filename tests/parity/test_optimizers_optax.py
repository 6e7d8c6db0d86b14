"""Optimizers equal optax where the definitions agree, and follow its protocol."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from l2path.optimizers import (
    Optimizer,
    accumulate,
    adagrad,
    adam,
    adamw,
    apply_updates,
    chain,
    clip_by_value,
    rmsprop,
    sgd,
    warmup_cosine,
)
from tests.helpers import assert_trees_close

optax = pytest.importorskip("optax", reason="the extra 'jax' is not installed")
import jax  # noqa: E402  # comes with optax
import jax.numpy as jnp  # noqa: E402


def multi_steps(inner: Any, every: int) -> Any:
    with jax.enable_x64(True):  # its accumulator is float32 unless it is told otherwise
        return optax.MultiSteps(inner, every, accumulator_dtype=jnp.float64)


# optax's averages of squares start where torch's do only with these arguments.
PAIRS: dict[str, tuple[Optimizer, Any]] = {
    "sgd": (sgd(0.1), optax.sgd(0.1)),
    "sgd-momentum": (sgd(0.1, momentum=0.9), optax.sgd(0.1, momentum=0.9)),
    "sgd-nesterov": (sgd(0.1, momentum=0.9, nesterov=True), optax.sgd(0.1, momentum=0.9, nesterov=True)),
    "adam": (adam(0.02), optax.adam(0.02)),
    "adamw": (adamw(0.02, decay=0.3), optax.adamw(0.02, weight_decay=0.3)),
    "rmsprop": (
        rmsprop(0.02, alpha=0.9),
        optax.rmsprop(0.02, decay=0.9, initial_scale=0.0, eps_in_sqrt=False),
    ),
    "rmsprop-centered-momentum": (
        rmsprop(0.02, alpha=0.9, momentum=0.5, centered=True),
        optax.rmsprop(0.02, decay=0.9, initial_scale=0.0, eps_in_sqrt=False, centered=True, momentum=0.5),
    ),
    # eps is inside optax's root and outside torch's: they agree without it.
    "adagrad": (
        adagrad(0.1, initial_accumulator_value=0.1, eps=0.0),
        optax.adagrad(0.1, initial_accumulator_value=0.1, eps=0.0),
    ),
    "sgd-warmup-cosine": (
        sgd(0.1, schedule=warmup_cosine(5, 30, final=0.1, start=0.2)),
        optax.sgd(optax.warmup_cosine_decay_schedule(0.02, 0.1, 5, 30, 0.01)),
    ),
    "accumulate": (accumulate(sgd(0.1, momentum=0.9), 3), multi_steps(optax.sgd(0.1, momentum=0.9), 3)),
    "accumulate-chain": (
        accumulate(chain(clip_by_value(0.5), adam(0.02)), 4),
        multi_steps(optax.chain(optax.clip(0.5), optax.adam(0.02)), 4),
    ),
    "chain": (chain(clip_by_value(0.5), adam(0.02)), optax.chain(optax.clip(0.5), optax.adam(0.02))),
}


@pytest.mark.parametrize("name", PAIRS)
def test_equals_optax(name: str) -> None:
    opt, theirs = PAIRS[name]
    rng = np.random.default_rng(0)
    start = {"w": rng.normal(size=(3, 2)), "b": rng.normal(size=())}
    params = {key: torch.tensor(value, dtype=torch.float64) for key, value in start.items()}
    state = opt.init(params)
    with jax.enable_x64(True):
        their_params = {key: jnp.asarray(value, dtype=jnp.float64) for key, value in start.items()}
        their_state = theirs.init(their_params)
        for _ in range(40):
            grads = {key: np.asarray(rng.normal(size=value.shape)) for key, value in start.items()}
            updates, state = opt.update({k: torch.from_numpy(g) for k, g in grads.items()}, state, params)
            params = apply_updates(params, updates)
            their_updates, their_state = theirs.update(
                {k: jnp.asarray(g) for k, g in grads.items()}, their_state, their_params
            )
            their_params = optax.apply_updates(their_params, their_updates)
        # optax divides its int32 count in float32 when it evaluates a schedule.
        assert_trees_close(params, their_params, rtol=1e-6 if "cosine" in name else 1e-10)

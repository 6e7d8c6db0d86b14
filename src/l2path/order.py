"""The order of rows and the seeds of random masks: published functions."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from l2path.errors import ArgumentError


def data_order(n: int, seed: int, epoch: int) -> Tensor:
    """Return the order in which an epoch visits the rows: a published function of (seed, epoch).

    Parameters
    ----------
    n : int
        Number of rows.
    seed : int
        The member's seed, at least 0.
    epoch : int
        From 0.

    Returns
    -------
    Tensor, [n], int64
        A permutation: ``torch.randperm`` under a generator of its own, seeded with the first 63 bits of
        ``numpy.random.SeedSequence([0, seed, epoch])``.

    Examples
    --------
    >>> sorted(data_order(4, seed=0, epoch=1).tolist())
    [0, 1, 2, 3]
    """
    _check_seed(seed)
    return torch.randperm(n, generator=torch.Generator().manual_seed(_mix(0, seed, epoch)))


def step_seed(seed: int, step: int) -> int:
    """Return what ``torch.manual_seed`` gets before a step: dropout masks are a function of (seed, step).

    Parameters
    ----------
    seed : int
        The member's seed, at least 0.
    step : int
        Number of updates done before, from 0; it counts on over the epochs.

    Returns
    -------
    int
        63 bits of ``numpy.random.SeedSequence([1, seed, step])``.

    Examples
    --------
    >>> step_seed(0, 0) == step_seed(0, 0) != step_seed(0, 1)
    True
    """
    _check_seed(seed)
    return _mix(1, seed, step)


def _check_seed(seed: int) -> None:
    if seed < 0:
        raise ArgumentError("seed", got=str(seed), expected="a whole number >= 0", remedy="use for example 0")


def epoch_seed(seed: int, epoch: int) -> int:
    """Return what torch's generator is seeded with before the batches of an epoch are read."""
    return _mix(2, seed, epoch)


def _mix(*entropy: int) -> int:
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]) >> 1

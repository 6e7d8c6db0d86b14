"""torch's default generators: seeding them, and leaving them as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def seed_generators(device: torch.device, seed: int) -> None:
    """Seed torch's default generators for the CPU and for ``device``, to what ``torch.manual_seed`` sets.

    ``torch.manual_seed`` itself also formats a stack trace for every accelerator that is not initialised, which costs
    more than a small training step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(seed)
    elif device.type != "cpu":
        torch.manual_seed(seed)


def generator_states(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Return the states of torch's default generators for the CPU and for ``device``."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def set_generator_states(device: torch.device, states: tuple[Tensor, Tensor | None]) -> None:
    """Set what :func:`generator_states` returned."""
    torch.set_rng_state(states[0])
    if states[1] is not None:
        torch.cuda.set_rng_state(states[1], device)


@contextmanager
def forked_rng(device: torch.device) -> Iterator[None]:
    """Leave torch's default generators (CPU, and ``device``'s) as they were found."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield

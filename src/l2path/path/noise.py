"""The random numbers of a block of steps, drawn before compiled programs run over it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from l2path.blocks import Block, shape_of
from l2path.functional import Numbers, drawn, noted
from l2path.order import step_seed
from l2path.types import Batch


class Noise:
    """What the steps of a module draw.

    Which operations draw what is noted in a plain step of one member, once for each shape of a batch.

    Parameters
    ----------
    step : callable
        A plain step of one member on a batch.
    device : torch.device
    """

    def __init__(self, step: Callable[[Batch], object], device: torch.device) -> None:
        self.step, self.device = step, device
        self.numbers: dict[tuple[Any, ...], list[Numbers]] = {}

    def refused(self, batch: Batch) -> str | None:
        """Return why a compiled program cannot be given the random numbers of a step; None if it can."""
        what = {n.what for n in self._numbers(batch, shape_of(batch))}
        # Inside of a compiled program torch shows these to nobody who could replace them.
        names = [name for name, numbers in {"randn_like": "normal", "rand_like": "uniform"}.items() if numbers in what]
        return f"torch.{names[0]} draws random numbers in a step" if names else None

    def note(self, block: Block) -> None:
        """Find out what steps on these batches draw, where that is not known yet."""
        for batch, shape in zip(block.batches, block.shapes, strict=True):
            self._numbers(batch, shape)

    def beside(self, block: Block, seed: int, step: int) -> Block:
        """Return a block of ``(batch, noise)``, where the first batch is that of step number ``step``.

        The numbers are those that a member with this seed would draw at these steps.
        """
        pairs = []
        for t, (batch, shape) in enumerate(zip(block.batches, block.shapes, strict=True)):
            pairs.append((batch, drawn(self._numbers(batch, shape), self.device, step_seed(seed, step + t))))
        return Block(pairs)

    def _numbers(self, batch: Batch, shape: tuple[Any, ...]) -> list[Numbers]:
        if shape not in self.numbers:
            self.numbers[shape] = noted(lambda: self.step(batch), self.device)
        return self.numbers[shape]

"""What is to be trained, as far as the choice of an engine depends on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch

from l2path.blocks import Block
from l2path.compiling import lowering
from l2path.data import Source
from l2path.engine import Engine, Step, run_steps
from l2path.functional import Functional, forked_rng
from l2path.memory import operations
from l2path.outputs import Parts
from l2path.types import Batch, Tree


class Steps(NamedTuple):
    """The step of one member: to be batched, to be looped, to be compiled; and to be batched with native kernels.

    The last one is there for modules with recurrent layers, which torch batches badly.
    """

    batched: Step
    looped: Step
    traced: Step
    fused: Step | None = None

    def of(self, engine: Engine) -> Step:
        """Return the step that an engine does where it has no program."""
        if engine.kind == "loop":
            return self.looped
        return self.fused if engine.kind == "vmap" and engine.native and self.fused else self.batched


class Outputs(NamedTuple):
    """What members are scored on after an epoch, as far as it can be a program.

    Attributes
    ----------
    fns : dict of int to Functional
        Modules to be compiled, nobody else's.
    eager : callable
        ``(module, (params, buffers), inputs) -> outputs`` of many members without a program.
    parts : callable
        ``(module, members) -> (params, buffers)`` of members that differ.
    inputs : tree
        Of the first validation batch.
    rows : int
        In that batch.
    most : int
        Rows in any batch, at most.
    row_bytes : int
        What one member takes for a row, about.
    members : int
        All of them.
    member_rows : int
        Rows that all members together are scored on in an epoch.
    """

    fns: Mapping[int, Functional]
    eager: Callable[[int, Parts, Any], Tree]
    parts: Callable[[int, int], Parts]
    inputs: Any
    rows: int
    most: int
    row_bytes: int
    members: int
    member_rows: int


@dataclass(frozen=True)
class Job:
    """What is to be done.

    Attributes
    ----------
    steps : dict of int to Steps
        Of each module: all folds share one, and all seeds too where the module is not made by a callable.
    groups : tuple of int
        Members of each fold and seed.
    sources : sequence of Source
    epochs : int
    batch
        The first one.
    live_bytes : callable
        Returns what one member takes at most during a step.
    sample : callable
        ``(module, members) -> (state, per_member)`` of so many members to measure with.
    device : torch.device
    draws : bool
        Whether a step draws random numbers.
    substituted : bool
        Whether vmap needs equivalents of torch functions.
    alike : bool
        Whether all modules are alike but for their parameters and buffers, as far as can be told.
    outputs : callable
        Returns what members are scored on, where that can be a program, or None; reads validation data.
    what : str
        What the seconds of a step depend on: the module, the shapes of parameters and batches, the optimizer.
    """

    steps: Mapping[int, Steps]
    groups: tuple[int, ...]
    sources: Sequence[Source]
    epochs: int
    batch: Batch
    live_bytes: Callable[[], int]
    sample: Callable[[int, int], tuple[Tree, Tree]]
    device: torch.device
    draws: bool
    substituted: bool = False
    alike: bool = False
    outputs: Callable[[], Outputs | None] = lambda: None
    what: str = ""

    @property
    def model_steps(self) -> float:
        """Steps of single members in all; 0 where nobody knows how long the data are."""
        per_epoch = [math.ceil(s.rows / s.batch_size) if s.rows and s.batch_size else 0 for s in self.sources]
        return float(self.epochs * sum(n * m for n, m in zip(per_epoch, self.groups, strict=True)))

    @cached_property
    def operations(self) -> int:
        """How many operations one step to be compiled consists of."""
        module = next(iter(self.steps))
        state, extra = self.sample(module, 2)
        step = lowering(self.steps[module].traced, native=False)
        with forked_rng(self.device):
            return operations(lambda: run_steps("vmap", step, state, Block([self.batch]), extra, lambda _: None))

    @property
    def remainders(self) -> list[int]:
        """Rows of the last batches of an epoch that are smaller than the others: of two kinds, at most."""
        return sorted({s.rows % s.batch_size for s in self.sources if s.rows and s.batch_size} - {0})[:2]

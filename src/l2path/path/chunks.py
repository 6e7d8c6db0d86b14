"""What the driver holds while it trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from l2path.blocks import Block
from l2path.compiled import Compiled
from l2path.data import Source
from l2path.engine import Step, take
from l2path.functional import Functional
from l2path.outputs import CompiledOutputs
from l2path.path.evaluation import Validation
from l2path.path.noise import Noise
from l2path.training import TrainState, averaged_params
from l2path.trees import tree_map
from l2path.types import Batch, Buffers, Lambdas, Params


@dataclass(eq=False)
class Group:
    """Members of one (fold, seed): they share batches, masks and frozen parameters, and stand at one step."""

    seed: int
    fn: Functional
    eval_fn: Functional
    train_step: Step
    source: Source
    validation: Validation | None = None
    monitor: Validation | None = None  # what early stopping looks at, where that is other data
    compiled: Compiled | None = None
    outputs: CompiledOutputs | None = None  # that members are scored on
    noise: Noise | None = None  # what steps draw, where compiled programs are given it
    loop_step: Step | None = None  # to go on with if the batched step fails later on
    plain_step: Step | None = None  # the same if it is one with native kernels: the batched step without
    step: int = 0
    rows: int = 0  # seen in this epoch
    scoring: object = None  # groups of one value, but None, may be scored together: their validation is the same

    @property
    def call(self) -> Step | Compiled:
        """What a step of a chunk is done with."""
        return self.train_step if self.compiled is None else self.compiled

    def blocks(self, block: Block, step: int) -> Block:
        """Return what a step of a chunk takes, where the first batch of the block is that of step ``step``."""
        if self.compiled is None or self.noise is None:
            return block
        with self.compiled.undisturbed():  # what a step draws is noted in a call of the module
            self.noise.note(block)
        return self.noise.beside(block, self.seed, step)

    @property
    def has_another_way(self) -> bool:
        """Whether there is something to go on with where a step fails."""
        return any(way is not None for way in (self.compiled, self.plain_step, self.loop_step))

    def without_native_kernels(self) -> None:
        """Go on with batched steps that have none."""
        assert self.plain_step is not None
        self.train_step, self.plain_step = self.plain_step, None

    def loop(self) -> None:
        """Go on with one member after the other."""
        assert self.loop_step is not None
        self.train_step, self.loop_step = self.loop_step, None
        self.fn, self.eval_fn = self.fn.with_substitutes(None), self.eval_fn.with_substitutes(None)


@dataclass(eq=False)
class Chunk:
    """Members that are live together; ``members[c]`` is row c of the state."""

    group: Group
    members: list[int]
    state: TrainState
    strengths: Lambdas
    best: Weights | None = None  # of each member's best epoch so far, with early stopping

    def keep(self, rows: Tensor) -> None:
        """Go on with the members at these rows only."""
        self.members = [self.members[c] for c in rows.tolist()]
        self.state, self.strengths = take(self.state, rows), take(self.strengths, rows)
        self.best = None if self.best is None else take(self.best, rows)

    def split(self, size: int) -> list[Chunk]:
        """Return chunks of up to so many of its members."""
        parts = []
        for start in range(0, len(self.members), size):
            rows = torch.arange(start, min(start + size, len(self.members)))
            part = Chunk(self.group, self.members, self.state, self.strengths, self.best)
            part.keep(rows)
            parts.append(part)
        return parts

    def remember(self, improved: Tensor) -> None:
        """Keep the weights of these members, ``[C]`` booleans, as their best so far."""
        now = weights_of(self.state)
        if self.best is None or bool(improved.all()):
            self.best = now
            return

        def choose(new: Tensor, old: Tensor) -> Tensor:
            return torch.where(improved.to(new.device).reshape(-1, *[1] * (new.ndim - 1)), new, old)

        self.best = tree_map(choose, now, self.best)

    def kept(self) -> Weights:
        """Return the weights that count: the best ones where they are remembered."""
        return weights_of(self.state) if self.best is None else self.best


TOGETHER = 8  # chunks, at most
SCORED_BYTES = 2**25  # that members which are scored together take at most, about: what caches hold


def together(chunks: Sequence[Chunk]) -> list[list[Chunk]]:
    """Put chunks of one group together for what compiled programs do not do: vmapped, a few are soonest done as one.

    A chunk of one member is a large one, or the only one there is.
    """
    count = TOGETHER if any(len(chunk.members) > 1 for chunk in chunks) else 1
    return [list(chunks[start : start + count]) for start in range(0, len(chunks), count)]


def scored_together(chunks: Sequence[Chunk]) -> list[list[Chunk]]:
    """Put chunks together that are scored as one: of one group, or of several that may be."""
    sets: list[list[Chunk]] = []
    last: dict[object, tuple[list[Chunk], int]] = {}
    for chunk in chunks:
        group = chunk.group
        key = id(group) if group.scoring is None else group.scoring
        takes = len(chunk.members) * (group.validation.member_bytes if group.validation else 1)
        own, taken = last.get(key, ([], SCORED_BYTES))
        if taken + takes > SCORED_BYTES:
            own, taken = [], 0
            sets.append(own)
        own.append(chunk)
        last[key] = own, taken + takes
    return sets


class Running(NamedTuple):
    """A step that is being done."""

    chunk: Chunk
    step: int
    batch: Batch


class Weights(NamedTuple):
    """What is kept of members, ``[C, ...]``."""

    params: Params  # to evaluate: averages where the optimizer keeps them
    buffers: Buffers
    live: Params | None  # the parameters, where params are averages


def weights_of(state: TrainState) -> Weights:
    """Return what is kept of a state, stacked or single."""
    params = averaged_params(state)
    return Weights(params, state.buffers, None if params is state.params else state.params)


@dataclass(frozen=True)
class EpochEvent:
    """What ``on_epoch`` is told at the end of each epoch.

    Attributes
    ----------
    epoch : int
        Number of epochs done, from 1.
    epochs : int
        Number of epochs asked for.
    step : int
        Number of training steps done.
    active : Tensor, ``[K]`` bool
        Members still in training.
    """

    epoch: int
    epochs: int
    step: int
    active: Tensor
    _history: Callable[[int], dict[str, Tensor]] = field(repr=False)
    _weights: Callable[[], Weights] = field(repr=False)

    @cached_property
    def history(self) -> dict[str, Tensor]:
        """Everything recorded up to this epoch, ``[epoch, K]`` float64 by name."""
        return self._history(self.epoch)

    @property
    def params(self) -> Params:
        """The weights that validation scores, of all members now, ``[K, ...]`` by name (copied when read)."""
        return self._weights().params

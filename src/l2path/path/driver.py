"""The training loop over blocks of batches and chunks of members.

The outer loop reads a block of T batches, the inner loop runs every chunk over that block; so interrupts, hooks
and streams all meet members that stand at the same step.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from l2path.blocks import Block
from l2path.compiling import does_many_steps, one_thread
from l2path.engine import Engine, EvalKind, as_array, finite_members, members_of, run_steps, take
from l2path.errors import ArgumentError, EngineWarning
from l2path.functional import seed_generators
from l2path.memory import is_out_of_memory, release_memory
from l2path.order import step_seed
from l2path.path.chunks import Chunk, EpochEvent, Group, Running, weights_of
from l2path.path.halving import Halving
from l2path.path.reading import Read, Reader
from l2path.path.recording import Record, Sums
from l2path.path.roster import Roster
from l2path.path.scorer import Scorer
from l2path.path.selfcheck import first_line, warn_looped
from l2path.path.stopping import EarlyStopping, Stopper
from l2path.path.workers import Workers
from l2path.progress import Interrupt, Progress
from l2path.training import Metrics, TrainState
from l2path.types import Lambdas

BLOCK_SECONDS = 0.25  # a block aims at this long: the most an interrupt waits, short of one step of all chunks
BLOCK_BYTES = 2**27  # the batches of a block stay below this; there may be two of them
AHEAD_BYTES = 2**28  # of states: where they are larger, nobody waits for long beside them


class Driver:
    """Trains chunks for some epochs; its position is ``(epoch, step)``.

    Parameters
    ----------
    groups, chunks : sequences of Group and Chunk
    engine : Engine
    members : int
        K.
    epochs : int
    on_epoch : callable or None
        ``EpochEvent -> keep mask [K] or None``.
    first_block : int
        Number of batches in the first block.
    select : (name of the score that decides, greater_is_better)
    stopping : EarlyStopping, optional
    halving : Halving, optional
    """

    def __init__(
        self,
        groups: Sequence[Group],
        chunks: Sequence[Chunk],
        engine: Engine,
        eval_kind: EvalKind,
        members: int,
        epochs: int,
        on_epoch: Callable[[EpochEvent], Any] | None,
        first_block: int = 8,
        select: tuple[str, bool] = ("val_loss", False),
        stopping: EarlyStopping | None = None,
        halving: Halving | None = None,
    ) -> None:
        self.groups, self.engine, self.members = groups, engine, members
        self.epochs, self.on_epoch = epochs, on_epoch
        self.epoch = 0
        self.block_length = max(first_block, engine.steps)
        # A hook may change what later steps depend on: nothing of the next epoch begins before it.
        self.reader = Reader([g.source for g in groups], lambda: self.block_length, epochs if on_epoch is None else 0)
        self.running: Running | None = None  # the step at which an error came
        self.workers: Workers | None = None
        self.scorer, self.halving = Scorer(eval_kind, select[0]), halving
        self.stopper = Stopper(stopping, select[1], members) if stopping else None
        first = groups[0].validation
        self.record = Record([*(first.names if first else []), *(["monitor"] if groups[0].monitor else [])], members)
        self.roster = Roster(chunks, self.record, self.stopper)

    @property
    def chunks(self) -> list[Chunk]:
        """Those in training."""
        return self.roster.chunks

    def run(self, interrupt: Interrupt, progress: Progress) -> bool:
        """Train to the end; return False if an interrupt came first."""
        try:
            return self._run(interrupt, progress)
        finally:
            if self.workers is not None:
                self.workers.close()

    def _run(self, interrupt: Interrupt, progress: Progress) -> bool:
        while self.epoch < self.epochs and self.chunks:
            try:
                finished = self._epoch(interrupt, progress)
            except KeyboardInterrupt:
                if interrupt.asked:  # the second one
                    raise
                interrupt.asked, finished = True, False
            if not finished:
                return False
            if interrupt.asked:
                return self.epoch >= self.epochs
        return True

    def _epoch(self, interrupt: Interrupt, progress: Progress) -> bool:
        """Run one epoch and record it; return False if it was cut short."""
        sums = self.record.start()
        for group in self.groups:
            group.rows = 0
        try:
            for read in self.reader.epoch(self.epoch):
                started = time.monotonic()
                with self._threads():
                    self._begin(read)
                    for chunk in list(self.chunks):
                        if id(chunk.group.source) in read:
                            self._whole_block(chunk, read[id(chunk.group.source)], sums, interrupt)
                for group in self.groups:
                    if done := read.get(id(group.source)):
                        group.step, group.rows = group.step + len(done), group.rows + sum(done.rows)
                begun = self.workers.seconds if self.workers else 0.0
                self._adapt(max(begun, time.monotonic() - started), read)
                total = self.groups[0].source.rows
                progress.show(self.epoch + (self.groups[0].rows / total if total else 0.5), self._note())
                if interrupt.asked or not self.chunks:
                    break
        except KeyboardInterrupt:  # raised while data were read, by the user's code or another handler
            if interrupt.asked:
                raise
            interrupt.asked = True
        if not any(g.rows for g in self.groups) and not interrupt.asked:
            raise ArgumentError(
                "data",
                got="a stream without batches",
                expected="at least one batch in every epoch",
                remedy="an iterator can be read once only: pass an iterable that starts anew, such as a DataLoader",
            )
        cut = interrupt.asked and any((g.source.rows or math.inf) > g.rows for g in self.groups)
        if any(g.rows for g in self.groups):
            try:
                self._record_epoch(sums)
            except KeyboardInterrupt:  # as above, raised while members were scored
                if interrupt.asked:
                    raise
                interrupt.asked = True
                self._record_epoch(sums)
            self.epoch += 1
        if not cut:
            self._hook()
            self._stop_early()
            self._halve()
            progress.show(self.epoch, self._note())
        return not cut

    def _begin(self, read: Read) -> None:
        """Let workers begin with all chunks of a block, and of the next one if it can be known."""
        if any(group.compiled is None for group in self.groups) or not does_many_steps(self.groups[0].fn.device):
            return
        self.workers = self.workers or Workers(self.engine.workers, joins=self.reader.in_memory)
        self.workers.begin(read, self.chunks)
        if self.roster.state_bytes <= AHEAD_BYTES and (following := self.reader.ahead()) is not None:
            self.workers.begin_next(following, self.chunks)

    def _threads(self) -> AbstractContextManager[None]:
        """Leave cores to the workers, where there are some."""
        return one_thread() if self.groups[0].compiled is not None else nullcontext()

    def _adapt(self, seconds: float, read: Read) -> None:
        """Choose the length of the next block; no result depends on it."""
        length = len(next(iter(read.values())))
        size = sum(block.nbytes for block in read.values()) / max(1, length)
        by_time = length * BLOCK_SECONDS / max(seconds, 1e-4)
        length = int(max(1, min(by_time, BLOCK_BYTES / max(1.0, size), 4 * length, 256)))
        self.block_length = max(length - length % self.engine.steps, self.engine.steps)

    def _whole_block(
        self,
        chunk: Chunk,
        block: Block,
        sums: Sums,
        interrupt: Interrupt,
    ) -> None:
        """Run one chunk over a block; an interrupt within it is honoured after the block, all members at one step.

        What is repeated starts anew: a chunk's state changes at the end of a block.
        """
        if self.engine.kind == "vmap" and len(chunk.members) > self.engine.member_chunk:
            for part in self.roster.split(chunk, self.engine.member_chunk):
                self._whole_block(part, block, sums, interrupt)
            return
        before = sums.sums.copy()
        try:
            self._block(chunk, block, sums)
        except KeyboardInterrupt:
            if interrupt.asked:
                raise
            interrupt.asked = True
            sums.sums[:] = before
            self._whole_block(chunk, block, sums, interrupt)
        except Exception as error:
            step = self.running.step if self.running else chunk.group.step
            if self.engine.kind == "vmap" and len(chunk.members) > 1 and is_out_of_memory(error):
                self._halve_chunks(len(chunk.members), f"at step {step}")
            elif not chunk.group.has_another_way:
                raise
            else:
                self._fall_back(f"at step {step}: {first_line(error)}")
            sums.sums[:] = before
            self._whole_block(chunk, block, sums, interrupt)  # an error that is not vmap's comes again
            told = f"{self.engine.reason}; the steps before are right"
            if self.engine.kind == "loop":
                warn_looped(told, stacklevel=6)
            else:
                warnings.warn(told, EngineWarning, stacklevel=6)

    def _halve_chunks(self, members: int, where: str) -> None:
        """Go on with chunks of half as many members."""
        release_memory(self.groups[0].fn.device)
        reason = f"{self.engine.reason}; out of memory with chunks of {members} members {where}"
        self.engine = replace(self.engine, member_chunk=members // 2, reason=reason)

    def _fall_back(self, reason: str) -> None:
        """Go on without the compiled program, without native kernels, or with one member after the other."""
        if self.workers is not None:
            self.workers.drop()
        if self.engine.kind == "compiled":
            for group in self.groups:
                group.compiled = group.outputs = None
            self.engine = Engine("vmap", self.engine.member_chunk, f"the compiled program failed {reason}")
            return
        if self.groups[0].plain_step is not None:
            for group in self.groups:
                group.without_native_kernels()
            self.engine = replace(self.engine, native=False, reason=f"native kernels failed {reason}")
            return
        for group in self.groups:
            group.loop()
        self.engine = replace(self.engine, kind="loop", reason=f"vmap failed {reason}")
        self.scorer.kind = "loop"

    def _block(self, chunk: Chunk, block: Block, sums: Sums) -> None:
        """Run one chunk over a block, add to the sums, and take out members that diverged."""
        begun = self.workers.result(chunk) if self.workers else None
        state, metrics = begun or self._steps(chunk, chunk.state, block, chunk.strengths)
        values = np.stack([as_array(m) for m in metrics])
        good = finite_members(state.params) & np.isfinite(values[0]).all(0)
        sums.with_block(chunk.members, block.rows, values)
        if good.all():
            chunk.state = state
            return
        self._park_diverged(chunk, torch.from_numpy(np.flatnonzero(~good)), block)
        chunk.state = state
        self.roster.keep(chunk, torch.from_numpy(good))

    def _steps(
        self, chunk: Chunk, state: TrainState, block: Block, strengths: Lambdas, offset: int = 0
    ) -> tuple[TrainState, Metrics]:
        # Masks are a function of (seed, step) alone.
        seed, device = chunk.group.seed, chunk.group.fn.device

        def prepare(t: int) -> None:
            step = chunk.group.step + offset + t
            self.running = Running(chunk, step, block.batches[t])
            torch.clear_autocast_cache()  # of weights that were there for one step only
            seed_generators(device, step_seed(seed, step))

        own = chunk.group.blocks(block, chunk.group.step + offset)
        result = run_steps(self.engine.kind, chunk.group.call, state, own, strengths, prepare)
        self.running = None
        return TrainState(*result[0]), Metrics(*result[1])

    def _park_diverged(self, chunk: Chunk, rows: Tensor, block: Block) -> None:
        """Repeat the block step by step for diverged members, to find their last finite state."""
        state, strengths = take(chunk.state, rows), take(chunk.strengths, rows)
        members = [chunk.members[c] for c in rows.tolist()]
        for t in range(len(block)):
            new, metrics = self._steps(chunk, state, block[t], strengths, offset=t)
            good = finite_members(new.params) & np.isfinite(as_array(metrics.loss[0]))
            if t == len(block) - 1:  # repeated in a smaller group a member may differ by rounding
                good = np.zeros_like(good)
            for c in np.flatnonzero(~good).tolist():
                k = members[c]
                self.record.parked[k] = weights_of(take(state, c))
                self.record.status[k] = "diverged"
                self.record.diverged_at[k] = chunk.group.step + t
            alive = torch.from_numpy(np.flatnonzero(good))
            if not len(alive):
                return
            members = [members[c] for c in alive.tolist()]
            state, strengths = take(new, alive), take(strengths, alive)

    def _record_epoch(self, sums: Sums) -> None:
        """Append a row to the history: means of the steps, and scores now."""
        table = sums.means({k: chunk.group.rows for chunk in self.chunks for k in chunk.members})
        with self._threads():  # whether workers go on beside it or not: digits depend on the number
            self.scorer.add(table, self.chunks, self.members, several=self.engine.kind == "compiled")
        if self.engine.outputs and self.scorer.failed is not None:
            told = f"the program for outputs failed after epoch {self.epoch + 1}: {self.scorer.failed}"
            self.engine = replace(self.engine, outputs=False, reason=f"{self.engine.reason}; {told}")
            warnings.warn(f"{told}; the scores are right", EngineWarning, stacklevel=7)
        self.record.append(table)
        for k in np.flatnonzero(self.roster.active):
            self.record.epochs[k] = self.epoch + 1
        if self.stopper is not None and self.chunks:
            watched = "monitor" if "monitor" in table else self.scorer.select
            improved = self.stopper.improved(table[watched], self.epoch + 1)
            if self.stopper.rule.restore_best:
                for chunk in self.chunks:
                    rows = torch.from_numpy(improved[chunk.members])
                    if bool(rows.any()):
                        chunk.remember(rows)

    def _stop_early(self) -> None:
        """Let go of the members that have waited for long enough."""
        if self.stopper is not None:
            self.roster.let_go(self.stopper.finished(self.epoch))

    def _halve(self) -> None:
        """Let go of the points of the path that are behind; after the last epoch nobody has to leave."""
        if self.halving is None or self.epoch >= self.epochs:
            return
        scores = self.record.last(self.scorer.select, self.roster.epochs_kept())
        scores[[status == "diverged" for status in self.record.status]] = np.nan
        losers = self.halving.losers(self.epoch, scores)
        for k in np.flatnonzero(losers):
            if self.record.status[k] == "stopped":  # before, by itself
                self.record.status[k] = "eliminated"
        self.roster.let_go(losers, "eliminated")

    def _hook(self) -> None:
        """Call ``on_epoch`` and let go of the members that it does not keep."""
        if self.on_epoch is None:
            return
        active = self.roster.active
        event = EpochEvent(
            self.epoch,
            self.epochs,
            max(g.step for g in self.groups),
            torch.from_numpy(active),
            self.record.history,
            lambda: self.roster.gather(best=False),
        )
        mask = self.on_epoch(event)
        if mask is None:
            return
        keep = torch.as_tensor(np.asarray(mask))
        if keep.shape != (self.members,) or keep.dtype != torch.bool:
            raise ArgumentError(
                "on_epoch",
                got=f"a keep mask of shape {list(keep.shape)}, {keep.dtype}",
                expected=f"None, or {self.members} booleans, one for each member",
                remedy="start from event.active and switch members off",
            )
        self.roster.let_go(~keep.numpy())

    def _note(self) -> str:
        live = sum(members_of(c.state) for c in self.chunks)
        return f"{live} of {self.members} members"

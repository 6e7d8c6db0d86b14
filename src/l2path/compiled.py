"""Steps of all members of a chunk as one compiled program (``torch.compile``): many of them, in a loop inside of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan
from torch.utils._pytree import tree_leaves, tree_structure, tree_unflatten

from l2path.blocks import Block
from l2path.compiling import as_handed, compiled, does_many_steps, lowering, owned, without_noise
from l2path.functional import Given, vmap
from l2path.trees import map_tensors, tensor_leaves, tree_map
from l2path.types import Batch, Tree

# A chunk of a compiled program works best where its state and activations stay in the caches of one core.
COMPILED_CHUNK_BYTES = 2**22


class Piece(NamedTuple):
    """Some steps of a block, from ``start`` on, that are done with calls of a compiled program, or one by one."""

    start: int
    length: int
    calls: bool


class Compiled:
    """Steps of a chunk, many of them in one call, compiled for batches of the shapes that :meth:`compile` was given.

    On an accelerator a call is one step, whose results are copied: the next call writes where they lie.

    Other batches, and steps that do not fill a call, go through the vmapped step as it is.

    Parameters
    ----------
    step : callable
        Of one member, ``(state, batch, per_member) -> (state, metrics)``.
    members : int
        C, the chunk's size; smaller chunks are filled up with copies of their members.
    device : torch.device
    native : bool
        Use native kernels where they are built and faster; see :mod:`l2path.lowerings`.
    noisy : bool
        Whether batches are pairs ``(batch, noise)``, where the step is given the random numbers that it draws.
    substituted : bool
        Whether vmap needs equivalents of torch functions outside of the program as well.
    busy : lock, optional
        Held while the module is called outside of the program; a thread may take it more than once. All programs of a
        run share one, as they may share modules.
    """

    def __init__(
        self,
        step: Callable[[Tree, Batch, Tree], Any],
        members: int,
        device: torch.device,
        native: bool,
        *,
        noisy: bool = False,
        substituted: bool = False,
        busy: AbstractContextManager[Any] | None = None,
    ) -> None:
        # The lock under which torch traces; and what lets a loop's body have side effects that end within it. Private,
        # and pinned by the tests of compiled programs in threads and of what they do. The import takes a second.
        from torch._dynamo.convert_frame import compile_lock
        from torch._dynamo.utils import _disable_side_effect_safety_checks_for_current_subtracer as unchecked

        self.members, self.busy, self.compiling = members, busy or threading.RLock(), compile_lock
        alone = given(step, native=native) if noisy else lowering(step, native=native) if substituted else step
        self.vmapped: Callable[[Tree, Batch, Tree], Any] = vmap(alone, in_dims=(0, None, 0))
        self.each: Callable[[Tree, Batch, Tree], Any] = vmap(alone, in_dims=(0, 0, 0))  # on a batch of its own
        self.joins = False  # whether that may be used
        traced = self.vmapped if noisy else lowering(vmap(step, in_dims=(0, None, 0)), native=native)

        def one(carry: Sequence[Tensor], batch: Batch, per_member: Tree) -> tuple[list[Tensor], list[Tensor]]:
            parts = tree_unflatten(list(carry), self._form), batch, per_member
            # What the step enters are modes, which are a side effect in a loop; around it they would not reach in.
            state, metrics = unchecked(traced, *parts)
            # A loop wants results that share no memory with what it was given.
            return [owned(x) for x in tree_leaves(state)], [x.clone() for x in tree_leaves(metrics)]

        def block(leaves: Sequence[Tensor], batches: Batch, per_member: Tree) -> tuple[Sequence[Tensor], Tree]:
            found: tuple[Sequence[Tensor], Tree] = scan(lambda c, b: one(c, b, per_member), leaves, batches)
            return found

        def single(leaves: Sequence[Tensor], batches: Batch, per_member: Tree) -> tuple[Sequence[Tensor], Tree]:
            state, metrics = one(leaves, map_tensors(lambda x: x[0], batches), per_member)
            return state, [x.unsqueeze(0) for x in metrics]

        self._loops = does_many_steps(device)
        self._program = compiled(block if self._loops else single, device, native=native)
        self._form: Any = None  # of a state
        self._steps: dict[tuple[Any, ...], int] = {}  # that a call does, by the shape of a batch

    def compile(self, state: Tree, block: Block, per_member: Tree) -> tuple[Tree, Tree]:
        """Compile for as many batches like these (on an accelerator for one), and return what the program returns.

        Raises
        ------
        Exception
            Whatever torch says of a step that it cannot compile.
        """
        assert self._loops or len(block) == 1
        self._form = tree_structure(state)
        with without_noise():
            found = self._call(state, block.stacked(0, len(block)), per_member)
        self._steps[block.shapes[0]] = len(block)
        return found

    def pieces(self, block: Block) -> list[Piece]:
        """Say how the steps of a block are done, in their order."""
        found: list[Piece] = []
        shapes, t = block.shapes, 0
        while t < len(block):
            n = self._steps.get(shapes[t], 0)
            calls = n > 0 and shapes[t : t + n] == [shapes[t]] * n
            before = found.pop() if found and found[-1].calls == calls else Piece(t, 0, calls)
            found.append(before._replace(length=before.length + (n if calls else 1)))
            t = before.start + found[-1].length
        return found

    def run(
        self, state: Tree, block: Block, per_member: Tree, pieces: Sequence[Piece] | None = None
    ) -> tuple[Tree, list[Tensor]]:
        """Run members over a block of batches, or over pieces of it; metrics are ``[T, C]``.

        For calls they are a chunk, filled up with copies where it is a smaller one; for steps outside of calls they may
        be any number.
        """
        history: list[Sequence[Tensor]] = []
        for piece in self.pieces(block) if pieces is None else pieces:
            do = self._calls if piece.calls else self._steps_alone
            state, metrics = do(state, block, per_member, piece)
            history += metrics
        return state, joined_in_time(history)

    def _calls(self, state: Tree, block: Block, per_member: Tree, piece: Piece) -> tuple[Tree, list[Sequence[Tensor]]]:
        members, t = len(next(tensor_leaves(state))), piece.start
        history: list[Sequence[Tensor]] = []
        if members < self.members:
            rows = torch.arange(self.members) % members
            state, per_member = (map_tensors(lambda x: x[rows], tree) for tree in (state, per_member))
        while t < piece.start + piece.length:
            n = self._steps[block.shapes[t]]
            state, metrics = self._call(state, block.stacked(t, n), per_member)
            history.append([m if members >= self.members else m[:, :members] for m in tree_leaves(metrics)])
            t += n
        return state if members >= self.members else map_tensors(lambda x: x[:members].clone(), state), history

    def _steps_alone(
        self, state: Tree, block: Block, per_member: Tree, piece: Piece
    ) -> tuple[Tree, list[Sequence[Tensor]]]:
        return self._one_by_one(
            self.vmapped, state, block.batches[piece.start : piece.start + piece.length], per_member
        )

    def run_each(
        self, state: Tree, blocks: Sequence[Block], sizes: Sequence[int], per_member: Tree, piece: Piece
    ) -> tuple[Tree, list[Tensor]]:
        """Do steps outside of calls with members of several groups, each of which has a block of its own.

        Parameters
        ----------
        state, per_member : tree, ``[C, ...]``
            Of the members of all groups, in their order.
        blocks : sequence of Block
            With batches of the same shapes.
        sizes : sequence of int
            Members of each group.
        piece : Piece
        """
        own = (block.batches[piece.start : piece.start + piece.length] for block in blocks)
        batches = (tree_map(lambda *x: _repeated(x, sizes), *each) for each in zip(*own, strict=True))
        state, history = self._one_by_one(self.each, state, batches, per_member)
        return state, joined_in_time(history)

    def _one_by_one(
        self, step: Callable[[Tree, Batch, Tree], Any], state: Tree, batches: Iterable[Batch], per_member: Tree
    ) -> tuple[Tree, list[Sequence[Tensor]]]:
        history: list[Sequence[Tensor]] = []
        for batch in batches:
            torch.clear_autocast_cache()  # of weights that were there for one step only
            with self.undisturbed():
                state, metrics = step(state, batch, per_member)
            history.append([m.unsqueeze(0) for m in tree_leaves(metrics)])
        return state, history

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Let no other thread call the module meanwhile, nor compile: a call swaps its parameters.

        In this order: a thread that waits for ``busy`` must not hold the compiler's lock.
        """
        with self.busy, self.compiling:
            yield

    @property
    def steps(self) -> int:
        """Steps of a call."""
        return max(self._steps.values(), default=1)

    def _call(self, state: Tree, batches: Batch, per_member: Tree) -> tuple[Tree, Tree]:
        leaves = [as_handed(x) for x in tree_leaves(state)]
        if not self._loops:
            torch.compiler.cudagraph_mark_step_begin()  # what the last call returned has been copied
        leaves, metrics = self._program(leaves, batches, per_member)
        if not self._loops:
            leaves, metrics = ([x.clone() for x in tree_leaves(part)] for part in (leaves, metrics))
        return tree_unflatten(list(leaves), self._form), metrics


def joined_in_time(history: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Return metrics ``[T, C]`` of consecutive steps as one of each kind."""
    return list(history[0]) if len(history) == 1 else [torch.cat(m) for m in zip(*history, strict=True)]


def given(step: Callable[[Tree, Batch, Tree], Any], *, native: bool) -> Callable[[Tree, Batch, Tree], Any]:
    """Return a step on ``(batch, noise)``, which draws nothing itself; see :class:`l2path.functional.noise.Given`."""

    def run(state: Tree, batch: Batch, per_member: Tree) -> Any:
        own, noise = batch
        mode = Given(noise, native=native)
        with mode:
            found = step(state, own, per_member)
        mode.finish()
        return found

    return run


def _repeated(leaves: Sequence[Any], sizes: Sequence[int]) -> Any:
    if not isinstance(leaves[0], Tensor):
        return leaves[0]
    return torch.cat([x.expand(n, *x.shape) for x, n in zip(leaves, sizes, strict=True)])

"""How members are executed: vmapped or looped, in chunks. Knows nothing about lambdas.

A *chunk* is a group of members that share their batches and masks. Its state is one tree with a leading
member axis; ``per_member`` is whatever else the step takes that differs between members.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from l2path.blocks import Block
from l2path.compiled import Compiled
from l2path.errors import ArgumentError
from l2path.functional import at_grad_level, vmap
from l2path.trees import map_tensors, tensor_leaves, tree_map, with_tensors
from l2path.types import Batch, Buffers, Params, Tree

Kind: TypeAlias = Literal["vmap", "compiled", "loop"]
"""How members are trained; see :class:`Engine`."""
EvalKind: TypeAlias = Literal["vmap", "vjp", "loop"]
"""How outputs in eval mode are computed; see :func:`map_members`."""

Flags: TypeAlias = np.ndarray[Any, np.dtype[np.bool_]]

PLAIN = (torch.float32, torch.float64)

# (state, batch, per_member) -> (state, metrics), for one member
Step = Callable[[Tree, Batch, Tree], tuple[Tree, Tree]]


@dataclass(frozen=True)
class Engine:
    """How a run was executed; pass it back in as ``engine=`` to repeat the run bit for bit.

    Attributes
    ----------
    kind : {"vmap", "compiled", "loop"}
        All members of a chunk in one batched program, the same compiled, or one after the other.
    member_chunk : int
        The most members in a chunk.
    reason : str
        Why it was chosen.
    workers : int
        Chunks that are trained side by side, each in a thread of its own; compiled only.
    steps : int
        Steps in one call; compiled only.
    native : bool
        Whether native kernels take part, where they are faster on this machine: in compiled programs, and in vmapped
        steps of modules with LSTM and GRU layers.
    partial : bool
        Whether smaller last batches of an epoch have programs of their own, or go on vmapped; compiled only.
    outputs : bool
        Whether the outputs that members are scored on have a program of their own; compiled only.
    """

    kind: Kind
    member_chunk: int
    reason: str = field(default="asked for", compare=False)
    workers: int = 1
    steps: int = 1
    native: bool = False
    partial: bool = True
    outputs: bool = False

    def __repr__(self) -> str:
        shown = [f"kind={self.kind!r}", f"member_chunk={self.member_chunk}", f"reason={self.reason!r}"]
        shown += [
            f"workers={self.workers}",
            f"steps={self.steps}",
            f"native={self.native}",
            f"partial={self.partial}",
            f"outputs={self.outputs}",
        ] * (self.kind == "compiled")
        shown += ["native=True"] * (self.kind == "vmap" and self.native)
        return f"Engine({', '.join(shown)})"


KINDS = ("vmap", "compiled", "loop")
# What the live members of a chunk take together, at best: about what caches hold, and on a GPU what keeps it busy.
CHUNK_BYTES = {"cpu": 2**25, "cuda": 2**31}


def auto_chunk(member_bytes: int, device: torch.device, free: int | None) -> int:
    """Return how many members shall be live at once.

    Parameters
    ----------
    member_bytes : int
        Bytes that one member takes at most during a step.
    device : torch.device
    free : int, optional
        Bytes that are free on it: a chunk takes no more than a quarter.
    """
    size = max(4, CHUNK_BYTES.get(device.type, 2**31) // max(1, member_bytes))
    return size if free is None else max(1, min(size, free // 4 // max(1, member_bytes)))


def choose_engine(engine: Engine | str, member_chunk: int | str, members: int, auto: Callable[[], int]) -> Engine:
    """Return the engine for a run.

    Parameters
    ----------
    engine : Engine, or {"auto", "vmap", "compiled", "loop"}
        An engine is taken as it is; "auto" starts as "vmap".
    member_chunk : int or "auto"
        The most members in a chunk.
    members : int
        K.
    auto : callable
        Returns the size of a chunk for "auto"; see :func:`auto_chunk`.

    Raises
    ------
    ArgumentError
        For another word, or a chunk below 1.
    """
    if isinstance(engine, Engine):
        if engine.member_chunk < 1 or min(engine.workers, engine.steps) < 1 or engine.kind not in KINDS:
            raise ArgumentError(
                "engine", got=repr(engine), expected="an Engine as result.engine holds it", remedy="leave it at 'auto'"
            )
        return engine
    if engine not in ("auto", *KINDS):
        raise ArgumentError(
            "engine",
            got=repr(engine),
            expected="'auto', 'vmap', 'compiled', 'loop' or an Engine",
            remedy="leave it at 'auto'",
        )
    if member_chunk != "auto" and (isinstance(member_chunk, bool) or not isinstance(member_chunk, int)):
        raise ArgumentError(
            "member_chunk", got=repr(member_chunk), expected="'auto' or a whole number", remedy="leave it at 'auto'"
        )
    if isinstance(member_chunk, int):
        if member_chunk < 1:
            raise ArgumentError(
                "member_chunk", got=str(member_chunk), expected="at least 1", remedy="leave it at 'auto'"
            )
        size = member_chunk
    else:
        size = auto()
    kind: Kind = "vmap" if engine == "auto" else engine  # type: ignore[assignment]  # one of KINDS
    return Engine(kind, min(size, members), reason="asked for" if engine != "auto" else "the default")


def run_steps(
    kind: Kind,
    step: Step | Compiled,
    state: Tree,
    block: Block,
    per_member: Tree,
    prepare: Callable[[int], None],
) -> tuple[Tree, Tree]:
    """Run a chunk over a block of batches.

    Parameters
    ----------
    kind : {"vmap", "compiled", "loop"}
        How.
    step : callable
        Of one member; of all of them for "compiled".
    state, per_member : tree of tensors, [C, ...]
        Of the chunk; not changed.
    block : Block
        T batches, shared by all members.
    prepare : callable
        Called with t before step t (it seeds the random masks).

    Returns
    -------
    state : tree, [C, ...]
    metrics : tree, [T, C]
    """
    if isinstance(step, Compiled):
        return step.run(state, block, per_member)
    if kind != "loop":
        mapped = vmap(step, in_dims=(0, None, 0))
        history = []
        for t, batch in enumerate(block.batches):
            prepare(t)
            state, metrics = mapped(state, batch, per_member)
            history.append(metrics)
        return state, tree_map(lambda *m: torch.stack(m), *history)
    states, histories = [], []
    for c in range(members_of(state)):
        one, extra = take(state, c), take(per_member, c)
        history = []
        for t, batch in enumerate(block.batches):
            prepare(t)
            one, metrics = step(one, batch, extra)
            history.append(metrics)
        states.append(one)
        histories.append(tree_map(lambda *m: torch.stack(m), *history))
    return stack(states), tree_map(lambda *m: torch.stack(m, dim=1), *histories)


def map_members(
    kind: EvalKind,
    function: Callable[[tuple[Params, Buffers], Batch], Any],
    state: tuple[Params, Buffers],
    batch: Batch,
    prepare: Callable[[], None],
) -> Any:
    """Call ``function((params, buffers), batch)`` for every member of a chunk; results are stacked ``[C, ...]``.

    Parameters
    ----------
    kind : {"vmap", "vjp", "loop"}
        How; "vjp" is vmap with each member's call at a level of differentiation that nothing is asked of, where
        torch takes apart what it cannot batch as a whole (recurrent layers).
    function : callable
    state : (params, buffers), ``[C, ...]``
    batch
        Shared by all members.
    prepare : callable
        Called before (it seeds random masks, which are then the same for all members).
    """
    made: list[Tree] = []  # what each call returned; its tensors cross the transforms as a plain tuple

    def tensors(s: tuple[Params, Buffers], b: Batch) -> tuple[Tensor, ...]:
        returned = function(s, b)
        made.append(tree_map(_stackable, returned))
        found = tuple(tensor_leaves(made[-1]))
        if not found:
            raise ArgumentError(
                "module",
                got=f"outputs without a tensor: {type(returned).__name__}",
                expected="a tensor, or tensors in a tuple, list, dict, NamedTuple or dataclass",
                remedy="return the tensors that it is made of, and make it in loss_fn",
            )
        return found

    if kind == "loop":
        results = []
        for c in range(members_of(state)):
            prepare()
            results.append(tensors(take(state, c), batch))
        alike = tree_map(lambda x, *r: x if isinstance(x, Tensor) or all(x == y for y in r) else None, *made)
        return with_tensors(alike, map(torch.stack, zip(*results, strict=True)))
    prepare()
    mapped = tensors
    if kind == "vjp":

        def mapped(s: tuple[Params, Buffers], b: Batch) -> tuple[Tensor, ...]:
            found: tuple[Tensor, ...] = at_grad_level(lambda params: tensors((params, s[1]), b), s[0])
            return found

    stacked = vmap(mapped, in_dims=(0, None))(state, batch)
    return with_tensors(made[-1], stacked)


def _stackable(leaf: Any) -> Any:
    """Return a leaf of what a member returns as all members can have it: a tensor, or the same constant for all.

    Anything else (the caches of a language model, say) belongs to one member, and is left out.
    """
    if isinstance(leaf, float):
        return torch.tensor(leaf, dtype=torch.float64)
    return leaf if isinstance(leaf, (Tensor, bool, int, str, bytes)) else None


def members_of(state: Tree) -> int:
    """Return C, the length of the member axis."""
    return next(tensor_leaves(state)).shape[0]


def take(tree: Tree, index: int | Tensor) -> Tree:
    """Return one member of a stacked tree, or those of an index tensor."""
    return map_tensors(lambda x: x[index], tree)


def stack(trees: Sequence[Tree]) -> Tree:
    """Return trees of one structure as one tree with a leading member axis."""
    return tree_map(lambda *x: torch.stack(x) if isinstance(x[0], Tensor) else x[0], *trees)


def joined(trees: Sequence[Tree]) -> Tree:
    """Return the members of several chunks as those of one."""
    return tree_map(lambda *x: torch.cat(x) if isinstance(x[0], Tensor) else x[0], *trees)


def repeat(tree: Tree, members: int) -> Tree:
    """Return a tree with a member axis added, every member an owned copy."""
    return tree_map(lambda x: x.expand(members, *x.shape).clone(), tree)


def finite_members(tree: Tree) -> Flags:
    """Return ``[C]`` booleans: whether every floating number of each member is finite."""
    leaves = [x for x in tensor_leaves(tree) if x.is_floating_point() or x.is_complex()]
    good = np.ones(members_of(tree), dtype=np.bool_)
    others = []
    for x in leaves:
        shape = len(x), math.prod(x.shape[1:])
        if x.device.type == "cpu" and x.dtype in PLAIN:
            good &= np.isfinite(as_array(x)).reshape(shape).all(1)
        else:
            others.append(torch.isfinite(x).reshape(shape).all(1))
    if others:  # a device is waited for once
        good &= torch.stack(others).all(0).cpu().numpy()
    return good


def as_array(x: Tensor) -> np.ndarray[Any, Any]:
    """Return a tensor's numbers as an array, in float64 where NumPy has no such type.

    NumPy has less to do before it starts, and lets no other thread go first.
    """
    x = x.detach() if x.requires_grad else x
    return x.numpy() if x.device.type == "cpu" and x.dtype in PLAIN else x.double().cpu().numpy()

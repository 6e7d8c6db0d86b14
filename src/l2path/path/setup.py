"""From the arguments of ``batch_train`` to what the driver runs on."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from l2path.blocks import Block, blocks
from l2path.data import DataStream, Place, RowSource, Source, make_source
from l2path.errors import ArgumentError, nearest
from l2path.functional import (
    Functional,
    check_module,
    forked_rng,
    functionalize,
    seed_generators,
    vmap_hints_silenced,
)
from l2path.optimizers import Optimizer, set_hyper
from l2path.path.evaluation import Metric, Validation
from l2path.path.members import Members, build_members, check_seed
from l2path.path.outcome import Selection
from l2path.penalty import Names, check_anchor, describe
from l2path.training import (
    GradTransform,
    TrainState,
    init_state,
)
from l2path.trees import tree_map
from l2path.types import LambdaSpec, Params, Sweep

Anchor = Mapping[str, Tensor] | Literal["init"]


class Peeked:
    """A source whose first batch of epoch 0 has been looked at, without reading it twice."""

    def __init__(self, source: Source) -> None:
        self.source, self.rows, self.batch_size, self.seed = source, source.rows, source.batch_size, source.seed
        self.again = isinstance(source, RowSource) and source.in_memory  # reading once more costs nothing
        self.stream: DataStream | None = DataStream(source, 0)
        self.first = next(self.stream, None)
        if self.first is None:
            raise ArgumentError("data", got="a stream without batches", expected="at least one", remedy="check it")

    def epoch(self, epoch: int) -> Any:
        """Yield the batches of one epoch."""
        stream, first = self.stream, self.first
        if epoch > 0 or stream is None:
            yield from self.source.epoch(epoch)
            return
        self.stream = self.first = None
        yield first
        yield from stream  # with a generator state of its own

    def blocks(self, epoch: int, length: Callable[[], int]) -> Iterator[Block]:
        """Yield the same in blocks."""
        if epoch > 0 or self.stream is None or self.again:
            self.stream = self.first = None
            return self.source.blocks(epoch, length)
        return blocks(DataStream(self, epoch), length)


def start_state(fn: Functional, optimizer: Optimizer, grad_transform: GradTransform | None) -> TrainState:
    """Return the state of one member; hyperparameters may carry a graph, which training has no use for."""
    state: TrainState = tree_map(torch.detach, init_state(fn, optimizer, grad_transform=grad_transform))
    return state


def with_hyper(state: TrainState, table: Members, members: Sequence[int], names: Names) -> TrainState:
    """Set the swept hyperparameters of a stacked state."""
    opt_state = state.opt_state
    for name in table.hyper:
        try:
            opt_state = set_hyper(opt_state, name, table.hyper_values(names, name, members))
        except ArgumentError as error:  # say it of what the caller wrote
            raise ArgumentError(
                f"sweep[{name!r}]", got=error.got, expected=error.expected, remedy=error.remedy
            ) from None
    return state._replace(opt_state=opt_state)


@contextmanager
def quiet(device: torch.device) -> Iterator[None]:
    """Keep generators as they are, gradients on, and vmap's hints away."""
    with forked_rng(device), torch.inference_mode(False), torch.enable_grad(), vmap_hints_silenced():
        yield


def prepare(
    module: nn.Module | Callable[[], nn.Module],
    seeds: Sequence[int],
    *,
    lambdas: LambdaSpec | None,
    sweep: Sweep | None,
    members: Sequence[Mapping[str, Any]] | None,
) -> tuple[dict[int, Functional], Members, Place]:
    """Return modules taken apart by seed, the table of members, and where data go."""
    device = device_of(module)
    # Of a module there is one copy, whatever the seeds; a callable makes one for each.
    same = functionalize(module) if isinstance(module, nn.Module) else None
    fns = {s: same or functional_of(module, s, device) for s in seeds}
    names = describe(fns[seeds[0]])
    table = build_members(names, lambdas=lambdas, sweep=sweep, seeds=seeds, members=members)
    for s in table.seeds:
        if s not in fns:
            fns[s] = same or functional_of(module, s, device)
    check_same_structure(fns)
    first = fns[table.seeds[0]]
    return fns, table, Place(first.device, first.dtype)


def check_same_structure(fns: dict[int, Functional]) -> None:
    """Refuse a factory whose modules differ in more than their numbers: members are stacked."""

    def structure(fn: Functional) -> dict[str, tuple[torch.Size, torch.dtype, bool]]:
        parts = ((fn.params, True), (fn.frozen, False), (fn.buffers, False))
        return {n: (t.shape, t.dtype, trained) for part, trained in parts for n, t in part.items()}

    (first, fn), *rest = fns.items()
    for seed, other in rest:
        if structure(other) != structure(fn):
            odd = sorted(n for n, _ in structure(fn).items() ^ structure(other).items())
            raise ArgumentError(
                "module",
                got=f"a callable whose modules for seeds {first} and {seed} differ in {sorted(set(odd))}",
                expected="the same names, shapes, dtypes and requires_grad for every seed",
                remedy="draw nothing that decides about the structure",
            )


def functional_of(module: Callable[[], nn.Module], seed: int, device: torch.device) -> Functional:
    """Call the factory under a seed and take its module apart."""
    if not callable(module):
        raise ArgumentError(
            "module",
            got=f"{module!r}",
            expected="an nn.Module, or a callable without arguments that makes one",
            remedy="pass an instance, or for example lambda: Net(10)",
        )
    seed_generators(device, seed)
    try:
        inspect.signature(module).bind()
    except TypeError as error:
        raise ArgumentError(
            "module",
            got=f"{module!r}, which cannot be called without arguments ({error})",
            expected="an nn.Module, or a callable without arguments that makes one",
            remedy="pass an instance, or for example lambda: Net(10); it is called under each seed already",
        ) from error
    made = module()
    check_module(made, training=True)
    return functionalize(made)


def device_of(module: object) -> torch.device:
    """Return where a module is, or where a callable is expected to put one."""
    if isinstance(module, nn.Module):
        return next((p.device for p in module.parameters()), torch.device("cpu"))
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_initialized() else torch.device("cpu")


def check_seeds(seed: int | None, seeds: Sequence[int] | None) -> tuple[int, ...]:
    """Return the seeds, all different."""
    if seed is not None and seeds is not None:
        raise ArgumentError("seeds", got="seed and seeds", expected="one of the two", remedy="use seeds=(0, 1, 2)")
    if seeds is not None and not isinstance(seeds, (Sequence, np.ndarray, torch.Tensor)):
        raise ArgumentError("seeds", got=repr(seeds), expected="a sequence of whole numbers", remedy="use range(3)")
    if seeds is None:
        return (check_seed(0 if seed is None else seed, "seed"),)
    out = tuple(check_seed(s, "seeds") for s in seeds)
    if not out or len(set(out)) != len(out):
        raise ArgumentError("seeds", got=repr(seeds), expected="at least one, all different", remedy="use (0, 1, 2)")
    return out


def anchor_of(fn: Functional, anchor: Anchor | None) -> Params:
    """Return the weights to shrink towards, of one seed."""
    if not isinstance(anchor, str):
        return check_anchor(fn.params, anchor)
    if anchor != "init":
        raise ArgumentError(
            "anchor", got=repr(anchor), expected="'init' or weights by name", remedy="use anchor='init' for L2-SP"
        )
    return check_anchor(fn.params, fn.params)


def is_stream(data: Any) -> bool:
    """Return whether data bring their own batches."""
    return isinstance(data, torch.utils.data.DataLoader)


def sources_by_seed(
    data: Any, table: Members, batch_size: int | None, shuffle: bool, place: Place
) -> dict[int, Source]:
    """Return one source for each seed; a stream is one for all."""
    if is_stream(data) or isinstance(data, torch.utils.data.IterableDataset):
        shared = make_source(data, argument="data", batch_size=batch_size, seed=None, place=place)
        return dict.fromkeys(table.seeds, shared)
    order = dict.fromkeys(table.seeds)
    base = make_source(data, argument="data", batch_size=batch_size, seed=0 if shuffle else None, place=place)
    return {s: base.with_seed(s) if shuffle and isinstance(base, RowSource) else base for s in order}


def selection_of(
    select: str, given: Mapping[str, object], metrics: dict[str, Metric], val: Validation | None
) -> Selection:
    """Return the score that decides, by the name that the user gave it; ``given`` are metrics as the user gave them."""
    bare = [f"val_{n}" for n, m in given.items() if not isinstance(m, Metric)]
    known = {"val_loss": False, **{f"val_{n}": m.greater_is_better for n, m in metrics.items()}}
    name = f"val_{select}" if f"val_{select}" in known else select
    if name in bare:
        raise ArgumentError(
            "select",
            got=f"{select!r}, a bare function",
            expected="a metric that says which way is better",
            remedy=f"wrap it: l2path.Metric({select.removeprefix('val_')}, greater_is_better=True) or False",
        )
    if name not in known:
        raise ArgumentError("select", got=repr(select), expected=f"one of {list(known)}", remedy=nearest(select, known))
    return Selection(name, known[name], val)


def check_plain(epochs: object, on_epoch: object) -> None:
    """Refuse a number of epochs and a hook that make no sense."""
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        raise ArgumentError("epochs", got=repr(epochs), expected="a whole number >= 1", remedy="use for example 20")
    if on_epoch is not None and not callable(on_epoch):
        raise ArgumentError(
            "on_epoch", got=repr(on_epoch), expected="a function of an EpochEvent, or None", remedy="leave it out"
        )

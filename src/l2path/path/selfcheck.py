"""Whether members can be vmapped: two of them, on the first batch, against the loop."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from l2path.blocks import Block
from l2path.engine import EvalKind, map_members, repeat, run_steps
from l2path.errors import EngineWarning
from l2path.functional import (
    Functional,
    Substitutes,
    coarsest_dtype,
    failing_layer,
    grad_with_autograd,
    grad_with_torch_func,
    seed_generators,
)
from l2path.losses import FullLoss, ModelLoss, data_loss, split_batch
from l2path.order import step_seed
from l2path.path.evaluation import Validation, forward, losses_at_once, scores_of_outputs, validation_batches
from l2path.training import TrainState
from l2path.trees import tensor_leaves, tree_map
from l2path.types import Batch, Buffers, LossFn, Params, Tree

# Largest difference, relative to the norm, that rounding in one step explains.
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}


Result = TypeVar("Result")


@dataclass(frozen=True)
class Verdict:
    """Whether members can be vmapped, with which substitutes, and if not why."""

    vmapped: bool
    reason: str
    layer: str | None = None
    substitutes: Substitutes | None = None
    draws: bool = False


def tolerance_of(call: Callable[[], object]) -> float:
    """Return the tolerance for a computation, by its least exact dtype.

    That need not be the parameters' one: autocast takes another, and language models compute their loss in float32.
    """
    return TOLERANCE.get(coarsest_dtype(call), 1e-3)


def tolerance_for(tree: Tree) -> float:
    """Return the tolerance for numbers that are there, by their least exact dtype."""
    return max((TOLERANCE.get(x.dtype, 1e-3) for x in tensor_leaves(tree) if x.is_floating_point()), default=1e-3)


def agree(got: Tree, want: Tree, tolerance: float) -> bool:
    """Return whether trees are equal but for ``tolerance`` times the norm of all numbers in ``want`` together.

    Whole numbers, NaN and infinities must be the same.
    """
    difference = norm = 0.0
    for g, w in zip(tensor_leaves(got), tensor_leaves(want), strict=True):
        if not (w.is_floating_point() or w.is_complex()):
            if not torch.equal(g, w):
                return False
            continue
        finite, wide = torch.isfinite(w), torch.complex128 if w.is_complex() else torch.float64
        special = ~finite & ~w.isnan()
        if not (torch.equal(g.isnan(), w.isnan()) and torch.equal(g[special], w[special])):
            return False
        difference += float((g[finite].to(wide) - w[finite].to(wide)).abs().square().sum())
        norm += float(w[finite].to(wide).abs().square().sum())
    return difference <= tolerance**2 * norm  # not so where a difference is infinite or NaN


def try_vmap(fn: Functional, loss_fn: LossFn | FullLoss, batch: Batch, seed: int) -> Verdict:
    """Compare two members vmapped with the same two in a loop: losses, gradients and buffers.

    The plain module is tried first, then the module with substitutes for what vmap cannot batch.

    Gradients are compared, and not updates: an adaptive optimizer turns a gradient that is rounding alone (a bias in
    front of BatchNorm has no other) into a full step.

    Parameters
    ----------
    fn : Functional
    loss_fn : callable, or full_loss(f)
    batch
        The first one.
    seed : int
        Of the random masks.
    """
    reference = cache(partial(_reference, fn, loss_fn, batch, seed))
    plain = _attempt(fn, loss_fn, batch, seed, reference)
    if plain.vmapped and not plain.draws:
        return plain
    found = Substitutes()
    second = _attempt(fn.with_substitutes(found), loss_fn, batch, seed, reference)
    # Masks that agree on this batch need not on the next one, of another shape, unless they are drawn as a lone
    # member draws them; and rounding hides masks that matter little.
    if not second.vmapped:
        return plain
    replaced = ", ".join(sorted(found.used))
    reason = f"{second.reason}, with equivalents of {replaced} that vmap can batch" if replaced else second.reason
    return Verdict(True, reason, substitutes=found, draws=second.draws)


class Scoring(NamedTuple):
    """How members are scored.

    Attributes
    ----------
    batched : bool
        Whether the loss of many members' outputs can be vmapped.
    joined : bool
        Whether those of several seeds may be scored together: their modules are alike, and nothing is drawn.
    """

    batched: bool
    joined: bool


def scoring(fn: Functional, eval_fns: Sequence[Functional], val: Validation, kind: EvalKind, *, alike: bool) -> Scoring:
    """Compare two members' scores with vmapped losses and without, and modules with the first one if they are alike.

    On the first validation batch. Metrics are compared as well: they may look at what the loss keeps.
    """
    if kind == "loop" or isinstance(val.loss_fn, (FullLoss, ModelLoss)):
        return Scoring(False, False)
    inputs, targets = split_batch(next(validation_batches(val.source)), val.loss_fn)
    state = TrainState(*differing_members(fn), (), torch.zeros(2))

    def nothing() -> None:
        pass

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        outputs = forward("loop", eval_fns[0].with_substitutes(None), state, inputs, 0)
        untouched = torch.Generator().manual_seed(0).get_state()
        quiet = fn.device.type == "cpu" and torch.equal(torch.default_generator.get_state(), untouched)
        before = torch.default_generator.get_state()
        looped = scores_of_outputs(outputs, targets, val, nothing)
        quiet = quiet and torch.equal(torch.default_generator.get_state(), before)
        templates = {id(eval_fn.template): eval_fn.with_substitutes(None) for eval_fn in eval_fns[1:]}
        joined = (
            quiet
            and alike
            and all(agree(forward("loop", f, state, inputs, 0), outputs, 0.0) for f in templates.values())
        )
        try:
            tolerance = tolerance_of(lambda: scores_of_outputs(outputs, targets, replace(val, metrics={}), nothing))
            losses_at_once(val, outputs, targets, nothing)  # the next line would hide its error
            vmapped = scores_of_outputs(outputs, targets, replace(val, batched=True), nothing)
        except Exception:
            return Scoring(False, joined)
    return Scoring(all(agree(vmapped[name], looped[name], tolerance) for name in looped), joined)


class Reference(NamedTuple):
    """One step of two members in a loop, without substitutes."""

    found: Any
    tolerance: float
    draws: bool


def _reference(fn: Functional, loss_fn: LossFn | FullLoss, batch: Batch, seed: int) -> Reference:
    """Return what members are compared with."""
    tolerance = tolerance_of(lambda: data_loss(fn, loss_fn)(fn.params, fn.buffers, batch))
    found = _one_step("loop", fn, loss_fn, batch, seed)
    untouched = torch.Generator().manual_seed(step_seed(seed, 0)).get_state()
    return Reference(found, tolerance, not torch.equal(torch.default_generator.get_state(), untouched))


def _one_step(
    kind: Literal["vmap", "loop"], fn: Functional, loss_fn: LossFn | FullLoss, batch: Batch, seed: int
) -> Any:
    """Return buffers, losses and gradients of two members after one step."""
    loss = data_loss(fn, loss_fn)
    gradients: Any = grad_with_torch_func if kind == "vmap" else grad_with_autograd

    def one(s: Any, b: Batch, _: Any) -> Any:
        grads, value, buffers = gradients(lambda p: loss(p, s[1], b), s[0])
        return (s[0], buffers), (value, grads)

    def prepare(t: int) -> None:
        seed_generators(fn.device, step_seed(seed, t))

    return run_steps(kind, one, differing_members(fn), Block([batch]), (), prepare)


def _attempt(
    fn: Functional, loss_fn: LossFn | FullLoss, batch: Batch, seed: int, reference: Callable[[], Reference]
) -> Verdict:
    """Compare two vmapped members with the loop."""

    def vmapped(f: Functional) -> Any:
        return _one_step("vmap", f, loss_fn, batch, seed)

    try:
        batched = vmapped(fn)
    except Exception as error:
        layer = failing_layer(fn, vmapped)
        where = f" in the layer {layer}" if layer else ""
        return Verdict(False, f"vmap fails{where}: {first_line(error)}", layer)
    looped, tolerance, draws = reference()
    # The gradient of one parameter may be rounding alone, so that all are compared together; a buffer stands alone.
    pairs = [("the loss", batched[1][0], looped[1][0]), ("the gradient", batched[1][1], looped[1][1])]
    pairs += [(f"the buffer {name!r}", batched[0][1][name], want) for name, want in looped[0][1].items()]
    for name, got, want in pairs:
        if not agree(got, want, tolerance):
            why = " (its random masks come in another order under vmap)" if draws else ""
            return Verdict(False, f"{name} of a vmapped step differs from the same step in a loop{why}")
    return Verdict(True, "one vmapped step equals the loop", draws=draws)


def differing_members(fn: Functional, members: int = 2) -> tuple[Params, Buffers]:
    """Return parameters and buffers of members that differ, ``[C, ...]``.

    What reads one member's values for all of them is noticed then; and what is zero at the start (a gate, a last
    layer) does not hide what lies behind it.
    """
    generator = torch.Generator().manual_seed(0)

    def several(p: Tensor) -> Tensor:
        noise = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.device, p.dtype)
        return torch.stack([p, *(p * (1 + 0.01 * c) + 1e-3 * c * noise for c in range(1, members))])

    return tree_map(several, fn.params), repeat(fn.buffers, members)


# What torch's messages mean, by a part of them.
MEANINGS = {
    "saved tensor hooks": "activation checkpointing, which saves memory in a loop only",
    "calling .item() on a Tensor": "forward reads a number out of a tensor, or decides by it",
    "support dynamic shape": "forward chooses rows by what a member computes",
}


def first_line(error: Exception) -> str:
    """Return an error's type and the first line of its message, with its meaning where it is known."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    said = lines[1] if lines[0].endswith(":") and len(lines) > 1 else lines[0]
    text = f"{type(error).__name__}: {said}"
    meaning = next((meaning for part, meaning in MEANINGS.items() if part in text), None)
    return f"{meaning} ({text})" if meaning else text


def warn_looped(reason: str, stacklevel: int = 4) -> None:
    """Say that members are looped although they could have been batched for another module."""
    warnings.warn(f"members are trained one after the other: {reason}", EngineWarning, stacklevel=stacklevel)


def or_looped(
    kind: EvalKind, fn: Functional, call: Callable[[EvalKind, Functional], Result], stacklevel: int = 6
) -> tuple[EvalKind, Result]:
    """Return ``call(kind, fn)``, or if that fails the same in a loop, and how it was done.

    What can be batched on the first batch of training need not be on every batch of other data.
    """
    try:
        return kind, call(kind, fn)
    except Exception as error:
        if kind == "loop":
            raise
        found = call("loop", fn.with_substitutes(None))  # an error that is not vmap's comes again
        text = f"outputs in eval mode are computed one member after the other: {first_line(error)}"
        warnings.warn(text, EngineWarning, stacklevel=stacklevel)
        return "loop", found


def evaluation_kind(
    fn: Functional, eval_fn: Functional, batch: Batch, loss_fn: LossFn | FullLoss, kind: Literal["vmap", "loop"]
) -> EvalKind:
    """Return how outputs in eval mode can be computed: the first way that agrees with the loop.

    Tried on two members that differ, and the first batch of training.
    """
    if kind == "loop":
        return "loop"
    state = differing_members(fn)

    def run(how: EvalKind, f: Functional) -> list[Tensor]:
        def outputs(s: tuple[Params, Buffers], b: Batch) -> Tree:
            if isinstance(loss_fn, FullLoss):
                return data_loss(f, loss_fn, evaluation=True)(s[0], s[1], b)[0]
            return f.call_substituted(s[0], s[1], split_batch(b, loss_fn)[0])[0]

        with torch.no_grad():
            found = map_members(how, outputs, state, batch, partial(seed_generators, fn.device, 0))
        return list(tensor_leaves(found))

    plain = eval_fn.with_substitutes(None)
    looped: list[Tensor] = []
    tolerance = tolerance_of(lambda: looped.extend(run("loop", plain)))
    reason = ""
    ways: tuple[EvalKind, ...] = ("vmap", "vjp")
    for how in ways:
        try:
            found = run(how, eval_fn)
        except Exception as error:
            reason = reason or f"vmap fails: {first_line(error)}"
            continue
        if all(agree(g, w, tolerance) for g, w in zip(found, looped, strict=True)):
            return how
        reason = reason or "vmapped outputs differ from those of the loop"
    warnings.warn(
        f"outputs in eval mode are computed one member after the other: {reason}", EngineWarning, stacklevel=5
    )
    return "loop"

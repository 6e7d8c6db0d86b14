"""Whether members can be vmapped: two of them, on the first batch, against the loop."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from l2path.engine import EvalKind, map_members, repeat, run_steps
from l2path.errors import EngineWarning
from l2path.functional import Functional, failing_layer, grad_with_autograd, grad_with_torch_func, seed_generators
from l2path.losses import FullLoss, data_loss, split_batch
from l2path.order import step_seed
from l2path.trees import tensor_leaves, tree_map
from l2path.types import Batch, Buffers, LossFn, Params, Tree

# Largest difference, relative to the largest number, that rounding in one step explains.
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}


@dataclass(frozen=True)
class Verdict:
    """Whether members can be vmapped, and if not why."""

    vmapped: bool
    reason: str
    layer: str | None = None


def largest(x: Tensor) -> float:
    """Return the largest finite absolute value of a tensor, 0 for none."""
    if not (x.is_floating_point() or x.is_complex()):
        return 0.0
    finite = x[torch.isfinite(x)]
    return float(finite.abs().max()) if finite.numel() else 0.0


def agree(got: Tensor, want: Tensor, tolerance: float, scale: float) -> bool:
    """Return whether two tensors are equal up to ``tolerance * scale``; what is not finite must be the same."""
    if not (want.is_floating_point() or want.is_complex()):
        return torch.equal(got, want)
    finite = torch.isfinite(want)
    if not torch.equal(finite, torch.isfinite(got)) or not torch.equal(got.isnan(), want.isnan()):
        return False
    special = ~finite & ~want.isnan()
    return torch.equal(got[special], want[special]) and largest((got - want)[finite]) <= tolerance * scale


def try_vmap(fn: Functional, loss_fn: LossFn | FullLoss, batch: Batch, seed: int) -> Verdict:
    """Compare two members vmapped with the same two in a loop: losses, gradients and buffers.

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
    tolerance = TOLERANCE.get(fn.dtype, 1e-3)
    # Two members that differ, so that what reads one member's values for all of them is noticed.
    state = (tree_map(lambda p: torch.stack([p, p * 1.01]), fn.params), repeat(fn.buffers, 2))

    def step(f: Functional, gradients: Any) -> Any:
        loss = data_loss(f, loss_fn)

        def one(s: Any, b: Batch, _: Any) -> Any:
            grads, value, buffers = gradients(lambda p: loss(p, s[1], b), s[0])
            return (s[0], buffers), (value, grads)

        return one

    def prepare(t: int) -> None:
        seed_generators(fn.device, step_seed(seed, t))

    def vmapped(f: Functional) -> Any:
        return run_steps("vmap", step(f, grad_with_torch_func), state, [batch], (), prepare)

    try:
        batched = vmapped(fn)
    except Exception as error:
        layer = failing_layer(fn, vmapped)
        where = f" in the layer {layer}" if layer else ""
        return Verdict(False, f"vmap fails{where}: {first_line(error)}", layer)
    looped = run_steps("loop", step(fn, grad_with_autograd), state, [batch], (), prepare)
    untouched = torch.Generator().manual_seed(step_seed(seed, 0)).get_state()
    draws = not torch.equal(torch.default_generator.get_state(), untouched)
    for name, got, want in (
        ("the loss", batched[1][0], looped[1][0]),
        ("the gradient", batched[1][1], looped[1][1]),
        ("a buffer", batched[0][1], looped[0][1]),
    ):
        # A gradient may be rounding alone, and is small beside the largest one; a buffer is compared with itself.
        scale = max(map(largest, tensor_leaves(want)), default=0.0) if name == "the gradient" else None
        for g, w in zip(tensor_leaves(got), tensor_leaves(want), strict=True):
            if not agree(g, w, tolerance, largest(w) if scale is None else scale):
                why = " (its random masks come in another order under vmap)" if draws else ""
                return Verdict(False, f"{name} of a vmapped step differs from the same step in a loop{why}")
    return Verdict(True, "one vmapped step equals the loop")


def first_line(error: Exception) -> str:
    """Return an error's type and the first line of its message."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"


def warn_looped(reason: str) -> None:
    """Say that members are looped although they could have been batched for another module."""
    warnings.warn(f"members are trained one after the other: {reason}", EngineWarning, stacklevel=4)


def evaluation_kind(
    fn: Functional, eval_fn: Functional, batch: Batch, loss_fn: LossFn | FullLoss, kind: Literal["vmap", "loop"]
) -> EvalKind:
    """Return how outputs in eval mode can be computed: the first way that agrees with the loop.

    Tried on two members that differ, and the first batch of training.
    """
    if kind == "loop":
        return "loop"
    state = (tree_map(lambda p: torch.stack([p, p * 1.01]), fn.params), repeat(fn.buffers, 2))

    def outputs(s: tuple[Params, Buffers], b: Batch) -> Tree:
        if isinstance(loss_fn, FullLoss):
            return data_loss(eval_fn, loss_fn, evaluation=True)(s[0], s[1], b)[0]
        return eval_fn.call(s[0], s[1], split_batch(b)[0])[0]

    def run(how: EvalKind) -> list[Tensor]:
        with torch.no_grad():
            found = map_members(how, outputs, state, batch, partial(seed_generators, fn.device, 0))
        return list(tensor_leaves(found))

    looped = run("loop")
    tolerance, reason = TOLERANCE.get(fn.dtype, 1e-3), ""
    ways: tuple[EvalKind, ...] = ("vmap", "vjp")
    for how in ways:
        try:
            found = run(how)
        except Exception as error:
            reason = reason or f"vmap fails: {first_line(error)}"
            continue
        if all(agree(g, w, tolerance, largest(w)) for g, w in zip(found, looped, strict=True)):
            return how
        reason = reason or "vmapped outputs differ from those of the loop"
    warnings.warn(
        f"outputs in eval mode are computed one member after the other: {reason}", EngineWarning, stacklevel=4
    )
    return "loop"

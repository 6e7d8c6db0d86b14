"""The contract: each member equals a handwritten torch loop, however the members are executed."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

import l2path
from l2path.batches import batch_rows
from l2path.losses import ModelLoss
from l2path.path import PathResult
from l2path.trees import tree_map
from tests.families import BATCH, EPOCHS, LAMBDAS, LR, MOMENTUM, ROWS, SEED, Family, train
from tests.helpers import assert_trees_close

RTOL = 1e-9
LOSS_RTOL = {torch.float64: RTOL, torch.float32: 1e-6}  # some models compute their loss in float32, whatever else
MODES: dict[str, dict[str, Any]] = {"auto": {}, "loop": {"engine": "loop"}, "chunks": {"member_chunk": 2}}


@dataclass
class Solo:
    """One member, trained by hand."""

    module: nn.Module
    history: dict[str, list[float]] = field(default_factory=dict)
    outputs: Any = None
    loss_rtol: float = RTOL


def call(module: nn.Module, inputs: Any) -> Any:
    """Call a module as torch users do."""
    if isinstance(inputs, dict):
        return module(**inputs)
    return module(*inputs) if isinstance(inputs, tuple) else module(inputs)


def outputs_and_loss(family: Family, module: nn.Module, batch: Any) -> tuple[Any, Tensor]:
    """Call a module on a batch, and its loss, as torch users do."""
    if isinstance(family.loss_fn, ModelLoss):
        outputs = call(module, batch)
        return outputs, outputs.loss
    inputs, targets = batch
    outputs = call(module, inputs)
    return outputs, family.loss_fn(outputs, targets)


def batches(data: Any, seed: int, epoch: int) -> Iterator[Any]:
    """Yield the rows in the published order."""
    order = l2path.data_order(ROWS, seed, epoch)
    for start in range(0, ROWS, BATCH):
        rows = order[start : start + BATCH]
        yield tree_map(lambda x: x[rows], data)  # noqa: B023


def learns(family: Family) -> list[str]:
    """Names of the parameters that the loss depends on."""
    module = family.make()
    outputs_and_loss(family, module, next(batches(family.train_data, SEED, 0)))[1].backward()
    return [name for name, p in module.named_parameters() if p.grad is not None]


def by_hand(family: Family, lam: float, *, order_seed: int = SEED, mask_seed: int = SEED) -> Solo:
    """Train one member as a user would without l2path: an explicit penalty, the published order and masks."""
    with torch.random.fork_rng(devices=[]):
        solo = Solo(family.make())
        named = dict(solo.module.named_parameters())
        weights = [named[name] for name in learns(family)]
        optimizer = torch.optim.SGD(weights, LR, momentum=MOMENTUM)
        step = 0
        for epoch in range(EPOCHS):
            sums = {"loss": 0.0, "penalty": 0.0, "objective": 0.0}
            for batch in batches(family.train_data, order_seed, epoch):
                torch.manual_seed(l2path.step_seed(mask_seed, step))
                optimizer.zero_grad()
                _, loss = outputs_and_loss(family, solo.module, batch)
                penalty = torch.stack([0.5 * lam * (w * w.conj()).real.sum() for w in weights]).sum()
                (loss + penalty).backward()
                optimizer.step()
                step += 1
                found = {"loss": loss, "penalty": penalty, "objective": loss + penalty}
                for name, value in found.items():
                    sums[name] += batch_rows(batch) * value.item()
            for name, total in sums.items():
                solo.history.setdefault(name, []).append(total / ROWS)
            # A twin: evaluation changes neither modes nor, with max_norm, weights.
            twin = family.make()
            twin.load_state_dict(solo.module.state_dict(), strict=True)
            with torch.no_grad():
                solo.outputs, loss = outputs_and_loss(family, twin.eval(), family.validation)
                solo.history.setdefault("val_loss", []).append(loss.item())
                solo.loss_rtol = LOSS_RTOL[loss.dtype]
    return solo


@cache
def solo_runs(family: Family) -> tuple[Solo, ...]:
    """The members of a family, trained by hand once for all modes."""
    return tuple(by_hand(family, lam) for lam in LAMBDAS)


def snapshot(module: nn.Module) -> tuple[dict[str, Tensor], list[Any]]:
    """What a run must leave alone: weights, and of every part its class, mode and hooks."""
    parts = [
        (name, type(m), m.training, len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
        for name, m in module.named_modules()
    ]
    return {k: v.clone() for k, v in module.state_dict().items()}, parts


def run(family: Family, options: dict[str, Any]) -> tuple[PathResult, Counter[type[Warning]]]:
    """Train, and check that the caller's module stays as it was; return the warnings as well."""
    module = family.make()
    weights, parts = snapshot(module)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = train(family, module, **options)
    after, parts_after = snapshot(module)
    assert parts_after == parts
    assert_trees_close(after, weights, 0.0, where="the caller's module")
    return result, Counter(w.category for w in caught if w.category is not l2path.BoundaryWarning)


def check_members(family: Family, mode: str) -> PathResult:
    """Train a family in one of the modes, and check its engine, its warnings and every member of it."""
    result, warned = run(family, MODES[mode])

    looped = family.engine == "loop" or mode == "loop"
    assert result.engine.kind == ("loop" if looped else "vmap"), result.engine.reason
    assert ("with equivalents of" in result.engine.reason) == bool(family.replaces and not looped)
    assert looped or family.replaces in result.engine.reason
    assert result.engine.member_chunk == {"auto": len(LAMBDAS), "loop": len(LAMBDAS), "chunks": 2}[mode]
    evaluated = "looped" if looped else family.evaluation
    assert result.eval_kind in {"looped": ("loop",), "batched": ("vmap", "vjp")}[evaluated]
    expected: Counter[type[Warning]] = Counter([family.warns] if family.warns else [])
    if mode != "loop" and evaluated == "looped":
        expected[l2path.EngineWarning] += 1
    assert warned == expected

    assert_solo(result, family)
    predicted = result.predict(family.inputs)
    for k, solo in enumerate(solo_runs(family)):
        family.make().load_state_dict(result.member(k).state_dict(), strict=True)
        own = tree_map(lambda x: x[k], predicted)  # noqa: B023
        assert type(own) is type(solo.outputs)
        where = f"member {k}, predictions"
        if isinstance(own, dict):
            own, expected_outputs = dict(own), dict(solo.outputs)
            expected_outputs.pop("past_key_values", None)  # the cache of a call, which is no output of all members
            if "loss" in own:
                assert_trees_close(own.pop("loss"), expected_outputs.pop("loss"), solo.loss_rtol, where=where)
            assert_trees_close(own, expected_outputs, RTOL, where=where)
        else:
            assert_trees_close(own, solo.outputs, RTOL, where=where)
    return result


def assert_solo(result: PathResult, family: Family, rtol: float = RTOL) -> None:
    """Every member's weights, buffers and history equal those of the handwritten loop."""
    for k, solo in enumerate(solo_runs(family)):
        where = f"member {k}"
        assert_trees_close(result.member(k).state_dict(), solo.module.state_dict(), rtol, check_dtype=True, where=where)
        assert set(result.history) == set(solo.history)
        for name, values in solo.history.items():
            own = rtol if name == "penalty" else max(rtol, solo.loss_rtol)
            assert_trees_close(result.history[name][:, k].tolist(), values, own, where=f"{where}, {name}")


def check_whole_run(family: Family, **options: Any) -> PathResult:
    """Train as users do, with Adam and validation, and check the choice and what comes of it."""
    module = family.make()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", l2path.BoundaryWarning)
        result = train(family, module, **({"optimizer": l2path.adam(lr=0.01), "epochs": 3} | options))
    assert result.complete
    assert result.status == ("trained",) * len(LAMBDAS)
    assert all(torch.isfinite(rows).all() for rows in result.history.values())
    assert float(result.history["loss"][-1].max()) < float(result.history["loss"][0].min()), "nothing was learned"
    scores = result.history["val_loss"][-1]
    assert result.best.index == int(scores.argmin())
    assert f"Best by val_loss: member {result.best.index}" in str(result)

    fresh = family.make()
    fresh.load_state_dict(result.best.state_dict(), strict=True)
    with torch.no_grad():
        outputs, loss = outputs_and_loss(family, fresh.eval(), family.validation)
    assert_trees_close(result.best.score, loss.item(), LOSS_RTOL[loss.dtype])
    ours, theirs = (logits_of(o) for o in (result.predict(family.inputs, members=[result.best.index]), outputs))
    assert_trees_close(ours[0], theirs, RTOL)
    return result


def logits_of(outputs: Any) -> Tensor:
    """The outputs, or what models with a loss of their own call logits."""
    found = outputs if isinstance(outputs, Tensor) else outputs.logits
    assert isinstance(found, Tensor)
    return found

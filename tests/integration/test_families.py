"""One contract over every family: each member equals a handwritten torch loop, however the members are executed."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import groupby
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import l2path
from l2path.data import batch_rows
from l2path.path import PathResult
from l2path.trees import tree_map
from tests.families import BATCH, EPOCHS, FAMILIES, LAMBDAS, LR, MOMENTUM, ROWS, SEED, Data, Family, train
from tests.helpers import assert_trees_close
from tests.integration.family_table import BEGIN, END, HEAD, PAGE, committed, row, table

RTOL = 1e-9
MODES: dict[str, dict[str, Any]] = {"auto": {}, "loop": {"engine": "loop"}, "chunks": {"member_chunk": 2}}


@dataclass
class Solo:
    """One member, trained by hand."""

    module: nn.Module
    history: dict[str, list[float]] = field(default_factory=dict)
    outputs: Any = None


def call(module: nn.Module, inputs: Any) -> Any:
    """Call a module as torch users do."""
    if isinstance(inputs, dict):
        return module(**inputs)
    return module(*inputs) if isinstance(inputs, tuple) else module(inputs)


def batches(data: Data, seed: int, epoch: int) -> Iterator[Data]:
    """Yield the rows in the published order."""
    order = l2path.data_order(ROWS, seed, epoch)
    for start in range(0, ROWS, BATCH):
        rows = order[start : start + BATCH]
        yield tree_map(lambda x: x[rows], data)  # noqa: B023


def learns(family: Family) -> list[str]:
    """Names of the parameters that the loss depends on."""
    module = family.make()
    inputs, targets = next(batches(family.train_data, SEED, 0))
    family.loss_fn(call(module, inputs), targets).backward()
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
            for inputs, targets in batches(family.train_data, order_seed, epoch):
                torch.manual_seed(l2path.step_seed(mask_seed, step))
                optimizer.zero_grad()
                loss = family.loss_fn(call(solo.module, inputs), targets)
                penalty = torch.stack([0.5 * lam * (w * w.conj()).real.sum() for w in weights]).sum()
                (loss + penalty).backward()
                optimizer.step()
                step += 1
                found = {"loss": loss, "penalty": penalty, "objective": loss + penalty}
                for name, value in found.items():
                    sums[name] += batch_rows(inputs) * value.item()
            for name, total in sums.items():
                solo.history.setdefault(name, []).append(total / ROWS)
            # A copy: evaluation changes neither modes nor, with max_norm, weights.
            held_in, held_out = family.validation
            with torch.no_grad():
                solo.outputs = call(copy.deepcopy(solo.module).eval(), held_in)
                solo.history.setdefault("val_loss", []).append(family.loss_fn(solo.outputs, held_out).item())
    return solo


def by_name(name: str) -> Family:
    """A family of the registry."""
    return next(family for family in FAMILIES if family.name == name)


@cache
def solo_runs(name: str) -> tuple[Solo, ...]:
    """The members of a family, trained by hand once for all modes."""
    return tuple(by_hand(by_name(name), lam) for lam in LAMBDAS)


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


def cases(*engines: str) -> list[Any]:
    """The families of these engines, with their marks."""
    found = []
    for family in FAMILIES:
        if family.engine in engines:
            found.append(pytest.param(family, id=family.name, marks=[pytest.mark.slow] if family.slow else []))
    return found


# What vmap runs member by member is right all the same; a test of its own looks at what predict says about it.
@pytest.mark.parametrize("family", cases("vmap", "loop"))
@pytest.mark.parametrize("mode", MODES)
def test_every_member_equals_a_handwritten_loop(family: Family, mode: str) -> None:
    result, warned = run(family, MODES[mode])

    looped = family.engine == "loop" or mode == "loop"
    assert result.engine.kind == ("loop" if looped else "vmap"), result.engine.reason
    assert result.engine.member_chunk == {"auto": len(LAMBDAS), "loop": len(LAMBDAS), "chunks": 2}[mode]
    evaluated = "looped" if looped else family.evaluation
    assert result.eval_kind in {"looped": ("loop",), "batched": ("vmap", "vjp")}[evaluated]
    expected: Counter[type[Warning]] = Counter([family.warns] if family.warns else [])
    if mode != "loop" and evaluated == "looped":
        expected[l2path.EngineWarning] += 1
    assert warned == expected

    predicted = result.predict(family.validation[0])
    for k, solo in enumerate(solo_runs(family.name)):
        member = result.member(k).state_dict()
        assert_trees_close(member, solo.module.state_dict(), RTOL, check_dtype=True, where=f"member {k}")
        family.make().load_state_dict(member, strict=True)
        assert set(result.history) == set(solo.history)
        for name, values in solo.history.items():
            assert_trees_close(result.history[name][:, k].tolist(), values, RTOL, where=f"member {k}, {name}")
        own = tree_map(lambda x: x[k], predicted)  # noqa: B023
        assert_trees_close(own, solo.outputs, RTOL, where=f"member {k}, predictions")
    if mode == "auto":
        shown, recorded = committed()[family.name], row(family, result)
        assert (shown.vmapped, shown.evaluation) == (recorded.vmapped, recorded.evaluation), "write the table anew"


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("family", cases("refused"))
@pytest.mark.parametrize("mode", MODES)
def test_what_no_engine_gets_right_is_refused(family: Family, mode: str) -> None:
    with pytest.raises(l2path.ArgumentError, match="Remedy: ") as caught:
        train(family, **MODES[mode])
    assert committed()[family.name].vmapped == row(family, caught.value).vmapped == "refused"


@pytest.mark.parametrize("name", ["Linear", "BatchNorm1d", "LSTM", "CrossEntropy"])
def test_another_order_is_noticed(name: str) -> None:
    wrong = by_hand(by_name(name), LAMBDAS[1], order_seed=SEED + 1)
    with pytest.raises(AssertionError, match="relative difference"):
        assert_trees_close(wrong.module.state_dict(), solo_runs(name)[1].module.state_dict(), 1e-4)


@pytest.mark.parametrize("name", [f.name for f in FAMILIES if "dropout" in f.name.lower()])
def test_other_masks_are_noticed(name: str) -> None:
    # A family whose dropout did nothing would test nothing.
    wrong = by_hand(by_name(name), LAMBDAS[1], mask_seed=SEED + 1)
    with pytest.raises(AssertionError, match="relative difference"):
        assert_trees_close(wrong.module.state_dict(), solo_runs(name)[1].module.state_dict(), 1e-4)


@pytest.mark.filterwarnings("ignore::l2path.BoundaryWarning")
def test_predicting_warns_of_nothing() -> None:
    family = by_name("EmbeddingBag")
    train(family).predict(family.validation[0])


def test_the_registry_is_sound() -> None:
    names = [family.name for family in FAMILIES]
    assert len(names) >= 60
    assert len(set(names)) == len(names)
    groups = [group for group, _ in groupby(FAMILIES, lambda f: f.group)]
    assert len(set(groups)) == len(groups), "the families of a group stand together"


def test_modules_and_data_are_the_same_at_every_call() -> None:
    for family in FAMILIES:
        if family.engine != "refused":
            assert_trees_close(family.make().state_dict(), family.make().state_dict(), 0.0)
            assert_trees_close(family.data(), family.data(), 0.0)


def test_the_page_lists_the_registry() -> None:
    assert list(committed()) == [family.name for family in FAMILIES]
    text = PAGE.read_text(encoding="utf-8")
    rows = [replace(shown, group=f.group) for shown, f in zip(committed().values(), FAMILIES, strict=True)]
    assert text.split(BEGIN)[1].split(END)[0].strip() == table(rows)
    assert HEAD in text

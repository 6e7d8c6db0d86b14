"""One contract over every family: each member equals a handwritten torch loop, however the members are executed."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby
from typing import Any

import pytest

import l2path
from tests.contract import MODES, by_hand, check_members, solo_runs
from tests.families import FAMILIES, LAMBDAS, SEED, Family, train
from tests.helpers import assert_trees_close
from tests.integration.family_table import BEGIN, END, HEAD, PAGE, committed, row, table


def by_name(name: str) -> Family:
    """A family of the registry."""
    return next(family for family in FAMILIES if family.name == name)


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
    result = check_members(family, mode)
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
        assert_trees_close(wrong.module.state_dict(), solo_runs(by_name(name))[1].module.state_dict(), 1e-4)


@pytest.mark.parametrize("name", [f.name for f in FAMILIES if "dropout" in f.name.lower()])
def test_other_masks_are_noticed(name: str) -> None:
    # A family whose dropout did nothing would test nothing.
    wrong = by_hand(by_name(name), LAMBDAS[1], mask_seed=SEED + 1)
    with pytest.raises(AssertionError, match="relative difference"):
        assert_trees_close(wrong.module.state_dict(), solo_runs(by_name(name))[1].module.state_dict(), 1e-4)


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

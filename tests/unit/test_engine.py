"""Execution of members: both ways agree, and trees of members are owned."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import pytest
import torch
from torch import Tensor

from l2path import ArgumentError, Engine
from l2path.blocks import Block
from l2path.engine import (
    auto_chunk,
    choose_engine,
    finite_members,
    map_members,
    members_of,
    repeat,
    run_steps,
    stack,
    take,
)
from tests.helpers import assert_trees_close

KINDS: tuple[Literal["vmap", "loop"], ...] = ("vmap", "loop")


class State(NamedTuple):
    w: Tensor  # [C, 2]
    step: Tensor  # [C]


def state() -> State:
    return State(torch.arange(6.0).reshape(3, 2), torch.tensor([0, 10, 20]))


def step(s: State, batch: Tensor, extra: dict[str, Tensor]) -> tuple[State, dict[str, Tensor]]:
    loss = (s.w * batch).sum()
    return State(s.w - extra["lr"] * batch, s.step + 1), {"loss": loss, "lr": extra["lr"]}


BATCHES = Block([torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])])
EXTRA = {"lr": torch.tensor([1.0, 0.5, 0.0])}


@pytest.mark.parametrize("kind", KINDS)
def test_steps_by_hand(kind: Literal["vmap", "loop"]) -> None:
    start = state()
    after, metrics = run_steps(kind, step, start, BATCHES, EXTRA, lambda t: None)
    assert isinstance(after, State)
    assert after.w.tolist() == [[-1.0, -1.0], [1.5, 2.0], [4.0, 5.0]]
    assert after.step.tolist() == [2, 12, 22]
    # [T, C]: first w[:, 0], then 2 * w[:, 1].
    assert metrics["loss"].tolist() == [[0.0, 2.0, 4.0], [2.0, 6.0, 10.0]]
    assert metrics["lr"].tolist() == [[1.0, 0.5, 0.0]] * 2
    assert_trees_close(start, state(), rtol=0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_steps_on_batches_that_are_trees(kind: Literal["vmap", "loop"]) -> None:
    def two(s: State, batch: tuple[dict[str, Tensor], Tensor], extra: dict[str, Tensor]) -> tuple[State, Tensor]:
        return step(s, batch[0]["x"], extra)[0], batch[1]

    batches = Block([({"x": x}, x.sum()) for x in BATCHES.batches])
    after, metrics = run_steps(kind, two, state(), batches, EXTRA, lambda t: None)
    assert_trees_close(after, run_steps("loop", step, state(), BATCHES, EXTRA, lambda t: None)[0], rtol=0.0)
    assert metrics.tolist() == [[1.0] * 3, [2.0] * 3]


def test_every_member_meets_the_same_random_numbers() -> None:
    def noisy(s: State, batch: Tensor, extra: dict[str, Tensor]) -> tuple[State, Tensor]:
        noise = torch.rand_like(s.w)
        return State(s.w + extra["lr"] * noise, s.step + 1), noise.sum()

    results = []
    for kind in KINDS:
        calls: list[int] = []

        def prepare(t: int, calls: list[int] = calls) -> None:
            calls.append(t)
            torch.manual_seed(100 + t)

        with torch.random.fork_rng():
            after, noise = run_steps(kind, noisy, state(), BATCHES, EXTRA, prepare)
        results.append((after, noise))
        assert calls == ([0, 1] if kind == "vmap" else [0, 1] * 3)
        assert bool((noise == noise[:, :1]).all())
        assert not bool((noise[0] == noise[1]).any())
    assert_trees_close(results[0], results[1], rtol=1e-6)


@pytest.mark.parametrize("kind", ["vmap", "vjp", "loop"])
def test_members_are_mapped(kind: Literal["vmap", "vjp", "loop"]) -> None:
    parts = ({"w": state().w}, {"v": 2 * state().w})

    def function(s: Any, b: Any) -> Any:
        return {"sum": (s[1]["v"] * b).sum() / 2, "w": s[0]["w"]}

    found = map_members(kind, function, parts, BATCHES.batches[1], lambda: None)
    assert found["sum"].tolist() == [2.0, 6.0, 10.0]
    assert torch.equal(found["w"], state().w)


# Trees


def test_take_one_and_some() -> None:
    one = take(state(), 1)
    assert isinstance(one, State)
    assert one.w.tolist() == [2.0, 3.0]
    assert one.step.item() == 10
    some = take({"a": (state(), None)}, torch.tensor([2, 0]))
    assert some["a"][0].step.tolist() == [20, 0]
    assert some["a"][1] is None
    assert take(state(), torch.tensor([True, False, True])).step.tolist() == [0, 20]


def test_some_members_are_owned() -> None:
    start = state()
    some = take(start, torch.tensor([0, 1, 2]))
    some.w.zero_()
    assert torch.equal(start.w, state().w)


def test_stack_is_the_inverse_of_take_and_owned() -> None:
    start = state()
    again = stack([take(start, k) for k in range(3)])
    assert_trees_close(again, start, rtol=0.0, check_dtype=True)
    again.w.zero_()
    assert torch.equal(start.w, state().w)


def test_stack_keeps_what_is_no_tensor() -> None:
    assert stack([{"a": torch.tensor(1), "b": "x", "c": None}, {"a": torch.tensor(2), "b": "x", "c": None}]) == {
        "a": pytest.approx(torch.tensor([1, 2])),
        "b": "x",
        "c": None,
    }


def test_repeat_owns_every_member() -> None:
    one = {"w": torch.tensor([1.0, 2.0]), "step": torch.tensor(3)}
    many = repeat(one, 3)
    assert many["w"].shape == (3, 2)
    assert many["step"].tolist() == [3, 3, 3]
    many["w"][0] += 1.0
    assert many["w"].tolist() == [[2.0, 3.0], [1.0, 2.0], [1.0, 2.0]]
    assert one["w"].tolist() == [1.0, 2.0]
    assert repeat(one, 1)["w"].untyped_storage().data_ptr() != one["w"].untyped_storage().data_ptr()


def test_members_are_counted() -> None:
    assert members_of(state()) == 3
    assert members_of({"a": None, "b": (torch.zeros(4, 2),)}) == 4


def test_finite_members() -> None:
    w = torch.zeros(5, 2, 2)
    w[1, 0, 1] = float("nan")
    w[2, 1, 1] = float("inf")
    v = torch.zeros(5, 3, dtype=torch.complex64)
    v[3, 2] = torch.tensor(complex(0.0, float("-inf")))
    tree = {"w": w, "v": v, "count": torch.tensor([1, 2, 3, 4, 5]), "empty": torch.zeros(5, 0)}
    assert finite_members(tree).tolist() == [True, False, False, False, True]
    assert finite_members(take(tree, torch.tensor([0, 4]))).tolist() == [True, True]


def test_finite_members_of_scalars() -> None:
    # A model may have 0-d parameters.
    scalars = {"scale": torch.tensor([1.0, float("nan"), 2.0])}
    assert finite_members(scalars).tolist() == [True, False, True]


def test_members_without_floating_numbers_are_finite() -> None:
    assert finite_members({"step": torch.tensor([1, 2])}).tolist() == [True, True]


# The choice


@pytest.mark.parametrize(
    ("word", "kind", "reason"),
    [("auto", "vmap", "the default"), ("vmap", "vmap", "asked for"), ("loop", "loop", "asked for")],
)
def test_words(word: str, kind: str, reason: str) -> None:
    engine = choose_engine(word, "auto", members=8, auto=lambda: 100)
    assert (engine.kind, engine.member_chunk, engine.reason) == (kind, 8, reason)


@pytest.mark.parametrize(
    ("chunk", "auto", "expected"), [("auto", 9, 8), ("auto", 4, 4), ("auto", 1, 1), (3, 1, 3), (100, 1, 8), (1, 9, 1)]
)
def test_chunks(chunk: int | str, auto: int, expected: int) -> None:
    assert choose_engine("vmap", chunk, members=8, auto=lambda: auto).member_chunk == expected


@pytest.mark.parametrize(
    ("member_bytes", "free", "expected"),
    [
        (2**20, None, 32),
        (2**30, None, 4),  # few at a time, but not one
        (2**20, 2**40, 32),
        (2**20, 2**24, 4),  # a quarter of what is free
        (2**30, 2**30, 1),
        (0, None, 2**25),
    ],
)
def test_automatic_chunks(member_bytes: int, free: int | None, expected: int) -> None:
    assert auto_chunk(member_bytes, torch.device("cpu"), free) == expected


def test_an_engine_is_taken_as_it_is() -> None:
    engine = Engine("loop", 7, "of another run")
    assert choose_engine(engine, "auto", members=2, auto=lambda: 1) is engine


def test_the_reason_is_no_part_of_what_an_engine_is() -> None:
    assert Engine("vmap", 3, "a") == Engine("vmap", 3, "b")
    assert Engine("vmap", 3) != Engine("vmap", 4)
    assert Engine("vmap", 3) != Engine("loop", 3)


@pytest.mark.parametrize("word", ["gpu", "", "VMAP", None, 3])
def test_other_words_are_refused(word: Any) -> None:
    with pytest.raises(
        ArgumentError, match=r"^engine: got .*; expected 'auto', 'vmap', 'compiled', 'loop' or an Engine\."
    ) as info:
        choose_engine(word, "auto", members=2, auto=lambda: 1)
    assert info.value.got == repr(word)


@pytest.mark.parametrize("chunk", [0, -1, 2.0, True, "all", None])
def test_bad_chunks_are_refused(chunk: Any) -> None:
    with pytest.raises(ArgumentError, match=r"^member_chunk: got ") as info:
        choose_engine("auto", chunk, members=2, auto=lambda: 1)
    assert str(chunk) in info.value.got

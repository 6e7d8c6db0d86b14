"""Batch sources: their published order, what they take and what they refuse."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from l2path import ArgumentError, L2PathError, data_order, step_seed
from l2path.batches import batch_rows, check_nan
from l2path.blocks import Block, Run, blocks
from l2path.data import Place, RowSource, Source, StreamSource, make_source
from l2path.order import epoch_seed
from tests.helpers import assert_trees_close

CPU = Place(torch.device("cpu"), torch.float32)
X = torch.arange(10.0).reshape(5, 2)
Y = torch.arange(5)


class Rows(Dataset[tuple[Tensor, Tensor]]):
    """A map-style dataset that is more than a TensorDataset."""

    def __init__(self, x: Tensor = X) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], Y[index]


class Lengthless(Dataset[Tensor]):
    def __getitem__(self, index: int) -> Tensor:
        return X[index]


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(X, Y, strict=True)


def source(data: Any, batch_size: int | None = None, seed: int | None = None, place: Place = CPU) -> Source:
    return make_source(data, argument="data", batch_size=batch_size, seed=seed, place=place)


def epoch(data: Any, batch_size: int | None = None, seed: int | None = None, number: int = 0) -> list[Any]:
    return list(source(data, batch_size, seed).epoch(number))


def refused(argument: str, call: Callable[[], object]) -> ArgumentError:
    with pytest.raises(ArgumentError, match=r": got .*; expected .*\. Remedy: .") as info:
        call()
    assert info.value.argument == argument
    return info.value


# The published order


def test_the_order_is_pinned() -> None:
    assert data_order(8, seed=0, epoch=0).tolist() == [3, 2, 5, 1, 7, 4, 6, 0]
    assert data_order(8, seed=0, epoch=1).tolist() == [3, 5, 6, 2, 7, 1, 0, 4]
    assert data_order(8, seed=1, epoch=0).tolist() == [5, 6, 4, 3, 1, 7, 2, 0]


def test_the_order_is_the_documented_recipe() -> None:
    state = int(np.random.SeedSequence([0, 7, 3]).generate_state(1, np.uint64)[0])
    expected = torch.randperm(50, generator=torch.Generator().manual_seed(state >> 1))
    assert torch.equal(data_order(50, seed=7, epoch=3), expected)


@pytest.mark.parametrize("n", [0, 1, 2, 1000])
def test_the_order_is_a_permutation(n: int) -> None:
    order = data_order(n, seed=4, epoch=2)
    assert order.dtype == torch.int64
    assert sorted(order.tolist()) == list(range(n))


def test_the_order_differs_by_epoch_and_seed() -> None:
    orders = {tuple(data_order(20, seed, number).tolist()) for seed in range(5) for number in range(5)}
    assert len(orders) == 25  # (0, 1) and (1, 0) included


def test_the_seed_of_a_step_is_pinned() -> None:
    assert step_seed(0, 0) == 3717377837946358015
    assert step_seed(0, 1) == 892115846157824453
    assert step_seed(3, 7) == 6740733380162919617
    assert epoch_seed(0, 0) == 5064105440874769477
    assert step_seed(3, 7) == int(np.random.SeedSequence([1, 3, 7]).generate_state(1, np.uint64)[0]) >> 1


def test_seeds_of_steps_and_epochs_differ_and_fit_manual_seed() -> None:
    seeds = {f(s, t) for f in (step_seed, epoch_seed) for s in range(10) for t in range(50)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)
    torch.Generator().manual_seed(max(seeds))


def test_the_global_generators_are_left_alone() -> None:
    before, numpy_before = torch.get_rng_state(), np.random.get_state(legacy=False)["state"]
    data_order(10, 0, 0)
    step_seed(0, 0)
    epoch((X, Y), 2, seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    assert_trees_close(np.random.get_state(legacy=False)["state"], numpy_before, rtol=0.0)


@pytest.mark.parametrize("call", [lambda: data_order(4, -1, 0), lambda: step_seed(-1, 0)])
def test_negative_seeds_are_refused_by_name(call: Callable[[], object]) -> None:
    refused("seed", call)


# Rows


@pytest.mark.parametrize("data", [(X, Y), TensorDataset(X, Y), Rows()], ids=["tensors", "TensorDataset", "Dataset"])
def test_batches_follow_the_published_order_with_a_partial_last_one(data: Any) -> None:
    for number in (0, 3):
        batches = epoch(data, 2, seed=6, number=number)
        order = data_order(5, 6, number)
        assert [len(y) for _, y in batches] == [2, 2, 1]
        for start, (x, y) in zip((0, 2, 4), batches, strict=True):
            assert torch.equal(x, X[order[start : start + 2]])
            assert torch.equal(y, Y[order[start : start + 2]])


@pytest.mark.parametrize("data", [(X, Y), TensorDataset(X, Y), Rows()], ids=["tensors", "TensorDataset", "Dataset"])
def test_without_a_seed_rows_come_in_order(data: Any) -> None:
    assert torch.cat([y for _, y in epoch(data, 2)]).tolist() == [0, 1, 2, 3, 4]
    assert torch.cat([x for x, _ in epoch(data, 2, number=1)]).equal(X)


@pytest.mark.parametrize("batch_size", [None, 5, 6, 1000])
@pytest.mark.parametrize("seed", [None, 0])
def test_large_batches_are_cut_to_the_rows(batch_size: int | None, seed: int | None) -> None:
    made = source((X, Y), batch_size, seed)
    assert (made.rows, made.batch_size) == (5, 5)
    (batch,) = made.epoch(0)
    order = torch.arange(5) if seed is None else data_order(5, 0, 0)
    assert torch.equal(batch[1], Y[order])


def test_an_epoch_can_be_read_again() -> None:
    made = source((X, Y), 2, 0)
    assert_trees_close(list(made.epoch(1)), list(made.epoch(1)), rtol=0.0)
    partly = made.epoch(0)
    next(partly)
    assert len(list(made.epoch(0))) == 3


def test_with_seed_is_the_same_rows_in_another_order() -> None:
    made = source((X, Y), 2, 0)
    assert isinstance(made, RowSource)
    other = made.with_seed(9)
    assert torch.cat([y for _, y in other.epoch(0)]).equal(data_order(5, 9, 0))
    assert torch.cat([y for _, y in made.epoch(0)]).equal(data_order(5, 0, 0))
    assert (other.rows, other.batch_size) == (5, 2)


def test_trees_of_inputs() -> None:
    (first,) = epoch(({"a": X, "b": (Y, 2 * Y)}, Y), 3)[:1]
    assert_trees_close(first, ({"a": X[:3], "b": (Y[:3], 2 * Y[:3])}, Y[:3]), rtol=0.0)
    (first,) = epoch([X, Y], 3)[:1]
    assert isinstance(first, list)
    (only,) = epoch({"x": X, "y": None}, 5)
    assert torch.equal(only["x"], X)
    assert only["y"] is None
    (ordered,) = epoch((OrderedDict(a=X), Y))
    assert isinstance(ordered[0], OrderedDict)


def test_arrays_of_floats_take_the_modules_dtype_and_tensors_keep_theirs() -> None:
    place = Place(torch.device("cpu"), torch.bfloat16)
    data = (X.double().numpy(), Y.numpy(), X.double(), X.numpy() > 3, np.float32(X.numpy()))
    (batch,) = make_source(data, argument="data", batch_size=None, seed=None, place=place).epoch(0)
    expected = [torch.bfloat16, torch.int64, torch.float64, torch.bool, torch.bfloat16]
    assert [leaf.dtype for leaf in batch] == expected


def test_nothing_of_the_callers_is_changed_and_arrays_are_copied() -> None:
    x, y = X.numpy().copy(), Y.clone()
    made = source((x, y), 2, 0)
    before = list(made.epoch(0))
    for batch in made.epoch(0):
        batch[0].add_(100.0)
        batch[1].add_(100)
    assert np.array_equal(x, X.numpy())
    assert torch.equal(y, Y)
    x += 1.0
    assert_trees_close(list(made.epoch(0)), before, rtol=0.0)


def test_a_module_that_works_in_place_does_not_spoil_the_rows() -> None:
    # All rows in order are one batch, which every member and every epoch reads again.
    x = X.clone()
    made = source((x, Y))
    for batch in made.epoch(0):
        batch[0].zero_()
    assert torch.equal(x, X)
    assert torch.equal(next(iter(made.epoch(1)))[0], X)


def test_tensors_with_gradients_are_detached() -> None:
    (batch,) = epoch((X.clone().requires_grad_(), Y))
    assert not batch[0].requires_grad


def test_datasets_of_numbers_are_collated() -> None:
    class Numbers(Dataset[tuple[Any, float]]):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> tuple[Any, float]:
            return np.array([index, 1.0], dtype=np.float32), index % 2

    first = epoch(Numbers(), 2)[0]
    assert first[0].tolist() == [[0.0, 1.0], [1.0, 1.0]]
    assert first[1].tolist() == [0, 1]


# Streams


def test_a_loader_is_taken_in_its_own_order() -> None:
    made = source(DataLoader(TensorDataset(X, Y), batch_size=2), seed=3)
    assert isinstance(made, StreamSource)
    assert (made.rows, made.batch_size, made.seed) == (5, 2, None)
    dropped = source(DataLoader(TensorDataset(X, Y), batch_size=2, drop_last=True))
    assert (dropped.rows, dropped.batch_size) == (None, None)  # not every row is seen
    for number in range(2):
        assert [y.tolist() for _, y in made.epoch(number)] == [[0, 1], [2, 3], [4]]


def test_a_stream_is_batched() -> None:
    assert [y.tolist() for _, y in epoch(Stream(), 2)] == [[0, 1], [2, 3], [4]]
    assert [y.ndim for _, y in epoch(Stream())] == [0] * 5  # without a batch size it yields whole batches
    made = source(Stream(), 3)
    assert [len(y) for _, y in made.epoch(0)] == [len(y) for _, y in made.epoch(1)] == [3, 2]


def test_a_loader_brings_its_batch_size() -> None:
    error = refused("batch_size", lambda: source(DataLoader(TensorDataset(X, Y)), 4))
    assert error.got == "4 beside a DataLoader"
    assert "leave batch_size out" in error.remedy


# Refusals


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "8"])
def test_bad_batch_sizes_are_refused(value: Any) -> None:
    assert refused("batch_size", lambda: source((X, Y), value)).got == repr(value)


def test_numpy_integers_are_whole_numbers() -> None:
    assert source((X, Y), np.int64(2)).batch_size == 2  # type: ignore[arg-type]


def test_lengths_that_differ_are_refused_with_the_shapes() -> None:
    error = refused("data", lambda: source((X, Y[:4])))
    assert "[[5, 2], [4]]" in error.got
    assert "first axis" in error.remedy


@pytest.mark.parametrize("data", [(X[:0], Y[:0]), TensorDataset(X[:0], Y[:0]), Rows(X[:0])])
def test_no_rows_are_refused(data: Any) -> None:
    assert refused("data", lambda: source(data)).got == "no rows"


@pytest.mark.parametrize("data", [(), {}, None, ((), {})])
def test_no_tensors_are_refused(data: Any) -> None:
    assert refused("data", lambda: source(data)).got == "no tensors"


@pytest.mark.parametrize(
    "data",
    ["rows.csv", (X, "y"), (np.array(["a", "b"]), Y), (np.array([None, 1]), Y), (X, object()), (X, ["a", "b"])],
    ids=["string", "string leaf", "array of strings", "array of objects", "object", "list of strings"],
)
def test_what_holds_no_numbers_is_refused(data: Any) -> None:
    assert "DataFrame.to_numpy" in refused("data", lambda: source(data)).remedy


@pytest.mark.parametrize("data", [([[1.0, 2.0], [3.0, 4.0]], [0, 1]), (X, 3), 3.0])
def test_bare_numbers_are_refused_with_the_remedy(data: Any) -> None:
    error = refused("data", lambda: source(data))
    assert "the number" in error.got
    assert "torch.as_tensor" in error.remedy


def test_a_0d_tensor_has_no_rows() -> None:
    refused("data", lambda: source((X, torch.tensor(3.0))))
    refused("data", lambda: source(torch.tensor(3.0)))


def test_a_dataset_without_a_length_is_refused() -> None:
    error = refused("data", lambda: source(Lengthless()))
    assert error.got == "a Lengthless without a length"


def with_nan(*where: int) -> Tensor:
    x = X.clone()
    x[where] = float("nan")
    return x


@pytest.mark.parametrize("convert", [lambda x: x, lambda x: x.numpy()], ids=["tensor", "array"])
def test_nan_in_rows_is_found_at_once(convert: Callable[[Tensor], Any]) -> None:
    error = refused("data", lambda: source((convert(with_nan(3, 1)), Y), 2))
    assert error.got == "NaN at index [3, 1] of a tensor of shape [5, 2]"


def test_nan_in_a_dataset_is_found_when_it_is_read() -> None:
    made = source(Rows(with_nan(3, 1)), 2)
    batches = made.epoch(0)
    next(batches)
    assert "NaN at index [1, 1]" in refused("data", lambda: next(batches)).got


def test_nan_in_a_stream_names_its_batch() -> None:
    made = source(DataLoader(TensorDataset(with_nan(2, 0), Y), batch_size=2))
    batches = made.epoch(0)
    next(batches)
    error = refused("data (batch 1 of the epoch)", lambda: next(batches))
    assert error.got == "NaN at index [0, 0] of a tensor of shape [2, 2]"


def test_infinity_and_integers_pass_the_check_for_nan() -> None:
    batch = (torch.tensor([float("inf")]), torch.tensor([1]), None, "text")
    assert check_nan(batch, "data") is batch


def test_complex_nan_is_nan() -> None:
    refused("data", lambda: check_nan((torch.tensor([complex(0.0, float("nan"))]),), "data"))


# Batches and blocks


def test_rows_of_a_batch() -> None:
    assert batch_rows((X, Y)) == 5
    assert batch_rows({"scale": torch.tensor(2.0), "x": X[:3]}) == 3
    assert batch_rows([None, "text", (Y,)]) == 5
    with pytest.raises(L2PathError, match="no tensor with an axis of rows"):
        batch_rows((torch.tensor(1.0), 3))


def test_blocks_ask_for_their_length_each_time() -> None:
    lengths = iter([2, 1, 5, 1])
    assert [b.batches for b in blocks(iter(range(6)), lambda: next(lengths))] == [[0, 1], [2], [3, 4, 5]]


def test_blocks_read_no_further_than_they_need() -> None:
    batches = iter(range(5))
    made = blocks(batches, lambda: 2)
    assert next(made).batches == [0, 1]
    assert next(batches) == 2
    assert [b.batches for b in made] == [[3, 4]]
    assert list(blocks(iter(()), lambda: 2)) == []


def test_blocks_of_rows_in_memory_hold_the_batches_of_the_epoch() -> None:
    x = torch.randn(23, 3)
    source = make_source((x, {"y": torch.arange(23)}), argument="data", batch_size=4, seed=3, place=CPU)
    lengths = iter([1, 3, 2])
    found = list(source.blocks(1, lambda: next(lengths)))
    assert [len(block) for block in found] == [1, 3, 2]
    assert [block.rows for block in found] == [[4], [4] * 3, [4, 3]]
    assert [block.nbytes for block in found] == [4 * 20, 12 * 20, 7 * 20]
    batches = [batch for block in found for batch in block.batches]
    assert_trees_close(batches, list(source.epoch(1)), rtol=0.0)
    order = data_order(23, 3, 1)
    assert_trees_close(found[1].stacked(1, 2), (x[order[8:16]].unflatten(0, (2, 4)), {"y": order[8:16].view(2, 4)}))


def test_batches_begin_in_memory_where_an_allocation_does() -> None:
    whole = torch.arange(7.0 * 5 * 3).reshape(7, 5, 3)  # batches of 60 bytes
    block = Block(runs=[Run((whole,), 7)])
    for batch, expected in zip(block.batches, whole, strict=True):
        assert batch[0].data_ptr() % 64 == 0
        assert torch.equal(batch[0], expected)
    assert block.stacked(2, 3)[0].data_ptr() % 64 == 0
    assert block.stacked(2, 3) is block.stacked(2, 3)
    assert torch.equal(block.stacked(2, 3)[0], whole[2:5])
    assert block.shapes == [(((5, 3), torch.float32, (3, 1)),)] * 7


def test_a_block_stacks_batches_across_runs_and_from_a_list() -> None:
    parts = [torch.full((2, 1), float(i)) for i in range(4)]
    runs = Block(runs=[Run(torch.stack(parts[:2]), 2), Run(torch.stack(parts[2:]), 2)])
    assert torch.equal(runs.stacked(1, 2), torch.stack(parts[1:3]))
    assert torch.equal(Block(parts).stacked(1, 2), torch.stack(parts[1:3]))
    assert torch.equal(runs[3].batches[0], parts[3])

"""Plain-text tables, and arithmetic on nested containers."""

from __future__ import annotations

from collections import OrderedDict, UserDict
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from l2path.tables import format_table
from l2path.trees import map_tensors, tensor_leaves, tree_leaves, tree_map, with_tensors


class Pair(NamedTuple):
    a: Tensor
    b: dict[str, int] | None


class Output(OrderedDict[str, int]):
    """As other libraries return: a dict that is rebuilt from keyword arguments."""

    def __init__(self, **values: int) -> None:
        super().__init__(values)


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    expected = """
lambda  name  score
   0.1  a         1
     1  long      2"""
    rows = [["0.1", "a", "1"], ["1", "long", "2"]]
    assert format_table(["lambda", "name", "score"], rows, left={1}) == expected[1:]


def test_no_line_ends_in_blanks() -> None:
    text = format_table(["a", "why"], [["1", ""], ["2", "because"]], left={1})
    assert text.split("\n") == ["a  why", "1", "2  because"]


def test_a_table_without_rows_is_its_header() -> None:
    assert format_table(["a", "b"], []) == "a  b"


def test_the_rows_are_not_changed() -> None:
    header, rows = ["a"], [["1"]]
    format_table(header, rows)
    assert (header, rows) == (["a"], [["1"]])


def test_trees_keep_their_types() -> None:
    tree = {"p": Pair(torch.ones(2), {"n": 1}), "l": [1, (2, None)]}
    doubled = tree_map(lambda x: 2 * x, tree)
    assert type(doubled["p"]) is Pair
    assert doubled["p"].a.tolist() == [2.0, 2.0]
    assert doubled["p"].b == {"n": 2}
    assert doubled["l"] == [2, (4, None)]
    assert tree["l"] == [1, (2, None)]


def test_trees_of_one_structure_are_combined() -> None:
    first, second = {"a": (1, [2]), "b": None}, {"a": (10, [20]), "b": None}
    assert tree_map(lambda x, y: x - y, first, second) == {"a": (-9, [-18]), "b": None}


def test_the_order_of_keys_is_no_matter() -> None:
    assert tree_map(lambda x, y: (x, y), {"a": 1, "b": 2}, {"b": 20, "a": 10}) == {"a": (1, 10), "b": (2, 20)}


def test_subclasses_of_dict_are_rebuilt() -> None:
    mapped = tree_map(lambda x: x + 1, Output(logits=1))
    assert type(mapped) is Output
    assert mapped == {"logits": 2}


@dataclass(frozen=True)
class Record:
    """As models return: it computes something when it is made."""

    values: Any
    note: str = "note"
    size: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", len(self.values))


def test_dataclasses_are_containers_that_are_not_made_anew() -> None:
    record = Record([torch.ones(2), None])
    mapped = map_tensors(lambda x: x + 1, record)
    assert type(mapped) is Record
    assert mapped.values[0].tolist() == [2.0, 2.0]
    assert (mapped.values[1], mapped.note, mapped.size) == (None, "note", 2)
    assert record.values[0].tolist() == [1.0, 1.0]
    assert [type(leaf).__name__ for leaf in tree_leaves(record)] == ["Tensor", "str", "int"]
    assert list(tree_leaves(Record)) == [Record], "the class itself is a leaf"
    both = tree_map(lambda a, b: (a, b), Record([1]), Record([2], "other"))
    assert (both.values, both.note, both.size) == ([(1, 2)], ("note", "other"), (1, 1))


def test_other_mappings_become_dicts() -> None:
    mapped = tree_map(lambda x: x + 1, UserDict({"a": 1}))
    assert type(mapped) is dict
    assert mapped == {"a": 2}
    assert list(tree_leaves(UserDict({"a": 1}))) == [1]


def test_tensors_are_put_in_their_places() -> None:
    tree = {"b": [torch.zeros(1), "text"], "a": torch.zeros(2)}
    filled = with_tensors(tree, [torch.ones(3), torch.ones(4)])
    assert (len(filled["b"][0]), filled["b"][1], len(filled["a"])) == (3, "text", 4)


def test_keys_that_are_no_strings() -> None:
    assert tree_map(lambda x: x + 1, {0: 1, (1, 2): 2}) == {0: 2, (1, 2): 3}
    assert tree_map(lambda x: x + 1, OrderedDict({0: 1})) == OrderedDict({0: 2})


def test_leaves_come_depth_first() -> None:
    tree = {"b": [1, (2, None)], "a": Pair(torch.zeros(1), {"n": 3})}
    assert [x if isinstance(x, int) else "tensor" for x in tree_leaves(tree)] == [1, 2, "tensor", 3]
    assert len(list(tensor_leaves(tree))) == 1
    assert list(tree_leaves(None)) == []
    assert list(tree_leaves(7)) == [7]


def test_tensors_are_mapped_and_the_rest_kept() -> None:
    mapped = map_tensors(lambda x: x + 1, {"t": torch.zeros(1), "s": "text", "n": 3})
    assert mapped["t"].tolist() == [1.0]
    assert (mapped["s"], mapped["n"]) == ("text", 3)
    both = map_tensors(lambda x, y: x + y, {"t": torch.zeros(1), "s": "a"}, {"t": torch.ones(1), "s": "b"})
    assert both["t"].tolist() == [1.0]
    assert both["s"] == "a"

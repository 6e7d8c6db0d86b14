"""The table of members in a file, and back: its axes, and the lambdas as the user wrote them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from l2path.path.members import HyperAxis, Members
from l2path.penalty import LambdaAxis, WeightsOnly
from l2path.penalty.axis import as_label
from l2path.types import Tree


def table_tree(table: Members) -> dict[str, Any]:
    """Return the table as a tree of numbers, text and tensors."""
    axis = table.lambdas
    lambdas = None if axis is None else {"strengths": axis.strengths, "values": _values_tree(axis.values)}
    return {
        "folds": list(table.folds),
        "seeds": list(table.seeds),
        "points": list(table.points),
        "index": {name: list(own) for name, own in table.index.items()},
        "shape": list(table.shape),
        "axis_names": list(table.axis_names),
        "lambdas": lambdas,
        "hyper": {n: {"values": a.values, "labels": [_spec_tree(x) for x in a.labels]} for n, a in table.hyper.items()},
    }


def _values_tree(values: Any) -> Any:
    """Return ``LambdaAxis.values`` as a tree: a tensor, {pattern: tensor}, or a list of specs."""
    return [_spec_tree(spec) for spec in values] if isinstance(values, tuple) else values


def _spec_tree(spec: Any) -> Any:
    """Return one spec as the user wrote it as a tree; a dict in it tells what it stands for."""
    if isinstance(spec, WeightsOnly):
        return {"weights_only": _spec_tree(spec.spec)}
    if isinstance(spec, Mapping):
        return {"patterns": {pattern: _spec_tree(leaf) for pattern, leaf in spec.items()}}
    if isinstance(spec, range):
        return {"range": [spec.start, spec.stop, spec.step]}
    return list(spec) if isinstance(spec, Sequence) and not isinstance(spec, (list, tuple)) else spec


def table_of(tree: Mapping[str, Any], placed: Callable[[Tree], Tree]) -> Members:
    """Return the table that :func:`table_tree` wrote down; ``placed`` moves tensors to the parameters' device."""

    def hyper(axis: Mapping[str, Any]) -> HyperAxis:
        values = axis["values"]  # single numbers are kept on the CPU
        return HyperAxis(values if isinstance(values, Tensor) else placed(values), tuple(map(_spec, axis["labels"])))

    return Members(
        folds=tuple(tree["folds"]),
        seeds=tuple(tree["seeds"]),
        points=tuple(tree["points"]),
        index={name: tuple(own) for name, own in tree["index"].items()},
        shape=tuple(tree["shape"]),
        axis_names=tuple(tree["axis_names"]),
        lambdas=None if tree["lambdas"] is None else _lambda_axis(tree["lambdas"], placed),
        hyper={name: hyper(axis) for name, axis in tree["hyper"].items()},
    )


def _lambda_axis(tree: Mapping[str, Any], placed: Callable[[Tree], Tree]) -> LambdaAxis:
    values = tree["values"]
    if isinstance(values, list):
        values = labels = tuple(_spec(spec) for spec in values)
    elif isinstance(values, Tensor):
        labels = tuple(as_label(v) for v in values)
    else:
        length = len(next(iter(values.values())))
        labels = tuple({k: as_label(v[i]) for k, v in values.items()} for i in range(length))
    return LambdaAxis(placed(tree["strengths"]), labels, values)


def _spec(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    if "weights_only" in tree:
        return WeightsOnly(_spec(tree["weights_only"]))
    if "range" in tree:
        return range(*tree["range"])
    return {pattern: _spec(leaf) for pattern, leaf in tree["patterns"].items()}

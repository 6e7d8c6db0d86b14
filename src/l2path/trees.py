"""Arithmetic on nested containers of tensors: mappings, list, tuple, NamedTuple, dataclasses, None."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

from l2path.types import Tree


def tree_map(function: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
    """Apply ``function`` to every leaf of trees of one structure.

    Parameters
    ----------
    function : callable
        Takes one leaf of each tree.
    tree, *rest : nested mapping, list, tuple, NamedTuple, dataclass, None or leaf
        Trees of one structure; the first one decides it. Leaves are whatever is no container.

    Returns
    -------
    tree
        A new tree of that structure; a mapping that is no dict becomes one.

    Examples
    --------
    >>> tree_map(lambda a, b: a + b, {"x": 1, "y": (2, 3)}, {"x": 10, "y": (20, 30)})
    {'x': 11, 'y': (22, 33)}
    """
    if tree is None:
        return None
    entries = None if isinstance(tree, Tensor) else entries_of(tree)
    if entries is None:
        return function(tree, *rest)
    others = [entries_of(r) or {} for r in rest]
    return _rebuilt(tree, {k: tree_map(function, v, *(o[k] for o in others)) for k, v in entries.items()})


def entries_of(tree: Tree) -> dict[Any, Any] | None:
    """Return what a container holds, by key, index or field; None for a leaf."""
    if isinstance(tree, Mapping):  # a dict first of all, or a tokenizer's batch
        return dict(tree.items())
    if isinstance(tree, (tuple, list)):
        return dict(enumerate(tree))
    if is_dataclass(tree) and not isinstance(tree, type):
        return {f.name: getattr(tree, f.name) for f in fields(tree)}
    return None


def _rebuilt(tree: Tree, entries: dict[Any, Any]) -> Tree:
    """Return a container of the same kind that holds other entries."""
    if isinstance(tree, Mapping):
        # Output objects of other libraries are dict subclasses that rebuild from keyword arguments.
        return type(tree)(**entries) if isinstance(tree, dict) and type(tree) is not dict else entries
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*entries.values())
    if isinstance(tree, (tuple, list)):
        return type(tree)(entries.values())
    new = copy.copy(tree)  # not its constructor, which may compute or refuse something
    for name, value in entries.items():
        object.__setattr__(new, name, value)
    return new


def tree_leaves(tree: Tree) -> Iterator[Any]:
    """Yield the leaves of a tree, depth first."""
    if tree is None:
        return
    entries = None if isinstance(tree, Tensor) else entries_of(tree)
    if entries is None:
        yield tree
        return
    for value in entries.values():
        yield from tree_leaves(value)


def tensor_leaves(tree: Tree) -> Iterator[Tensor]:
    """Yield the leaves of a tree that are tensors."""
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def map_tensors(function: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
    """Apply ``function`` to the tensor leaves and keep every other leaf of the first tree."""
    return tree_map(lambda x, *r: function(x, *r) if isinstance(x, Tensor) else x, tree, *rest)


def with_tensors(tree: Tree, tensors: Iterable[Tensor]) -> Tree:
    """Return the tree with these in place of its tensors, in the order of :func:`tensor_leaves`."""
    following = iter(tensors)
    return map_tensors(lambda _: next(following), tree)

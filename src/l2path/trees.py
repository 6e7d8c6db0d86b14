"""Arithmetic on nested containers of tensors: dict, list, tuple, NamedTuple, None."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from l2path.types import Tree


def tree_map(function: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
    """Apply ``function`` to every leaf of trees of one structure.

    Parameters
    ----------
    function : callable
        Takes one leaf of each tree.
    tree, *rest : nested dict, list, tuple, NamedTuple, None or leaf
        Trees of one structure; the first one decides it. Leaves are whatever is no container.

    Returns
    -------
    tree
        A new tree of that structure.

    Examples
    --------
    >>> tree_map(lambda a, b: a + b, {"x": 1, "y": (2, 3)}, {"x": 10, "y": (20, 30)})
    {'x': 11, 'y': (22, 33)}
    """
    if tree is None:
        return None
    if isinstance(tree, dict):
        mapped = {k: tree_map(function, v, *(r[k] for r in rest)) for k, v in tree.items()}
        # Output objects of other libraries are dict subclasses that rebuild from keyword arguments.
        return mapped if type(tree) is dict else type(tree)(**mapped)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(tree_map(function, v, *(r[i] for r in rest)) for i, v in enumerate(tree)))
    if isinstance(tree, (tuple, list)):
        return type(tree)(tree_map(function, v, *(r[i] for r in rest)) for i, v in enumerate(tree))
    return function(tree, *rest)


def tree_leaves(tree: Tree) -> Iterator[Any]:
    """Yield the leaves of a tree, depth first."""
    if tree is None:
        return
    if isinstance(tree, dict):
        for value in tree.values():
            yield from tree_leaves(value)
    elif isinstance(tree, (tuple, list)):
        for value in tree:
            yield from tree_leaves(value)
    else:
        yield tree


def tensor_leaves(tree: Tree) -> Iterator[Tensor]:
    """Yield the leaves of a tree that are tensors."""
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def map_tensors(function: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
    """Apply ``function`` to the tensor leaves and keep every other leaf of the first tree."""
    return tree_map(lambda x, *r: function(x, *r) if isinstance(x, Tensor) else x, tree, *rest)

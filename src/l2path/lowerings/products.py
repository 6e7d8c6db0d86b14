"""Which products of a graph the native kernels take, and how they are put in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from l2path.lowerings.measure import Layout, Product, faster

aten = torch.ops.aten

# For each product of torch: ours, torch's without a bias, and whether there is one.
REPLACED: dict[Any, tuple[str, Product, bool]] = {
    aten.mm.default: ("tiled_mm", torch.mm, False),
    aten.bmm.default: ("tiled_bmm", torch.bmm, False),
    aten.addmm.default: ("tiled_mm", torch.mm, True),
    aten.baddbmm.default: ("tiled_bmm", torch.bmm, True),
}


def replace(graph: fx.Graph, library: Path) -> int:
    """Put the native products in the place of those of torch that take longer here; returns how many.

    Operands on the CPU in float32 or float64 are measured, with the shapes and strides that they were traced with; a
    size that was left open counts as it was when traced.

    Parameters
    ----------
    graph : Graph
        Of aten operations; changed in place.
    library : Path
        The native library, beside which measurements are kept.
    """
    count = 0
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target in REPLACED and _replace(graph, node, library):
            graph.erase_node(node)
            count += 1
    return count


def _replace(graph: fx.Graph, node: fx.Node, library: Path) -> bool:
    name, stock, biased = REPLACED[node.target]
    if node.kwargs.get("alpha", 1) != 1 or node.kwargs.get("beta", 1) != 1 or set(node.kwargs) - {"alpha", "beta"}:
        return False
    *bias, a, b = node.args
    left, right, result = _layout(a), _layout(b), node.meta.get("val")
    if left is None or right is None or not isinstance(result, Tensor) or not result.is_contiguous():
        return False
    ours = getattr(torch.ops.l2path, name).default
    if not faster(ours, stock, left, right, library.with_suffix(".json")):
        return False
    with graph.inserting_before(node):
        product = graph.call_function(ours, (a, b))
        product.meta = dict(node.meta)
        new = product
        if biased:
            new = graph.call_function(aten.add.Tensor, (product, *bias))
            new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    return True


def _layout(operand: Any) -> Layout | None:
    """Return the layout of an operand that the native kernels can take, or None."""
    value = operand.meta.get("val") if isinstance(operand, fx.Node) else None
    if not isinstance(value, Tensor) or value.device.type != "cpu" or value.layout != torch.strided:
        return None
    if value.dtype not in (torch.float32, torch.float64):
        return None
    return Layout(tuple(map(_number, value.shape)), tuple(map(_number, value.stride())), value.dtype)


def _number(size: int | torch.SymInt) -> int:
    if isinstance(size, int):
        return size
    from torch.fx.experimental.symbolic_shapes import optimization_hint  # sympy

    return int(optimization_hint(size, fallback=32))

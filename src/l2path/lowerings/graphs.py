"""Faster operations in traced graphs: as a pass of inductor, or in a graph that is run as it is."""

from __future__ import annotations

from typing import Any

from torch import fx

from l2path.lowerings import native, recurrent
from l2path.lowerings.products import replace


def compile_options() -> dict[str, Any]:
    """Return options for ``torch.compile(..., options=...)`` that put in what is faster here; none if there is nothing.

    They hold for compilations to come: what is compiled while the native kernels are being built stays as it is.
    The cache of inductor keeps what is compiled with them apart from what is compiled without.
    """
    library = native.status().library
    if library is None:
        return {}
    from l2path.lowerings.inductor import options  # importing inductor takes a second

    return options(library)


def rewrite(module: fx.GraphModule) -> fx.GraphModule:
    """Return a graph with what is faster here in the place of torch's operations.

    Parameters
    ----------
    module : GraphModule
        Of aten operations, as ``make_fx`` traces them; not changed. It is returned itself if nothing is faster.
    """
    library = native.status().library
    if library is None:
        return module
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    graph.set_codegen(module.graph._codegen)  # how arguments and results are nested
    changed = replace(graph, library) + recurrent.use_native(graph)
    return fx.GraphModule(module, graph) if changed else module

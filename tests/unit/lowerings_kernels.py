"""What the tests of the lowerings share."""

from __future__ import annotations

import pytest
from torch import fx

from l2path import lowerings


def native_kernels() -> lowerings.Status:
    """Return the status with the native kernels ready; they are built once for a machine. Skips without a compiler."""
    status = lowerings.prepare(wait=None)
    if status.state == "off" or "no C++ compiler" in status.reason:
        pytest.skip(status.reason)
    assert status.state == "ready", status.reason
    return status


def rewritten(module: fx.GraphModule) -> fx.GraphModule:
    """Return a traced graph with the native kernels put in, as inductor's pass does it in its graphs."""
    from l2path.lowerings.inductor import NativeKernels

    library = lowerings.status().library
    assert library is not None
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    graph.set_codegen(module.graph._codegen)  # how arguments and results are nested
    NativeKernels(library)(graph)
    return fx.GraphModule(module, graph)

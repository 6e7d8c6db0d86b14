"""The native kernels as a pass over the graphs that inductor compiles; imports inductor, which takes a second."""

from __future__ import annotations

from dataclasses import replace as changed
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch._inductor import config
from torch._inductor.codegen.common import device_codegens, init_backend_registration
from torch._inductor.codegen.cpp_wrapper_cpu import CppWrapperCpu
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch._inductor.utils import IndentedBuffer
from torch._ops import OpOverload

from l2path.lowerings import loops, native, recurrent, tanh
from l2path.lowerings.products import replace


class NativeKernels(CustomGraphPass):
    """Puts native kernels in late in a graph, when it is functional and its shapes and strides are known.

    Parameters
    ----------
    library : Path
        The native library. Inductor caches what it compiles under its name among other things, so that a graph with
        native operations is used only where the same library is loaded.
    """

    def __init__(self, library: Path) -> None:
        self.library = library

    def __call__(self, graph: fx.Graph) -> None:
        """Change a graph in place."""
        replace(graph, self.library)
        recurrent.use_native(graph)
        tanh.replace(graph)

    def uuid(self) -> str:
        """Return what tells compilations with other kernels from these."""
        return f"l2path-{self.library.stem}-{loops.digest()}"


class WithoutTensors(CppWrapperCpu):
    """Inductor's C++ wrapper; where native kernels are put in, loops make no tensors.

    Asked is the option that inductor's cache knows a program by, so that none is mistaken for another. What becomes of
    loops: see :mod:`l2path.lowerings.loops`.
    """

    def __init__(self) -> None:
        CppWrapperCpu.__init__(self)  # by its name: torch's types do not say what it returns

    @staticmethod
    def create(*_: Any) -> CppWrapperCpu:
        """Return the wrapper of a graph."""
        return WithoutTensors()

    def generate_before_suffix(self, result: IndentedBuffer) -> None:
        """End the program's function, which has been written by now."""
        if isinstance(config.post_grad_custom_post_pass, NativeKernels):
            source = result.getvalue()
            if (new := loops.without_tensors(source)) != source:
                result.clear()
                result.splice(new)
        CppWrapperCpu.generate_before_suffix(self, result)


def install() -> None:
    """Let inductor use this wrapper in the place of its own, which it is for everybody else's programs."""
    init_backend_registration()
    known = device_codegens["cpu"]
    if known.cpp_wrapper_codegen is CppWrapperCpu:
        device_codegens["cpu"] = changed(known, cpp_wrapper_codegen=WithoutTensors)


class ByName(dict[str, list[str]]):
    """What inductor looks up by operation, kept by its name.

    Inductor's cache takes no operation among the options, since it cannot pickle it.
    """

    def __contains__(self, operation: object) -> bool:
        return isinstance(operation, OpOverload) and super().__contains__(operation.name())


def options(library: Path) -> dict[str, Any]:
    """Return the options of inductor that put the native kernels in."""
    install()
    return {
        "post_grad_custom_post_pass": NativeKernels(library),
        # With cpp_wrapper=True: call the C function, in place of a look-up by name each time.
        "aot_inductor.custom_ops_to_c_shims": ByName({f"l2path::{name}": [_declared(name)] for name in native.names()}),
    }


def _declared(name: str) -> str:
    """Return the declaration of an operation's C function, as inductor calls it: results come last."""
    schema = getattr(torch.ops.l2path, name).default._schema
    operands = [f"AtenTensorHandle {operand.name}" for operand in schema.arguments]
    results = [f"AtenTensorHandle* result{i}" for i in range(len(schema.returns))]
    return f"AOTITorchError aoti_torch_cpu_{name}({', '.join(operands + results)})"

"""Operations that this machine can do faster than torch's own kernels, put in their place where a measurement says so.

Nothing here is required: without a compiler, with ``L2PATH_NATIVE=0`` or where torch's kernels are as fast,
everything stays as torch has it.

Examples
--------
Start the build early, and ask for the options when it is time to compile::

    lowerings.prepare()
    ...
    step = torch.compile(step, options={"cpp_wrapper": True, **lowerings.compile_options()})
"""

from l2path.lowerings.native import Status, enabled, prepare, status
from l2path.lowerings.options import compile_options

__all__ = ["Status", "compile_options", "enabled", "prepare", "status"]

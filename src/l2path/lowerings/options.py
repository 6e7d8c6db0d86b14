"""Faster operations in compiled programs."""

from __future__ import annotations

from typing import Any

from l2path.lowerings import native


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

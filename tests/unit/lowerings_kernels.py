"""What the tests of the lowerings share."""

from __future__ import annotations

import pytest

from l2path import lowerings


def native_kernels() -> lowerings.Status:
    """Return the status with the native kernels ready; they are built once for a machine. Skips without a compiler."""
    status = lowerings.prepare(wait=None)
    if status.state == "off" or "no C++ compiler" in status.reason:
        pytest.skip(status.reason)
    assert status.state == "ready", status.reason
    return status

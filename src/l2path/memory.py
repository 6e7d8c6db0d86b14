"""How much memory there is, and how much a computation takes."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any

import torch

from l2path.dispatch import Dispatch
from l2path.trees import tensor_leaves


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that are free on a device, or None where that cannot be known."""
    if device.type == "cuda":
        # What torch holds and does not use is free as well.
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    limits = [b for b in (_available(), _control_group()) if b is not None]
    return min(limits) if limits else None


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that a device has no memory left."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)  # of torch's allocator on a CPU


def release_memory(device: torch.device) -> None:
    """Give back what torch holds of a device's memory and does not use."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _available() -> int | None:
    """Return the memory that the system could give."""
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _control_group() -> int | None:
    """Return what is left of this container's own limit, where it has one."""
    root = "/sys/fs/cgroup/"
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            with open(root + limit) as high, open(root + used) as now:
                return max(0, int(high.read()) - int(now.read()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return None


def readable(size: float) -> str:
    """Return a number of bytes in words.

    Examples
    --------
    >>> readable(100), readable(3 * 2**20)
    ('100 bytes', '3 MiB')
    """
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} GiB"


def peak_bytes(call: Callable[[], object]) -> int:
    """Return the most bytes of new tensors that are alive at once while ``call`` runs.

    Counted from the operations themselves, the same on every device; what kernels allocate inside is not seen.

    Examples
    --------
    >>> peak_bytes(lambda: torch.ones(250) + torch.ones(250))
    3000
    """
    counting = _Counting()
    with counting:
        call()
    return counting.peak


def operations(call: Callable[[], object]) -> int:
    """Return how many of torch's operations run while ``call`` does.

    Examples
    --------
    >>> operations(lambda: torch.ones(250) + torch.ones(250))
    3
    """
    counting = _Operations()
    with counting:
        call()
    return counting.count


class _Operations(Dispatch):
    """Counts operations."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


class _Counting(Dispatch):
    """Adds up the storages that operations return until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, Any] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in tensor_leaves((args, kwargs))}
        for tensor in tensor_leaves(result):
            storage = tensor.untyped_storage()
            if storage._cdata not in self.live and storage._cdata not in given:
                self._add(storage)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()

        def freed(_: object) -> None:
            if self.live.pop(key, None) is not None:
                self.now -= size

        self.live[key] = weakref.ref(storage, freed)
        self.now += size
        self.peak = max(self.peak, self.now)

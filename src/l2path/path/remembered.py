"""What steps took on this machine, kept between processes: a job like one before is not measured again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from l2path.lowerings.native import cache_folder, status

SWITCH = "L2PATH_REMEMBER"
"""Environment variable: "0" measures every job anew and keeps nothing."""
KEPT = 1000  # jobs


def machine(device: torch.device) -> str:
    """Return what seconds depend on beside the job itself."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, native {status().state == 'ready'}"


def recall(key: str) -> dict[str, float]:
    """Return the seconds that were noted for a job, by what they are of; none if there are none."""
    return {} if os.environ.get(SWITCH) == "0" else _read(_file()).get(_digest(key), {})


def note(key: str, seconds: Mapping[str, float]) -> None:
    """Keep seconds for a job; where that cannot be written, nothing happens."""
    if os.environ.get(SWITCH) == "0":
        return
    path = _file()
    known = _read(path)
    digest = _digest(key)
    known[digest] = {**known.pop(digest, {}), **seconds}
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".json", delete=False, encoding="utf-8") as file:
            json.dump(dict(list(known.items())[-KEPT:]), file)
        os.replace(file.name, path)  # whole, whoever else writes at the same time


def _file() -> Path:
    return cache_folder() / "steps.json"


def _read(path: Path) -> dict[str, dict[str, float]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:24]


def _processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()

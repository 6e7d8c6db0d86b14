"""The benchmarks' processes can be measured: who takes part gets a rate."""

from __future__ import annotations

from dataclasses import replace

from tests.benchmarks._processes import side_by_side
from tests.benchmarks._worker import Task


def test_contenders_take_turns_and_get_rates() -> None:
    task = Task("l2path", "tiny", 4, 4, engine="vmap")
    contenders = {"loops": [replace(task, kind="loops")], "vmap": [task], "hook": [replace(task, hook=True)]}
    rows = side_by_side(contenders, 2, 0.02, 100.0)
    for label, row in rows.items():
        assert "error" not in row, row
        assert len(row["rates"]) == 2, label
        assert min(row["rates"]) > 0, label
        assert row["memory"] >= 0, label
    assert rows["vmap"]["engine"].startswith("Engine(kind='vmap', member_chunk=4")

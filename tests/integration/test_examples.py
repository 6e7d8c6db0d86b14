"""Every example runs as a script, in an empty folder, and prints what it is there to show."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))

# A line that each example must print, as a regular expression.
EXPECTED = {
    "adamw_decay": r"^best decay [0-9.e-]+: validation loss 0\.2\d+$",
    "cnn_digits": (
        r"^test accuracy 0\.9\d+ with lambda [0-9.e-]+, 0\.9\d+ with none: "
        r"\+0\.0[0-4]\d ± 0\.0[01]\d \(paired, 897 test rows; by seed ([+-]0\.0\d\d(, )?){3}\)$"
    ),
    "digits_path": r"^best lambda [0-9.e-]+: test accuracy 0\.9\d+ \(95 % interval 0\.9\d+ to 0\.9\d+\)$",
    "forecast_lstm": (
        r"^test error [01]\.\d+ with lambda [0-9.e-]+, 1\.\d+ with none: "
        r"-0\.\d+ ± 0\.[01]\d+ \(paired, 16 test years; by seed ([+-]0\.\d+(, )?){3}\)$"
    ),
    "from_a_loop": r"^member 24 is the loop above \(lambda 0\.01\): largest difference of any weight \d\.\de-0[6-9]$",
    "per_layer": r"^best per layer: \{'0\.weight': .*\}, validation loss 0\.1\d+$",
    "ridge": r"^largest difference from the exact weights and intercepts: \d\.\de-1\d$",
    "text_transformer": (
        r"^test accuracy 0\.[67]\d+ with decay [0-9.]+, 0\.[56]\d+ with none: "
        r"\+0\.[01]\d+ ± 0\.0[01]\d \(paired, \d+ test rows; by seed ([+-]0\.\d+(, )?){3}\)$"
    ),
}


def test_every_example_has_an_expected_line() -> None:
    assert {path.stem for path in EXAMPLES} == set(EXPECTED), "examples/ and EXPECTED name different scripts"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(path: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "MPLBACKEND": "Agg"}
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", str(path)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, f"{path.name} failed:\n{done.stdout}\n{done.stderr}"
    assert re.search(EXPECTED[path.stem], done.stdout, re.MULTILINE), (
        f"{path.name} did not print {EXPECTED[path.stem]!r}:\n{done.stdout}"
    )

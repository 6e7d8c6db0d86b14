"""The table of ``docs/families.md``, written from runs by ``python -m tests.integration.family_table``."""

from __future__ import annotations

import sys
import textwrap
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import l2path
from tests.families import FAMILIES, Family, train

PAGE = Path(__file__).resolve().parents[2] / "docs" / "families.md"
BEGIN = "<!-- begin of what `python -m tests.integration.family_table` writes -->"
END = "<!-- end of what `python -m tests.integration.family_table` writes -->"
HEAD = "| family | vmapped | evaluation | notes |\n|---|---|---|---|"


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    vmapped: str
    evaluation: str
    notes: str
    group: str = ""

    def __str__(self) -> str:
        return f"| {self.name} | {self.vmapped} | {self.evaluation} | {self.notes} |"


def row(family: Family, outcome: l2path.PathResult | l2path.ArgumentError) -> Row:
    """Return the line for a family from what became of its run with ``engine="auto"``."""
    if isinstance(outcome, l2path.ArgumentError):
        return Row(family.name, "refused", "–", f"Remedy: {_cell(outcome.remedy)}", family.group)
    looped = outcome.engine.kind == "loop"
    notes = [family.note] if family.note else []
    if looped or "with equivalents of" in outcome.engine.reason:
        notes.append(_cell(outcome.engine.reason.removeprefix("one vmapped step equals the loop, ")))
    return Row(
        family.name,
        "no: looped" if looped else "yes",
        "one by one" if outcome.eval_kind == "loop" else "batched",
        "; ".join(notes),
        family.group,
    )


def record(family: Family) -> Row:
    """Run ``batch_train`` on a family and return its line."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return row(family, train(family))
        except l2path.ArgumentError as error:
            return row(family, error)


def table(rows: Iterable[Row]) -> str:
    """Return the table in Markdown, one part for each group."""
    parts = []
    for group, members in groupby(rows, lambda r: r.group):
        parts.append("\n".join([f"## {group.capitalize()}", "", HEAD, *map(str, members)]))
    return "\n\n".join(parts)


def committed() -> dict[str, Row]:
    """Return the lines of the committed page by name, in their order."""
    found = {}
    for line in PAGE.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0].splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        if line.startswith("| ") and cells[0] != "family":
            found[cells[0]] = Row(cells[0], cells[1], cells[2], cells[3] if len(cells) > 3 else "")
    return found


def write() -> None:
    """Run every family and put the table between the markers of the page."""
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n\n{table(map(record, FAMILIES))}\n\n{END}{after}", encoding="utf-8")


def _cell(text: str) -> str:
    """Return a text that fits into a cell: the first words, on one line."""
    return textwrap.shorten(" ".join(text.split()).replace("|", "\\|"), 150, placeholder=" …")


if __name__ == "__main__":
    write()
    sys.stdout.write(f"{PAGE}: {len(FAMILIES)} families\n")

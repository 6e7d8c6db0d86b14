"""Tables as plain text and as HTML."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from html import escape

SHOWN = 64  # rows shown in full; of longer tables the ends, and what is around the marked rows


@dataclass(frozen=True)
class Table:
    """Cells with a header, and what there is to say below them.

    Attributes
    ----------
    columns : sequence of (title, cells)
        All of one length, the number of rows.
    marked : tuple of int
        Rows that were chosen.
    notes : sequence of str
        Lines of text.
    """

    columns: Sequence[tuple[str, Sequence[str]]]
    marked: tuple[int, ...] = ()
    notes: Sequence[str] = ()

    @property
    def header(self) -> list[str]:
        """The titles."""
        return [title for title, _ in self.columns]

    def rows(self) -> list[tuple[list[str], bool]]:
        """Return the rows to show, and whether each is marked; "..." stands for those that are left out."""
        rows = [list(row) for row in zip(*(cells for _, cells in self.columns), strict=True)]
        keep = list(range(len(rows)))
        if len(rows) > SHOWN:
            near = {k for m in self.marked for k in range(m - 3, m + 4) if 0 <= k < len(rows)}
            keep = sorted({*range(8), *near, *range(len(rows) - 8, len(rows))})
        out: list[tuple[list[str], bool]] = []
        for before, k in zip([-1, *keep], keep, strict=False):
            if k != before + 1:
                out.append((["..."] + [""] * (len(rows[0]) - 1), False))
            out.append((rows[k], k in self.marked))
        return out

    def text(self) -> str:
        """Return the table for a terminal."""
        return "\n".join([format_table(self.header, [cells for cells, _ in self.rows()]), "", *self.notes])

    def html(self) -> str:
        """Return the table for a notebook: marked rows are bold, and all colours are the page's own."""
        head = "".join(f'<th scope="col">{escape(title)}</th>' for title in self.header)
        bold = ' style="font-weight: bold"'
        body = "\n".join(
            f"<tr{bold if marked else ''}>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
            for cells, marked in self.rows()
        )
        notes = "<br>\n".join(escape(line) for line in self.notes)
        # As in the tables of pandas, cells take their alignment from the row or the table that they are in.
        return (
            '<div>\n<table style="text-align: right; font-variant-numeric: tabular-nums">\n'
            f'<thead><tr style="text-align: right">{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n'
            f"<p>{notes}</p>\n</div>"
        )


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: Collection[int] = ()) -> str:
    """Return rows under a header; columns are right-aligned but for those in ``left``.

    Examples
    --------
    >>> print(format_table(["name", "n"], [["a", "1"], ["b", "20"]], left={0}))
    name   n
    a      1
    b     20
    """
    lines = [list(header), *[list(r) for r in rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )

"""Markdown tables whose columns also line up in a terminal."""

from __future__ import annotations

from collections.abc import Sequence


def markdown_table(rows: Sequence[Sequence[str]], *, numbers: bool = True) -> str:
    """The first of `rows` is the heading. Columns of `numbers`, all but the first, are flush right."""
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    right = [numbers and n > 0 for n in range(len(widths))]

    def line(row: Sequence[str]) -> str:
        cells = (cell.rjust(n) if flush else cell.ljust(n) for cell, n, flush in zip(row, widths, right, strict=True))
        return f"| {' | '.join(cells)} |"

    rule = ["-" * (n - 1) + ":" if flush else "-" * n for n, flush in zip(widths, right, strict=True)]
    return "\n".join([line(rows[0]), line(rule), *map(line, rows[1:])])

"""Two texts that grow at once, side by side on a terminal: the thought, dim, and what is said."""

from __future__ import annotations

import os
import shutil
import unicodedata
from typing import TextIO

DIM, PLAIN = "\033[2m", "\033[0m"
BETWEEN = " | "


def cells(text: str) -> int:
    """How wide a terminal shows it.

    >>> cells("tea 茶")
    6
    """
    return sum(_cells(char) for char in text)


def _cells(char: str) -> int:
    if unicodedata.category(char) in ("Mn", "Me", "Cf"):  # joins the character before it
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


class Column:
    """Text wrapped at words, or between wide characters; only the last of its `lines` may still change.

    However the text is cut when it is added, the lines are the same.
    """

    def __init__(self, width: int):
        self.width = width
        self.lines = [""]

    def add(self, text: str) -> None:
        for char in text.replace("\t", " "):
            if char == "\n":
                self.lines.append("")
            elif unicodedata.category(char) != "Cc":  # a model must not steer the terminal
                self._add(char)

    def _add(self, char: str) -> None:
        line = self.lines[-1]
        # A space may hang over the end, where nobody sees it, so that no line begins with one.
        if char == " " or not line or cells(line) + _cells(char) <= self.width:
            self.lines[-1] += char
            return
        start = len(line) if _cells(char) == 2 else _last_word(line)
        if start == 0:  # as long as the line
            start = len(line)
        self.lines[-1] = line[:start]
        self.lines.append(line[start:] + char)


def _last_word(line: str) -> int:
    """Where it begins."""
    start = len(line)
    while start and line[start - 1] != " " and _cells(line[start - 1]) < 2:
        start -= 1
    return start


class Columns:
    """Both on `out`, a terminal of `size` columns and lines. Rows that have left the screen stay as they are:
    a text that has fallen a whole screen behind the other goes on at the top of the screen.
    """

    def __init__(self, out: TextIO, size: tuple[int, int] | None = None):
        columns, self._height = size or shutil.get_terminal_size()
        width = max((columns - 1 - len(BETWEEN)) // 2, 2)  # the last place is left free: terminals differ in it
        self._out = out
        self._texts = self._left, self._right = Column(width), Column(width)
        self._rows = 0  # on the terminal, the cursor in the last one

    def add(self, left: str, right: str) -> None:
        top = max(self._rows - self._height, 0)
        for column, text in zip(self._texts, (left, right), strict=True):
            if text:
                column.lines += [""] * (top + 1 - len(column.lines))
        changed = [len(column.lines) - 1 for column, text in zip(self._texts, (left, right), strict=True) if text]
        self._left.add(left)
        self._right.add(right)
        if changed:
            self._draw(min(changed))

    def end(self) -> None:
        self._out.write("\n")
        self._out.flush()

    def _draw(self, first: int) -> None:
        """The rows from `first` on."""
        up = f"\033[{self._rows - 1 - first}A" if self._rows - 1 > first else ""
        rows = max(len(column.lines) for column in self._texts)
        self._out.write(up + "\r" + "\n".join(f"\033[K{self._row(n)}" for n in range(first, rows)))
        self._out.flush()
        self._rows = rows

    def _row(self, n: int) -> str:
        left, right = (column.lines[n].rstrip() if n < len(column.lines) else "" for column in self._texts)
        return f"{DIM}{left}{' ' * (self._left.width - cells(left))}{BETWEEN}{PLAIN}{right}"


class Lines:
    """For a terminal that cannot move its cursor: lines of both in the order in which they are full."""

    def __init__(self, out: TextIO, columns: int | None = None):
        width = max((columns or shutil.get_terminal_size().columns) - 1 - len(BETWEEN), 2)
        self._out = out
        self._texts = (Column(width), BETWEEN.lstrip()), (Column(width), "")

    def add(self, left: str, right: str) -> None:
        for (column, mark), text in zip(self._texts, (left, right), strict=True):
            column.add(text)
            self._write(column, mark, len(column.lines) - 1)

    def end(self) -> None:
        for column, mark in self._texts:
            self._write(column, mark, len(column.lines) if column.lines[-1] else 0)

    def _write(self, column: Column, mark: str, count: int) -> None:
        self._out.writelines(f"{mark}{line.rstrip()}\n" for line in column.lines[:count])
        self._out.flush()
        del column.lines[:count]


def can_show_columns(out: TextIO) -> bool:
    """Whether it is a terminal that knows how to move its cursor."""
    return out.isatty() and os.environ.get("TERM") != "dumb"

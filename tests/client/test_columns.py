"""The two columns of `step-audio chat --mode`: wrapping, growth, and what a terminal shows of them."""

from __future__ import annotations

import io

import numpy as np
import pytest

from step_audio_client.columns import Column, Columns, Lines, cells
from terminal import Terminal

THOUGHT = (
    "I hear: thirty four plus twenty-one plus eight. 34+20=54, 54+1=55.\n\n55+8=63. 所以答案是六十三。 "
    "Donaudampfschiffahrtsgesellschaftskapitän, and so on; e\u0301te\u0301, 👍, done."
)
SPEECH = "thirty four and twenty one is fifty five, 加八是六十三。 So it is sixty three."


def lines(text: str, width: int) -> list[str]:
    column = Column(width)
    column.add(text)
    return [line.rstrip() for line in column.lines]


def pieces(text: str, random: np.random.Generator) -> list[str]:
    """The text cut anywhere, also into empty pieces."""
    cuts = sorted(random.integers(0, len(text) + 1, 30))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@pytest.mark.parametrize(
    ("text", "width", "expected"),
    [
        ("", 9, [""]),
        ("two words", 9, ["two words"]),
        ("two words", 8, ["two", "words"]),
        ("two  words ", 5, ["two", "words"]),  # no line begins with a space
        ("abcdefghij kl", 4, ["abcd", "efgh", "ij", "kl"]),  # a word longer than the line
        ("x abcdefghij", 4, ["x", "abcd", "efgh", "ij"]),
        ("one\ntwo\n\nthree", 9, ["one", "two", "", "three"]),
        ("茶茶茶 cup", 5, ["茶茶", "茶", "cup"]),  # two cells each; a line may end between them
        ("ok茶", 3, ["ok", "茶"]),
        ("茶茶茶", 1, ["茶", "茶", "茶"]),  # goes on even where nothing fits
        ("e\u0301e\u0301e\u0301 x", 3, ["e\u0301e\u0301e\u0301", "x"]),  # accents take no place
        ("a\tb\x1b[2Jc\x07\x9b", 9, ["a b[2Jc"]),  # nothing that a terminal would obey
    ],
)
def test_wrapping(text, width, expected):
    assert lines(text, width) == expected


@pytest.mark.parametrize("width", [2, 7, 20, 38])
def test_no_line_is_too_wide_and_nothing_is_lost(width):
    wrapped = lines(THOUGHT, width)
    assert max(map(cells, wrapped)) <= width
    assert "".join(wrapped).replace(" ", "") == THOUGHT.replace(" ", "").replace("\n", "")


def test_cuts_do_not_matter():
    whole = lines(THOUGHT, 20)
    for seed in range(20):
        column, before = Column(20), [""]
        for piece in pieces(THOUGHT, np.random.default_rng(seed)):
            column.add(piece)
            assert column.lines[: len(before) - 1] == before[:-1]  # only the last line changes
            before = list(column.lines)
        assert [line.rstrip() for line in column.lines] == whole


@pytest.mark.parametrize("width", [12, 40, 81, 200])
def test_side_by_side(width):
    """However they come, the terminal shows both whole, each wrapped on its own side."""
    side = (width - 4) // 2
    for seed in range(10):
        random = np.random.default_rng(seed)
        terminal = Terminal(width, 100)
        columns = Columns(terminal, (width, 100))
        for left, right in zip(pieces(THOUGHT, random), pieces(SPEECH, random), strict=True):
            for one, other in ((left, right),) if random.integers(2) else (("", right), (left, "")):
                columns.add(one, other)
        columns.end()
        left, right = lines(THOUGHT, side), lines(SPEECH, side)
        count = max(len(left), len(right))
        assert len(terminal.rows) == count + 1 and terminal.rows.pop() == ""
        for row, one, other in zip(
            terminal.rows, left + [""] * (count - len(left)), right + [""] * (count - len(right)), strict=True
        ):
            assert row.rstrip() == f"{one}{' ' * (side - cells(one))} | {other}".rstrip()


def test_only_the_thought_is_dim():
    terminal = Terminal(60, 24)
    columns = Columns(terminal, (60, 24))
    columns.add("thinking", "speaking")
    assert [text.replace(" ", "") for text in terminal.dim] == ["thinking|"]


def test_longer_than_the_screen():
    """What has left the screen is not touched: the speech, begun late, goes on where it can be seen."""
    terminal = Terminal(40, 5)
    columns = Columns(terminal, (40, 5))
    columns.add("", "First.")
    for n in range(20):
        columns.add(f"thought {n}\n", "")
    columns.add("", " And then it goes on for a while.")
    columns.add("the end", "")
    columns.end()
    assert [row.partition(" | ")[2] for row in terminal.rows if " | " in row] == [
        "First.", *[""] * 15, " And then it goes", "on for a while.", "", "", "",
    ]  # fmt: skip
    assert [row.partition(" | ")[0].rstrip() for row in terminal.rows] == [
        *(f"thought {n}" for n in range(20)), "the end", "",
    ]  # fmt: skip


def test_nothing_said():
    terminal = Terminal(40, 5)
    columns = Columns(terminal, (40, 5))
    columns.add("", "")
    columns.end()
    assert terminal.rows == ["", ""]


@pytest.mark.parametrize("seed", range(5))
def test_lines_of_both_in_turn(seed):
    """Where the cursor cannot be moved: no line has words of both, and each text can be read through."""
    random = np.random.default_rng(seed)
    out = io.StringIO()
    show = Lines(out, 30)
    show.add("", "")
    assert out.getvalue() == ""
    for left, right in zip(pieces(THOUGHT, random), pieces(SPEECH, random), strict=True):
        show.add(left, right)
    show.end()
    width = 30 - 1 - len(" | ")
    shown = out.getvalue().splitlines()
    assert [line[2:] for line in shown if line.startswith("| ")] == lines(THOUGHT, width)
    assert [line for line in shown if not line.startswith("|")] == lines(SPEECH, width)

"""A terminal, as far as `step-audio chat` uses one: what is on its screen after what was written to it."""

from __future__ import annotations

import re

from step_audio_client.columns import cells

CODE = re.compile(r"\033\[(\d*)([A-Za-z])")


class Terminal:
    """`rows`: all that was ever shown, those that have left the screen first. Refuses what a real one would garble."""

    def __init__(self, columns: int, lines: int):
        self.columns, self.lines = columns, lines
        self.rows = [""]
        self.dim: set[str] = set()  # texts that were written dim
        self._row = self._column = 0
        self._is_dim = False

    def write(self, text: str) -> None:
        while text:
            if code := CODE.match(text):
                self._control(code[2], code[1])
                text = text[code.end() :]
            elif text[0] in "\r\n":
                self._column = 0
                if text[0] == "\n":
                    self._row += 1
                    self.rows += [""] * (self._row + 1 - len(self.rows))
                text = text[1:]
            else:
                end = next((n for n, char in enumerate(text) if char in "\r\n\033"), len(text))
                self._print(text[:end])
                text = text[end:]

    def flush(self) -> None:
        pass

    def _control(self, letter: str, number: str) -> None:
        if letter == "A":
            assert 0 < int(number) <= self._row
            self._row -= int(number)
            assert self._row > len(self.rows) - 1 - self.lines, "above the screen"
        elif letter == "K":
            assert number == "" and self._column == 0
            self.rows[self._row] = ""
        else:
            assert letter == "m" and number in ("0", "2"), (letter, number)
            self._is_dim = number == "2"

    def _print(self, text: str) -> None:
        row = self.rows[self._row]
        assert cells(row) == self._column, "over something"
        self.rows[self._row] = row + text
        self._column += cells(text)
        assert self._column < self.columns, "wider than the terminal"
        if self._is_dim:
            self.dim.add(text)

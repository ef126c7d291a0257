"""Small sums: how they are said, how they are worked out step by step, and which are kept for evaluation."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
SPOKEN = {"+": "plus", "-": "minus", "*": "times"}


def in_words(n: int) -> str:
    """0 to 999.

    >>> in_words(412)
    'four hundred twelve'
    """
    if n < 20:
        return ONES[n]
    if n < 100:
        return TENS[n // 10] + (f" {ONES[n % 10]}" if n % 10 else "")
    return f"{ONES[n // 100]} hundred" + (f" {in_words(n % 100)}" if n % 100 else "")


def spell_numbers(text: str) -> str:
    """As espeak-ng is given it: lower case, numbers below 1000 in words, no punctuation.

    >>> spell_numbers("What is 58 plus 37?")
    'what is fifty eight plus thirty seven'
    """
    words = (in_words(int(word)) if word.isdigit() and int(word) < 1000 else word for word in re.findall(r"\w+", text))
    return " ".join(words).lower()


@dataclass(frozen=True, slots=True)
class Sum:
    """`numbers` joined by `signs` (+, -, *), worked out from left to right.

    >>> Sum((47, 38), "+").steps()
    ['47+30=77', '77+8=85']
    """

    numbers: tuple[int, ...]
    signs: str

    @property
    def result(self) -> int:
        value = self.numbers[0]
        for sign, number in zip(self.signs, self.numbers[1:], strict=True):
            value = _apply(value, sign, number)
        return value

    @property
    def written(self) -> str:
        """'47+38'"""
        return self._joined(str, lambda sign: sign).replace(" ", "")

    @property
    def read(self) -> str:
        """'47 plus 38'"""
        return self._joined(str, SPOKEN.__getitem__)

    @property
    def spoken(self) -> str:
        """'forty seven plus thirty eight'"""
        return self._joined(in_words, SPOKEN.__getitem__)

    def _joined(self, number: Callable[[int], str], sign: Callable[[str], str]) -> str:
        parts = [number(self.numbers[0])]
        for s, n in zip(self.signs, self.numbers[1:], strict=True):
            parts += [sign(s), number(n)]
        return " ".join(parts)

    @property
    def held_out(self) -> bool:
        """Whether this sum's numbers belong to evaluation: one in eight does, by a hash that ignores their order."""
        key = ",".join(map(str, sorted(self.numbers)))
        return zlib.crc32(key.encode()) % 8 == 0

    @property
    def holds_held_out(self) -> bool:
        """Whether any two numbers that are joined on the way to the result belong to evaluation."""
        value = self.numbers[0]
        for sign, number in zip(self.signs, self.numbers[1:], strict=True):
            if Sum((value, number), sign).held_out:
                return True
            value = _apply(value, sign, number)
        return False

    @property
    def by_head(self) -> bool:
        """Small enough to be worked out without a tool."""
        return max(self.numbers) < 100

    def steps(self) -> list[str]:
        """The chain of thought: tens first, then ones, one small step each."""
        steps: list[str] = []
        value = self.numbers[0]
        for sign, number in zip(self.signs, self.numbers[1:], strict=True):
            if sign == "*" and value > 9 and value % 10:
                tens, ones = value // 10 * 10 * number, value % 10 * number
                steps += [f"{value // 10 * 10}*{number}={tens}", f"{value % 10}*{number}={ones}"]
                value = _add(tens, "+", ones, steps)
            else:
                value = _add(value, sign, number, steps)
        return steps


def _add(value: int, sign: str, number: int, steps: list[str]) -> int:
    parts = [number] if sign == "*" else [part for part in (number // 10 * 10, number % 10) if part] or [0]
    for part in parts:
        after = _apply(value, sign, part)
        steps.append(f"{value}{sign}{part}={after}")
        value = after
    return value


def _apply(value: int, sign: str, number: int) -> int:
    return {"+": value + number, "-": value - number, "*": value * number}[sign]


def draw_sum(random: np.random.Generator, held_out: bool, terms: int = 2) -> Sum:
    """A sum of two or three terms to be worked out by head; no step is negative."""
    while True:
        sign = "+-*"[random.choice(3, p=[0.4, 0.35, 0.25])]
        a, b = (int(random.integers(2, 100)) for _ in "ab")
        if sign == "*":
            b = int(random.integers(2, 10))
        elif sign == "-" and a < b:
            a, b = b, a
        candidate = Sum((a, b), sign)
        if terms == 3:
            c = int(random.integers(2, 20))
            last = "+" if candidate.result < c or random.random() < 0.5 else "-"
            candidate = Sum((a, b, c), sign + last)
        if candidate.held_out == held_out:
            return candidate


def draw_large_sum(random: np.random.Generator, held_out: bool) -> Sum:
    """A sum of two numbers of three digits, which the model hands to a calculator."""
    while True:
        a, b = sorted((int(n) for n in random.integers(100, 1000, 2)), reverse=True)
        candidate = Sum((a, b), "+-*"[random.choice(3)])
        if candidate.held_out == held_out:
            return candidate

r"""Which number an answer states: in digits or words, as a fraction, behind "the answer is" or in `\boxed{}`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
_SCALE = "|".join(_SCALES)
_NUMBER = re.compile(
    rf"(?<![\w.])(?<!\d/)(?P<sign>-?)(?:(?P<whole>\d+)\s+(?=\d+/\d))?(?P<top>{_DIGITS})"
    rf"(?:/(?P<bottom>[1-9]\d*)(?![/\d])|\s+(?P<scale>{_SCALE})\b)?(?!\w)"
)
_SUM = re.compile(rf"-?{_DIGITS}(?:\s*[-+*/x\N{{MULTIPLICATION SIGN}}\N{{DIVISION SIGN}}]\s*-?{_DIGITS})+\s*=\s*")
_CLAUSE = re.compile(
    r"\banswer\b(?:\s+(?:is|was|would be|will be|equals|must be))?\s*[:=]?\s*([^\n]*?)(?:\.(?:\s|$)|\n|$)", re.I
)
_STATED = {
    "is", "are", "was", "were", "be", "equals", "equal", "makes", "make", "gives", "get", "gets", "leaves", "have",
}  # fmt: skip
_UNITS = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]  # fmt: skip
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_VALUES = {word: n for n, word in enumerate(_UNITS)} | {word: 10 * n for n, word in enumerate(_TENS, 2)}
_ORDINALS = ["third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"]
_PARTS = {"half": 2, "halves": 2, "quarter": 4, "quarters": 4} | {
    name + end: n for n, name in enumerate(_ORDINALS, 3) for end in ("", "s")
}


def boxed(text: str) -> str | None:
    r"""What stands in the last `\boxed{}`, out of its `\text{}`.

    >>> boxed(r"so it is \boxed{\text{B}}")
    'B'
    """
    start = text.rfind(r"\boxed{")
    if start < 0:
        return None
    depth, inside = 1, text[start + len(r"\boxed{") :]
    for n, character in enumerate(inside):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return re.sub(r"\\(?:text|mathrm|textbf|mathbf)\{([^{}]*)\}", r"\1", inside[:n]).strip()
    return None


def stated_number(text: str) -> Fraction | None:
    r"""The number that is given as the answer; where none is said to be, the last one in digits.

    >>> stated_number("The answer is twenty-one, and not 12.")
    Fraction(21, 1)
    """
    text = text.replace("\N{MINUS SIGN}", "-").replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    text = re.sub(r"\\[dt]?frac\{(\d+)\}\{(\d+)\}", r"\1/\2", text)
    if (inside := boxed(text)) is not None:
        return _first(inside)
    text = re.sub(r"[*_`$]", "", text)
    for clause in reversed(_CLAUSE.findall(text)):
        if (number := _first(clause)) is not None:
            return number
    digits = [value for _, value in _in_digits(text)]
    return digits[-1] if digits else _in_a_statement(text)


def _first(text: str) -> Fraction | None:
    """The first number; of a sum that is written out, what it comes to."""
    if found := _SUM.search(text):
        text = text[found.end() :]
    numbers = sorted([*_in_digits(text), *_in_words(text)])
    return numbers[0][1] if numbers else None


def _in_digits(text: str) -> Iterator[tuple[int, Fraction]]:
    for found in _NUMBER.finditer(text):
        if _denied(text[: found.start()]):
            continue
        value = Fraction(found["top"].replace(",", ""))
        if found["bottom"]:
            value /= int(found["bottom"])
        value = (value + int(found["whole"] or 0)) * _SCALES.get(found["scale"] or "", 1)
        yield found.start(), -value if found["sign"] else value


def _denied(before: str) -> bool:
    return re.search(r"(?:\bnot|n't|\binstead of|\brather than)\s*$", before, re.I) is not None


def _in_words(text: str) -> Iterator[tuple[int, Fraction]]:
    """Each run of words that is a number, with where it begins."""
    words = [(found.start(), found[0].lower()) for found in re.finditer(r"[A-Za-z']+", text)]
    n = 0
    while n < len(words):
        value, end = _number_words([word for _, word in words[n:]])
        if value is not None and not _denied(text[: words[n][0]]):
            yield words[n][0], value
        n += max(end, 1)


def _number_words(words: list[str]) -> tuple[Fraction | None, int]:
    """The number that `words` begin with, and how many of them it takes."""
    sign, n = 1, 0
    if words[0] in ("minus", "negative") and len(words) > 1:
        sign, n = -1, 1
    begin, total, group = n, 0, 0
    while n < len(words):
        word = words[n]
        if word in _VALUES:
            if n > begin and not _continues(words[n - 1], word):
                break  # "seven eight" are two numbers
            group += _VALUES[word]
        elif word == "hundred" and n > begin:
            group *= 100
        elif word in _SCALES and n > begin:
            total, group = total + group * _SCALES[word], 0
        elif not (
            word == "and" and n > begin and words[n - 1] in _SCALES and words[n + 1 : n + 2] and words[n + 1] in _VALUES
        ):
            break
        n += 1
    if n == begin:
        return None, 0
    value = Fraction(total + group)
    if n < len(words) and words[n] in _PARTS:
        value, n = value / _PARTS[words[n]], n + 1
    return sign * value, n


def _continues(before: str, word: str) -> bool:
    return before in _SCALES or before == "and" or (before in _TENS and 0 < _VALUES[word] < 10)


def _in_a_statement(text: str) -> Fraction | None:
    """A number in words, where it is the whole answer or stands behind a verb: "no one knows" states none."""
    found = list(_in_words(text))
    if not found:
        return None
    place, value = found[-1]
    before = re.findall(r"[A-Za-z']+", text[:place])
    return value if not before or before[-1].lower() in _STATED else None

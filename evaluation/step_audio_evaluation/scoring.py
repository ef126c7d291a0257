"""Whether an answer is right. Pure functions on text; only what comes behind the thought is looked at."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from step_audio_client import Reply, ToolCall
from step_audio_evaluation.items import Item
from step_audio_evaluation.numbers import boxed, stated_number
from step_audio_training.word_errors import word_errors

# "A dog" has an article, not a letter; "C#" and "C++" are no letters either.
_NAMED = re.compile(r"\b(?i:answer|option|choice)\b(?i:\s+is)?:?\s*[(\[]?(A(?!\s+[a-z])|[B-Z])\b(?!['#+])")
_LETTER = r"[(\[]?([A-Za-z])[)\].:]"


@dataclass(frozen=True)
class Score:
    """`errors` and `words` are of a transcript: edits it takes to make it right, and words that were said."""

    correct: bool
    errors: int = 0
    words: int = 0


def score(item: Item, reply: Reply | None) -> Score:
    """`reply` None: there is none, which is wrong whatever is expected."""
    content = (reply and reply.content) or ""
    calls = reply.tool_calls if reply else ()
    said = normalised_words(item.expected)
    if reply is None:
        return Score(False, len(said), len(said)) if item.kind == "transcript" else Score(False)
    match item.kind:
        case "number":
            return Score(not calls and is_number(content, item.expected))
        case "word":
            return Score(is_word(content, item.expected, item.options))
        case "transcript":
            errors = word_errors(said, normalised_words(content))
            return Score(errors == 0, errors, len(said))
        case "tool_call":
            return Score(is_call(calls, "calculator", item.expected))
        case "call":
            wanted = json.loads(item.expected)
            return Score(
                len(calls) == 1 and calls[0].name == wanted["name"] and is_json(calls[0].arguments, wanted["arguments"])
            )
        case "json":
            return Score(not calls and is_json(content, json.loads(item.expected)))
        case "choice":
            chosen = chosen_option(content, item.options)
            return Score(chosen is not None and item.options[chosen] == item.expected)
        case "text":
            if not said:  # nothing but signs, and these are looked at where there are no words
                return Score(content.strip() == item.expected.strip())
            return Score(normalised_words(content) == said)


def is_number(text: str, expected: str) -> bool:
    """Whether the number that `text` states is the expected one; 9.0 is 9, and so is nine."""
    return stated_number(text) == stated_number(expected)


def normalised_words(text: str) -> list[str]:
    """Words without case and punctuation, as word error rates are computed on.

    >>> normalised_words("It's HERE,  now!")
    ["it's", 'here', 'now']
    """
    text = unicodedata.normalize("NFKC", text).casefold().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    return re.findall(r"\w+(?:'\w+)*", text)


def is_word(text: str, expected: str, options: Sequence[str]) -> bool:
    """Whether the expected one of the options is said, and no other.

    >>> is_word("The voice is low, not high.", "low", ("low", "high"))
    False
    """
    said = set(normalised_words(text))
    return {option for option in options if option.casefold() in said} == {expected}


def is_call(calls: Sequence[ToolCall], name: str, expression: str) -> bool:
    """Whether there is one call, of this function with this expression; spaces do not matter."""
    if len(calls) != 1 or calls[0].name != name:
        return False
    try:
        arguments = json.loads(calls[0].arguments)
    except ValueError:
        return False
    given = arguments.get("expression") if isinstance(arguments, dict) else None
    return isinstance(given, str) and "".join(given.split()) == "".join(expression.split())


def is_json(text: str, expected: object) -> bool:
    """Whether `text` is JSON, and nothing else, of this value; a number is no text.

    >>> is_json('{"a": 1}', {"a": "1"})
    False
    """
    try:
        given: object = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return given == expected


def chosen_option(text: str, options: Sequence[str]) -> int | None:
    """Which option an answer names, by its letter or its words; None where it names none or several.

    >>> chosen_option("The answer is (B).", ["a dog", "a cat"])
    1
    """
    if (exact := _same_text(text, options)) is not None:
        return exact
    text = boxed(text) or text
    text = re.sub(r"[*_`]", "", text).strip()
    if (exact := _same_text(text, options)) is not None:
        return exact

    def index(letter: str) -> int | None:
        n = ord(letter.upper()) - ord("A")
        return n if n < len(options) else None

    words = [normalised_words(option) for option in options]
    said = normalised_words(text)
    if said and words.count(said) == 1:
        return words.index(said)
    if found := re.fullmatch(rf"{_LETTER}?", text) or re.match(rf"{_LETTER}(?=\s|[A-Z])", text):
        return index(found[1])
    if named := _NAMED.findall(text):
        return index(named[-1])
    held = [n for n, option in enumerate(words) if option and _within(option, said)]
    whole = [n for n in held if not any(m != n and _within(words[n], words[m]) for m in held)]
    return whole[0] if len(whole) == 1 else None


def _same_text(text: str, options: Sequence[str]) -> int | None:
    """The one option that is the text, signs and all: words alone do not tell "C#" from "C", nor "-5" from "5"."""
    forms: tuple[Callable[[str], str], ...] = (
        str.strip,
        lambda given: given.strip().casefold(),
        lambda given: given.strip().casefold().removesuffix("."),
    )
    for form in forms:
        same = [n for n, option in enumerate(options) if form(option) == form(text)]
        if len(same) == 1 and form(text):
            return same[0]
    return None


def _within(part: Sequence[str], whole: Sequence[str]) -> bool:
    """Whether `part` stands in `whole`, in one piece, and is not denied there."""
    return any(
        list(whole[n : n + len(part)]) == list(part) and (n == 0 or whole[n - 1] != "not")
        for n in range(len(whole) - len(part) + 1)
    )

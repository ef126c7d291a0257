"""The form that an answer must have, and how it is told to the LLM: JSON that has an end.

For xgrammar a JSON schema allows white space without end between any two tokens, and digits without end in a number:
a model that has begun to write them may never stop. TensorRT-LLM has no input that says otherwise. So a schema goes to
the LLM as a grammar in xgrammar's EBNF, which allows one space behind each comma and colon, and no other, and no more
digits than numbers of 64 bits have. The xgrammar beside the LLM writes it: its release reads what it has written.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from itertools import accumulate
from typing import Literal, TypeGuard, get_args

from step_audio.errors import InvalidGuide

GuideKind = Literal["json", "json_schema", "regex", "ebnf_grammar"]

MAX_GUIDE_LENGTH = 65_536  # characters
MAX_GRAMMAR_LENGTH = 4 * MAX_GUIDE_LENGTH  # of what is made of a schema
MAX_SCHEMA_DEPTH = 128  # brackets; what xgrammar makes of thousands takes minutes and gigabytes
MAX_MESSAGE = 200

_STRING_OR_BRACKET = re.compile(r'"(?:\\.|[^"\\])*"|[\[{]|[\]}]', re.DOTALL)
# xgrammar's messages begin with a clock time and a line of its source, and repeat the guide.
_WHERE = re.compile(r"^\[[\d:]+\] \S+:\d+: (?:Check failed: .*? is false: )?")
_ECHO = re.compile(r"\s*The JSON string is:.*", re.DOTALL)
# Of a grammar: a text, or a class of characters.
_TEXT_OR_CLASS = re.compile(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]', re.DOTALL)
_NOT_IN_STRINGS = r"[^\0-\x1f\"\\"
_ANY_CHARACTER = re.compile(r"\[\\(?:0|x00|u0000)-\\U0010ffff\]", re.IGNORECASE)
_NUMBERS = re.compile(r"^basic_(integer|number) ::= .*$", re.MULTILINE)
_FINITE = {
    "integer": '("0" | "-"? [1-9] [0-9]{0,18})',
    # With any exponent more it might be infinite.
    "number": '"-"? ("0" | [1-9] [0-9]{0,18}) ("." [0-9]{1,17})? ([eE] [+\\-]? ([0-9]{1,2} | [12] [0-8] [0-9]))?',
}
# Of a number that has a least or a largest value.
_ENDLESS = re.compile(r"\[1-9\] (?:\[0-9\]\*|(\w+)\{1, -1\})")
_ANY_OBJECT = '{"type": "object"}'


@dataclass(frozen=True, slots=True)
class GuideSpec:
    """What the answer must be, from its first token on: any JSON, JSON of a schema, what a regular expression
    matches, or a sentence of a grammar in xgrammar's EBNF, whose first rule is `root`."""

    kind: GuideKind
    text: str = ""  # not looked at for "json"

    @classmethod
    def of(cls, kind: str, text: str) -> GuideSpec:
        """Raises InvalidGuide for a kind that there is not."""
        if not _is_guide_kind(kind):
            kinds = ", ".join(get_args(GuideKind))
            raise InvalidGuide(
                f"guided_decoding_guide_type must be one of {kinds}, not {kind[:40]!r}", "guided_decoding_guide_type"
            )
        return cls(kind, text)

    def check(self, longest: int = MAX_GUIDE_LENGTH) -> None:
        """Raises InvalidGuide for one that would cost too much."""
        if self.kind != "json" and not self.text:
            raise InvalidGuide(f"guided_decoding_guide is missing: {self.kind} needs one")
        if len(self.text) > longest:
            raise InvalidGuide(f"guided_decoding_guide has {len(self.text)} characters, at most {longest} are allowed")
        if self.kind == "json_schema":
            marks = (match[0] for match in _STRING_OR_BRACKET.finditer(self.text))
            depth = max(accumulate(1 if mark in "[{" else -1 if mark in "]}" else 0 for mark in marks), default=0)
            if depth > MAX_SCHEMA_DEPTH:
                raise InvalidGuide(
                    f"guided_decoding_guide is nested {depth} deep, at most {MAX_SCHEMA_DEPTH} is allowed"
                )


def _is_guide_kind(text: str) -> TypeGuard[GuideKind]:
    return text in get_args(GuideKind)


def unusable(guide: GuideSpec, error: Exception) -> InvalidGuide:
    """xgrammar's error as a line."""
    reason = " ".join(_ECHO.sub("", _WHERE.sub("", str(error))).split())[:MAX_MESSAGE]
    return InvalidGuide(f"guided_decoding_guide cannot be used as {guide.kind}: {reason}")


def bounded(guide: GuideSpec) -> GuideSpec:
    """The guide as it goes to the LLM; JSON is an object where there is no schema. Raises InvalidGuide.

    Imports xgrammar for JSON: seconds of the processor, once. Without it JSON stays what it is, for an LLM that
    refuses guides.
    """
    guide.check()
    if guide.kind not in ("json", "json_schema") or find_spec("xgrammar") is None:
        return guide
    grammar = _grammar(_ANY_OBJECT if guide.kind == "json" else guide.text)
    if len(grammar) > MAX_GRAMMAR_LENGTH:
        raise InvalidGuide(f"guided_decoding_guide is too large a schema: {len(grammar)} characters as a grammar")
    return GuideSpec("ebnf_grammar", grammar)


@lru_cache(maxsize=64)
def _grammar(schema: str) -> str:
    from xgrammar.testing import _json_schema_to_ebnf  # as written: a Grammar's text is another one in each release

    try:
        grammar: str = _json_schema_to_ebnf(schema, any_whitespace=False)
    except (RuntimeError, ValueError) as error:
        raise unusable(GuideSpec("json_schema", schema), error) from None
    grammar = _TEXT_OR_CLASS.sub(lambda match: _within_strings(match[0]), grammar)
    grammar = _NUMBERS.sub(lambda match: f"basic_{match[1]} ::= {_FINITE[match[1]]}", grammar)
    return "\n".join(map(_with_an_end, grammar.split("\n")))


def _with_an_end(rule: str) -> str:
    """No more digits of a number than an integer has; a rule with an escaped quote is a string's, of a pattern.

    >>> print(_with_an_end('a ::= ("0" | [1-9] [0-9]*)'), _with_an_end("b ::= (([1-9] b_1{1, -1}))"))
    a ::= ("0" | [1-9] [0-9]{0,18}) b ::= (([1-9] b_1{1,18}))
    """
    if '\\"' in rule:
        return rule
    return _ENDLESS.sub(lambda match: f"[1-9] {match[1]}{{1,18}}" if match[1] else "[1-9] [0-9]{0,18}", rule)


def _within_strings(piece: str) -> str:
    r"""Outside of strings JSON has no character that is told by what it is not. Within them xgrammar's classes let
    control characters pass where a length or a pattern is given, of a pattern quotes, too.

    >>> print(_within_strings('[^a]'), _within_strings('[0-9]'), _within_strings('"[^a]"'))
    [^\0-\x1f\"\\a] [0-9] "[^a]"
    """
    if _ANY_CHARACTER.fullmatch(piece):
        return f"{_NOT_IN_STRINGS}]"
    if piece.startswith("[^") and not piece.startswith(_NOT_IN_STRINGS):
        return _NOT_IN_STRINGS + piece.removeprefix("[^")
    return piece

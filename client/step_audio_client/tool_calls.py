r"""Tool calls in an answer: `<tool_call>function\nNAME\n{JSON}</tool_call>`, as the chat template writes them back.

The two markers are added tokens that decoding keeps, so they show in the text.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Collection
from dataclasses import dataclass
from typing import NoReturn

from step_audio_client.markers import partial_marker

BEGIN_CALL = "<tool_call>"
END_CALL = "</tool_call>"

_KIND = "function\n"
_CALL = re.compile(r"function\n([^\n]+)\n(.*)", re.DOTALL)
# Up to within a string of JSON's, in which there are no line ends.
_IN_STRING = re.compile(r'(?:[^"]|"(?:[^"\\\n]|\\[^\n])*+")*+"(?:[^"\\\n]|\\[^\n])*+\\?')


@dataclass(frozen=True)
class ToolCall:
    """One call. `arguments` is a JSON object in the model's own spelling, cut short where the reply was."""

    index: int  # among the calls of the reply, from 0
    id: str  # ours, for the tool's answer to name; the model has none
    name: str
    arguments: str


class ToolCallParser:
    """Takes the calls out of content that arrives in pieces of any size; the result does not depend on the cuts.

    No text is lost. What is not a call, being unclosed, not a JSON object, or of a name not in
    `tool_names`, is content like the text before, between and behind the calls. `tool_names` None lets every
    name pass. A call is handed out whole, at its end: until then it may turn out to be none.
    """

    def __init__(self, tool_names: Collection[str] | None = None):
        self._tool_names = tool_names
        self._held = ""  # a part of a marker, or a call that has not ended
        self._index = 0

    def push(self, text: str) -> tuple[str, list[ToolCall]]:
        """The next piece of content; what is surely content, and the calls that have ended."""
        text = self._held + text
        content = ""
        calls: list[ToolCall] = []
        while (begin := text.find(BEGIN_CALL)) >= 0:
            content += text[:begin]
            text = text[begin:]
            body = text[len(BEGIN_CALL) :]
            may_be_call = body.startswith(_KIND) or _KIND.startswith(body)
            end = _end(body)
            if may_be_call and end < 0:
                self._held = text
                return content, calls
            if may_be_call and (call := self._call(body[:end])):
                calls.append(call)
                text = body[end + len(END_CALL) :]
            else:  # one marker at a time, for a call may begin inside what was none
                content += BEGIN_CALL
                text = body
        sure = len(text) - partial_marker(text, [BEGIN_CALL])
        self._held = text[sure:]
        return content + text[:sure], calls

    def flush(self, cut: bool = False) -> tuple[str, list[ToolCall]]:
        """The end of the content: what was held back was no call. `cut`: or it is one that was cut short, which is
        handed out as far as it came, and left out if it has no name yet."""
        held, self._held = self._held, ""
        if not cut or not held.startswith(BEGIN_CALL):
            return held, []
        match = _CALL.fullmatch(held.removeprefix(BEGIN_CALL))
        return "", [call] if match and (call := self._named(match[1].strip(), match[2].lstrip())) else []

    def _call(self, body: str) -> ToolCall | None:
        match = _CALL.fullmatch(body)
        if match is None:
            return None
        arguments = match[2].strip()
        try:
            if not isinstance(json.loads(arguments, parse_constant=_not_json), dict):
                return None
        except (ValueError, RecursionError):  # the latter for absurdly deep nesting
            return None
        return self._named(match[1].strip(), arguments)

    def _named(self, name: str, arguments: str) -> ToolCall | None:
        if not name or (self._tool_names is not None and name not in self._tool_names):
            return None
        call = ToolCall(self._index, f"call_{uuid.uuid4().hex}", name, arguments)
        self._index += 1
        return call


def _end(body: str) -> int:
    """Where the marker stands that ends a call, which may stand within its strings, too; -1 where none does.

    >>> _end('function\\nf\\n{"a": "</tool_call>"}</tool_call>'), _end('{"a": "</tool_call>')
    (32, -1)
    """
    end = body.find(END_CALL)
    while end >= 0 and _IN_STRING.fullmatch(body, 0, end):
        end = body.find(END_CALL, end + 1)
    return end


def _not_json(constant: str) -> NoReturn:
    """Python reads NaN and Infinity; nobody else need."""
    raise ValueError(f"{constant} is not JSON")

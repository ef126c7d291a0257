"""A reply taken apart: thought, answer, tool calls."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from step_audio_client.reasoning import ReasoningSplitter
from step_audio_client.tool_calls import ToolCall, ToolCallParser


@dataclass(frozen=True)
class ReplyDelta:
    """What is new."""

    reasoning: str = ""
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True)
class Reply:
    """A whole reply; None where there is no such text. A thought that was cut short has no content behind it."""

    reasoning: str | None
    content: str | None
    tool_calls: tuple[ToolCall, ...]


class ReplyParser:
    """ReasoningSplitter and ToolCallParser in a row; their parameters, and their promise about cuts."""

    def __init__(self, starts_in_content: bool = False, tool_names: Collection[str] | None = None):
        self._splitter = ReasoningSplitter(starts_in_content)
        self._calls = ToolCallParser(tool_names)

    def push(self, text: str) -> ReplyDelta:
        """The next piece of the reply, such as `Delta.text`."""
        reasoning, text = self._splitter.push(text)
        content, calls = self._calls.push(text)
        return ReplyDelta(reasoning, content, tuple(calls))

    def flush(self) -> ReplyDelta:
        """The end of the reply; gives back what was held."""
        reasoning, _ = self._splitter.flush()
        content, calls = self._calls.flush()
        return ReplyDelta(reasoning, content, tuple(calls))


def parse_reply(text: str, starts_in_content: bool = False, tool_names: Collection[str] | None = None) -> Reply:
    r"""Take a whole reply apart; parameters as for ReplyParser.

    >>> parse_reply("Two and two.\n</think>\nFour.")
    Reply(reasoning='Two and two.', content='Four.', tool_calls=())
    """
    parser = ReplyParser(starts_in_content, tool_names)
    first, last = parser.push(text), parser.flush()
    return Reply(
        reasoning=first.reasoning + last.reasoning or None,
        content=first.content + last.content or None,
        tool_calls=first.tool_calls + last.tool_calls,
    )

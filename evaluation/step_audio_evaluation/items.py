"""What is asked and what a right answer is: the one form that held-out examples and data sets are brought into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from step_audio.errors import StepAudioError
from step_audio_client import Audio, Reply, parse_reply

Kind = Literal["number", "word", "transcript", "tool_call", "call", "choice", "json", "text"]
Snr = float | Literal["clean"]  # decibels; clean: no noise at all
Budget = int | Literal["unlimited"]  # tokens that the thought may have


class EvaluationError(StepAudioError):
    """The evaluation cannot be done as asked."""


@dataclass(frozen=True)
class Item:
    """One question.

    `messages` hold `{"type": "audio"}` where a recording of `audio` stands, in order; a path is read only when the
    question is asked. `prefix`: the beginning of the assistant's turn, given and not asked. `expected` and `options`
    mean what `kind` says: a number; one word of the options; the words that are said; a calculator's expression;
    a call's `name` and `arguments` in JSON; one of the options, word for word; JSON; a text.
    """

    id: str
    task: str
    messages: tuple[Mapping[str, Any], ...]
    audio: tuple[bytes | Path, ...]
    kind: Kind
    expected: str
    options: tuple[str, ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    prefix: str | None = None
    tags: tuple[str, ...] = ()
    snr_db: Snr | None = None  # where it was fixed
    budget: Budget | None = None  # where it was fixed
    round: int = 0  # the how-manieth time it is asked: each is drawn with a seed of its own

    def request(self) -> list[dict[str, Any]]:
        """The messages as the client takes them. Raises OSError for a recording that cannot be read."""
        recordings = iter(Audio(a) if isinstance(a, bytes) else Audio.load(a) for a in self.audio)

        def filled(content: Any) -> Any:
            if isinstance(content, str):
                return content
            return [{**part, "audio": next(recordings)} if part["type"] == "audio" else part for part in content]

        messages = [{**message, "content": filled(message["content"])} for message in self.messages]
        if self.prefix is not None:
            messages.append({"role": "assistant", "content": self.prefix})
        return messages

    def parse(self, text: str) -> Reply:
        """What the model wrote behind the prefix, taken apart."""
        starts_in_content = self.prefix is not None and self.prefix.rstrip().endswith("</think>")
        return parse_reply(text, starts_in_content, [tool["function"]["name"] for tool in self.tools])


def repeated(items: Sequence[Item], times: int) -> list[Item]:
    """Each question so often, in rounds; the ids of the first round are the questions' own."""
    later = [replace(item, id=f"{item.id}#{n + 1}", round=n) for n in range(1, times) for item in items]
    return [*items, *later]

"""Messages with recordings in them: what a caller writes, and what travels."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class HeardClips:
    """Clips that a recording begins with and that the server of this address has heard, each as its frames, of 10 ms,
    and its content hash."""

    server: str
    clips: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Beginning:
    """What a server knows of a recording whose rest is sent.

    `whole`: makes the bytes of the file with all of it, which are sent where the server knows it no longer; `skip`:
    samples at 16 kHz at the rest's beginning that are still the clips'.
    """

    heard: HeardClips
    whole: Callable[[], bytes]
    skip: int = 0


@dataclass(frozen=True)
class Audio:
    """A recording in any common format, as the bytes of its file.

    `channel`: the one to be heard, from 0 on; None: the mean of all. `known`: its beginning, which need not be sent:
    `data` is then a file with what comes behind it, no bytes where nothing does.
    """

    data: bytes
    channel: int | None = None
    known: Beginning | None = None

    @classmethod
    def load(cls, path: str | Path, channel: int | None = None) -> Audio:
        return cls(Path(path).read_bytes(), channel)


def user(*parts: str | Audio | Path) -> dict[str, Any]:
    """One user turn of text and recordings in the given order; a Path is read.

    >>> user("hello")
    {'role': 'user', 'content': [{'type': 'text', 'text': 'hello'}]}
    """
    content: list[dict[str, Any]] = []
    for part in parts:
        if isinstance(part, str):
            content.append({"type": "text", "text": part})
        else:
            content.append({"type": "audio", "audio": part if isinstance(part, Audio) else Audio.load(part)})
    return {"role": "user", "content": content}


def split_audio(messages: Iterable[Mapping[str, Any]], whole: bool = False) -> tuple[str, list[bytes]]:
    """The messages as JSON with audio placeholders, and what is to be sent of the recordings, in their order.

    `whole`: all of them, whatever is known.
    """
    audio: list[bytes] = []

    def part(value: Any) -> Any:
        if not isinstance(value, Mapping) or not isinstance(value.get("audio"), Audio):
            return value
        recording: Audio = value["audio"]
        place: dict[str, Any] = {"type": "audio"}
        if recording.channel is not None:
            place["channel"] = recording.channel
        known = recording.known
        audio.append(known.whole() if known and whole else recording.data)
        return place if known is None or whole else place | {"known": known.heard.clips, "skip": known.skip}

    def message(value: Mapping[str, Any]) -> dict[str, Any]:
        content = value.get("content")
        if isinstance(content, Sequence) and not isinstance(content, str):
            return {**value, "content": [part(item) for item in content]}
        return dict(value)

    return json.dumps([message(value) for value in messages], ensure_ascii=False), audio


def recordings(messages: Iterable[Mapping[str, Any]]) -> Iterator[Audio]:
    """In their order."""
    for message in messages:
        content = message.get("content")
        if isinstance(content, Sequence) and not isinstance(content, str):
            for part in content:
                if isinstance(part, Mapping) and isinstance(part.get("audio"), Audio):
                    yield part["audio"]

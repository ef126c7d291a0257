"""Messages with recordings in them: what a caller writes, and what travels."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Audio:
    """A recording in any common format, as the bytes of its file.

    `channel`: the one to be heard, from 0 on; None: the mean of all.
    """

    data: bytes
    channel: int | None = None

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


def split_audio(messages: Iterable[Mapping[str, Any]]) -> tuple[str, list[bytes]]:
    """The messages as JSON with bare audio placeholders, and the recordings in the placeholders' order."""
    audio: list[bytes] = []

    def part(value: Any) -> Any:
        if isinstance(value, Mapping) and isinstance(value.get("audio"), Audio):
            recording: Audio = value["audio"]
            audio.append(recording.data)
            return {"type": "audio"} if recording.channel is None else {"type": "audio", "channel": recording.channel}
        return value

    def message(value: Mapping[str, Any]) -> dict[str, Any]:
        content = value.get("content")
        if isinstance(content, Sequence) and not isinstance(content, str):
            return {**value, "content": [part(item) for item in content]}
        return dict(value)

    return json.dumps([message(value) for value in messages], ensure_ascii=False), audio

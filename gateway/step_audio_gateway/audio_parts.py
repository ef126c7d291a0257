"""Messages as clients send them to messages of the client library, recordings as bytes."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ParamSpec, TypeVar

from step_audio.audio import HEADER_SLACK, stated_seconds
from step_audio.serving_info import ServedLimits
from step_audio_client import Audio
from step_audio_gateway.errors import ApiError, refused
from step_audio_gateway.fetch import Fetcher
from step_audio_gateway.schemas import AudioPart, AudioUrlPart, ChatMessage, InputAudioPart, TextPart

P = ParamSpec("P")
T = TypeVar("T")

Place = tuple[int, int]  # message, part
SMALL = 1 << 19  # bytes, done in 2 ms


async def client_messages(
    messages: Sequence[ChatMessage], limits: ServedLimits, fetcher: Fetcher
) -> list[dict[str, Any]]:
    """`limits`: the served model's, of one request. They are checked as early as they can be known: the number
    of recordings and their size before base64 is undone, their stated length before anything is sent on.

    Raises ApiError.
    """
    sources = {place: source for place, source in _sources(messages)}
    if len(sources) > limits["max_audios"]:
        raise refused(f"{len(sources)} recordings, the limit is {limits['max_audios']}", "messages")
    most = limits["max_audio_bytes"]
    if sum(len(source) * 3 // 4 - 2 for source in sources.values() if not _is_web(source)) > most:
        raise ApiError(413, f"the recordings are larger than {most} bytes", "messages", "audio_too_large")
    recordings: dict[Place, Audio] = {}
    for place, source in sources.items():
        param = f"messages[{place[0]}].content[{place[1]}]"
        if _is_web(source):
            data = await fetcher.fetch(source, most, param)
        else:
            data = await _apart(len(source), decode_base64, source, param)
        most -= len(data)
        recordings[place] = Audio(data)
    files = [audio.data for audio in recordings.values()]
    await _apart(sum(map(len, files)), check_length, files, limits["max_audio_seconds"])
    return [_message(message, i, recordings) for i, message in enumerate(messages)]


async def _apart(size: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """In a thread, where `size` bytes take longer than going there and back."""
    return work(*args, **kwargs) if size <= SMALL else await asyncio.to_thread(work, *args, **kwargs)


def decode_base64(source: str, param: str) -> bytes:
    """Bare base64 or a data: URL of it; line breaks do not matter. Raises ApiError."""
    if source[:5].lower() == "data:":
        head, _, source = source.partition(",")
        if not head.lower().endswith(";base64"):
            raise refused(f"{param}: a data: URL must be base64, as in data:audio/wav;base64,UklGR...", param)
    try:
        data = base64.b64decode(source, validate=True)
    except (binascii.Error, ValueError):
        try:
            data = base64.b64decode("".join(source.split()), validate=True)
        except (binascii.Error, ValueError):
            raise refused(f"{param}: the audio is neither base64 nor a URL", param) from None
    if not data:
        raise refused(f"{param}: the audio is empty", param)
    return data


def check_length(recordings: Sequence[bytes], max_seconds: float) -> float:
    """Seconds that their headers state, all together; one that states none is measured while it is decoded.

    Raises ApiError.
    """
    seconds = sum(stated_seconds(data) or 0.0 for data in recordings)
    if seconds > max_seconds + HEADER_SLACK * len(recordings):
        raise refused(f"{seconds:.1f} s of audio, the limit is {max_seconds:g} s", "messages", "audio_too_long")
    return seconds


def _is_web(source: str) -> bool:
    """No base64 has a colon."""
    return ":" in source[:16] and source[:5].lower() != "data:"


def _sources(messages: Sequence[ChatMessage]) -> Iterator[tuple[Place, str]]:
    for i, message in enumerate(messages):
        for j, part in enumerate(message.content if isinstance(message.content, list) else ()):
            match part:
                case InputAudioPart():
                    source = part.input_audio.data
                    if _is_web(source):
                        raise refused("input_audio.data must be base64; addresses go into audio_url", "messages")
                    yield (i, j), source
                case AudioUrlPart():
                    if ":" not in part.audio_url.url[:16]:
                        raise refused("audio_url.url must be a data: or https: URL", "messages")
                    yield (i, j), part.audio_url.url
                case AudioPart():
                    yield (i, j), part.audio


def _message(message: ChatMessage, i: int, recordings: dict[Place, Audio]) -> dict[str, Any]:
    """With the keys that the model is shown, no others."""
    values: dict[str, Any] = {"role": message.role, "content": message.content}
    if isinstance(message.content, list):
        values["content"] = [
            {"type": "text", "text": part.text}
            if isinstance(part, TextPart)
            else {"type": "audio", "audio": recordings[i, j]}
            for j, part in enumerate(message.content)
        ]
    if message.tool_calls:
        values["tool_calls"] = [call.model_dump(exclude_none=True) for call in message.tool_calls]
    for key in ("name", "tool_call_id"):
        if (value := getattr(message, key)) is not None:
            values[key] = value
    return values

"""Messages as clients send them to messages of the client library, recordings as bytes."""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ParamSpec, TypeVar

from step_audio.audio import HEADER_SLACK, stated_seconds
from step_audio.serving_info import ServedLimits
from step_audio_client import Audio
from step_audio_gateway.errors import ApiError, refused
from step_audio_gateway.fetch import Fetcher
from step_audio_gateway.messages import (
    AudioPart,
    AudioUrlPart,
    ChatMessage,
    FilePart,
    InputAudioPart,
    RefusalPart,
    TextPart,
)

P = ParamSpec("P")
T = TypeVar("T")

Place = tuple[int, int]  # message, part
PIECE = 1 << 20  # characters
LONGEST_HEAD = 256  # of a data: URL: its kind of file and parameters
_URL_SAFE = bytes.maketrans(b"-_", b"+/")
SMALL = 1 << 19  # bytes, done in 2 ms


async def client_messages(
    messages: Sequence[ChatMessage], limits: ServedLimits, fetcher: Fetcher
) -> tuple[list[dict[str, Any]], list[str]]:
    """With each recording's place in the request. `limits`: the served model's, of one request. They are checked as
    early as they can be known: the number of recordings and their size before base64 is undone, their stated length
    before anything is sent on.

    Raises ApiError.
    """
    sources, channels = {}, {}
    for place, source, channel in _sources(messages):
        sources[place], channels[place] = source, channel
    if len(sources) > limits["max_audios"]:
        raise refused(f"{len(sources)} recordings, the limit is {limits['max_audios']}", "messages")
    most = limits["max_audio_bytes"]
    if sum(len(source) * 3 // 4 - 2 for source in sources.values() if not _is_web(source)) > most:
        raise ApiError(413, f"the recordings are larger than {most} bytes", "messages", "audio_too_large")
    recordings: dict[Place, Audio] = {}
    for place, source in sources.items():
        param = _param(place)
        if _is_web(source):
            data = await fetcher.fetch(source, most, param)
        else:
            data = await _apart(len(source), decode_base64, source, param)
        if is_empty(data):
            if (place[0], place[1] - 1) not in sources:
                raise refused(f"{param}: the audio is empty", param)
            continue  # the rest of a recording that was cut into pieces, which came out even
        most -= len(data)
        recordings[place] = Audio(data, channels[place])
    files = [audio.data for audio in recordings.values()]
    await _apart(sum(map(len, files)), check_length, files, limits["max_audio_seconds"])
    return [_message(message, i, recordings) for i, message in enumerate(messages)], [*map(_param, recordings)]


def _param(place: Place) -> str:
    return f"messages[{place[0]}].content[{place[1]}]"


async def _apart(size: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """In a thread, where `size` bytes take longer than going there and back."""
    return work(*args, **kwargs) if size <= SMALL else await asyncio.to_thread(work, *args, **kwargs)


def decode_base64(source: str, param: str) -> bytes:
    """Bare base64 or a data: URL of it; line breaks do not matter. Raises ApiError."""
    start = 0
    if source[:5].lower() == "data:":
        head, comma, _ = source[:LONGEST_HEAD].partition(",")  # of all of it there would be a copy, in one go
        start = len(head) + len(comma)
        if not comma or not head.lower().endswith(";base64"):
            raise refused(f"{param}: a data: URL must be base64, as in data:audio/wav;base64,UklGR...", param)
    file = io.BytesIO()  # what it holds in the end is not copied
    try:
        file.writelines(_decoded(source, start))
        return file.getvalue()
    except (binascii.Error, ValueError):
        raise refused(f"{param}: the audio is neither base64 nor a URL", param) from None


def _decoded(source: str, first: int) -> Iterator[bytes]:
    """Piece by piece: nobody else has the processor meanwhile. The alphabet for URLs, too, and without padding."""
    rest = b""  # of a group of four
    for start in range(first, len(source), PIECE):
        piece = rest + source[start : start + PIECE].encode("ascii").translate(_URL_SAFE, b" \t\r\n")
        whole = len(piece) & ~3
        yield base64.b64decode(piece[:whole], validate=True)
        rest = piece[whole:]
    yield base64.b64decode(rest + b"=" * (-len(rest) % 4), validate=True)


def is_empty(data: bytes) -> bool:
    """No bytes, or a WAV file that ends where its samples would begin."""
    return not data or (data.startswith(b"RIFF") and data[-8:-4] == b"data")


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


def _sources(messages: Sequence[ChatMessage]) -> Iterator[tuple[Place, str, int | None]]:
    for i, message in enumerate(messages):
        for j, part in enumerate(message.content if isinstance(message.content, list) else ()):
            match part:
                case InputAudioPart():
                    source = part.input_audio.data
                    if _is_web(source):
                        raise refused("input_audio.data must be base64; addresses go into audio_url", "messages")
                    yield (i, j), source, part.input_audio.channel
                case FilePart():
                    source = part.file.file_data
                    if _is_web(source):
                        raise refused("file.file_data must be base64; addresses go into audio_url", "messages")
                    yield (i, j), source, part.file.channel
                case AudioUrlPart():
                    if ":" not in part.audio_url.url[:16]:
                        raise refused("audio_url.url must be a data: or https: URL", "messages")
                    yield (i, j), part.audio_url.url, part.audio_url.channel
                case AudioPart():
                    yield (i, j), part.audio, part.channel


def _message(message: ChatMessage, i: int, recordings: dict[Place, Audio]) -> dict[str, Any]:
    """With the keys that the model is shown, no others."""
    said, calls = message.said, message.calls
    if said is None and not calls and message.role in ("assistant", "function"):
        said = ""  # a reply that was cut inside its thought, a function that had nothing to tell
    values: dict[str, Any] = {"role": message.role, "content": said}
    if isinstance(said, list):
        values["content"] = [
            {"type": "text", "text": part.text}
            if isinstance(part, (TextPart, RefusalPart))
            else {"type": "audio", "audio": recordings[i, j]}
            for j, part in enumerate(said)
            if isinstance(part, (TextPart, RefusalPart)) or (i, j) in recordings
        ]
    if calls:
        values["tool_calls"] = [call.model_dump(exclude_none=True) for call in calls]
    for key in ("name", "tool_call_id"):
        if (value := getattr(message, key)) is not None:
            values[key] = value
    return values

"""Bodies that are JSON: not more of it than a request can mean, found out before it is taken apart.

What takes apart JSON, or checks it, does so in one go, and nobody else's stream goes on meanwhile. So it is counted
first, by a thread, piece by piece, and what is behind an answer's limit anyway is not taken apart.
"""

from __future__ import annotations

import asyncio
import io
import re
import string
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.responses import Response

from step_audio.conversation import MAX_ITEMS
from step_audio_gateway.errors import ApiError, refused

SMALL = 65_536  # bytes: what they can hold costs less than the thread
MAX_MARKS = 100_000  # braces, brackets and commas; some 25 for each of the most items that a conversation has
MAX_DIGITS = 400  # in a row, outside of texts: the largest double has 309. What reads thousands takes 10 times as long
PIECE = 1 << 20
_BASE64 = (string.ascii_letters + string.digits + "+/=-_").encode()
_MARKS = (b"{", b"[", b",")
_KEY = re.compile(rb"[ \t\r\n]*:")
_DIGITS = re.compile(rb"(?<![0-9])[0-9]{%d}" % (MAX_DIGITS + 1))

# The time that reading takes, in bytes of a recording's base64, of which 1 MiB takes half a millisecond. The default
# --max-body-bytes of them, and SPARE, take some 100 ms.
MAX_COST = 136 << 20
SPARE = 8 << 20  # beside recordings, however long these are
RECORDING = 4096  # characters; a shorter text counts as other text
ESCAPE = 60  # of a recording's; the first one makes all of it cost twice
OTHER = 8  # each other byte, besides itself: of other alphabets, escapes, keys
TEXT = 300  # each text, besides its bytes
LONG = MAX_COST // 2  # bytes, of which reading and finding the place of a fault, which takes as long, may be done
MAX_BESIDE = 8 << 20  # bytes, whatever they are: what is done with a text that is no recording takes longer yet


class JsonRequest(Request):
    """A request whose body is JSON."""

    async def body(self) -> bytes:
        """As it grows: to join the pieces of a long one takes as long as to read it."""
        if not hasattr(self, "_body"):
            body = io.BytesIO()
            async for piece in self.stream():
                body.write(piece)
            self._body = body.getvalue()  # is not copied
        return self._body

    async def json(self) -> Any:
        """By a stricter parser than the usual one: no NaN, no half surrogate pairs, no bottomless nesting."""
        if not hasattr(self, "_json"):
            body = await self.body()
            if len(body) > SMALL and (fault := await asyncio.to_thread(too_much, body)):
                raise refused(fault)
            try:
                self._json = from_json(body, allow_inf_nan=False)
            except ValueError as error:
                raise refused(f"the body is not valid JSON: {error}") from None
            _check_items(self._json)
            if len(body) > MAX_BESIDE and len(body) - _recordings(self._json) > MAX_BESIDE:
                raise refused(f"the body has more than {MAX_BESIDE} bytes beside recordings")
        return self._json


class JsonRoute(APIRoute):
    """A route whose body must be JSON: other content types get 415, a body that is not JSON 400."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json" and not kind.endswith("+json"):
                raise ApiError(415, "the body must be JSON, and say so: Content-Type: application/json")
            return await handler(JsonRequest(request.scope, request.receive))

        return handle


def too_much(body: bytes) -> str | None:
    """What there is too much of: marks and digits outside of texts, or whatever takes longer to read than recordings.
    Of a long body also whether it is JSON: a fault at its end would take twice the time.

    Nothing is copied as a whole: nobody else has the processor meanwhile.
    """
    marks = texts = cost = at = kept = 0
    rest: list[bytes] = []  # without recordings
    most = max(SPARE, MAX_COST - len(body))
    while at < len(body):
        quote = body.find(b'"', at)
        end = quote if quote >= 0 else len(body)
        for start in range(at, end, PIECE):
            marks += sum(body.count(mark, start, min(start + PIECE, end)) for mark in _MARKS)
            if end - at > MAX_DIGITS and _DIGITS.search(body[start : min(start + PIECE + MAX_DIGITS, end)]):
                return f"the body has a number of more than {MAX_DIGITS} digits"
        texts += 1
        if marks > MAX_MARKS or texts > 2 * MAX_MARKS + 2:  # a key and a text for each, else it is no JSON
            return f"the body has more than {MAX_MARKS} braces, brackets and commas"
        cost += TEXT + OTHER * (end - at)
        at = _behind(body, end + 1)
        is_key = _KEY.match(body, at) is not None
        text_cost = OTHER * (at - end) if is_key else _text_cost(body, end + 1, at - 1)
        cost += text_cost
        if cost > most:
            return "the body has too much text beside recordings, or too many line breaks and escapes in them"
        if not text_cost:
            rest.append(body[kept : end + 1])
            kept = at - 1
    return _fault(b"".join([*rest, body[kept:]])) if len(body) > LONG else None


def _fault(body: bytes) -> str | None:
    try:
        from_json(body, allow_inf_nan=False)
    except ValueError as error:
        return f"the body is not valid JSON, recordings left out: {error}"
    return None


def _text_cost(body: bytes, at: int, end: int) -> int:
    """Besides its length. A text that is not ASCII takes two or four bytes for each of its characters."""
    usual = OTHER * (end - at)
    if end - at < RECORDING:
        return usual
    escapes = 0
    for start in range(at, end, PIECE):
        others = body[start : min(start + PIECE, end)].translate(None, _BASE64)
        if others and (not others.isascii() or body.find(b"\\u", start, min(start + PIECE + 1, end)) >= 0):
            return usual
        escapes += others.count(b"\\")
    return min(ESCAPE * escapes + end - at, usual) if escapes else 0


def _behind(body: bytes, at: int) -> int:
    """Where the text that begins at `at` has ended."""
    while (quote := body.find(b'"', at)) >= 0:
        slashes = quote
        while slashes > at and body[slashes - 1] == 0x5C:
            slashes -= 1
        at = quote + 1
        if (quote - slashes) % 2 == 0:
            return at
    return len(body)


def _check_items(value: Any) -> None:
    """As the conversation's own limit has it, before each item is looked at."""
    if not isinstance(value, dict):
        return
    messages, items, tools = (
        [*entries] if isinstance(entries := value.get(key), list) else [] for key in ("messages", "input", "tools")
    )
    inner = (
        entries
        for message in (*messages, *items)
        if isinstance(message, dict)
        for key in ("content", "tool_calls")
        if isinstance(entries := message.get(key), list)
    )
    count = len(messages) + len(items) + len(tools) + sum(map(len, inner))
    if count > MAX_ITEMS:
        what = "input" if items else "messages"
        raise refused(f"{what} and tools hold {count} items, at most {MAX_ITEMS} are accepted", what)


def _recordings(value: Any) -> int:
    """Characters of all texts that are where parts of messages or items have recordings."""
    turns = [turn for key in ("messages", "input") for turn in _dicts(value, key)]
    parts = [part for turn in turns for key in ("content", "output") for part in _dicts(turn, key)]
    inner = [part[key] for part in parts for key in ("input_audio", "audio_url", "file") if key in part]
    places = [place for place in (*parts, *inner) if isinstance(place, dict)]
    texts = [place.get(key) for place in places for key in ("data", "url", "audio", "file_data")]
    return sum(len(text) for text in texts if isinstance(text, str))


def _dicts(value: Any, key: str) -> list[dict[str, Any]]:
    entries = value.get(key) if isinstance(value, dict) else None
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []

"""Bodies that are JSON: not more of it than a request can mean, found out before it is taken apart.

What takes apart JSON, or checks it, does so in one go, and nobody else's stream goes on meanwhile. So it is counted
first, by a thread, piece by piece, and what is behind an answer's limit anyway is not taken apart.
"""

from __future__ import annotations

import asyncio
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
LARGE = 16 << 20  # bytes: whatever they hold, they are read in less than a tenth of a second
MAX_OTHERS = 4 << 20  # bytes that no base64 has; of recordings with a line end, or an escaped slash, now and then
PIECE = 1 << 20
_BASE64 = (string.ascii_letters + string.digits + "+/=-_").encode()
_MARKS = (b"{", b"[", b",")


class JsonRequest(Request):
    """A request whose body is JSON."""

    async def json(self) -> Any:
        """By a stricter parser than the usual one: no NaN, no half surrogate pairs, no bottomless nesting."""
        if not hasattr(self, "_json"):
            body = await self.body()
            if len(body) > SMALL and await asyncio.to_thread(marks, body) > MAX_MARKS:
                raise refused(f"the body has more than {MAX_MARKS} braces, brackets and commas")
            if len(body) > LARGE and await asyncio.to_thread(others, body) > MAX_OTHERS:
                raise refused(f"the body has more than {MAX_OTHERS} characters beside recordings")
            try:
                self._json = from_json(body, allow_inf_nan=False)
            except ValueError as error:
                raise refused(f"the body is not valid JSON: {error}") from None
            _check_items(self._json)
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


def marks(body: bytes) -> int:
    """Braces, brackets and commas outside of texts, that begin or divide; counted on until there are too many.

    Where there are not too many even with those in texts, these are counted, too: recordings have none.
    """
    pieces = range(0, len(body), PIECE)
    most = sum(body.count(mark, start, start + PIECE) for start in pieces for mark in _MARKS)
    if most <= MAX_MARKS:
        return most
    count = at = 0
    while count <= MAX_MARKS:
        quote = body.find(b'"', at)
        outside = body[at : quote if quote >= 0 else len(body)]
        count += sum(map(outside.count, _MARKS))
        if quote < 0:
            break
        at = _behind(body, quote + 1)
    return count


def others(body: bytes) -> int:
    """Bytes that are not of base64. Escapes and other alphabets take ten times as long to read."""
    pieces = range(0, len(body), PIECE)
    return sum(len(body[start : start + PIECE].translate(None, _BASE64)) for start in pieces)


def _behind(body: bytes, at: int) -> int:
    """Where the text that begins at `at` has ended."""
    while (quote := body.find(b'"', at)) >= 0:
        text = body[at:quote]
        at = quote + 1
        if (len(text) - len(text.rstrip(b"\\"))) % 2 == 0:
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

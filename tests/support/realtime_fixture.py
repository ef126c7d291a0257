"""Realtime sessions of a gateway on a real port, by OpenAI's own package, and what they tell."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import numpy as np

from realtime_events import check_event

TEXT_SESSION = {"type": "realtime", "audio": {"input": {"turn_detection": None}}}


@contextlib.asynccontextmanager
async def connected(url: str, key: str = "none", model: str = "tiny", **more: Any) -> AsyncIterator[Any]:
    """`AsyncRealtimeConnection`, its first event read."""
    import openai

    plain = openai.DefaultAsyncHttpxClient(verify=False)  # as gateway_fixture.PLAIN
    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, http_client=plain)
    async with client, client.realtime.connect(model=model, **more) as connection:
        connection.created = await take(connection)
        assert connection.created.type == "session.created"
        yield connection


async def take(connection: Any) -> Any:
    """The next event, which is as OpenAI's package has it."""
    data = await asyncio.wait_for(connection.recv_bytes(), 60)
    check_event(json.loads(data))
    return connection.parse_event(data)


async def until(connection: Any, kind: str) -> list[Any]:
    """All events up to the first of that type."""
    events = [await take(connection)]
    while events[-1].type != kind:
        assert events[-1].type != "error" or kind == "error", events[-1]
        events.append(await take(connection))
    return events


async def by_hand(connection: Any, **session: Any) -> Any:
    """Turns are committed by the client from here on; what `session.updated` says."""
    await connection.session.update(session=TEXT_SESSION | session)
    return (await until(connection, "session.updated"))[-1].session


async def say(connection: Any, text: str) -> None:
    part = {"type": "input_text", "text": text}
    await connection.conversation.item.create(item={"type": "message", "role": "user", "content": [part]})


def pcm(seconds: float, rate: int = 24_000) -> str:
    """Base64 of PCM16: a tone."""
    wave = 3000 * np.sin(np.arange(round(seconds * rate)) / 10)
    return base64.b64encode(wave.astype("<i2").tobytes()).decode()

"""Requests to a gateway in this process."""

from __future__ import annotations

import base64

from gateway_fixture import FakeClient, shared, wav

CHAT = "/v1/chat/completions"
WAV = wav()
WAV64 = base64.b64encode(WAV).decode()
HELLO = [{"role": "user", "content": "hello"}]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


async def ask(fake: FakeClient, *, settings: dict | None = None, headers: dict | None = None, **body):
    async with shared(fake, **settings or {}) as client:
        return await client.post(CHAT, json={"messages": HELLO} | body, headers=headers)


async def asked(**body) -> FakeClient:
    """The fake after one request that must succeed."""
    fake = FakeClient()
    response = await ask(fake, **body)
    assert response.status_code == 200, response.text
    return fake


async def refusal(**body) -> tuple[str, str | None]:
    """Message and param of a request that must be refused before anything is asked."""
    fake = FakeClient()
    response = await ask(fake, **body)
    error = response.json()["error"]
    assert response.status_code == 400 and error["type"] == "invalid_request_error" and not fake.begun
    return error["message"], error["param"]

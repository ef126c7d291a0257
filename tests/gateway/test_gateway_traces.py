"""Which requests leave a span, and what is in it; the traces as a collector gets them: test_traces_served.py."""

from __future__ import annotations

from contextlib import contextmanager

import httpx
import pytest

from gateway_calls import CHAT, HELLO
from gateway_fixture import FakeClient, wav
from step_audio_gateway.app import create_app
from step_audio_gateway.settings import GatewaySettings


class Spans:
    """In the tracer's place."""

    trace_id = "0" * 32

    def __init__(self):
        self.ended: list[tuple] = []

    @contextmanager
    def request(self, name, given, attributes):
        yield self

    def end(self, name, status, attributes):
        self.ended.append((name, status, attributes))


@pytest.fixture
async def door():
    spans = Spans()
    app = create_app(GatewaySettings(), FakeClient(), tracer=spans)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
        yield client, spans


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"json": {"messages": HELLO}}),
        ("/v1/responses", {"json": {"input": "hello"}}),
        ("/v1/audio/transcriptions", {"files": {"file": wav()}}),
        ("/v1/audio/translations", {"files": {"file": wav()}}),
        ("/tokenize", {"json": {"prompt": "a secret"}}),
        ("/detokenize", {"json": {"tokens": [1]}}),
    ],
)
async def test_what_works_on_a_prompt_leaves_a_span(door, path, body):
    client, spans = door
    assert (await client.post(path, headers={"X-Request-Id": "mine"}, **body)).status_code == 200
    ((name, status, attributes),) = spans.ended
    assert (name, status, attributes["http.route"]) == (f"POST {path}", 200, path)
    assert attributes["request.id"] == "mine" and attributes["gen_ai.response.model"] == "tiny"
    assert "secret" not in str(attributes)


async def test_a_refusal_s_span(door):
    client, spans = door
    await client.post("/tokenize", json={"prompt": "a secret", "chat_template": "a secret"})
    ((name, status, attributes),) = spans.ended
    assert (name, status, attributes["error.type"]) == ("POST /tokenize", 400, "unsupported_parameter")
    assert "secret" not in str(attributes)


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics", "/version", "/", "/openapi.json"])
async def test_what_is_looked_at_leaves_none(door, path):
    client, spans = door
    assert (await client.get(path)).status_code == 200 and spans.ended == []

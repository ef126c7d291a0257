"""A server without keys in reach of somebody's browser: what pages of others cannot do there."""

from __future__ import annotations

import pytest

from gateway_calls import CHAT, HELLO
from gateway_fixture import FakeClient, shared, wav


async def post(headers: dict, **settings) -> int:
    fake = FakeClient()
    async with shared(fake, **settings) as client:
        upload = await client.post(
            "/v1/audio/transcriptions", files={"file": ("a.wav", wav(), "audio/wav")}, headers=headers
        )
        asked = await client.post(CHAT, json={"messages": HELLO}, headers=headers)
    assert upload.status_code == asked.status_code and (asked.status_code == 200) == bool(fake.begun)
    return asked.status_code


@pytest.mark.parametrize(
    "host", ["localhost:9999", "127.0.0.1:9999", "[::1]:9999", "gateway", "192.168.1.5:80", "LOCALHOST"]
)
async def test_names_that_nobody_elsewhere_can_have(host):
    assert await post({"host": host}) == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:9999", "127.0.0.1.evil.example", "localhost.evil.example"]
)
async def test_a_foreign_name_is_refused(host):
    assert await post({"host": host}) == 403
    assert await post({"host": host}, allowed_hosts=[host.partition(":")[0]]) == 200
    assert await post({"host": host}, allowed_hosts="*") == 200
    assert await post({"host": host}, host="0.0.0.0") == 200  # behind names of its own
    async with shared(FakeClient()) as client:
        assert (await client.get("/v1/models", headers={"host": host})).status_code == 403


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:3000", "http://127.0.0.1:9998"])
async def test_a_foreign_page_is_refused(origin):
    headers = {"host": "127.0.0.1:9999", "origin": origin}
    assert await post(headers) == 403
    assert await post(headers, host="0.0.0.0") == 403
    assert await post(headers, allowed_origins="*") == 200
    if origin != "null":
        assert await post(headers, allowed_origins=origin) == 200


@pytest.mark.parametrize(
    "host, origin",
    [
        ("127.0.0.1:9999", "http://127.0.0.1:9999"),
        ("localhost", "http://localhost"),
        ("localhost:443", "https://localhost"),
    ],
)
async def test_its_own_page_may_call(host, origin):
    assert await post({"host": host, "origin": origin}) == 200


async def test_with_keys_they_decide():
    headers = {"host": "evil.example", "origin": "https://evil.example", "authorization": "Bearer key"}
    assert await post(headers, api_key="key") == 200
    assert await post(headers | {"authorization": ""}, api_key="key") == 401

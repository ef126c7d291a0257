"""The gateway under a path of a proxy's, which may cut it off or not."""

from __future__ import annotations

import pytest

from gateway_calls import CHAT, HELLO
from gateway_fixture import FakeClient, shared

ROOT = "/speech/r1"


@pytest.fixture
async def door():
    async with shared(FakeClient(), root_path=ROOT, api_key=["secret"]) as client:
        yield client


@pytest.mark.parametrize("before", ["", ROOT])
async def test_the_same_with_the_path_and_without(door, before):
    key = {"Authorization": "Bearer secret"}
    body = {"messages": HELLO}
    assert (await door.post(before + CHAT, json=body, headers=key)).status_code == 200
    assert (await door.post(before + CHAT, json=body)).status_code == 401
    assert (await door.post(f"{before}/tokenize", json={"prompt": "x"})).status_code == 401
    assert (await door.get(f"{before}/health")).status_code == 200
    page = await door.get(f"{before}/")
    assert page.status_code == 200 and 'src="/' not in page.text and 'href="/' not in page.text
    assert (await door.get(f"{before}/openapi.json")).json()["servers"] == [{"url": ROOT}]


async def test_what_only_begins_like_it_is_nobody_s(door):
    for path in (f"{ROOT}x{CHAT}", f"{ROOT}{ROOT}{CHAT}", f"/speech{CHAT}"):
        assert (await door.post(path, json={"messages": HELLO})).status_code == 404


async def test_the_page_needs_its_slash(door):
    response = await door.get(ROOT)
    assert response.status_code == 307 and response.headers["location"] == f"{ROOT}/"
    assert "/speech" not in (await door.get("/metrics")).text

"""Adapters by the names of models, as vLLM has them."""

from __future__ import annotations

import pytest

from gateway_fixture import ANSWER, FakeClient, listening, shared
from realtime_fixture import by_hand, connected, say, until

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture
def fake():
    made = FakeClient()
    made.adapters = {"terse": 7, "medical": 8}
    return made


async def test_listed_with_their_parent(fake):
    async with shared(fake) as client:
        models = (await client.get("/v1/models")).json()["data"]
        assert [(one["id"], one["parent"], one["root"]) for one in models] == [
            ("tiny", None, "tiny"), ("terse", "tiny", "tiny"), ("medical", "tiny", "tiny"),
        ]  # fmt: skip
        assert (await client.get("/v1/models/terse")).json()["parent"] == "tiny"


@pytest.mark.parametrize(("model", "adapter"), [("terse", "terse"), ("tiny", None), (None, None)])
async def test_named_as_model(fake, model, adapter):
    said = {} if model is None else {"model": model}
    async with shared(fake) as client:
        reply = await client.post("/v1/chat/completions", json=said | {"messages": HELLO, "n": 2})
        assert reply.json()["model"] == (model or "tiny")
        assert [options.adapter for _, options in fake.asked] == [adapter] * 2
        reply = await client.post("/v1/completions", json=said | {"prompt": "hello", "max_tokens": 2})
        assert reply.json()["choices"][0]["text"] == ANSWER and fake.options.adapter == adapter
        await client.post("/v1/responses", json=said | {"input": "hello"})
        assert fake.options.adapter == adapter


async def test_unknown_ones_are_refused_by_name(fake):
    async with shared(fake) as client:
        reply = await client.post("/v1/chat/completions", json={"model": "curt", "messages": HELLO})
    assert reply.status_code == 404 and reply.json()["error"]["code"] == "model_not_found"
    assert "'curt'" in reply.json()["error"]["message"] and "'terse'" in reply.json()["error"]["message"]


async def test_a_served_name_goes_before_an_adapter_s(fake):
    async with shared(fake, served_model_name=["terse"]) as client:
        await client.post("/v1/chat/completions", json={"model": "terse", "messages": HELLO})
        assert fake.options.adapter is None


async def test_realtime_sessions_by_their_model(fake):
    with listening(fake) as url:
        async with connected(url, model="terse") as connection:
            await by_hand(connection, output_modalities=["text"])
            await say(connection, "hello")
            await connection.response.create()
            await until(connection, "response.done")
    assert connection.created.session.model == "terse" and fake.options.adapter == "terse"

"""Who may open a realtime session, how long it lasts, and what becomes of it where something goes wrong."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import socket
import threading
import time

import httpx
import pytest
import websockets
from websockets.asyncio.client import connect

import waiting
from gateway_fixture import USAGE, listening
from realtime_events import check_session
from realtime_fixture import by_hand, connected, pcm, say, take, until
from step_audio_client import ChatDelta
from step_audio_gateway.auth import Keys
from step_audio_gateway.errors import ApiError
from step_audio_gateway.realtime import client_events
from step_audio_gateway.realtime.client_secrets import caller_of, make_secret

PROTOCOLS = ["realtime", "openai-insecure-api-key.{}", "openai-beta.realtime-v1"]


@pytest.fixture(scope="module")
def settings():
    return {"api_key": ["one", "two"], "max_sessions": 4}


async def refusal(url: str, key: str = "one", query: str = "", **more) -> tuple[int, str]:
    """Status and code of a session that is refused before it begins."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with pytest.raises(websockets.InvalidStatus) as caught:
        await connect(f"ws{url.removeprefix('http')}/v1/realtime{query}", additional_headers=headers, **more)
    return caught.value.response.status_code, json.loads(caught.value.response.body)["error"]["code"]


async def closed(socket) -> int | None:
    """The code that the server closes with."""
    with pytest.raises(websockets.ConnectionClosed) as caught:
        while True:
            await asyncio.wait_for(socket.recv(), 60)
    return caught.value.rcvd and caught.value.rcvd.code


async def test_keys_and_models(url):
    assert await refusal(url, key="") == (401, "invalid_api_key")
    assert await refusal(url, key="three") == (401, "invalid_api_key")
    assert await refusal(url, query="?model=other") == (404, "model_not_found")
    assert (await refusal(url, query="?intent=transcription"))[0] == 400
    assert (await refusal(url, query="?call_id=a"))[0] == 400
    async with connected(url, key="two"):
        pass


async def test_a_browsers_key_is_a_subprotocol(url):
    names = [name.format("two") for name in PROTOCOLS]
    async with connect(f"ws{url.removeprefix('http')}/v1/realtime", subprotocols=names) as socket:
        assert socket.subprotocol == "realtime"
        assert json.loads(await socket.recv())["type"] == "session.created"


async def test_a_secret_opens_sessions_as_it_says(url, openai):
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="one", max_retries=0) as client:
        session = {"type": "realtime", "instructions": "Be brief."}
        secret = await client.realtime.client_secrets.create(session=session, expires_after={"seconds": 60})
        check_session(secret.session.to_dict())
        assert secret.session.instructions == "Be brief." and secret.value.startswith("ek_")
        async with connected(url, key=secret.value) as connection:
            assert connection.created.session.instructions == "Be brief."
        with pytest.raises(openai.BadRequestError) as wrong:
            await client.realtime.client_secrets.create(session={"type": "realtime", "prompt": {"id": "x"}})
        assert wrong.value.param == "session.prompt"
    with pytest.raises(openai.AuthenticationError):  # it opens nothing else
        await openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=secret.value).models.list()
    said, _, signature = secret.value.removeprefix("ek_").partition(".")
    told = json.loads(base64.urlsafe_b64decode(said + "=="))
    longer = base64.urlsafe_b64encode(json.dumps(told | {"exp": told["exp"] + 9}).encode()).decode().rstrip("=")
    for forged in (f"ek_{longer}.{signature}", f"ek_{said}.{signature[:-2]}", "ek_", "ek_%.%"):
        assert (await refusal(url, key=forged)) == (401, "invalid_api_key")


async def test_a_secret_lasts_for_ten_minutes_or_as_long_as_is_said(url):
    async def asked(**body) -> httpx.Response:
        async with httpx.AsyncClient(headers={"Authorization": "Bearer one"}) as client:
            return await client.post(f"{url}/v1/realtime/client_secrets", json=body)

    before = time.time()
    for given, seconds in (({}, 600), ({"expires_after": {"seconds": 7200}}, 7200)):
        assert round(before) + seconds <= (await asked(**given)).json()["expires_at"] <= time.time() + seconds + 1
    for seconds in (9, 7201):
        error = (await asked(expires_after={"seconds": seconds})).json()["error"]
        assert error["param"] == "expires_after.seconds"


def test_a_secret_ends():
    keys = Keys(["one", "two"])
    assert caller_of(f"Bearer {make_secret(keys, 1, {}, round(time.time()) + 5)}", keys).key == 1
    for given in (make_secret(keys, 1, {}, round(time.time()) - 5), make_secret(Keys(["x"]), 0, {}, 2**40)):
        with pytest.raises(ApiError):
            caller_of(f"Bearer {given}", keys)
    with pytest.raises(ApiError, match=r"session\.update"):
        make_secret(keys, 0, {"instructions": "x" * 20_000}, 0)


async def test_no_page_of_others_where_there_is_no_key(fake):
    with listening(fake) as url:
        with pytest.raises(websockets.InvalidStatus) as caught:
            await connect(f"ws{url.removeprefix('http')}/v1/realtime", origin="https://elsewhere.example")
        assert caught.value.response.status_code == 403


async def test_under_a_proxys_path(fake):
    with listening(fake, root_path="/speech") as url:
        for base in (f"{url}/speech", url):
            async with connected(base):
                pass


async def no_session_at(url: str) -> None:
    await waiting.until(lambda: "step_audio_realtime_sessions 0.0" in httpx.get(f"{url}/metrics").text, "their end")


async def test_so_many_sessions_and_no_more(url):
    async with connected(url, key="one"), connected(url, key="one"), connected(url, key="one"):
        assert (await refusal(url, key="one"))[0] == 429, "the last is for who has none"
        async with connected(url, key="two"):
            metrics = httpx.get(f"{url}/metrics").text
            assert "step_audio_realtime_sessions 4.0" in metrics
            assert "step_audio_requests_in_flight 0.0" in metrics, "nobody speaks"
    await no_session_at(url)
    async with connected(url, key="one"):
        pass


async def test_an_answer_without_a_place_has_failed(fake, play):
    play(ChatDelta(content="Well", raw="Well"), 60.0)
    with listening(fake, max_concurrent_requests=1) as url:
        async with connected(url) as first, connected(url) as second:
            for connection in (first, second):
                await by_hand(connection)
                await say(connection, "hello")
                await connection.response.create()
                await until(connection, "response.created")
                if connection is first:
                    await until(connection, "response.output_text.delta")
            failed = (await until(second, "response.done"))[-1].response
            assert (failed.status, failed.status_details.error.code) == ("failed", "server_busy")
            play(ChatDelta(content="Yes", raw="Yes"), ChatDelta(finish_reason="stop", usage=USAGE))
            await first.response.cancel()
            await first.response.create()
            await until(first, "response.done")
            assert (await until(first, "response.done"))[-1].response.status == "completed", "its own place is free"


@pytest.mark.parametrize(
    "limit, code", [("session_seconds", "session_expired"), ("session_idle_seconds", "session_idle")]
)
async def test_a_sessions_end(fake, limit, code):
    with listening(fake, **{limit: 0.3}) as url:
        async with connected(url) as connection:
            assert (await until(connection, "error"))[-1].error.code == code
            assert await closed(connection._connection) == 1001


async def test_audio_beyond_the_buffer_is_refused(fake):
    with listening(fake, session_buffer_seconds=1.0) as url:
        async with connected(url) as connection:
            await by_hand(connection)
            await connection.input_audio_buffer.append(audio=pcm(0.8))
            await connection.input_audio_buffer.append(audio=pcm(0.8))
            assert (await take(connection)).error.code == "input_audio_buffer_full"
            await connection.input_audio_buffer.clear()
            await until(connection, "input_audio_buffer.cleared")
            await connection.input_audio_buffer.append(audio=pcm(0.8))
            await connection.input_audio_buffer.commit()
            await until(connection, "conversation.item.done")


async def test_a_message_of_too_many_things_is_not_taken_apart(fake, monkeypatch):
    """Nor is each fault of it looked for. The session goes on."""
    taken: list[int] = []
    parse = client_events.from_json
    monkeypatch.setattr(client_events, "from_json", lambda text, **more: taken.append(len(text)) or parse(text, **more))
    item = {"type": "message", "role": "user"}
    many = ["[" + "{}," * 200_000 + "{}]", '{"a":' + "[1]," * 100_000 + "1}", '{"a": ' + "7" * 70_000 + "}"]
    with listening(fake) as url:
        async with connect(f"ws{url.removeprefix('http')}/v1/realtime", max_size=None) as websocket:
            assert json.loads(await websocket.recv())["type"] == "session.created"
            for text in many:
                await websocket.send(text)
                error = json.loads(await websocket.recv())["error"]
                assert error["code"] == "invalid_json" and "the message has" in error["message"], error
            assert taken == []
            for content in ([{}] * 40_000, ["x"] * 5000, [{"type": "input_text", "text": "x"}] * 5000):
                await websocket.send(
                    json.dumps({"type": "conversation.item.create", "item": item | {"content": content}})
                )
                error = json.loads(await websocket.recv())["error"]
                assert error["param"].startswith("item.") and "content" in error["param"], error
            assert len(taken) == 3


@pytest.mark.long
async def test_a_server_that_stops_lets_the_answer_end(fake, play):
    play(ChatDelta(content="Well", raw="Well"), 1.0, ChatDelta(finish_reason="stop", usage=USAGE))
    gateway = listening(fake)
    url = gateway.__enter__()
    async with connected(url) as connection:
        await by_hand(connection)
        await say(connection, "hello")
        await connection.response.create()
        await until(connection, "response.output_text.delta")
        stop = threading.Thread(target=gateway.__exit__, args=(None, None, None))
        stop.start()
        assert (await until(connection, "response.done"))[-1].response.status == "completed"
        assert await closed(connection._connection) == 1012
    await asyncio.to_thread(stop.join)


@pytest.mark.long
async def test_a_client_that_is_gone_or_reads_nothing_leaves_nothing(fake, play):
    text = "x" * 10_000
    play(*[ChatDelta(content=text, raw=text)] * 2000, 60.0)
    before = fake.begun
    with listening(fake, send_timeout=0.5) as url:
        async with connect(f"ws{url.removeprefix('http')}/v1/realtime", max_queue=1) as silent:
            item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]}
            await silent.send(json.dumps({"type": "conversation.item.create", "item": item}))
            await silent.send('{"type": "response.create"}')
            await waiting.until(lambda: before < fake.begun == fake.closed, "its stop")
        host, port = re.fullmatch(r"http://(.*):(\d+)", url).groups()
        with socket.create_connection((host, int(port))) as raw:  # half open: says nothing more, and breaks
            raw.sendall(
                f"GET /v1/realtime HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
            )
            assert raw.recv(20).startswith(b"HTTP/1.1 101")
            raw.sendall(b"\x82\xff" + b"\xff" * 20)  # a frame that is larger than all
        await no_session_at(url)

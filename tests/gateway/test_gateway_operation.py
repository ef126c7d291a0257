"""The gateway before a client library that plays a script: health, keys, log, metrics, and clients that hang up."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from dataclasses import replace
from types import SimpleNamespace

import pytest

from gateway_calls import CHAT, HELLO, WAV, WAV64, ask
from gateway_fixture import PARAMETERS, REPLY, SUGGESTIONS, FakeClient, http
from step_audio_client import ChatDelta, RequestError, ServerBusy
from step_audio_gateway import metrics
from step_audio_gateway.app import create_app
from step_audio_gateway.generations import WAITING, EventStream, merged
from step_audio_gateway.server import listen
from step_audio_gateway.settings import GatewaySettings
from step_audio_server.launch.ports import free_ports
from waiting import SECONDS, until


async def test_models():
    async with http(FakeClient()) as client:
        (model,) = (await client.get("/v1/models")).json()["data"]
        assert model["id"] == "tiny" and model["max_model_len"] == 4096
        assert model["supported_parameters"] == PARAMETERS and model["suggestions"] == SUGGESTIONS
        error = (await client.post(CHAT, json={"messages": HELLO, "model": "gpt"})).json()["error"]
        assert error["code"] == "model_not_found"
    async with http(FakeClient(), served_model_name=["Step-Audio-R1.1", "step"]) as client:
        assert [m["id"] for m in (await client.get("/v1/models")).json()["data"]] == ["Step-Audio-R1.1", "step"]
        assert (await client.post(CHAT, json={"messages": HELLO})).json()["model"] == "Step-Audio-R1.1"
        assert (await client.post(CHAT, json={"messages": HELLO, "model": "step"})).json()["model"] == "step"
        assert (await client.post(CHAT, json={"messages": HELLO, "model": "tiny"})).status_code == 404


async def test_the_page_may_load_nothing_from_elsewhere():
    async with http(FakeClient()) as client:
        page = await client.get("/")
        script = await client.get("/app.js")
    assert page.status_code == 200 and "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert script.headers["Content-Type"].startswith("text/javascript")


async def test_health_and_readiness():
    fake = FakeClient()
    async with http(fake) as client:
        assert (await client.get("/health")).status_code == (await client.get("/ready")).status_code == 200
        fake.up = False
        assert (await client.get("/health")).status_code == 200 and (await client.get("/ready")).status_code == 503


async def test_api_keys(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# ours\nsecond\n\nthird\n")
    async with http(FakeClient(), api_key=["first"], api_key_file=file) as client:
        for key in ("first", "second", "third"):
            given = {"Authorization": f"Bearer {key}"}
            assert (await client.get("/v1/models", headers=given)).status_code == 200
        for given in ({}, {"Authorization": "Bearer fourth"}, {"Authorization": "Basic first"}, {"Authorization": ""}):
            response = await client.post(CHAT, json={"messages": HELLO}, headers=given)
            assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer"
            assert response.json()["error"]["code"] == "invalid_api_key"
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/openapi.json")).json()["components"]["securitySchemes"]


@pytest.mark.parametrize("content", ["", "# only\n"])
def test_a_file_without_keys_does_not_open_the_door(tmp_path, content):
    file = tmp_path / "keys"
    file.write_text(content)
    with pytest.raises(Exception, match="holds no key"):
        create_app(GatewaySettings.create(api_key_file=file), FakeClient())


async def test_request_ids_and_the_log(caplog):
    caplog.set_level(logging.INFO, "step_audio_gateway")
    secret = [{"role": "user", "content": [{"type": "text", "text": "SECRET"}, {"type": "audio", "audio": WAV64}]}]

    async def logged(**settings) -> dict:
        caplog.clear()
        fake = FakeClient(lambda m, o: [ChatDelta(content="SECRET", raw="SECRET"), REPLY[-1]])
        response = await ask(fake, messages=secret, settings=settings, headers={"X-Request-Id": "mine-1"})
        assert response.headers["x-request-id"] == "mine-1"
        (record,) = [record for record in caplog.records if record.name == "step_audio_gateway"]
        return record.fields

    fields = await logged()
    assert fields["request_id"] == "mine-1" and fields["status"] == 200 and fields["prompt_tokens"] == 20
    assert fields["finish"] == ["stop"] and fields["model"] == "tiny" and "SECRET" not in json.dumps(fields)
    fields = await logged(log_content=True)
    assert fields["messages"][0]["content"][0]["text"] == "SECRET" and fields["replies"] == ["SECRET"]
    assert fields["messages"][0]["content"][1]["audio"] == {"bytes": len(WAV)}

    caplog.clear()
    await ask(FakeClient(), messages=[{"role": "SECRET", "content": "x"}])
    await ask(FakeClient(), model="SECRET")
    refusals = [vars(record)["fields"] for record in caplog.records if record.name == "step_audio_gateway"]
    assert [fields["status"] for fields in refusals] == [400, 404] and "SECRET" not in json.dumps(refusals)
    for bad in ("", "a b", "x" * 200):
        assert len((await ask(FakeClient(), headers={"X-Request-Id": bad})).headers["x-request-id"]) == 32


async def test_refusals_are_told_at_debug_alone(caplog):
    """Each with its request's id, in a line, however long what it quotes."""
    role, model = "SECRET\nking " * 5000, "SECRET" * 5000
    for level in (logging.INFO, logging.DEBUG):
        caplog.clear()
        caplog.set_level(level, "step_audio_gateway")
        texts = [
            (await ask(FakeClient(), **body, headers={"X-Request-Id": "mine-2"})).json()["error"]["message"]
            for body in ({"messages": [{"role": role, "content": "x"}]}, {"model": model})
        ]
        lines = [vars(record)["fields"] for record in caplog.records if record.name == "step_audio_gateway"]
        assert all("SECRET" not in json.dumps(line) for line in lines if "client" in line)
        told = [line for line in lines if "client" not in line]
        if level == logging.INFO:
            assert not told
        else:
            statuses = (400, 404)
            assert told == [
                {"request_id": "mine-2", "status": status, "message": text}
                for status, text in zip(statuses, texts, strict=True)
            ]
        assert all(len(text) <= 400 and "\n" not in text for text in texts)


async def test_probes_and_scrapes_have_no_line_of_their_own(caplog):
    caplog.set_level(logging.DEBUG, "step_audio_gateway")
    fake = FakeClient()
    async with http(fake) as client:
        for path in ("/health", "/ready", "/metrics", "/v1/models"):
            await client.get(path)
        fake.up = False
        await client.get("/ready")
    told = [(record.fields["path"], record.fields["status"]) for record in caplog.records if record.levelname == "INFO"]
    assert told == [("/v1/models", 200), ("/ready", 503)]
    assert len([record for record in caplog.records if record.name == "step_audio_gateway"]) == 5


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_chunks_do_not_wait_for_acknowledgements(host):
    """Not set by asyncio for a socket that is handed in."""
    (port,) = free_ports(1)
    with (
        listen(GatewaySettings(host=host, port=port)) as listener,
        socket.create_connection((host, port)),
        listener.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_metrics():
    fake = FakeClient()
    async with http(fake) as client:
        for _ in range(2):
            await client.post(CHAT, json={"messages": HELLO})
        fake.script = lambda m, o: [REPLY[0], RequestError("no")]
        await client.post(CHAT, json={"messages": HELLO})
        await client.get("/made/up")
        response = await client.get("/metrics")
    lines = response.text.splitlines()
    assert response.headers["content-type"].startswith("text/plain")
    assert f'step_audio_http_requests_total{{route="{CHAT}",status="200"}} 2.0' in lines
    assert f'step_audio_http_requests_total{{route="{CHAT}",status="400"}} 1.0' in lines
    assert 'step_audio_tokens_total{kind="audio"} 26.0' in lines
    assert "step_audio_time_to_first_token_seconds_count 3.0" in lines
    assert "step_audio_answers_running 0.0" in lines and "step_audio_answers_unfinished_total 1.0" in lines
    assert not any("/made/up" in line for line in lines)


async def test_refusals_are_counted_by_reason():
    fake = FakeClient(lambda m, o: [ServerBusy("full")])
    fake.counts.continued = 3
    async with http(fake, api_key=["k"], max_body_bytes=1000) as client:
        allowed = {"Authorization": "Bearer k"}
        await client.post(CHAT, json={"messages": HELLO})
        await client.post(CHAT, json={"messages": HELLO}, headers=allowed)
        for sent in (b"x" * 2000, aiter_of(b"x" * 600, b"x" * 600)):
            response = await client.post(CHAT, content=sent, headers=allowed | {"Content-Type": "application/json"})
            assert response.status_code == 413
        lines = (await client.get("/metrics")).text.splitlines()
    expected = dict.fromkeys(metrics.REFUSALS, 0.0) | {"key": 1.0, "busy": 1.0, "size": 2.0}
    assert {f'step_audio_refused_total{{reason="{reason}"}} {n}' for reason, n in expected.items()} <= set(lines)
    assert "step_audio_answers_continued_total 3.0" in lines and "step_audio_answers_lost_total 0.0" in lines


async def aiter_of(*pieces: bytes):
    for piece in pieces:
        yield piece


async def test_time_between_tokens(monkeypatch):
    """Of three tokens after the first: one 0.125 s behind it, two together 0.5 s later."""
    now = 100.0
    monkeypatch.setattr(metrics, "time", SimpleNamespace(monotonic=lambda: now))

    async def answer():
        nonlocal now
        for seconds, ids in [(3, (1,)), (0.125, (2,)), (0.5, (3, 4))]:
            now += seconds
            yield replace(REPLY[0], token_ids=ids)

    counted = metrics.Metrics()
    async for _ in counted.observed(answer()):
        pass
    lines = counted.text().decode().splitlines()
    name = "step_audio_inter_token_latency_seconds"
    assert f"{name}_count 3.0" in lines and f"{name}_sum 0.625" in lines
    assert [f'{name}_bucket{{le="{le}"}} {n}' in lines for le, n in [("0.15", 1.0), ("0.25", 3.0)]] == [True, True]
    assert "step_audio_time_to_first_token_seconds_sum 3.0" in lines


@pytest.mark.parametrize("body", [{}, {"stream": True}, {"n": 3}, {"n": 3, "stream": True}])
@pytest.mark.parametrize("steps", [[60.0], [REPLY[0], 60.0]])
async def test_a_client_that_hangs_up_frees_its_slots(body, steps):
    fake = FakeClient(lambda messages, options: steps)
    app = create_app(GatewaySettings(), fake)
    asked_for = json.dumps({"messages": HELLO} | body).encode()
    received, gone = asyncio.Queue(), asyncio.Event()
    received.put_nowait({"type": "http.request", "body": asked_for})

    async def receive():
        if not received.empty():
            return received.get_nowait()
        await gone.wait()
        return {"type": "http.disconnect"}

    sent = []

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "POST",
        "scheme": "http", "path": CHAT, "raw_path": CHAT.encode(), "query_string": b"", "root_path": "",
        "headers": [(b"content-type", b"application/json")], "client": ("1.2.3.4", 5), "server": ("gateway", 80),
    }  # fmt: skip
    call = asyncio.create_task(app(scope, receive, send))
    n = body.get("n", 1)
    await until(lambda: fake.begun == n)
    await asyncio.sleep(0.05)
    assert not call.done() and fake.closed == 0
    gone.set()
    await asyncio.wait_for(call, SECONDS)
    assert fake.closed == n
    started = [message for message in sent if message["type"] == "http.response.start"]
    assert [message["status"] for message in started] == [200 if body.get("stream") and len(steps) > 1 else 499]


async def test_a_client_that_stops_reading_and_hangs_up():
    """The reply is stuck in the connection, not in the model."""
    closed = []

    async def source():
        try:
            yield "first"
            yield "second"
        finally:
            closed.append(True)

    events = source()
    await anext(events)
    stuck = asyncio.Event()

    async def receive():
        await stuck.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        if message["type"] == "http.response.body":
            stuck.set()
            await asyncio.sleep(60)

    scope = {"type": "http", "state": {"log": {}}}
    await asyncio.wait_for(EventStream(events, events)(scope, receive, send), SECONDS)
    assert closed and scope["state"]["log"] == {"error": "client_gone"}


async def test_an_answer_waits_for_its_reader():
    made = 0

    async def answer():
        nonlocal made
        while True:
            made += 1
            await asyncio.sleep(0)
            yield REPLY[0]

    deltas = merged([answer()])
    await anext(deltas)
    await until(lambda: made > WAITING)
    for _ in range(100):
        await asyncio.sleep(0)
    assert made == WAITING + 2, "one has been taken, one has no room"
    await anext(deltas)
    await until(lambda: made == WAITING + 3)
    await deltas.aclose()

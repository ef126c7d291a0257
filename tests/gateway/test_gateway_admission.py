"""Who is let in: places, bytes, shares of keys, and bodies that do not come."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest

from gateway_calls import CHAT, HELLO
from gateway_fixture import REPLY, FakeClient, http
from step_audio_client import Unavailable
from step_audio_gateway.admission import Bound
from step_audio_gateway.app import create_app
from step_audio_gateway.settings import GatewaySettings
from waiting import SECONDS, until

FOREVER = [3600.0]


class Door:
    """A gateway in this process, spoken to by messages of ASGI."""

    def __init__(self, fake: FakeClient, **settings):
        self.fake = fake
        self.app = create_app(GatewaySettings.create(**settings), fake)
        self.tasks: list[asyncio.Task] = []

    async def call(self, receive, headers: dict[str, str] | None = None) -> tuple[int, dict[str, str], dict]:
        """Status, headers and body of the reply."""
        sent = []

        async def send(message):
            sent.append(message)

        await self.run(receive, send, headers)
        start, *rest = sent
        body = b"".join(message["body"] for message in rest)
        return start["status"], {k.decode(): v.decode() for k, v in start["headers"]}, json.loads(body)

    async def run(self, receive, send, headers: dict[str, str] | None = None) -> None:
        given = {"content-type": "application/json"} | (headers or {})
        scope = {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "POST",
            "scheme": "http", "path": CHAT, "raw_path": CHAT.encode(), "query_string": b"", "root_path": "",
            "headers": [(k.encode(), v.encode()) for k, v in given.items()], "client": ("1.2.3.4", 5),
            "server": ("gateway", 80),
        }  # fmt: skip
        await asyncio.wait_for(self.app(scope, receive, send), SECONDS)

    async def ask(self, key: str = "", **body):
        return await self.call(pieces(json.dumps({"messages": HELLO} | body).encode()), bearer(key))

    async def knock(self, key: str = "", length: int = 0):
        """Headers alone: a body that is never sent, and must not be asked for."""
        return await self.call(unread, bearer(key) | {"content-length": str(length)})

    async def begin(self, key: str = "", **body) -> asyncio.Task:
        """A request that is under way when this returns."""
        begun = self.fake.begun
        task = asyncio.create_task(self.ask(key, **body))
        self.tasks.append(task)
        await until(lambda: self.fake.begun >= begun + (body.get("n") or 1))
        return task

    def metric(self, name: str) -> float:
        lines = self.app.state.metrics.text().decode().splitlines()
        return float(next(line.rpartition(" ")[2] for line in lines if line.startswith(name + " ")))

    def refused(self, reason: str) -> float:
        return self.metric(f'step_audio_refused_total{{reason="{reason}"}}')


@contextlib.asynccontextmanager
async def opened(fake: FakeClient | None = None, **settings):
    door = Door(fake or FakeClient(lambda messages, options: FOREVER), **settings)
    yield door
    for task in door.tasks:
        task.cancel()
    await asyncio.gather(*door.tasks, return_exceptions=True)
    assert door.metric("step_audio_requests_in_flight") == door.metric("step_audio_body_bytes_in_flight") == 0


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"} if key else {}


def pieces(*given: bytes, whole: bool = True):
    """A body that comes in pieces; if it is not whole, nothing comes behind them."""
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in given]
    if whole:
        messages[-1]["more_body"] = False
    rest = iter(messages)

    async def receive():
        if (message := next(rest, None)) is None:
            await asyncio.sleep(3600)
        return message

    return receive


async def unread():
    raise AssertionError("the body was asked for")


async def test_what_finds_no_place_is_refused_before_its_body_is_read():
    async with opened(max_concurrent_requests=2) as door:
        first = await door.begin()
        await door.begin(stream=True)
        status, headers, body = await door.knock(length=1000)
        assert status == 429 and int(headers["retry-after"]) > 0
        assert body["error"]["code"] == "server_busy" and body["error"]["type"] == "rate_limit_error"
        assert door.refused("queue") == 1 and door.metric("step_audio_requests_in_flight") == 2
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await door.begin()
        assert (await door.knock())[0] == 429


async def test_places_are_as_many_as_the_expected_servers_have():
    fake = FakeClient()
    async with opened(fake, max_waiting=3) as door:
        for batch, expected, places in [(8, 2, 19), (8, 1, 11), (8, 0, 11)]:
            fake.max_batch_size, fake.expected = batch, expected
            assert (await door.ask())[0] == 200
            assert door.metric("step_audio_requests_in_flight_limit") == places


async def test_while_no_server_was_ever_reached():
    class Nobody(FakeClient):
        async def serving_info(self):
            raise Unavailable("no server answers at 127.0.0.1:1")

    async with opened(Nobody()) as door:
        status, headers, body = await door.knock()
        assert status == 503 and body["error"]["code"] == "unavailable" and "retry-after" in headers


async def test_each_answer_takes_a_place():
    async with opened(max_concurrent_requests=4) as door:
        await door.begin(n=3)
        assert (await door.ask(n=2))[0] == 429
        assert door.metric("step_audio_requests_in_flight") == 3, "what was refused has given back what it had"
        await door.begin()
        assert (await door.knock())[0] == 429
    async with opened(max_concurrent_requests=2) as door:
        await door.begin(n=5)  # more than there are places, with nobody else here
        assert (await door.knock())[0] == 429
    pace = {"mode": "speak_first"}
    async with opened(max_concurrent_requests=3) as door:
        await door.begin(mind_paced_speaking=pace)
        assert (await door.ask(mind_paced_speaking=pace))[0] == 429
        await door.begin(mind_paced_speaking={"mode": "no_think"})


@pytest.mark.parametrize("stream", [True, False])
async def test_who_hears_of_the_end_may_ask_the_next_at_once(stream):
    """Before the rest of the first request's work is done: a closed loop as wide as the places finds one each time."""
    door = Door(FakeClient(lambda messages, options: REPLY), max_concurrent_requests=1)
    statuses = []

    async def send(message):
        last = b"[DONE]" in message.get("body", b"") if stream else message["type"] == "http.response.body"
        if last:
            status, *_ = await door.ask()
            statuses.append(status)

    body = json.dumps({"messages": HELLO, "stream": stream}).encode()
    await door.run(pieces(body), send)
    assert statuses == [200]


async def test_other_routes_need_no_place():
    fake = FakeClient(lambda messages, options: FOREVER)
    async with http(fake, max_concurrent_requests=1) as client:
        task = asyncio.create_task(client.post(CHAT, json={"messages": HELLO}))
        await until(lambda: fake.begun)
        assert [(await client.get(path)).status_code for path in ("/v1/models", "/health", "/metrics", "/")] == [
            200
        ] * 4
        upload = {"files": {"file": ("a.wav", b"x")}}
        assert (await client.post("/v1/audio/transcriptions", **upload)).status_code == 429
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_bytes_in_flight():
    async with opened(max_body_bytes=1000, max_bytes_in_flight=1500) as door:
        question = json.dumps({"messages": HELLO}).encode()
        whole = asyncio.create_task(door.call(pieces(question), {"content-length": "900"}))
        door.tasks.append(whole)
        await until(lambda: door.fake.begun)
        assert door.metric("step_audio_body_bytes_in_flight") == 900
        assert (await door.knock(length=700))[2]["error"]["code"] == "server_busy"
        assert (await door.call(pieces(b" " * 500, b" " * 200)))[0] == 429, "without a length, counted as it comes"
        assert door.refused("bytes") == 2 and door.metric("step_audio_body_bytes_in_flight") == 900
        await door.begin()


def taken_by(bound: Bound, key: int, at_most: int = 1000) -> int:
    """How many places `key` gets when it asks for one after the other."""
    for count in range(at_most):
        if bound.refusal(key, 1):
            return count
        bound.take(key, 1)
    return at_most


def test_one_key_alone_has_all():
    assert taken_by(Bound("queue", 32, shared=False), 0) == 32


@pytest.mark.parametrize("limit", [1, 2, 5, 8, 36, 256])
def test_what_a_key_leaves_to_others(limit):
    bound = Bound("queue", limit, shared=True)
    greedy = taken_by(bound, 0)
    assert greedy == (limit - max(1, limit // 8) or 1)
    assert (bound.refusal(1, 1) is None) == (limit > 1)


def test_what_becomes_free_goes_to_those_with_less():
    """One key holds nearly all; as its answers end and it asks again, another comes to as much."""
    bound = Bound("queue", 36, shared=True)
    taken_by(bound, 0)
    held = taken_by(bound, 1)
    for _ in range(100):
        if bound.refusal(0, 1) == "share":
            bound.take(0, -1)
        else:
            bound.take(0, 1)
        held += taken_by(bound, 1)
    assert held >= 36 // 2 - 1
    assert bound.refusal(2, 1) is None, "a third key finds a place"


async def test_a_key_beside_another_with_many_requests():
    async with opened(max_concurrent_requests=8, api_key=["greedy", "modest"]) as door:
        for _ in range(7):
            await door.begin("greedy")
        status, _, body = await door.knock("greedy")
        assert status == 429 and body["error"]["code"] == "server_busy" and door.refused("share") == 1
        await door.begin("modest")
        assert (await door.knock("modest"))[0] == 429 and door.refused("queue") == 1


@pytest.mark.parametrize("sent", [(), (b'{"messages": ',)])
async def test_a_body_that_does_not_come(sent):
    async with opened(receive_timeout=0.2) as door:
        status, headers, body = await door.call(pieces(*sent, whole=False), {"content-length": "100"})
        assert status == 408 and headers["connection"] == "close" and body["error"]["code"] == "request_timeout"
        assert door.refused("slow") == 1 and not door.fake.begun


async def test_a_body_that_comes_drop_by_drop():
    async def receive():
        await asyncio.sleep(0.05)
        return {"type": "http.request", "body": b" ", "more_body": True}

    async with opened(receive_timeout=0.2) as door:
        assert (await door.call(receive))[0] == 408


async def test_a_long_body_may_take_its_time():
    question = json.dumps({"messages": HELLO, "x": "y" * 1000}).encode()
    rest = pieces(*(question[i : i + 100] for i in range(0, len(question), 100)))

    async def receive():
        await asyncio.sleep(0.05)
        return await rest()

    async with opened(FakeClient(lambda m, o: list(REPLY)), receive_timeout=0.4, min_receive_rate=100) as door:
        assert (await door.call(receive))[0] == 200

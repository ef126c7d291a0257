"""More than can be served, slow clients and rude ones, over real sockets.

RELIABILITY_ROUNDS, which `make reliability` sets, adds the measurement: an open loop against a served model.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from gateway_calls import CHAT, HELLO
from gateway_fixture import REPLY, FakeClient, listening
from metrics_page import figure
from open_loop import Seen, ask, beside, closed_loop, open_loop
from server_settings import settings_for
from step_audio_client import ChatDelta
from step_audio_gateway.gateway_process import GatewayProcess
from step_audio_gateway.settings import GatewaySettings
from step_audio_server.launch.ports import free_ports
from step_audio_server.serve import Service
from waiting import SECONDS, wait_until

pytestmark = pytest.mark.long
HEAD = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@contextlib.contextmanager
def connected(url: str):
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=SECONDS) as connection:
        yield connection


def reply(connection: socket.socket) -> tuple[int, bytes]:
    """Status and body of what comes until the other end closes; status 0 if nothing does."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(65536):
            received += data
    head, _, body = received.partition(b"\r\n\r\n")
    return (int(head.split()[1]) if head else 0), body


def metric(url: str, name: str) -> float:
    return figure(httpx.get(f"{url}/metrics", timeout=SECONDS).text, name)


def slow(url: str) -> float:
    return metric(url, 'step_audio_refused_total{reason="slow"}')


@pytest.mark.parametrize("sent", [b"", b"POST /v1/chat", HEAD.encode()])
def test_headers_that_do_not_come(sent):
    """Many of them at once; others are served meanwhile."""
    with listening(FakeClient(), receive_timeout=2) as url, contextlib.ExitStack() as stack:
        half = [stack.enter_context(connected(url)) for _ in range(50)]
        for connection in half:
            connection.sendall(sent)
        assert httpx.post(f"{url}{CHAT}", json={"messages": HELLO}, timeout=SECONDS).status_code == 200
        for connection in half:
            status, body = reply(connection)
            assert status == (408 if sent else 0)
            assert not sent or json.loads(body)["error"]["code"] == "request_timeout"
        assert slow(url) == 50


def test_a_body_that_does_not_come():
    with listening(FakeClient(), receive_timeout=2) as url, connected(url) as connection:
        connection.sendall(f"{HEAD}Content-Length: 100000000\r\n\r\n".encode() + b" " * 1_000_000)
        wait_until(lambda: metric(url, "step_audio_body_bytes_in_flight") == 100_000_000)
        status, body = reply(connection)
        assert status == 408 and json.loads(body.splitlines()[-1])["error"]["code"] == "request_timeout"
        assert metric(url, "step_audio_body_bytes_in_flight") == 0


def test_an_answered_request_whose_body_never_ends():
    """Refused by its headers; what comes of the body is thrown away, but not for ever."""
    with listening(FakeClient(), receive_timeout=2, max_body_bytes=1000) as url, connected(url) as connection:
        connection.sendall(f"{HEAD}Content-Length: 2000\r\n\r\n".encode())
        connection.settimeout(0.2)
        received = b""
        with contextlib.suppress(ConnectionError):
            while True:
                try:
                    if not (data := connection.recv(65536)):
                        break
                    received += data
                except TimeoutError:
                    connection.sendall(b" ")
        assert received.startswith(b"HTTP/1.1 413 ")


def test_a_reader_that_stops():
    """Its answer is stopped, and its place is free."""
    long = [ChatDelta(content="x" * 2000, raw="x" * 2000)] * 20_000
    fake = FakeClient(lambda messages, options: long)
    with listening(fake, send_timeout=2) as url, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        host, port = url.removeprefix("http://").split(":")
        connection.connect((host, int(port)))
        body = json.dumps({"messages": HELLO, "stream": True})
        connection.sendall(f"{HEAD}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        wait_until(lambda: fake.begun and fake.closed, "the end of the answer")
        wait_until(lambda: metric(url, "step_audio_requests_in_flight") == 0)
        assert slow(url) == 1


def test_more_connections_than_are_kept():
    """The one that has been idle for longest goes; whoever comes is served."""
    with listening(FakeClient(), max_connections=3) as url, contextlib.ExitStack() as stack:
        first, *others = [stack.enter_context(connected(url)) for _ in range(3)]
        time.sleep(3)  # idle, not only just come
        assert httpx.post(f"{url}{CHAT}", json={"messages": HELLO}, timeout=SECONDS).status_code == 200
        assert reply(first) == (0, b"")
        for connection in others:
            connection.settimeout(0.2)
            with pytest.raises(TimeoutError):  # still open
                connection.recv(1)


def test_a_connection_outlives_a_pause_between_two_requests():
    """httpx closes it after five seconds itself: the gateway must not do it at the same moment."""
    limits = httpx.Limits(keepalive_expiry=60)
    with listening(FakeClient()) as url, httpx.Client(timeout=SECONDS, limits=limits) as client:
        ports = []
        for pause in (0, 6):
            time.sleep(pause)
            with client.stream("GET", f"{url}/v1/models") as reply:
                reply.read()
                ports.append(reply.extensions["network_stream"].get_extra_info("client_addr")[1])
    assert reply.status_code == 200 and ports[0] == ports[1]


def test_twenty_times_more_than_can_be_served():
    """Those that are let in are whole; the others are told at once, before any of the first has ended."""
    places, count = 5, 100
    release = ChatDelta(content="end", raw="end")
    fake = FakeClient(lambda messages, options: [REPLY[0], 0.5, release, REPLY[-1]])
    with listening(fake, max_concurrent_requests=places) as url:

        def ask(_: int) -> httpx.Response:
            return client.post(f"{url}{CHAT}", json={"messages": HELLO})

        limits = httpx.Limits(max_connections=count)
        with httpx.Client(timeout=SECONDS, limits=limits) as client, ThreadPoolExecutor(count) as pool:
            replies = list(pool.map(ask, range(count)))
        statuses = [reply.status_code for reply in replies]
        whole = [reply for reply in replies if reply.status_code == 200]
        assert set(statuses) == {200, 429} and len(whole) >= places and fake.begun == len(whole)
        assert all(reply.json()["choices"][0]["message"]["content"] == "end" for reply in whole)
        assert all("Retry-After" in reply.headers for reply in replies if reply.status_code == 429)
        assert metric(url, 'step_audio_refused_total{reason="queue"}') == statuses.count(429)


BATCH = 8  # answers that the measured server computes at once
LENGTH = 4096  # the longest request
TOKENS = 3900  # of an answer: it takes seconds, as thinking does
SECONDS_EACH = 60  # of each rate


@contextlib.contextmanager
def gateway(address: str, **settings):
    """Its port."""
    (port,) = free_ports(1)
    process = GatewayProcess(GatewaySettings.create(port=port, triton=[address], **settings))
    process.start()
    try:
        yield port
    finally:
        process.stop()


@pytest.mark.skipif("RELIABILITY_ROUNDS" not in os.environ, reason="a measurement of minutes")
def test_an_open_loop(checkpoint, work_dir, capsys):
    """Prints the median and the 99th percentile: of the first token of what is let in, of the time to a 429."""

    async def measure(port: int) -> dict[str, Seen]:
        alone = Seen()
        for _ in range(20):
            await ask(port, alone, TOKENS)
        capacity = await closed_loop(port, BATCH, 30, TOKENS)
        with capsys.disabled():
            print(f"\ncapacity: {capacity:.2f} requests a second")
        seen = {"unloaded": alone}
        for times in (1, 4, 20):
            seen[f"{times}x"] = await open_loop(port, times * capacity, SECONDS_EACH, TOKENS)
        return seen

    # Room for what is let in: else answers wait for each other's ends, within the engine.
    room = {"max_batch_size": BATCH, "max_seq_len": LENGTH, "kv_cache_tokens": BATCH * LENGTH}
    with Service(settings_for(checkpoint, work_dir, **room)) as service:
        with gateway(service.address) as port:
            seen = asyncio.run(measure(port))
        with gateway(service.address, api_key=["greedy", "modest"]) as port:
            seen["alone"], seen["beside"] = asyncio.run(beside(port, 100, TOKENS))
    with capsys.disabled():
        print(*(one.line(name) for name, one in seen.items()), sep="\n")
    assert not any(one.others for one in seen.values())
    assert len(seen["beside"].first) == 14

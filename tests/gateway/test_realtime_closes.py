"""What ends a realtime session's WebSocket, by the code that its client reads, and what is left of it: nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import socket
import struct
import threading
from unittest.mock import Mock

import pytest
import websockets
from websockets.asyncio.client import connect
from websockets.frames import Frame, Opcode

import waiting
from gateway_fixture import PLAIN, USAGE, FakeClient, listening, loops
from realtime_fixture import by_hand, connected, pcm, say, until
from step_audio_client import ChatDelta
from step_audio_gateway import server, web_sockets
from step_audio_gateway.connections import Connections
from step_audio_gateway.metrics import Metrics
from step_audio_gateway.realtime.outbox import MOST_WAITING, Outbox
from step_audio_gateway.realtime.session import Session
from step_audio_gateway.settings import GatewaySettings

HANDSHAKE = (
    "GET /v1/realtime HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
READ = 1 << 18  # bytes that asyncio reads at once
TEXT, CONT, PING = Opcode.TEXT, Opcode.CONT, Opcode.PING


def frame(opcode: Opcode, data: bytes = b"", fin: bool = True, mask: bool = True) -> bytes:
    """As it is on the wire."""
    return Frame(opcode, data, fin).serialize(mask=mask)


def opened(url: str) -> socket.socket:
    """A session by hand, which answers nothing."""
    host, port = re.fullmatch(r"http://(.*):(\d+)", url).groups()
    raw = socket.create_connection((host, int(port)))
    raw.settimeout(waiting.SECONDS)
    raw.sendall(HANDSHAKE.encode())
    return raw


def code_of(raw: socket.socket) -> tuple[int, str]:
    """Of the close that comes last, and its reason."""
    told = b""
    while piece := raw.recv(1 << 16):
        told += piece
    at = told.rindex(b"\x88")  # a short frame, which ends what is sent
    assert told[at + 1] == len(told) - at - 2
    return struct.unpack_from("!H", told, at + 2)[0], told[at + 4 :].decode()


async def closed(websocket: websockets.ClientConnection) -> tuple[int, str]:
    """The server's code and reason."""
    with pytest.raises(websockets.ConnectionClosed) as caught:
        while True:
            await asyncio.wait_for(websocket.recv(), waiting.SECONDS)
    return caught.value.rcvd.code, caught.value.rcvd.reason


def metrics(url: str) -> str:
    return PLAIN.get(f"{url}/metrics").text


def left_of_sessions() -> list[object]:
    """Tasks that have not ended, of any gateway in this process."""
    tasks = (one for loop in loops for one in asyncio.all_tasks(loop))
    return [one for one in tasks if f"{os.sep}realtime{os.sep}" in one.get_coro().cr_code.co_filename]


async def no_session_at(url: str) -> None:
    await waiting.until(lambda: "step_audio_realtime_sessions 0.0" in metrics(url), "its end")
    await waiting.until(lambda: not left_of_sessions(), "the end of its tasks")


def socket_to(url: str, **more) -> connect:
    return connect(f"ws{url.removeprefix('http')}/v1/realtime", max_size=None, **more)


LARGEST, MOST = 16 << 20, 4096  # bytes and fragments of a message
ENDLESS = frame(TEXT, fin=False) + frame(CONT, fin=False) * MOST


@pytest.mark.parametrize(
    "sent, code, reason",
    [
        (frame(TEXT, b"{\xff}"), 1007, "a text message is UTF-8"),
        (frame(TEXT, b"\xe2\x82", fin=False) + frame(CONT, b"{}"), 1007, "a text message is UTF-8"),
        (frame(TEXT, b"\xff") * 2, 1007, "a text message is UTF-8"),
        (ENDLESS, 1009, "too many fragments"),
        (ENDLESS + frame(CONT, fin=False) * 3, 1009, "too many fragments"),
        (struct.pack("!BBQ", 0x81, 0xFF, LARGEST + 1) + bytes(4), 1009, str(LARGEST)),
        (frame(TEXT, b"{}", mask=False), 1002, ""),
        (b"\xa1\x80" + bytes(4), 1002, "reserved bits"),
        (frame(CONT), 1002, ""),
        (b"\x83\x80" + bytes(4), 1002, "opcode"),
    ],
    ids=["text", "fragments of text", "text twice", "endless", "and more", "large", "bare", "bit", "end", "opcode"],
)
async def test_frames_that_are_none(url, caplog, sent, code, reason):
    with opened(url) as raw:
        raw.recv(1)  # it is accepted
        raw.sendall(sent)
        found, said = await asyncio.to_thread(code_of, raw)
    assert found == code and reason in said
    await no_session_at(url)
    assert not [one for one in caplog.records if one.levelno >= logging.ERROR], "it is no fault of the server's"


async def test_the_largest_message_and_one_in_as_many_pieces_as_may_be(url):
    async with socket_to(url) as websocket:
        assert json.loads(await websocket.recv())["type"] == "session.created"
        for message in (" " * LARGEST, [" "] * (MOST - 1), b"{}"):  # an empty fragment is the last
            await websocket.send(message)
            assert json.loads(await websocket.recv())["error"]["code"] == "invalid_json"
        await websocket.close(1000)
        assert await closed(websocket) == (1000, "")
    await no_session_at(url)


async def test_garbage_before_the_session_is_open(fake, monkeypatch, caplog):
    asked, known, tell = [], threading.Event(), fake.serving_info

    async def later() -> dict:
        asked.append(1)
        while not known.is_set():
            await asyncio.sleep(0.01)
        return await tell()

    with listening(fake) as url:
        monkeypatch.setattr(fake, "serving_info", later)
        for garbage in (b"\xff" * 20, frame(TEXT, b"\xff")):
            with opened(url) as raw:
                await waiting.until(lambda: asked, "the handshake's way to the session")
                raw.sendall(garbage)
                with contextlib.suppress(ConnectionResetError):
                    assert await asyncio.to_thread(raw.recv, 1) == b"", "it is cut off"
            asked.clear()
        known.set()
        async with socket_to(url) as websocket:
            assert json.loads(await websocket.recv())["type"] == "session.created"
    assert not [one for one in caplog.records if one.levelno >= logging.ERROR]


async def test_a_fault_of_the_servers_says_no_more_than_that(url, monkeypatch):
    def broken(session: Session, message: object) -> None:
        raise RuntimeError("a secret of /etc")

    monkeypatch.setattr(Session, "_do", broken)
    async with socket_to(url) as websocket:
        await websocket.send('{"type": "response.cancel"}')
        assert await closed(websocket) == (1011, "internal error")
    await no_session_at(url)


async def test_who_reads_too_slowly_is_told_so(fake, play, monkeypatch):
    text = "x" * 10_000
    play(*[ChatDelta(content=text, raw=text)] * 2000)
    monkeypatch.setattr(Connections, "looks", lambda self, seconds: 1 << 30)  # or it is cut off after a while
    before = fake.closed
    with listening(fake, send_timeout=0.2) as url:
        async with socket_to(url, max_queue=1) as websocket:
            item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]}
            await websocket.send(json.dumps({"type": "conversation.item.create", "item": item}))
            await websocket.send('{"type": "response.create"}')
            await waiting.until(lambda: fake.closed > before, "the answer's end")
            assert await closed(websocket) == (1008, "the client reads too slowly")
        await no_session_at(url)


async def test_who_reads_nothing_is_cut_off_when_it_could_have_been_told():
    """The session gives up after half of the time."""
    connections = Connections(GatewaySettings.create(send_timeout=4.0), Metrics())
    one = web_sockets.WebSocket.__new__(web_sockets.WebSocket)
    one._all, one._looks, one.writable, one.transport = connections, 0, asyncio.Event(), Mock()
    one.transport.is_closing.return_value = False
    for _ in range(2 * connections.looks(4.0)):
        one.look()
        assert not one.transport.abort.called
    one.look()
    assert one.transport.abort.called


@pytest.mark.parametrize(
    "limit, code", [("session_seconds", "session_expired"), ("session_idle_seconds", "session_idle")]
)
async def test_the_last_event_comes_before_the_close(fake, monkeypatch, limit, code):
    deliver = Outbox.deliver

    async def slowly(self, send, timeout) -> None:
        async def later(text: str) -> None:
            await asyncio.sleep(0.1)
            await send(text)

        await deliver(self, later, timeout)

    monkeypatch.setattr(Outbox, "deliver", slowly)
    with listening(fake, **{limit: 0.05}) as url:
        async with socket_to(url) as websocket:
            created, error = [json.loads(await websocket.recv()) for _ in range(2)]
            assert (created["type"], error["type"], error["error"]["code"]) == ("session.created", "error", code)
            assert (await closed(websocket))[0] == 1001
        await no_session_at(url)


@pytest.mark.long
async def test_a_server_that_stops_waits_for_an_answer_no_longer_than_it_says():
    steps = [ChatDelta(content="Well", raw="Well"), 4.0 * waiting.SECONDS]
    gateway = listening(FakeClient(lambda messages, options: steps))
    url = gateway.__enter__()
    async with socket_to(url) as websocket:
        await websocket.send('{"type": "response.create", "response": {"instructions": "a"}}')
        while json.loads(await websocket.recv())["type"] != "response.output_text.delta":
            pass
        stop = asyncio.create_task(asyncio.to_thread(gateway.__exit__, None, None, None))
        assert (await closed(websocket))[0] == 1012
    await stop
    assert not left_of_sessions()


def test_a_ping_every_20_s_and_20_s_for_its_pong(fake):
    config = server.server_of(GatewaySettings.create(), fake).config
    assert (config.ws_ping_interval, config.ws_ping_timeout) == (20, 20)


async def test_who_answers_no_ping_is_gone(fake, monkeypatch):
    monkeypatch.setattr(server, "PING_INTERVAL", 0.05)
    monkeypatch.setattr(server, "PING_TIMEOUT", 0.05)
    with listening(fake) as url:
        with opened(url) as raw:
            assert await asyncio.to_thread(code_of, raw) == (1011, "keepalive ping timeout")
        await no_session_at(url)


async def test_pongs_do_not_pile_up_before_who_reads_nothing(url, monkeypatch):
    made, pinged = [], []
    keep, answer = Connections.keep, web_sockets.WebSocket.handle_ping
    monkeypatch.setattr(Connections, "keep", lambda self, one: (made.append(one), keep(self, one)))
    monkeypatch.setattr(web_sockets.WebSocket, "handle_ping", lambda self: (pinged.append(self), answer(self)))
    pings = frame(PING, b"a" * 125) * 500
    with opened(url) as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        raw.recv(1)
        for _ in range(40):
            raw.sendall(pings)
        await waiting.until(lambda: len(pinged) == 40 * 500, "all of them")
        transport = made[-1].transport
        _, most = transport.get_write_buffer_limits()
        assert most < transport.get_write_buffer_size() < most + READ, "its client reads nothing"
    await no_session_at(url)


@pytest.mark.parametrize("garbage", [frame(TEXT, b"{"), frame(Opcode.BINARY, b"{")], ids=["text", "binary"])
async def test_errors_do_not_pile_up_before_who_reads_nothing(url, monkeypatch, garbage):
    waiting_events, put = [], Outbox.put
    monkeypatch.setattr(
        Outbox, "put", lambda self, event: (put(self, event), waiting_events.append(self._queue.qsize()))
    )
    with opened(url) as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        raw.recv(1)
        raw.sendall(garbage * 10_000)
        await waiting.until(lambda: MOST_WAITING in waiting_events, "so many of them")
        await asyncio.sleep(0.5)
        assert max(waiting_events) == MOST_WAITING, "nothing more is read of what is sent"
    await no_session_at(url)


async def test_a_session_is_one_line_of_the_log(url, fake, play, caplog):
    """How long it was, how it ended, what it took; and nothing of what was said."""
    play(ChatDelta(content="to you alone", raw="x"), ChatDelta(finish_reason="stop", usage=USAGE))
    with caplog.at_level(logging.DEBUG):
        async with connected(url) as connection:
            await by_hand(connection, instructions="a secret")
            await say(connection, "another")
            await connection.input_audio_buffer.append(audio=pcm(0.5))
            await connection.input_audio_buffer.commit()
            await connection.response.create()
            await until(connection, "response.done")
        await no_session_at(url)
    logged = [vars(one) for one in caplog.records]
    opened = connection.created.session
    (line,) = (one["fields"] for one in logged if one.get("fields", {}).get("session") == opened.id)
    assert line["model"] == opened.model
    assert (line["path"], line["status"], line["closed"]) == ("/v1/realtime", 101, "the client has left")
    assert (line["turns"], line["prompt_tokens"], line["completion_tokens"]) == (
        1, USAGE.prompt_tokens, USAGE.completion_tokens,
    )  # fmt: skip
    assert line["seconds"] > 0
    ours = str([one for one in logged if one["name"].startswith("step_audio")])
    assert not any(said in ours for said in ("secret", "another", "to you alone"))

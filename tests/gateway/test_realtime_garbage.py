"""Messages that are no events, or come when they make no sense: one error each, and the connection goes on."""

from __future__ import annotations

import asyncio
import json

import pytest
from websockets.asyncio.client import ClientConnection, connect

from realtime_fixture import pcm
from session_fixture import BY_HAND, message
from step_audio_gateway.json_body import SMALL
from waiting import SECONDS

JSON, VALUE, MISSING = "invalid_json", "invalid_value", "missing_required_parameter"
DEEP = 10_000
LARGE = "9" * 400  # more than any double
HUGE = "9" * (SMALL // 2)
CREATE, ANSWER = "conversation.item.create", "response.create"


def updating(settings: str) -> str:
    return f'{{"type": "session.update", "session": {settings}}}'


def truncating(index: str, milliseconds: str) -> str:
    about = f'"item_id": "a", "content_index": {index}, "audio_end_ms": {milliseconds}'
    return f'{{"type": "conversation.item.truncate", {about}}}'


NO_EVENTS = [
    (b"", JSON, None),
    (b"\xff\xfe", JSON, None),
    (b'{"type": "response.cancel"}', JSON, None),
    ("", JSON, None),
    ("null", JSON, None),
    ("[]", JSON, None),
    ('[{"type": "response.cancel"}]', JSON, None),
    ("5", JSON, None),
    ('"response.cancel"', JSON, None),
    ('{"type": "response.cancel"', JSON, None),
    ('{"type": "response.cancel"} {}', JSON, None),
    ("[" * DEEP, JSON, None),
    ("[" * SMALL * 2, JSON, None),
    (updating('{"tools": ' + '{"a":' * DEEP + "1" + "}" * DEEP + "}"), JSON, None),
    (updating('{"temperature": NaN}'), JSON, None),
    (updating('{"temperature": -Infinity}'), JSON, None),
    (updating(f'{{"temperature": {HUGE}}}'), JSON, None),
    (updating('{"instructions": "\\ud800"}'), JSON, None),
    (updating('{"temperature": 1e999}'), VALUE, "session.temperature"),
    (updating(f'{{"temperature": {LARGE}}}'), VALUE, "session.temperature"),
    (updating(f'{{"max_output_tokens": {LARGE}}}'), VALUE, "session.max_output_tokens"),
    (truncating("0", LARGE), VALUE, "audio_end_ms"),
    (truncating("0", "1e999"), VALUE, "audio_end_ms"),
    (truncating("0", "1.5"), VALUE, "audio_end_ms"),
    (truncating("-1", "0"), VALUE, "content_index"),
    ("{}", MISSING, "type"),
    ('{"type": null}', MISSING, "type"),
    ('{"type": 5}', VALUE, "type"),
    ('{"type": ["response.cancel"]}', VALUE, "type"),
    ('{"type": "%s"}' % ("x" * DEEP), VALUE, "type"),
    ('{"type": "session.created"}', VALUE, "type"),
    ('{"type": "response.cancel", "event_id": 5}', VALUE, "event_id"),
    ('{"type": "response.cancel", "event_id": "%s"}' % ("x" * 513), VALUE, "event_id"),
    ('{"type": "no.such", "event_id": "%s"}' % ("x" * DEEP), VALUE, "type"),
    ('{"type": "input_audio_buffer.append", "audio": "é"}', VALUE, "audio"),
    ('{"type": "input_audio_buffer.append", "audio": "AA\\u0000A"}', VALUE, "audio"),
    ('{"type": "input_audio_buffer.append", "audio": "AAA"}', VALUE, "audio"),
    ('{"type": "input_audio_buffer.append", "audio": "AAAA%AAAA"}', VALUE, "audio"),
]


async def told(websocket: ClientConnection, given: str | bytes | dict) -> dict:
    """The next event."""
    await websocket.send(json.dumps(given) if isinstance(given, dict) else given)
    return await following(websocket)


async def following(websocket: ClientConnection) -> dict:
    return json.loads(await asyncio.wait_for(websocket.recv(), SECONDS))


async def refused(websocket: ClientConnection, given: str | bytes | dict) -> dict:
    event = await told(websocket, given)
    assert event["type"] == "error" and event["error"]["type"] == "invalid_request_error", event
    return event["error"]


@pytest.fixture
async def websocket(url):
    """Of a session by hand."""
    async with connect(f"ws{url.removeprefix('http')}/v1/realtime", max_size=None) as websocket:
        assert (await following(websocket))["type"] == "session.created"
        assert (await told(websocket, BY_HAND))["type"] == "session.updated"
        yield websocket


async def goes_on(websocket: ClientConnection) -> None:
    """A whole turn."""
    await websocket.send(json.dumps({"type": "input_audio_buffer.append", "audio": pcm(0.2)}))
    await websocket.send(json.dumps({"type": "input_audio_buffer.commit"}))
    await websocket.send(json.dumps({"type": ANSWER}))
    while (event := await following(websocket))["type"] != "response.done":
        assert event["type"] != "error", event
    assert event["response"]["status"] == "completed"


async def test_what_is_no_event_is_told_shortly_and_the_connection_goes_on(websocket):
    for given, code, param in NO_EVENTS:
        error = await refused(websocket, given)
        assert (error["code"], error["param"]) == (code, param), (given[:80], error)
        assert error["event_id"] is None
        assert len(json.dumps(error)) < 1000, "it is not told again"
    await goes_on(websocket)


async def test_events_out_of_order(websocket):
    commit, clear = ({"type": f"input_audio_buffer.{what}"} for what in ("commit", "clear"))
    assert (await refused(websocket, commit))["code"] == "input_audio_buffer_commit_empty"
    assert (await told(websocket, clear))["type"] == "input_audio_buffer.cleared"
    assert (await refused(websocket, {"type": "response.cancel"}))["code"] == "response_cancel_not_active"
    output = {"type": "function_call_output", "call_id": "later", "output": "x"}
    assert (await refused(websocket, {"type": CREATE, "item": output}))["code"] == "item_create_invalid_call_id"
    behind = {"type": CREATE, "previous_item_id": "later"} | message("user", {"type": "input_text", "text": "a"})
    assert (await refused(websocket, behind))["code"] == "item_create_invalid_previous_item_id"
    empty = await told(websocket, {"type": ANSWER})
    done = await following(websocket)
    assert (empty["type"], done["type"]) == ("response.created", "response.done")
    assert done["response"]["status_details"]["error"]["code"] == "conversation_empty"
    await goes_on(websocket)


async def test_an_event_id_that_comes_twice_is_the_clients_own_affair(websocket):
    for _ in range(2):
        error = await refused(websocket, {"type": "response.cancel", "event_id": "mine"})
        assert (error["code"], error["event_id"]) == ("response_cancel_not_active", "mine")
    for code in ("invalid_value", "input_audio_buffer_commit_empty"):
        kind = "no.such" if code == "invalid_value" else "input_audio_buffer.commit"
        error = await refused(websocket, {"type": kind, "event_id": "mine"})
        assert (error["code"], error["event_id"]) == (code, "mine")
    await goes_on(websocket)

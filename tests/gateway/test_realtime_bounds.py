"""How much a realtime session holds, and for how long: each bound by its number, without a socket."""

from __future__ import annotations

import asyncio
import json

import pytest

import waiting
from gateway_fixture import LIMITS, FakeClient
from realtime_fixture import pcm
from session_fixture import Talk, message, session, talking
from step_audio_client import ChatDelta
from step_audio_gateway.errors import ApiError
from step_audio_gateway.realtime import listener
from step_audio_gateway.realtime.outbox import Outbox
from step_audio_gateway.realtime.sessions import Sessions
from waiting import SECONDS

APPEND, COMMIT, CREATE, UPDATE = (
    "input_audio_buffer.append", "input_audio_buffer.commit", "conversation.item.create", "session.update",
)  # fmt: skip
SECOND = 48_000  # bytes
LOUD, SILENT = pcm(0.5), "AAAA" * 8000
MEBIBYTE = 1 << 20


@pytest.fixture
def by_loudness(monkeypatch):
    """Speech is what is loud."""

    class Loudness:
        def probability(self, frame) -> float:
            return float(abs(frame).max() > 0.01)

    monkeypatch.setattr(listener, "VoiceActivity", Loudness)


def text(said: str, **more) -> dict:
    return message("user", {"type": "input_text", "text": said}, **more)


def endless() -> FakeClient:
    """Its answers do not end by themselves."""
    return FakeClient(lambda messages, options: [ChatDelta(content="Well", raw="Well"), 60.0])


def few_bytes(size: int) -> dict:
    return {"max_bytes_in_flight": size, "max_body_bytes": size}


async def test_audio_counts_in_the_buffer_and_in_the_history():
    async with talking(**few_bytes(3 * SECOND)) as talk:
        held = talk.admission.bytes
        await talk.send(APPEND, audio=pcm(2.0))
        assert held.taken == 2 * SECOND
        assert (await talk.error(APPEND, audio=pcm(2.0)))["code"] == "server_busy"
        assert held.taken == 2 * SECOND, "nothing of it was taken"
        committed, *_ = await talk.send(COMMIT)
        assert (await talk.error(APPEND, audio=pcm(2.0)))["code"] == "server_busy", "it has become a turn"
        await talk.send(APPEND, audio=pcm(1.0))
        assert held.taken == 3 * SECOND
        await talk.send("input_audio_buffer.clear")
        await talk.send("conversation.item.delete", item_id=committed["item_id"])
        assert held.taken == 0
        await talk.send(APPEND, audio=pcm(3.0))
        assert held.taken == 3 * SECOND


async def test_audio_that_the_server_listens_to_counts(by_loudness):
    async with talking(by_hand=False, **few_bytes(SECOND)) as talk:
        assert (await talk.error(APPEND, audio=pcm(1.5)))["code"] == "server_busy"
        assert 0 < talk.admission.bytes.taken <= SECOND


async def test_items_count_with_their_texts():
    """Or a conversation of texts would hold gigabytes."""
    async with talking(**few_bytes(SECOND)) as talk:
        given = {"type": "input_audio", "audio": pcm(0.5)}
        await talk.send(CREATE, **message("user", given, {"type": "input_text", "text": "é" * 100}, id="a"))
        assert talk.admission.bytes.taken == SECOND // 2 + 200
        assert (await talk.error(CREATE, **text("x" * SECOND)))["code"] == "server_busy"
        assert (await talk.error(CREATE, **message("user", given)))["code"] == "server_busy"
        call = {"type": "function_call", "name": "f", "call_id": "c", "arguments": "x" * SECOND}
        assert (await talk.error(CREATE, item=call))["code"] == "server_busy"
        await talk.send("conversation.item.delete", item_id="a")
        assert talk.admission.bytes.taken == 0
        await talk.send(CREATE, **text("x" * SECOND))
        assert talk.admission.bytes.taken == SECOND


async def test_items_that_only_an_answer_has_count_while_it_is_given():
    async with talking(endless(), **few_bytes(3 * SECOND)) as talk:
        own = message("user", {"type": "input_audio", "audio": pcm(2.0)})["item"]
        answer = await talk.begun(conversation="none", input=[own])
        await talk.send(APPEND, audio=pcm(0.5))
        assert talk.admission.bytes.taken == 2.5 * SECOND
        await talk.send("response.cancel", response_id=answer["id"])
        await waiting.until(lambda: talk.admission.bytes.taken == SECOND // 2, "its end")


async def test_an_answer_takes_a_place_and_two_where_it_speaks_as_it_thinks():
    async with talking(endless()) as talk:
        for more, places in (({}, 1), ({"mind_paced_speaking": {"mode": "speak_first"}}, 2)):
            assert talk.admission.places.taken == 0, "nobody speaks"
            await talk.begun(instructions="a", **more)
            await waiting.until(lambda: talk.fake.begun > talk.fake.closed, "the answer")
            assert talk.admission.places.taken == places
            await talk.send("response.cancel")
            await talk.answered()


async def test_a_server_that_stops_takes_no_other_session():
    sessions = Sessions()
    sessions.enter()
    sessions.stopping.set()
    with pytest.raises(ApiError) as caught:
        sessions.enter()
    assert caught.value.status_code == 503


async def test_a_conversation_of_2000_items_and_parts_takes_no_more():
    part = {"type": "input_text", "text": ""}
    async with talking() as talk:
        await talk.send(CREATE, **message("user", *[part] * 1998))
        await talk.send(CREATE, **message("user", id="b"))
        refused = await talk.error(CREATE, **message("user", part, part))
        assert (refused["code"], refused["param"]) == ("conversation_full", "item")
        await talk.send(CREATE, **message("user"))
        for _ in range(2):
            assert (await talk.error(CREATE, **message("user")))["code"] == "conversation_full"
            await talk.send(APPEND, audio=pcm(0.2))
            assert (await talk.error(COMMIT))["code"] == "conversation_full"
        await talk.send("conversation.item.delete", item_id="b")
        assert (await talk.send(CREATE, **message("user")))[-1]["type"] == "conversation.item.done"


async def test_settings_have_a_mebibyte_together():
    async with talking() as talk:
        half = "ä" * (MEBIBYTE // 4)  # bytes, not characters
        await talk.send(UPDATE, session={"instructions": half})
        for kind, change in ((UPDATE, "session"), ("response.create", "response")):
            refused = await talk.error(kind, **{change: {"stop": [half]}})
            assert (refused["code"], refused["param"]) == ("invalid_value", change)
        assert talk.session.config.instructions == half


async def test_a_turn_is_no_longer_than_a_requests_audio():
    async with talking(session_buffer_seconds=1000.0) as talk:
        most = LIMITS["max_audio_seconds"]
        await talk.send(APPEND, audio=pcm(most))
        assert (await talk.error(APPEND, audio=pcm(0.1)))["code"] == "input_audio_buffer_full"
        assert (await talk.send(COMMIT))[0]["type"] == "input_audio_buffer.committed"


async def test_a_turn_of_100_ms():
    async with talking() as talk:
        await talk.send(APPEND, audio=pcm(0.0999))
        assert (await talk.error(COMMIT))["code"] == "input_audio_buffer_commit_empty"
        await talk.send("input_audio_buffer.clear")
        await talk.send(APPEND, audio=pcm(0.1))
        assert (await talk.send(COMMIT))[0]["type"] == "input_audio_buffer.committed"


async def seems_idle(talk: Talk, kind: str, **event) -> bool:
    """After a thousand seconds in which nothing came, and then this."""
    talk.session.active_at -= 1000
    await talk.send(kind, **event)
    return talk.session.idle >= 1000


async def test_silence_is_idle_and_nothing_else_is(by_loudness):
    async with talking(endless()) as talk:
        assert not await seems_idle(talk, APPEND, audio=SILENT), "who says when a turn ends, speaks"
        found = session("audio.input.turn_detection", {"type": "server_vad"})
        assert not await seems_idle(talk, UPDATE, **found)
        assert await seems_idle(talk, APPEND, audio=SILENT), "the server listens, and hears nothing"
        assert not await seems_idle(talk, APPEND, audio=LOUD)
        assert not await seems_idle(talk, "input_audio_buffer.clear")
        assert not await seems_idle(talk, CREATE, **text("hello"))
        await talk.send("response.create")
        assert not await seems_idle(talk, APPEND, audio=SILENT), "it is answered"
        await talk.send("response.cancel")
        assert await seems_idle(talk, APPEND, audio=SILENT)


@pytest.mark.parametrize("count, characters", [(256, 10), (1, 4 * MEBIBYTE)])
async def test_what_waits_for_who_reads_slowly_is_bounded_in_number_and_size(count, characters):
    outbox, sent, reads = Outbox(), [], asyncio.Semaphore(0)

    async def send(text: str) -> None:
        await reads.acquire()
        sent.append(text)

    event = {"type": "x" * characters}
    for _ in range(count - 1):
        outbox.put(event)
    await asyncio.wait_for(outbox.room(), SECONDS)
    outbox.put(event)
    room, writer = asyncio.create_task(outbox.room()), asyncio.create_task(outbox.deliver(send, SECONDS))
    await asyncio.sleep(0)
    assert not room.done(), "who makes more of them waits"
    for _ in range(count):
        reads.release()
    await asyncio.wait_for(room, SECONDS)
    await asyncio.wait_for(outbox.empty(), SECONDS)
    writer.cancel()
    assert [json.loads(one) for one in sent] == [event] * count

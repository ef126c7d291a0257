"""Each of a client's events in each state of a session: in this process, without a socket."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

import waiting
from gateway_fixture import ANSWER, REPLY, USAGE, FakeClient, whole
from realtime_fixture import pcm
from session_fixture import Talk, message, session, talking
from step_audio_client import ChatDelta
from step_audio_client.messages import recordings
from step_audio_gateway.realtime import listener
from step_audio_gateway.realtime.formats import SampleFormat

TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object"}}
CREATE, UPDATE, ANSWER_IT = "conversation.item.create", "session.update", "response.create"
LOUD, SILENT = pcm(0.5), base64.b64encode(bytes(24_000)).decode()  # half a second
FINDS = {"audio": {"input": {"turn_detection": {"type": "server_vad"}}}}


class Voice:
    """Says a letter in 10 ms; after the first piece it waits for `go_on`."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.go_on.set()

    def check(self, name: str | None) -> None: ...

    async def speak(self, text: str, name: str | None, speed: float) -> AsyncIterator[bytes]:
        yield bytes(480 * len(text))
        await self.go_on.wait()


@pytest.fixture
def by_loudness(monkeypatch):
    """Speech is what is loud."""

    class Loudness:
        def probability(self, frame: np.ndarray) -> float:
            return float(np.abs(frame).max() > 0.01)

    monkeypatch.setattr(listener, "VoiceActivity", Loudness)


def holding(*deltas: ChatDelta) -> FakeClient:
    """It does not end by itself."""
    return FakeClient(lambda messages, options: [*deltas, 60.0])


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]


async def until(talk: Talk, kind: str) -> dict[str, Any]:
    await waiting.until(lambda: kind in kinds(talk.told), kind)
    return next(event for event in reversed(talk.told) if event["type"] == kind)


TEXT, HEARD = {"type": "input_text", "text": "a"}, {"type": "input_audio", "audio": LOUD}


async def test_null_is_the_default_again():
    async with talking(voice=Voice()) as talk:
        await talk.send(UPDATE, session={"output_modalities": ["text"], "instructions": "x"})
        detection = {"type": "server_vad", "threshold": None, "idle_timeout_ms": None}
        given = {"voice": {"id": "anna"}, "speed": None}
        audio = {"input": {"turn_detection": detection, "format": {"type": "audio/pcma"}}, "output": given}
        (second,) = await talk.send(UPDATE, session={"output_modalities": None, "instructions": None, "audio": audio})
        now = second["session"]
        assert (now["output_modalities"], now["instructions"]) == (["audio"], ""), "OpenAI's, where there is a voice"
        assert now["audio"]["input"]["turn_detection"]["threshold"] == 0.5
        assert (now["audio"]["output"]["voice"], now["audio"]["output"]["speed"]) == ("anna", 1.0)
        (third,) = await talk.send(UPDATE, session={"audio": None})
        assert third["session"]["audio"]["input"]["format"] == {"type": "audio/pcm", "rate": 24_000}
        assert third["session"]["audio"]["input"]["turn_detection"], "the server finds turns, as it did at first"
        off = {"input": {"turn_detection": None, "transcription": None}}
        (fourth,) = await talk.send(UPDATE, session={"audio": off})
        assert fourth["session"]["audio"]["input"]["turn_detection"] is None


async def test_a_session_keeps_its_model():
    fake = FakeClient()
    fake.adapters = {"other": 1}
    async with talking(fake) as talk:
        assert kinds(await talk.send(UPDATE, session={"model": "tiny"})) == ["session.updated"]
        assert (await talk.error(UPDATE, session={"model": "other"}))["param"] == "session.model"


async def test_an_answer_by_its_own_settings():
    async with talking() as talk:
        await talk.send(UPDATE, session={"tools": [TOOL], "max_output_tokens": 50, "instructions": "Be brief."})
        await talk.written("hello")
        own = {"tools": [], "max_output_tokens": 7, "instructions": "Sing.", "metadata": {"a": "b"}}
        (created,) = await talk.send(ANSWER_IT, response=own | {"tool_choice": "none", "thinking": {"mode": "off"}})
        done = await talk.answered()
        for told in (created["response"], done):
            assert (told["max_output_tokens"], told["metadata"]) == (7, {"a": "b"})
        options = talk.fake.options
        assert (options.sampling.max_tokens, options.tools, options.thinking.mode) == (7, (), "off")
        assert talk.fake.messages[0]["content"] == "Sing."
        await talk.send(ANSWER_IT)
        await talk.answered()
        assert talk.fake.options.tools and talk.fake.messages[0]["content"] == "Be brief.", "of that answer alone"
        assert talk.fake.options.sampling.max_tokens == 50


async def test_an_answer_that_is_too_long_is_incomplete():
    deltas = [ChatDelta(content="Once", raw="Once"), ChatDelta(finish_reason="length", usage=USAGE)]
    async with talking(FakeClient(lambda messages, options: deltas)) as talk:
        await talk.written("hello")
        await talk.send(ANSWER_IT, response={"max_output_tokens": 6})
        done = await talk.answered()
        assert (done["status"], done["status_details"]["reason"]) == ("incomplete", "max_output_tokens")
        assert done["output"][0]["status"] == "incomplete" and done["usage"]["output_tokens"] == 6


async def test_answers_beside_the_conversations_own():
    async with talking(holding(ChatDelta(content="Well", raw="Well"))) as talk:
        await talk.written("hello")
        ours = await talk.begun()
        await until(talk, "response.output_text.delta")
        other = await talk.begun(conversation="none", metadata={"topic": "x"})
        assert other["conversation_id"] is None and ours["conversation_id"]
        more = [await talk.begun(conversation="none") for _ in range(7)]
        assert (await talk.error(ANSWER_IT, response={"conversation": "none"}))["code"] == "too_many_responses"
        assert (await talk.error(ANSWER_IT))["code"] == "conversation_already_has_active_response"
        assert (await talk.error("response.cancel", response_id=""))["code"] == "response_cancel_not_active"
        ended = await talk.send("response.cancel", response_id=other["id"])
        assert ended[-1]["response"]["id"] == other["id"]
        assert not any(kind.startswith("conversation.") for kind in kinds(ended)), "it is no part of it"
        assert (await talk.send("response.cancel"))[-1]["response"]["id"] == ours["id"]
        for response in more:
            await talk.send("response.cancel", response_id=response["id"])
        told = [event["item"]["role"] for event in talk.told if event["type"] == "conversation.item.added"]
        assert told == ["user", "assistant"]


async def test_an_answer_to_items_of_its_own():
    async with talking(max_bytes_in_flight=100_000, max_body_bytes=100_000) as talk:
        await talk.send(CREATE, **message("user", HEARD, id="there"))
        await talk.written("and this is not asked about")
        given = [{"type": "item_reference", "id": "there"}, message("user", HEARD, TEXT)["item"]]
        (created,) = await talk.send(ANSWER_IT, response={"conversation": "none", "input": given})
        assert created["type"] == "response.created"
        assert talk.admission.bytes.taken == 48_028, "its own recording counts, the other was there"
        refused = await talk.error(ANSWER_IT, response={"conversation": "none", "input": given[1:] * 4})
        assert refused["type"] != "invalid_request_error", "all sessions together hold so much"
        assert (await talk.answered())["status"] == "completed"
        assert [len(one["content"]) for one in talk.fake.messages] == [1, 2]
        assert talk.admission.bytes.taken == 24_027
        assert (await talk.error("conversation.item.retrieve", item_id="and"))[
            "code"
        ] == "item_retrieve_invalid_item_id"


async def test_calls_that_are_answered_late_or_never():
    async with talking() as talk:
        await talk.send(UPDATE, session={"tools": [TOOL]})
        await talk.written("the weather?")
        await talk.send(ANSWER_IT)
        (call,) = (await talk.answered())["output"]
        await talk.written("never mind")
        await talk.send(ANSWER_IT, response={"tool_choice": "none"})
        assert (await talk.answered())["output"][0]["content"][0]["text"] == ANSWER, "a call that nobody answered"
        late = {"type": "function_call_output", "call_id": call["call_id"], "output": ""}
        await talk.send(CREATE, item=late)
        await talk.send(ANSWER_IT)
        await talk.answered()
        asked = talk.fake.messages
        assert [one["role"] for one in asked] == ["user", "assistant", "user", "assistant", "tool"]
        assert asked[4]["tool_call_id"] == asked[1]["tool_calls"][0]["id"]
        await talk.send("conversation.item.delete", item_id=call["id"])
        again = await talk.error(CREATE, item=late)
        assert again["code"] == "item_create_invalid_call_id", "there is no such call any more"


async def test_an_answer_that_is_deleted_while_it_is_given():
    async with talking(holding(ChatDelta(content="Well", raw="Well"))) as talk:
        await talk.written("hello")
        await talk.send(ANSWER_IT)
        item = (await until(talk, "response.content_part.added"))["item_id"]
        assert kinds(await talk.send("conversation.item.delete", item_id=item)) == ["conversation.item.deleted"]
        ended = kinds(await talk.send("response.cancel"))
        assert "response.output_item.done" in ended and "conversation.item.done" not in ended


async def test_an_answer_that_is_truncated_while_it_is_said():
    voice = Voice()
    fake = FakeClient(lambda messages, options: [ChatDelta(content="Once upon a time. There was", raw="x"), REPLY[-1]])
    async with talking(fake, voice) as talk:
        voice.go_on.clear()
        await talk.written("hello")
        await talk.send(ANSWER_IT)
        item = (await until(talk, "response.output_audio.delta"))["item_id"]
        about = {"item_id": item, "audio_end_ms": 50}
        assert (await talk.error("conversation.item.truncate", **about, content_index=1))["param"] == "content_index"
        (cut,) = await talk.send("conversation.item.truncate", **about, content_index=0)
        assert (cut["type"], cut["audio_end_ms"]) == ("conversation.item.truncated", 50)
        voice.go_on.set()
        (said,) = (await talk.answered())["output"]
        assert said["content"][0]["transcript"] in (None, "", "Once"), "what comes of it is not kept"
        await talk.written("go on")
        await talk.send(ANSWER_IT)
        await talk.answered()
        assert "upon" not in str(talk.fake.messages)


async def test_the_buffer_in_each_state():
    async with talking() as talk:
        assert kinds(await talk.send("input_audio_buffer.clear")) == ["input_audio_buffer.cleared"]
        await talk.send("input_audio_buffer.append", audio=pcm(0.09))
        assert (await talk.error("input_audio_buffer.commit"))["code"] == "input_audio_buffer_commit_empty"
        assert await talk.send("input_audio_buffer.append", audio="") == []
        await talk.send("input_audio_buffer.append", audio=pcm(0.02))
        committed, added, done = await talk.send("input_audio_buffer.commit")
        assert committed["item_id"] == added["item"]["id"] == done["item"]["id"], "what was too short has stayed"
        assert (await talk.error("input_audio_buffer.commit"))["code"] == "input_audio_buffer_commit_empty"
        await talk.send("input_audio_buffer.append", audio=LOUD)
        await talk.send(UPDATE, session=session("audio.input.format.type", "audio/pcmu")["session"])
        assert (await talk.error("input_audio_buffer.commit"))["code"] == "input_audio_buffer_commit_empty", "cleared"
        assert await talk.send("output_audio_buffer.clear") == []


@pytest.mark.parametrize("law", ["audio/pcmu", "audio/pcma"])
async def test_a_telephones_audio_there_and_back(law):
    async with talking(voice=Voice()) as talk:
        audio = {"input": {"format": {"type": law}}, "output": {"format": {"type": law}}}
        await talk.send(UPDATE, session={"audio": audio})
        codes = bytes(range(255)) * 5
        await talk.send("input_audio_buffer.append", audio=base64.b64encode(codes).decode())  # an odd number
        await talk.send("input_audio_buffer.commit")
        await talk.send(ANSWER_IT)
        (item,) = (await talk.answered())["output"]
        (file,) = map(whole, recordings(talk.fake.messages))
        assert file[44:] == SampleFormat(law, 8_000).samples(codes).tobytes() and file[24:28] == b"\x40\x1f\0\0"
        said = [event["delta"] for event in talk.told if event["type"] == "response.output_audio.delta"]
        assert len(b"".join(map(base64.b64decode, said))) == 80 * len(ANSWER), "10 ms a letter, at 8 kHz"
        (told,) = await talk.send("conversation.item.retrieve", item_id=item["id"])
        assert told["item"]["content"][0]["transcript"] == ANSWER


async def test_a_turn_that_is_committed_while_it_is_spoken(by_loudness):
    async with talking() as talk:
        await talk.send(UPDATE, session=FINDS)
        (started,) = await talk.send("input_audio_buffer.append", audio=LOUD)
        committed, *_ = await talk.send("input_audio_buffer.commit")
        assert (started["type"], committed["type"]) == (
            "input_audio_buffer.speech_started", "input_audio_buffer.committed",
        )  # fmt: skip
        assert committed["item_id"] == started["item_id"], "as it was announced"
        assert kinds(await talk.send("input_audio_buffer.append", audio=SILENT)) == []


async def test_a_turn_that_is_cleared_while_it_is_spoken(by_loudness):
    async with talking() as talk:
        await talk.send(UPDATE, session=FINDS)
        (first,) = await talk.send("input_audio_buffer.append", audio=LOUD)
        assert kinds(await talk.send("input_audio_buffer.clear")) == ["input_audio_buffer.cleared"]
        assert await talk.send("input_audio_buffer.append", audio=SILENT) == [], "there is no turn to end"
        (second,) = await talk.send("input_audio_buffer.append", audio=LOUD)
        told = await talk.send("input_audio_buffer.append", audio=SILENT)
        told += await talk.send("input_audio_buffer.append", audio=SILENT)
        assert kinds(told)[:2] == ["input_audio_buffer.speech_stopped", "input_audio_buffer.committed"]
        assert told[0]["item_id"] == told[1]["item_id"] == second["item_id"] != first["item_id"]
        await talk.answered()


async def test_silence_before_a_turn_that_is_longer_than_the_buffer_is_no_turn(by_loudness):
    async with talking(session_buffer_seconds=1.0) as talk:
        detection = {"type": "server_vad", "prefix_padding_ms": 5_000}
        await talk.send(UPDATE, session=session("audio.input.turn_detection", detection)["session"])
        for _ in range(6):
            assert await talk.send("input_audio_buffer.append", audio=SILENT) == []
        assert kinds(await talk.send("input_audio_buffer.append", audio=LOUD)) == ["input_audio_buffer.speech_started"]


async def test_what_was_written_down_without_being_counted_has_a_length():
    deltas = [ChatDelta(content="hello", raw="hello"), ChatDelta(finish_reason="stop")]
    async with talking(FakeClient(lambda messages, options: deltas)) as talk:
        await talk.send(UPDATE, session={"audio": {"input": {"transcription": {"model": "whisper-1"}}}})
        await talk.send("input_audio_buffer.append", audio=LOUD)
        await talk.send("input_audio_buffer.commit")
        told = await until(talk, "conversation.item.input_audio_transcription.completed")
        assert told["usage"] == {"type": "duration", "seconds": 0.5}

"""The client library's realtime sessions, at a gateway on a real port."""

from __future__ import annotations

import asyncio
import time

import pytest

from gateway_fixture import ANSWER, THOUGHT, USAGE, listening
from step_audio_client import (
    CallRequested,
    RealtimeError,
    RealtimeSession,
    ReasoningDelta,
    ResponseDone,
    SessionError,
    SpeechStopped,
    TextDelta,
    Transcript,
    TurnTimes,
)
from step_audio_training.speech import Voice, speak
from waiting import SECONDS

BLOCK = 640  # bytes: 20 ms at 16 kHz
TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {}}}


@pytest.fixture(scope="module")
def settings():
    return {"api_key": ["sk-1"]}


@pytest.fixture(scope="module")
def question() -> bytes:
    """PCM16 at 16 kHz; its end is that of the speech."""
    samples = speak("what is three plus four", Voice(variant="f3")).samples / 2
    return (32767 * samples).astype("<i2").tobytes()


async def until(session: RealtimeSession, kind: type) -> list:
    events = []
    async with asyncio.timeout(60):
        async for event in session:
            events.append(event)
            assert not isinstance(event, SessionError) or kind is SessionError, event
            if isinstance(event, kind):
                break
    return events


async def test_a_turn_that_the_server_finds_and_its_times(url, fake, question):
    async with RealtimeSession.connect(url, "sk-1") as session:
        await session.update(instructions="Be brief.", include=["reasoning"], audio={"input": {"transcription": {}}})
        assert session.finds_turns and not session.aloud and session.config["instructions"] == "Be brief."
        sent: list[float] = []
        for start in range(0, len(question), BLOCK):
            await session.append(question[start : start + BLOCK])
            sent.append(time.monotonic())
        await session.append(bytes(9_600))  # the network takes some of it for speech
        sent.append(time.monotonic())
        await asyncio.sleep(0.2)  # silence that comes late is no time of the speech's
        await session.append(bytes(32_000))
        times, told = TurnTimes(), []
        async with asyncio.timeout(60):
            async for event in session:
                times.push(event)
                told.append(event)
                if {ResponseDone, Transcript} <= {type(one) for one in told}:
                    break
    words = "".join(event.text for event in told if isinstance(event, TextDelta))
    thought = "".join(event.text for event in told if isinstance(event, ReasoningDelta))
    assert (words, thought) == (ANSWER, THOUGHT)
    (done,) = [event for event in told if isinstance(event, ResponseDone)]
    assert done.status == "completed" and done.usage["input_tokens"] == USAGE.prompt_tokens
    assert [event.text for event in told if isinstance(event, Transcript)] == [ANSWER]
    (stopped,) = [event for event in told if isinstance(event, SpeechStopped)]
    assert stopped.speech_ended == times.speech_ended
    assert sent[0] < times.speech_ended <= sent[-1] < times.turn_ended <= times.first_thought <= times.first_text
    assert fake.messages[0] == {"role": "system", "content": "Be brief."}


async def test_turns_by_hand_written_turns_and_calls(url, fake):
    async with RealtimeSession.connect(url.removeprefix("http://"), "sk-1", "tiny") as session:
        await session.update(audio={"input": {"turn_detection": None}}, tools=[TOOL])
        assert not session.finds_turns
        await session.append(bytes(16_000))
        await session.commit()
        await session.respond()
        *_, call, done = await until(session, ResponseDone)
        assert isinstance(call, CallRequested) and (call.name, call.arguments) == ("weather", '{"city": "Paris"}')
        await session.give(call.call_id, "sunny")
        await session.respond(instructions="In one word.")
        *_, done = await until(session, ResponseDone)
        assert done.status == "completed"
        assert [message["role"] for message in fake.messages] == ["system", "user", "assistant", "tool"]
        await session.say("Thanks.")
        await session.truncate("nobody", 1)
        *_, error = await until(session, SessionError)
        assert error.code == "item_truncate_invalid_item_id"
        with pytest.raises(RealtimeError, match="colour") as caught:
            await session.update(colour="red")
        assert caught.value.code == "unknown_parameter" and not caught.value.again
        await session.cancel()
        *_, error = await until(session, SessionError)
        assert error.code == "response_cancel_not_active", "the session goes on"


async def test_sessions_that_are_refused(url, fake):
    async def refused(where: str, key: str | None = None, model: str | None = None) -> RealtimeError:
        with pytest.raises(RealtimeError) as caught:
            async with RealtimeSession.connect(where, key, model):
                pass
        return caught.value

    assert "key" in str(await refused(url)).lower()
    assert (await refused(url, "sk-1", "gpt")).code == "model_not_found"
    assert (await refused("http://127.0.0.1:9")).again and not (await refused("ftp://a")).again
    with listening(fake, max_sessions=1) as small:
        async with RealtimeSession.connect(small):
            assert (await refused(small)).again


@pytest.mark.parametrize("limit", ["session_seconds", "session_idle_seconds"])
async def test_a_session_that_the_server_ends_can_be_had_again(fake, limit):
    with listening(fake, **{limit: 0.3}) as url:
        async with RealtimeSession.connect(url) as session:
            events = []
            with pytest.raises(RealtimeError) as caught:
                async for event in session:
                    events.append(event)
    assert caught.value.again and caught.value.code == events[-1].code


async def test_a_session_that_is_left_ends_its_reader(url):
    async with RealtimeSession.connect(url, "sk-1") as session:
        reading = asyncio.create_task(until(session, ResponseDone))
        await asyncio.sleep(0.1)
    assert await asyncio.wait_for(reading, SECONDS) == []

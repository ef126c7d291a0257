"""Turns that the server finds in a stream of speech: what is heard, what is interrupted, what is written down."""

from __future__ import annotations

import asyncio
import base64

import numpy as np
import pytest

import waiting
from gateway_fixture import ANSWER, PLAIN, USAGE, listening, whole
from metrics_page import figure
from realtime_fixture import by_hand, connected, say, take, until
from step_audio.clips import SAMPLE_RATE
from step_audio_client import ChatDelta, ServerBusy
from step_audio_client.messages import recordings
from step_audio_training.speech import Voice, speak

PIECE = 3200  # bytes: 100 ms at 16 kHz
SPOKEN = ["input_audio_buffer.speech_started", "input_audio_buffer.speech_stopped", "input_audio_buffer.committed"]


@pytest.fixture(scope="module")
def speech() -> bytes:
    """PCM16 at 16 kHz: half a second of silence, a sentence, a second of silence."""
    samples = speak("what is three plus four", Voice(variant="f3")).samples / 2
    samples = np.concatenate([np.zeros(SAMPLE_RATE // 2), samples, np.zeros(SAMPLE_RATE)])
    return (32767 * samples).astype("<i2").tobytes()


async def test_a_turn_is_made_ready_where_it_pauses(url, fake, speech):
    """What was asked ahead is, to the byte, what is answered; and is not sent again."""
    sentence = speech[: len(speech) - 32_000]
    fake.ahead.clear()
    async with connected(url) as connection:
        await listen(connection)
        await play_in(connection, sentence + bytes(32 * 350))
        await connection.input_audio_buffer.append(audio="!")
        assert [event.type for event in await until(connection, "error")] == [SPOKEN[0], "error"]
        await play_in(connection, sentence[16_000:] + bytes(32 * 350))  # without the silence before it
        await waiting.until(lambda: len(fake.ahead) == 3, "being asked when speech began, and in two pauses")
        await play_in(connection, bytes(32_000))
        assert (await until(connection, "response.done"))[-1].response.status == "completed"
    (early,), (late,), (answered,) = map(list, map(recordings, (*fake.ahead[-2:], fake.messages)))
    assert whole(late) == whole(answered) != whole(early) and answered.data == b""


async def listen(connection, **detection) -> None:
    found = {"type": "server_vad", **detection}
    audio = {"input": {"format": {"type": "audio/pcm", "rate": SAMPLE_RATE}, "turn_detection": found}}
    await connection.session.update(session={"type": "realtime", "audio": audio})
    await until(connection, "session.updated")


async def play_in(connection, data: bytes) -> None:
    for start in range(0, len(data), PIECE):
        await connection.input_audio_buffer.append(audio=base64.b64encode(data[start : start + PIECE]).decode())


def counted(url: str, name: str) -> float:
    """Of /metrics, `step_audio_realtime_` left out."""
    return figure(PLAIN.get(f"{url}/metrics").text, f"step_audio_realtime_{name}")


async def settled(fake) -> None:
    await waiting.until(lambda: fake.begun == fake.closed, "the end of every answer that was begun")


async def test_what_is_said_is_answered_when_it_ends(url, fake, speech):
    firsts = [f"first_{what}_seconds_count" for what in ("token", "word")]
    before = [counted(url, name) for name in firsts]
    async with connected(url) as connection:
        assert connection.created.session.audio.input.turn_detection.type == "server_vad", "OpenAI's default"
        await listen(connection)
        await play_in(connection, speech)
        events = await until(connection, "response.done")
        assert [event.type for event in events[:3]] == SPOKEN
        started, stopped, committed = events[:3]
        assert started.item_id == stopped.item_id == committed.item_id
        end = (len(speech) / 2 - SAMPLE_RATE) / 16 + 500  # ms: the speech's, and the silence behind it
        assert abs(started.audio_start_ms - (500 - 300)) < 100 and abs(stopped.audio_end_ms - end) < 150
        assert events[-1].response.output[0].content[0].text == ANSWER
        heard = whole(next(recordings(fake.messages)))
        length = stopped.audio_end_ms - started.audio_start_ms
        assert abs((len(heard) - 44) / 32 - (length - 250)) < 20, "half of the silence, and no more"
    assert [counted(url, name) for name in firsts] == [count + 1 for count in before]


async def test_speech_interrupts_an_answer_and_a_cough_does_not(url, fake, play, speech):
    play(ChatDelta(content="Once upon", raw="Once upon"), 60.0)
    before = counted(url, "barge_ins_total")
    async with connected(url) as connection:
        await listen(connection)
        await play_in(connection, speech)
        await until(connection, "response.output_text.delta")
        noise = np.random.default_rng(0).normal(0, 2000, SAMPLE_RATE // 5).astype("<i2").tobytes()
        await play_in(connection, bytes(16_000) + noise + bytes(16_000))
        await connection.response.create()
        assert (await take(connection)).error.code == "conversation_already_has_active_response", "nothing before it"
        await play_in(connection, speech[: len(speech) - 32_000])
        events = await until(connection, "response.done")
        assert events[0].type == "input_audio_buffer.speech_started"
        details = events[-1].response.status_details
        assert (details.type, details.reason) == ("cancelled", "turn_detected")
        assert counted(url, "barge_ins_total") == before + 1
        play(ChatDelta(content="Seven.", raw="Seven."), ChatDelta(finish_reason="stop", usage=USAGE))
        await play_in(connection, bytes(32_000))
        await until(connection, "response.done")
        assert [message["role"] for message in fake.messages] == ["user", "assistant", "user"]
        assert fake.messages[1]["content"][0]["text"] == "Once upon"
    await settled(fake)


async def test_one_who_is_not_to_be_interrupted_ends(url, play, speech):
    play(ChatDelta(content="Once", raw="Once"), 60.0)
    async with connected(url) as connection:
        await listen(connection, interrupt_response=False)
        await play_in(connection, speech)
        await until(connection, "response.output_text.delta")
        await play_in(connection, speech)
        code = (await until(connection, "error"))[-1].error.code
        assert code == "conversation_already_has_active_response"


async def test_turns_without_answers(url, fake, speech):
    before = fake.begun
    async with connected(url) as connection:
        await listen(connection, create_response=False)
        await play_in(connection, speech)
        await until(connection, "conversation.item.done")
        await connection.input_audio_buffer.clear()
        assert (await take(connection)).type == "input_audio_buffer.cleared" and fake.begun == before


async def test_what_was_said_is_written_down_beside_the_answer(url, fake, play, speech):
    async with connected(url) as connection:
        await by_hand(connection)
        audio = {"input": {"transcription": {"model": "whisper-1", "language": "en"}}}
        await connection.session.update(session={"type": "realtime", "audio": audio})
        await until(connection, "session.updated")
        await connection.input_audio_buffer.append(audio=base64.b64encode(speech).decode())
        await connection.input_audio_buffer.commit()
        events = await until(connection, "conversation.item.input_audio_transcription.completed")
        assert "".join(event.delta for event in events if event.type.endswith("transcription.delta")) == ANSWER
        assert events[-1].transcript == ANSWER and events[-1].usage.total_tokens == 26
        assert fake.options.thinking.mode == "off" and "Write down" in fake.messages[0]["content"][1]["text"]
        await connection.conversation.item.retrieve(item_id=events[-1].item_id)
        assert (await take(connection)).item.content[0].transcript == ANSWER
        play(ServerBusy("later"))
        await connection.input_audio_buffer.append(audio=base64.b64encode(speech).decode())
        await connection.input_audio_buffer.commit()
        failed = (await until(connection, "conversation.item.input_audio_transcription.failed"))[-1]
        assert failed.error.code == "server_busy"


async def test_who_says_nothing_is_spoken_to(url, fake, speech):
    async with connected(url) as connection:
        for wait in (4_999, 30_001, "5 s"):
            found = {"type": "server_vad", "idle_timeout_ms": wait}
            await connection.session.update(session={"audio": {"input": {"turn_detection": found}}})
            assert (await take(connection)).error.param.endswith("idle_timeout_ms")
        await listen(connection, idle_timeout_ms=5_000)
        await play_in(connection, bytes(32 * 6_000))
        await say(connection, "hello")
        events = await until(connection, "conversation.item.done")
        assert {event.type.split(".")[0] for event in events} == {"conversation"}, "nothing has been answered"
        await connection.response.create()
        await until(connection, "response.done")
        for begin in (6_000, 11_100):
            await play_in(connection, bytes(32 * 4_900))
            await connection.input_audio_buffer.append(audio="!")
            assert (await take(connection)).type == "error", "not yet"
            await play_in(connection, bytes(32 * 200))
            events = await until(connection, "response.done")
            triggered, committed = events[:2]
            assert [triggered.type, committed.type] == ["input_audio_buffer.timeout_triggered", SPOKEN[2]]
            assert triggered.item_id == committed.item_id and triggered.audio_start_ms in (begin, begin + 100)
            assert 0 <= triggered.audio_end_ms - triggered.audio_start_ms - 5_000 <= 100
            heard = whole([*recordings(fake.messages)][-1])
            assert len(heard) == 44 + 32 * (triggered.audio_end_ms - triggered.audio_start_ms)
        await play_in(connection, bytes(32 * 4_000) + speech)
        events = await until(connection, "response.done")
        assert [event.type for event in events[:3]] == SPOKEN, "who speaks is not"


async def test_a_turn_ends_where_it_is_as_long_as_one_may_be(fake, speech):
    with listening(fake, session_buffer_seconds=1.0) as url:
        async with connected(url) as connection:
            await listen(connection)
            await play_in(connection, speech[:48_000])
            events = await until(connection, "response.done")
            assert [event.type for event in events[:3]] == SPOKEN
            assert len(whole(next(recordings(fake.messages)))) <= 44 + 32_000


async def test_many_interruptions_leave_nothing_behind(url, fake, play):
    play(ChatDelta(content="a", raw="a"), *[ChatDelta(content="b", raw="b"), 0.001] * 200)
    async with connected(url) as connection:
        await by_hand(connection)
        random = np.random.default_rng(1)
        for _ in range(30):
            await say(connection, "hello")
            await connection.response.create()
            await until(connection, "response.created")
            await asyncio.sleep(random.uniform(0, 0.02))
            await connection.response.cancel()
            assert (await until(connection, "response.done"))[-1].response.status == "cancelled"
    await settled(fake)

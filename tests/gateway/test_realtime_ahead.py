"""What is asked ahead while somebody speaks: the prompt's beginning, as the answer will have it."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import numpy as np
import pytest

import waiting
from gateway_fixture import ANSWER, REPLY, FakeClient, listening, whole
from realtime_fixture import by_hand, connected, say, until
from step_audio.audio import read_recording
from step_audio.clips import CLIP_SECONDS, content_hash, split_clips
from step_audio.mel import log_mel
from step_audio_client import Audio, HeardClips, user
from step_audio_client.messages import recordings, split_audio
from step_audio_gateway.realtime.beginnings import MARGIN, audio_of
from step_audio_gateway.realtime.formats import SampleFormat, SpokenAudio
from step_audio_gateway.realtime.input_buffer import InputBuffer

FORMATS = [SampleFormat(), SampleFormat(rate=16_000), SampleFormat("audio/pcmu", 8_000)]
RATE = 16_000
HEARD = {"audio": {"input": {"turn_detection": None, "format": {"type": "audio/pcm", "rate": RATE}}}}


class HoldingClient(FakeClient):
    """What is asked ahead does not end by itself, where `holds` is set."""

    holds = False
    held = 0

    async def hear(self, messages: Any, options: Any) -> Any:
        heard = await super().hear(messages, options)
        if self.holds:
            self.held += 1
            try:
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0.05)  # as a stop that is sent to the server
                self.held -= 1
        return heard

    async def chat(self, messages: Any, options: Any, *, request_id: str | None = None) -> Any:
        async for delta in super().chat(messages, options, request_id=request_id):
            assert not self.held, "the answer waits for the place"
            yield delta


@pytest.fixture
def fake() -> HoldingClient:
    return HoldingClient()


@pytest.fixture
def url(fake):
    with listening(fake) as url:
        yield url


async def hear(connection: Any, seconds: float, seed: int = 0) -> None:
    noise = np.random.default_rng(seed).normal(0, 1000, round(seconds * RATE)).astype("<i2").tobytes()
    for start in range(0, len(noise), 32_000):
        await connection.input_audio_buffer.append(audio=base64.b64encode(noise[start : start + 32_000]).decode())


async def until_asked(fake: FakeClient, count: int) -> None:
    await waiting.until(lambda: len(fake.ahead) >= count, f"being asked {count} times")
    assert len(fake.ahead) == count


def lengths(asked: list[Any]) -> list[float]:
    """Seconds of the last recording of each."""
    return [(len(whole(last(messages))) - 44) / (2 * RATE) for messages in asked]


def rests(asked: list[Any]) -> list[float]:
    """Seconds of it that are sent."""
    return [max(0, len(last(messages).data) - 44) / (2 * RATE) for messages in asked]


def last(messages: Any) -> Audio:
    audio: Audio = messages[-1]["content"][0]["audio"]
    return audio


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: f"{format.kind} {format.rate}")
def test_clips_that_are_asked_about_are_those_of_the_whole_turn(format):
    """To the bit: blocks of the KV cache, and rows of the encoder's, are found by the features' hash."""
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, format.size(1000 * (2 * CLIP_SECONDS + 5)), np.uint8).tobytes()
    buffer = InputBuffer(format, 100)
    buffer.append(data)

    def hashes(recording: SpokenAudio, count: int) -> list[int]:
        clips = split_clips(read_recording(recording.wav()).samples)[:count]
        return [content_hash(log_mel(clip)) for clip in clips]

    expected = hashes(SpokenAudio(format, data), 2)
    for count in (1, 2):
        assert hashes(buffer.first(1000 * CLIP_SECONDS * count + MARGIN), count) == expected[:count]
    assert len(buffer) == len(data)


@pytest.mark.parametrize("milliseconds", [25_100, 26_317, 50_100, 58_041])
@pytest.mark.parametrize("format", FORMATS, ids=lambda format: f"{format.kind} {format.rate}")
def test_the_rest_of_a_turn_is_sent_so_that_its_clips_are_those_of_the_whole(format, milliseconds):
    """To the bit, as above: what begins in the middle is resampled as it is within the whole."""
    rng = np.random.default_rng(0)
    turn = SpokenAudio(format, rng.integers(0, 256, format.size(milliseconds), np.uint8).tobytes())
    clips = split_clips(read_recording(turn.wav()).samples)
    for count in range(1, len(clips)):
        audio = audio_of(turn, HeardClips("a", ((2502, 1),) * count))
        rest = read_recording(audio.data).samples[audio.known.skip :]
        assert len(audio.data) <= format.rate * 2 * (milliseconds / 1000 - 25 * count + 0.4) + 44
        assert (np.concatenate(split_clips(rest)) == np.concatenate(clips[count:])).all()
    everything = audio_of(turn, HeardClips("a", ((2502, 1),) * len(clips)))
    assert everything.data == b"" and whole(everything) == turn.wav()


def test_the_whole_recording_is_no_file_until_it_is_asked_for(monkeypatch):
    turn, made = SpokenAudio(SampleFormat(), bytes(48_000 * 40)), []
    wav = SpokenAudio.wav
    monkeypatch.setattr(SpokenAudio, "wav", lambda self: made.append(self.seconds) or wav(self))
    for clips, files in ((2, []), (1, [15.0])):
        made.clear()
        messages = [user(audio_of(turn, HeardClips("a", ((2502, 1),) * clips)))]
        split_audio(messages)
        assert made == pytest.approx(files, abs=0.4), "the rest, and no more"
        assert split_audio(messages, whole=True)[1] == [wav(turn)] and made[len(files) :] == [40.0]


async def test_history_and_finished_clips_are_asked_about_while_one_speaks(url, fake):
    async with connected(url) as connection:
        await by_hand(connection, instructions="Be brief.", tools=[{"type": "function", "name": "look"}], **HEARD)
        await say(connection, "hello")
        for seconds, asked in ((20, 1), (20, 2), (11, 3)):
            await hear(connection, seconds)
            await until_asked(fake, asked)
        await connection.input_audio_buffer.commit()
        await connection.response.create()
        done = (await until(connection, "response.done"))[-1].response
        assert done.output and fake.messages[0]["content"] == "Be brief."
        assert [messages[:-1] for messages in fake.ahead] == [fake.messages[:-1]] * 3
        assert lengths(fake.ahead) == [0.1, 25.1, 50.1] and lengths([fake.messages]) == [51.0]
        assert rests([*fake.ahead, fake.messages]) == [0.1, 25.1, 25.1, 1.0], "what was heard is not sent again"
        assert fake.begun == 1 and done.usage.total_tokens == 26, "what was asked ahead is no part of the answer"
        await hear(connection, 1, seed=1)
        await until_asked(fake, 4)
        await connection.input_audio_buffer.clear()
        await until(connection, "input_audio_buffer.cleared")
        await hear(connection, 1, seed=2)
        await until_asked(fake, 5)
        await connection.input_audio_buffer.commit()
        await until(connection, "conversation.item.done")
        assert lengths(fake.ahead)[3:] == [0.1, 0.1], "each turn begins anew"
        history = next(recordings(fake.ahead[4]))
        assert history.known is not None and not history.data, "nor is what was said before"


async def test_an_answer_does_not_wait_for_what_was_asked_ahead(fake):
    fake.holds = True
    with listening(fake, max_concurrent_requests=1) as url:
        async with connected(url) as connection:
            await by_hand(connection, **HEARD)
            await hear(connection, 1)
            await until_asked(fake, 1)
            await hear(connection, 25)
            await connection.input_audio_buffer.commit()
            await connection.response.create()
            response = (await until(connection, "response.done"))[-1].response
            assert response.status == "completed" and response.output[0].content[0].text == ANSWER
            assert not fake.held


async def test_nothing_is_asked_ahead_where_places_are_scarce(fake):
    fake.script = lambda messages, options: [*REPLY[:-1], 60.0]
    with listening(fake, max_concurrent_requests=3) as url:
        async with connected(url) as one, connected(url) as other, connected(url) as third:
            for connection in (one, other):
                await say(connection, "hello")
                await connection.response.create()
                await until(connection, "response.output_text.delta")
            await by_hand(third, **HEARD)
            await hear(third, 1)
            await third.input_audio_buffer.commit()
            await until(third, "conversation.item.done")
            assert not fake.ahead


async def test_a_session_that_ends_leaves_nothing(url, fake):
    fake.holds = True
    async with connected(url) as connection:
        await by_hand(connection, **HEARD)
        await hear(connection, 1)
        await connection.input_audio_buffer.append(audio="!")
        await until(connection, "error")
        await until_asked(fake, 1)
        assert fake.held == 1
    await waiting.until(lambda: not fake.held, "the end of asking about it")

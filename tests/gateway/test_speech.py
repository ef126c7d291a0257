"""Said aloud over HTTP: /v1/audio/speech and chat completions, by another's speech server and by the built-in voice."""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import io
import json
import os
import signal

import av
import httpx
import numpy as np
import pytest

from gateway_fixture import ANSWER, PLAIN, THOUGHT, events, listening, shared
from speech_fixture import Speech, speech_server
from step_audio.audio import read_recording
from step_audio_gateway.settings import GatewaySettings
from step_audio_gateway.speech.built_in import BuiltInVoice
from step_audio_gateway.speech.pieces import MOST, sentences

CHAT = {"messages": [{"role": "user", "content": "2 + 2?"}], "modalities": ["text", "audio"]}
LONG = "The capital of France is Paris. It lies on the river Seine, and many people live there."
FORMATS = {"mp3": "mp3", "opus": "ogg", "aac": "aac", "flac": "flac", "wav": "wav"}
built_in = pytest.mark.skipif(importlib.util.find_spec("hibari") is None, reason="hibari-tts is not installed")


@pytest.fixture(scope="module")
def settings():
    with speech_server() as speech:
        yield {"speech": speech}


@pytest.fixture(scope="module")
def voiced(fake):
    with listening(fake, speech="built-in") as url:
        yield url


@pytest.fixture
def spoken():
    Speech.asked, Speech.fails = [], False
    return Speech.asked


def post(url: str, path: str = "/v1/audio/speech", **body: object) -> httpx.Response:
    return PLAIN.post(f"{url}{path}", json=body)


def test_long_texts_come_in_parts():
    assert list(sentences(" One two three four.  Five six seven eight\nnine ")) == [
        "One two three four.", "Five six seven eight", "nine",
    ]  # fmt: skip
    text = "word " * 1000
    assert max(map(len, sentences(text))) <= MOST and " ".join(sentences(text)) == text.strip()
    assert "".join(sentences("x" * 1000)) == "x" * 1000


@pytest.mark.parametrize("kind", [*FORMATS, "pcm"])
def test_a_text_as_a_file(url, spoken, kind):
    reply = post(url, model="tts-1", input=LONG, voice="alloy", response_format=kind)
    assert reply.status_code == 200, reply.text
    if kind == "pcm":
        assert len(reply.content) == 480 * len(LONG)
        return
    with av.open(io.BytesIO(reply.content)) as file:
        assert FORMATS[kind] in file.format.name
    samples = read_recording(reply.content, most_lost=1).samples
    assert len(samples) / 16_000 == pytest.approx(len(LONG) / 100, abs=0.15)
    assert np.abs(samples).max() > 0.1


def test_a_text_as_events(url, spoken):
    reply = post(url, model="tts-1", input=LONG, voice="alloy", response_format="pcm", stream_format="sse", speed=1.5)
    told = [json.loads(line[6:]) for line in reply.text.split("\n\n") if line]
    assert {one["type"] for one in told[:-1]} == {"speech.audio.delta"} and told[-1]["type"] == "speech.audio.done"
    assert sum(len(base64.b64decode(one["audio"])) for one in told[:-1]) == 480 * len(LONG)
    assert [(one["input"], one["speed"]) for one in spoken] == [(LONG, 1.5)]


@pytest.mark.parametrize(
    "more, param",
    [
        ({"model": "another"}, "model"),
        ({"input": ""}, "input"),
        ({"input": "x" * 4097}, "input"),
        ({"response_format": "midi"}, "response_format"),
        ({"speed": 9}, "speed"),
        ({"instructions": "Whisper."}, "instructions"),
    ],
)
def test_what_cannot_be_said_so_is_refused_by_name(url, more, param):
    reply = post(url, **{"model": "tts-1", "input": "Hello.", "voice": "alloy"} | more)
    assert reply.status_code in (400, 404) and reply.json()["error"]["param"] == param


async def test_without_a_voice(fake):
    said = await shared(fake).post("/v1/audio/speech", json={"input": "Hello."})
    asked = await shared(fake).post("/v1/chat/completions", json=CHAT | {"audio": {"voice": "alloy", "format": "wav"}})
    assert (said.status_code, asked.status_code) == (400, 400)
    assert "--speech" in said.json()["error"]["message"] and asked.json()["error"]["param"] == "modalities"


def test_a_voice_that_fails(url, spoken):
    Speech.fails = True
    reply = post(url, model="tts-1", input="Hello.", voice="alloy")
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "speech_failed")
    chat = post(url, "/v1/chat/completions", **CHAT, audio={"voice": "alloy", "format": "wav"})
    assert (chat.status_code, chat.json()["error"]["code"]) == (503, "speech_failed")


def test_a_chat_completion_aloud(url, spoken):
    reply = post(url, "/v1/chat/completions", **CHAT, audio={"voice": "anna", "format": "wav"}).json()
    message = reply["choices"][0]["message"]
    assert message["content"] is None and message["reasoning_content"] == THOUGHT
    assert message["audio"]["transcript"] == ANSWER == spoken[0]["input"] and spoken[0]["voice"] == "anna"
    assert message["audio"]["id"] and message["audio"]["expires_at"] >= reply["created"]
    assert len(read_recording(base64.b64decode(message["audio"]["data"])).samples) == 160 * len(ANSWER)


def test_a_chat_completion_aloud_in_chunks(url, spoken):
    body = CHAT | {"audio": {"voice": "anna", "format": "pcm16"}, "stream": True}
    chunks = events(post(url, "/v1/chat/completions", **body).text)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    audio = [delta["audio"] for delta in deltas if "audio" in delta]
    assert [name for name in audio[0] if name == "id"] and sum("id" in one for one in audio) == 1
    assert "".join(one.get("transcript", "") for one in audio) == ANSWER
    assert sum(len(base64.b64decode(one.get("data", ""))) for one in audio) == 480 * len(ANSWER)
    assert audio[-1].keys() == {"expires_at"} and chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == THOUGHT
    assert not any(delta.get("content") for delta in deltas)


@pytest.mark.parametrize(
    "more, param",
    [
        ({}, "audio"),
        ({"audio": {"voice": "a", "format": "midi"}}, "audio.format"),
        ({"audio": {"voice": "a", "format": "mp3"}, "stream": True}, "audio.format"),
        ({"audio": {"voice": "a"}, "n": 2}, "n"),
        ({"audio": {"voice": "a"}, "separate_reasoning": False}, "separate_reasoning"),
        ({"audio": {"voice": "a"}, "modalities": ["text"]}, "audio"),
        ({"messages": [*CHAT["messages"], {"role": "assistant", "audio": {"id": "audio_1"}}]}, "messages[1]"),
    ],
)
def test_what_does_not_go_with_audio_is_refused_by_name(url, more, param):
    reply = post(url, "/v1/chat/completions", **CHAT | more)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param), reply.text


def test_what_was_said_aloud_goes_on_as_its_transcript(url, fake, spoken):
    message = post(url, "/v1/chat/completions", **CHAT, audio={"voice": "a"}).json()["choices"][0]["message"]
    more = {"role": "user", "content": "And 3 + 3?"}
    assert post(url, "/v1/chat/completions", messages=[*CHAT["messages"], message, more]).status_code == 200
    assert fake.messages[1]["role"] == "assistant" and ANSWER in json.dumps(fake.messages[1])


@pytest.mark.skipif(importlib.util.find_spec("hibari") is not None, reason="hibari-tts is installed")
def test_what_to_install_is_said():
    with pytest.raises(Exception, match="voice"):
        BuiltInVoice()


def test_a_place_that_is_no_address_is_refused():
    with pytest.raises(Exception, match="speech"):
        GatewaySettings.create(speech="hibari")


@pytest.mark.long
@built_in
def test_the_built_in_voice_says_it(voiced):
    reply = post(voiced, model="tts-1", input=LONG, response_format="wav")
    assert reply.status_code == 200, reply.text
    samples = read_recording(reply.content, most_lost=1).samples
    assert 3 < len(samples) / 16_000 < 10 and np.sqrt(np.square(samples).mean()) > 0.02
    slow = post(voiced, model="tts-1", input=LONG, response_format="pcm", speed=0.5, voice="heart").content
    assert len(slow) / 48_000 > 1.5 * len(samples) / 16_000
    other = post(voiced, model="tts-1", input="Hello.", voice="anna")
    assert (other.status_code, other.json()["error"]["param"]) == (400, "voice")


@pytest.mark.long
@built_in
async def test_a_voice_whose_process_dies_speaks_again():
    voice = BuiltInVoice()
    try:
        before = b"".join([data async for data in voice.speak("Good morning.", None, 1.0)])
        os.kill(voice._process.pid, signal.SIGKILL)
        assert b"".join([data async for data in voice.speak("Good morning.", None, 1.0)]) == before != b""
    finally:
        voice.close()


@pytest.mark.long
@built_in
async def test_who_leaves_takes_nothing_of_the_next_ones():
    voice = BuiltInVoice()
    try:
        alone = b"".join([data async for data in voice.speak("Good morning to all.", None, 1.0)])
        left = asyncio.ensure_future(anext(voice.speak(LONG, None, 1.0)))
        await asyncio.sleep(0.01)
        left.cancel()
        assert b"".join([data async for data in voice.speak("Good morning to all.", None, 1.0)]) == alone != b""
    finally:
        voice.close()

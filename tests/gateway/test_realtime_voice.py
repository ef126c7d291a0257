"""Answers said aloud by another's speech server: sentence by sentence, as far as they were heard."""

from __future__ import annotations

import asyncio
import base64

import httpx
import numpy as np
import pytest

from gateway_fixture import ANSWER, THOUGHT, USAGE
from metrics_page import figure
from realtime_fixture import by_hand, connected, say, take, until
from speech_fixture import Speech, speech_server
from step_audio_client import ChatDelta
from step_audio_gateway.realtime.conversation import Dialogue
from step_audio_gateway.realtime.formats import Encoder, SampleFormat
from step_audio_gateway.realtime.idle_timeout import IdleTimeout
from step_audio_gateway.realtime.items import Part
from step_audio_gateway.realtime.response import SpokenResponse
from step_audio_gateway.realtime.session_config import SessionConfig
from step_audio_gateway.speech.pieces import first_piece, words_so_far

LAWS = [SampleFormat("audio/pcmu", 8_000), SampleFormat("audio/pcma", 8_000)]
ALOUD = [
    "response.created",
    "response.output_item.added",
    "conversation.item.added",
    "response.content_part.added",
    "response.output_audio_transcript.delta",
    "response.output_audio.delta",
    "response.output_audio.done",
    "response.output_audio_transcript.done",
    "response.content_part.done",
    "conversation.item.done",
    "response.output_item.done",
    "response.done",
]


@pytest.fixture(scope="module")
def settings():
    with speech_server() as speech:
        yield {"speech": speech, "speech_api_key": "sk", "speech_voice": "anna"}


@pytest.fixture
def spoken():
    Speech.asked, Speech.fails = [], False
    return Speech.asked


def test_pieces():
    assert first_piece("It is four. And", False) == "", "too short for a voice"
    assert first_piece("It is certainly four. And", False) == "It is certainly four."
    assert first_piece("It is 3.5 of them", False) == "" and first_piece("So", True) == "So"
    assert first_piece("这是一个非常好的问题，谢谢你。然后", False) == "这是一个非常好的问题，谢谢你。"
    assert words_so_far("one two thr") == "one two " and words_so_far("thr") == ""


def cut(said: list[tuple[str, float, bool]], milliseconds: int) -> str:
    part = Part("output_audio")
    for told in said:
        part.voiced(*told)
    part.cut(milliseconds)
    return part.text


def test_what_was_not_heard_is_cut_at_the_word():
    def heard(milliseconds: int) -> str:
        return cut([("One two three.", 700, False), ("", 700, True), (" Four five.", 1100.4, True)], milliseconds)

    assert heard(0) == "" and heard(5000) == "One two three. Four five." == heard(2500), (
        "whole milliseconds are counted"
    )
    assert heard(1400) == "One two three." and heard(600) == "One" and heard(1250) == "One two"
    assert heard(1799) == "One two three." and heard(1850) == "One two three. Four"
    assert cut([("One two.\n", 900, True), ("Three.", 600, True)], 900) == "One two."
    assert cut([("好的，谢谢。", 1200, True), ("现在是四点。", 1200, True)], 1700) == "好的，谢谢。现在"


def test_of_a_piece_whose_audio_is_not_whole_only_what_is_sure_was_heard():
    said = "One two three four five six seven."
    assert cut([(said, 700, False)], 700) == "One two", "a voice says ten letters a second, or more"
    assert cut([(said, 700, False)], 5000) == "One two" and cut([(said, 700, True)], 5000) == said
    assert cut([("Very slow.", 4000, True), (f" {said}", 2000, False)], 6000) == "Very slow. One"
    assert cut([(said, 3500, False)], 3500) == said


def test_what_was_cut_stays_cut():
    part = Part("output_audio")
    part.voiced("One two three.", 700, False)
    part.cut(600)
    part.voiced("", 700, True)
    part.voiced(" Four five.", 1100, True)
    assert part.text == "One", "of a piece that goes on the client will hear no more"
    part.cut(600)
    assert part.text == "One"
    part.cut(5000)
    assert part.text == "One"


def test_a_voice_that_goes_on_is_not_heard_where_the_answer_has_ended():
    config, dialogue = SessionConfig(output_modalities=["audio"]), Dialogue()
    response = SpokenResponse(config, dialogue, None)
    assert [*response.voice("One two.", bytes(480), False)]
    assert [*response.cancel("turn_detected")][-1]["type"] == "response.done"
    assert not [*response.voice("", bytes(480), True)] and not [*response.voice(" Three.", bytes(480), True)]
    (item,) = dialogue.items
    assert (item.status, item.parts[0].text) == ("incomplete", "One two.")


def test_a_client_is_given_the_time_to_play_an_answer():
    response, idle = SpokenResponse(SessionConfig(output_modalities=["audio"]), Dialogue(), None), IdleTimeout(5_000)
    assert [*response.voice("One.", bytes(48_000 * 60), True)]
    assert not idle.over(response, False, 100) and idle.since is None, "it has not ended"
    assert [*response.cancel("client_cancelled")] and not idle.over(response, False, 100)
    assert 100 < idle.since <= 60_100 and not idle.over(response, False, 5_100)
    assert idle.over(response, False, 65_100)
    assert not idle.over(response, True, 65_200) and not idle.over(response, False, 99_999), "somebody has spoken"


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.kind)
def test_g711_there_and_back(law):
    codes = bytes(range(256))
    values = law.samples(codes)
    again = law.samples(Encoder(8_000, law).encode(values.astype("<i2").tobytes()))
    assert again.tolist() == values.tolist()
    ramp = np.arange(-32768, 32768, 7, np.int16)
    told = law.samples(Encoder(8_000, law).encode(ramp.tobytes())).astype(int)
    assert (
        np.abs(told - ramp) <= np.maximum(np.abs(ramp.astype(int)) / 16, 16) + 400 * (np.abs(ramp.astype(int)) > 32000)
    ).all()


async def test_an_answer_said_aloud(url, fake, spoken):
    async with connected(url) as connection:
        assert connection.created.session.output_modalities == ["audio"], "OpenAI's default, where there is a voice"
        await by_hand(connection)
        await say(connection, "hello")
        await connection.response.create()
        events = await until(connection, "response.done")
        kinds = [event.type for event in events[2:]]  # behind those of the question
        assert [kind for i, kind in enumerate(kinds) if i == 0 or kind != kinds[i - 1]] == ALOUD
        audio = b"".join(base64.b64decode(e.delta) for e in events if e.type == "response.output_audio.delta")
        assert len(audio) == 480 * len(ANSWER)
        (part,) = events[-1].response.output[0].content
        assert (part.type, part.transcript) == ("output_audio", ANSWER)
        (asked,) = spoken
        assert asked == {
            "path": "/v1/audio/speech", "key": "Bearer sk", "input": ANSWER, "voice": "anna", "model": "tts-1",
            "response_format": "pcm",
        }  # fmt: skip
        assert THOUGHT not in str(events), "the thought is not said"


@pytest.mark.long
async def test_sentence_by_sentence_in_another_format(url, play, spoken):
    words = ["Once upon a time. ", "There was ", "a king.", " He"]
    play(*[ChatDelta(content=word, raw=word) for word in words], 1.0, ChatDelta(finish_reason="stop", usage=USAGE))
    async with connected(url) as connection:
        audio = {"input": {"turn_detection": None}, "output": {"format": {"type": "audio/pcmu"}, "voice": "emma"}}
        await by_hand(connection, audio=audio)
        await say(connection, "hello")
        await connection.response.create()
        events = await until(connection, "response.done")
        assert [one["input"] for one in spoken] == ["Once upon a time.", "There was a king.", "He"]
        assert {one["voice"] for one in spoken} == {"emma"}
        told = [event.delta for event in events if event.type == "response.output_audio_transcript.delta"]
        assert "".join(told) == "".join(words)
        data = b"".join(base64.b64decode(e.delta) for e in events if e.type == "response.output_audio.delta")
        assert abs(len(data) - 80 * len("Once upon a time.There was a king.He")) < 10, "8,000 bytes a second"


async def test_how_long_each_part_took_is_counted(url, fake, spoken):
    async with connected(url) as connection:
        await by_hand(connection)
        await say(connection, "hello")
        await connection.response.create()
        await until(connection, "response.done")
    async with httpx.AsyncClient() as client:
        page = (await client.get(f"{url}/metrics")).text
    for part in ("token", "word", "audio"):
        assert figure(page, f"step_audio_realtime_first_{part}_seconds_count") >= 1


async def test_history_holds_what_was_heard(url, fake, play, spoken):
    play(ChatDelta(content="Once upon a time there was a king.", raw="x"), ChatDelta(finish_reason="stop", usage=USAGE))
    async with connected(url) as connection:
        await by_hand(connection)
        await say(connection, "hello")
        await connection.response.create()
        item = (await until(connection, "response.done"))[-1].response.output[0]
        await connection.conversation.item.truncate(item_id=item.id, content_index=0, audio_end_ms=150)
        truncated = await take(connection)
        assert (truncated.type, truncated.item_id, truncated.audio_end_ms) == (
            "conversation.item.truncated", item.id, 150
        )  # fmt: skip
        await say(connection, "go on")
        await connection.response.create()
        await until(connection, "response.done")
        assert fake.messages[1]["content"][0]["text"] == "Once upon a"


async def test_an_interrupted_answer_keeps_what_was_said_and_stops_the_voice(url, fake, play, spoken):
    play(ChatDelta(content="Once upon a time. Then ", raw="x"), 60.0)
    async with connected(url) as connection:
        await by_hand(connection)
        await say(connection, "hello")
        await connection.response.create()
        await until(connection, "response.output_audio.delta")
        await connection.response.cancel()
        last = (await until(connection, "response.done"))[-1].response
        assert last.status == "cancelled" and last.output[0].content[0].transcript.startswith("Once upon a time.")
        said = len(spoken)
        await asyncio.sleep(0.5)
        assert len(spoken) == said <= 2


async def test_a_voice_that_fails_ends_the_answer_not_the_session(url, fake, play, spoken):
    Speech.fails = True
    play(ChatDelta(content="Once upon a time. ", raw="x"), *[0.05, ChatDelta(content="x", raw="x")] * 200)
    async with connected(url) as connection:
        await by_hand(connection)
        await say(connection, "hello")
        await connection.response.create()
        last = (await until(connection, "response.done"))[-1].response
        assert (last.status, last.status_details.error.code) == ("failed", "speech_failed")
        await connection.session.update(session={"type": "realtime", "output_modalities": ["text"]})
        await until(connection, "session.updated")

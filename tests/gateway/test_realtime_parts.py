"""What a realtime session is made of, without a socket."""

from __future__ import annotations

import base64
import io
import wave

import numpy as np
import pytest

from gateway_fixture import LIMITS
from step_audio_client import Audio
from step_audio_gateway.realtime.conversation import Dialogue, latest, messages_of, within
from step_audio_gateway.realtime.faults import Fault
from step_audio_gateway.realtime.formats import SampleFormat, SpokenAudio, decode
from step_audio_gateway.realtime.input_buffer import InputBuffer
from step_audio_gateway.realtime.items import ConversationItem, Part
from step_audio_gateway.realtime.session_config import SessionConfig
from step_audio_gateway.realtime.turn_detection import FRAME, FRAME_MS, Frames, Turn, TurnDetector

PCM, MU, A = SampleFormat(), SampleFormat("audio/pcmu", 8_000), SampleFormat("audio/pcma", 8_000)


def code_of(call) -> str | None:
    with pytest.raises(Fault) as caught:
        call()
    return caught.value.code


# Of ITU-T G.711's tables: code, and what it stands for at 16 bits.
@pytest.mark.parametrize("code, mu, a", [(0xFF, 0, 848), (0x00, -32124, -5504), (0x80, 32124, 5504), (0xD5, 716, 8)])
def test_g711(code, mu, a):
    for format, expected in ((MU, mu), (A, a)):
        assert format.samples(bytes([code])).tolist() == [expected]


@pytest.mark.parametrize(
    "format, length", [(PCM, 48_000), (SampleFormat(rate=16_000), 32_000), (MU, 8_000), (A, 8_000)]
)
def test_a_recording_is_a_wav_file_at_its_own_rate(format, length):
    recording = SpokenAudio(format, bytes(length))
    assert recording.seconds == 1 and recording.base64() == base64.b64encode(bytes(length)).decode()
    with wave.open(io.BytesIO(recording.wav())) as file:
        assert (file.getframerate(), file.getnframes(), file.getsampwidth()) == (format.rate, format.rate, 2)


def test_base64_is_whole_samples():
    assert decode("AAAA/w==", PCM, "audio") == b"\0\0\0\xff"
    assert (
        code_of(lambda: decode("AAAA", PCM, "audio")) == code_of(lambda: decode("a b", PCM, "audio")) == "invalid_value"
    )


def test_the_buffer_counts_from_the_first_sample_that_ever_came():
    buffer = InputBuffer(PCM, 2.0)
    buffer.append(bytes(48_000))
    buffer.drop_before(400)
    assert (buffer.seconds, buffer.end) == (0.6, 1000)
    assert buffer.take(700).seconds == 0.3 and (buffer.seconds, buffer.end) == (0.3, 1000)
    assert code_of(lambda: buffer.append(bytes(48_000 * 2))) == "input_audio_buffer_full"
    buffer.clear()
    assert code_of(buffer.take) == "input_audio_buffer_commit_empty" and buffer.end == 1000


def turns(frames: str, silence: float = 3 * FRAME_MS) -> list[Turn]:
    detector = TurnDetector(0.5, silence)
    pushed = [detector.push({"#": 0.9, "+": 0.4, ".": 0.1}[frame]) for frame in frames]
    return [turn for turn in pushed if turn]


def test_turns():
    begun = Turn("started", 2 * FRAME_MS)
    assert turns("..###.##") == [] == turns("........"), "too short: a click, a cough"
    assert turns("..####") == [begun] == turns("..####.##.##"), "no pause"
    assert turns("..####++++++") == [begun], "quieter speech is still speech"
    assert turns("..####...") == [begun, Turn("paused", 8 * FRAME_MS), Turn("stopped", 9 * FRAME_MS, 8 * FRAME_MS)]
    assert [turn.what for turn in turns("####...####...")] == ["started", "paused", "stopped"] * 2
    assert [turn.what for turn in turns("####..##..##...")] == ["started", *["paused"] * 3, "stopped"]
    assert turns("####.", FRAME_MS)[1:] == [Turn("stopped", 5 * FRAME_MS, 5 * FRAME_MS)], "a silence that has no half"


@pytest.mark.parametrize("format", [PCM, SampleFormat(rate=16_000), MU])
def test_frames_are_the_same_however_they_come(format):
    tone = (8000 * np.sin(np.arange(2 * format.rate) * 300 * 2 * np.pi / format.rate)).astype(np.int16)
    whole = np.concatenate(list(Frames(format).push(tone)))
    for seed in range(3):
        frames, pieces, draw = Frames(format), [], np.random.default_rng(seed)
        for piece in np.split(tone, np.sort(draw.integers(0, len(tone), 40))):
            pieces += list(frames.push(piece))
        assert {frame.shape for frame in pieces} == {(FRAME,)} and len(pieces) > 1.9 * 16_000 / FRAME
        assert np.array_equal(np.concatenate(pieces), whole), "to the bit: turns are found by them"
    assert 0.2 < np.abs(whole).max() < 0.3


def user(text: str = "", seconds: float = 0.0) -> ConversationItem:
    parts = [Part("input_text", text)] if text else []
    if seconds:
        parts.append(Part("input_audio", recording=SpokenAudio(PCM, bytes(round(seconds * 48_000)))))
    return ConversationItem("message", parts=parts)


def said(text: str, **more) -> ConversationItem:
    return ConversationItem("message", role="assistant", parts=[Part("output_text", text)], **more)


def test_messages():
    call = ConversationItem("function_call", call_id="c", name="f", text="{}")
    items = [
        user("a", 0.1),
        said("b"),
        call,
        ConversationItem("function_call_output", call_id="c", text="d"),
        user(),
        said(""),
    ]
    system, heard, spoke, told = messages_of([*items, said("x", status="in_progress")], "Be brief.")
    assert system == {"role": "system", "content": "Be brief."}
    assert isinstance(heard["content"][1]["audio"], Audio)
    assert spoke["tool_calls"][0]["function"] == {"name": "f", "arguments": "{}"}
    assert told == {"role": "tool", "tool_call_id": "c", "content": "d"}


def test_what_a_request_may_hold_is_the_latest_from_a_turn_on():
    items = [user(seconds=20), said("1"), user(seconds=20), said("2"), user(seconds=20), said("3"), user(seconds=10)]
    limits = LIMITS | {"max_audio_bytes": 10**9}
    assert within(items, limits) == items[2:]
    assert within(items, limits | {"max_audios": 1}) == items[6:]
    assert within(items, limits | {"max_audio_bytes": 1_500_000}) == items[4:]
    assert within(items, limits | {"max_audio_seconds": 1}) == items[6:], "refused by the server, by name"
    assert latest(items, 0.5) == items[4:] and latest(items[6:], 0.5) == [] == latest(items[6:], 1)
    assert len(latest(items, 0.9)) > 4


def test_how_much_is_kept_where_all_is_too_much():
    def kept(truncation: object) -> float | None:
        return SessionConfig().updated({"truncation": truncation}, "session").retention

    assert (kept("auto"), kept(None), kept("disabled")) == (0.5, 0.5, None)
    assert kept({"type": "retention_ratio", "retention_ratio": 0.8}) == 0.8
    assert code_of(lambda: kept({"type": "retention_ratio", "retention_ratio": 2})) == "invalid_value"


def test_items_stand_where_they_were_put():
    conversation = Dialogue()
    a, b, c = user("a", 1.0), user("b"), user("c")
    assert (conversation.add(a), conversation.add(c)) == (None, a.id)
    assert conversation.add(b, a.id) == a.id and conversation.before(c) == b.id
    assert conversation.bytes == 48_003, "with the texts"
    assert code_of(lambda: conversation.add(b)) == "item_create_duplicate_item_id"
    assert code_of(lambda: conversation.add(user(), "nobody")) == "item_create_invalid_previous_item_id"
    assert code_of(lambda: conversation.add(ConversationItem("function_call_output"))) == "item_create_invalid_call_id"
    conversation.remove(a)
    assert conversation.items == [b, c] and conversation.bytes == 2


def test_a_session_is_changed_in_part():
    detection = {"type": "server_vad", "threshold": 0.7}
    first = SessionConfig().updated({"audio": {"input": {"turn_detection": detection}}, "voice": None}, "session")
    second = first.updated({"instructions": "x", "audio": {"input": {"format": {"type": "audio/pcmu"}}}}, "session")
    assert second.detection.threshold == 0.7 and second.audio.input.format.format("").rate == 8_000
    off = second.updated({"audio": {"input": {"turn_detection": None}}, "instructions": None}, "session")
    assert off.detection is None and off.instructions == "" and second.detection
    assert second.updated({"thinking": {"type": "disabled"}}, "session").updated({}, "session").as_chat().thinking
    eager = {"type": "semantic_vad", "eagerness": "high"}
    assert (
        first.updated({"audio": {"input": {"turn_detection": eager}}}, "session").detection.silence_duration_ms == 400
    )


@pytest.mark.parametrize(
    "change, param",
    [
        ({"output_modalities": ["text", "audio"]}, "session.output_modalities"),
        ({"audio": {"input": {"noise_reduction": {"type": "near_field"}}}}, "session.audio.input.noise_reduction"),
        ({"audio": {"input": {"format": {"type": "audio/pcm", "rate": 8000}}}}, "session.audio.input.format.rate"),
        ({"prompt": {"id": "p"}}, "session.prompt"),
        ({"thinking": {"mode": "maybe"}}, "session.thinking.mode"),
        ({"temperature": -1}, "session.temperature"),
        ({"tools": [{"type": "mcp"}]}, "session.tools[0].type"),
        ({"messages": []}, "session.messages"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(change, param):
    with pytest.raises(Fault) as caught:
        SessionConfig().updated(change, "session")
    assert caught.value.param == param

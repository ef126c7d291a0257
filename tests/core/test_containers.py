"""The one list of audio containers: all of them are read, nothing else is, and who speaks of files follows it."""

from __future__ import annotations

import io
import json
import re

import av
import pytest

from audio_fixture import TONE, encode, peak, tone
from paths import ROOT
from step_audio.audio import decode_audio, stated_seconds
from step_audio.clips import SAMPLE_RATE
from step_audio.containers import ADVICE, CONTAINERS, EXTENSIONS, MIME_TYPES
from step_audio.errors import InvalidRequest
from step_audio_gateway.page import PLAYGROUND, offers_module
from step_audio_gateway.schemas import ChatRequest
from step_audio_server.commands.cli import _parser

# How a file of each kind is made, by FFmpeg's demuxer: muxer, encoder, rate.
MADE = {
    "wav": ("wav", "pcm_s16le", 16_000),
    "w64": ("w64", "pcm_s16le", 44_100),
    "aiff": ("aiff", "pcm_s16be", 44_100),
    "au": ("au", "pcm_s16be", 44_100),
    "caf": ("caf", "pcm_s16le", 44_100),
    "flac": ("flac", "flac", 44_100),
    "mp3": ("mp3", "libmp3lame", 44_100),
    "aac": ("adts", "aac", 44_100),
    "amr": ("amr", "libopencore_amrnb", 8_000),
    "ogg": ("ogg", "libopus", 48_000),
    "matroska": ("matroska", "libopus", 48_000),
    "mov": ("mp4", "aac", 44_100),
    "asf": ("asf", "wmav2", 44_100),
    "ac3": ("ac3", "ac3", 48_000),
    "eac3": ("eac3", "eac3", 48_000),
    "mpegts": ("mpegts", "aac", 44_100),
    "avi": ("avi", "pcm_s16le", 44_100),
    "wv": ("wv", "wavpack", 44_100),
}


@pytest.mark.parametrize("one", CONTAINERS, ids=lambda one: one.name)
def test_each_is_read(one):
    muxer, codec, rate = MADE[one.demuxer]
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    data = encode(muxer, codec, tone(2, rate), rate)
    with av.open(io.BytesIO(data)) as file:
        assert one.demuxer in file.format.name.split(",")
    samples = decode_audio(data)
    assert abs(len(samples) - 2 * SAMPLE_RATE) < 0.1 * SAMPLE_RATE and peak(samples) == pytest.approx(TONE, abs=1)


def test_extensions_and_types_are_unique_and_plain():
    for values in (EXTENSIONS, MIME_TYPES, [one.demuxer for one in CONTAINERS], [one.name for one in CONTAINERS]):
        assert len(set(values)) == len(values)
    assert all(re.fullmatch(r"[a-z0-9]+", extension) for extension in EXTENSIONS)
    assert all(re.fullmatch(r"(audio|video|application)/[a-z0-9.-]+", kind) for kind in MIME_TYPES)


@pytest.mark.parametrize(("muxer", "codec"), [("voc", "pcm_u8"), ("tta", "tta"), ("flv", "libmp3lame")])
def test_no_other_is_read(muxer, codec):
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    data = encode(muxer, codec, tone(1, 44_100), 44_100)
    with av.open(io.BytesIO(data)) as made:
        assert made.streams.audio, "FFmpeg itself reads it"
    with pytest.raises(InvalidRequest, match="not an audio file that can be read"):
        decode_audio(data)
    assert stated_seconds(data) is None


# Who speaks of files


def test_the_advice_is_of_the_common_ones():
    assert ADVICE == "WAV, FLAC, MP3, Ogg, M4A or WebM"
    with pytest.raises(InvalidRequest, match=f"send {ADVICE}$"):
        decode_audio(b"no audio")


def test_the_page_offers_the_list():
    (text,) = re.findall(r"^export const RECORDINGS = (.*);$", offers_module(), re.M)
    assert json.loads(text) == {"extensions": [*EXTENSIONS], "types": [*MIME_TYPES], "advice": ADVICE}
    source = "".join(file.read_text("utf-8") for file in PLAYGROUND.glob("*.*") if file.suffix in (".js", ".html"))
    named = set(re.findall(r"\b(?:audio|video)/[\w*.-]+", source))
    assert named <= {"audio/wav", "audio/pcm"}, "but for what the microphone gives"


def test_help_and_schema_name_the_common_ones():
    (chat,) = [a.choices["chat"] for a in _parser()._actions if a.choices and "chat" in a.choices]
    (audio,) = [action for action in chat._actions if action.dest == "audio"]
    assert ADVICE in audio.help
    assert ADVICE in json.dumps(ChatRequest.model_json_schema())


def test_the_documents_name_them():
    page = (ROOT / "docs/reference/requests.md").read_text("utf-8")
    for one in CONTAINERS:
        (row,) = [line for line in page.splitlines() if re.match(rf"\| {one.name} +\|", line)]
        assert {*one.extensions, *one.mime_types} <= set(row.split())
    for word in re.findall(r"\b(?:recordings|formats) \(([a-z0-9\s│]+)", (ROOT / "README.md").read_text("utf-8")):
        assert {name for name in word.split() if name.isalnum()} <= set(EXTENSIONS), word

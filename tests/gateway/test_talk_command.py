"""`step-audio talk` at a gateway on a real port: recordings in real time, and a microphone that is none."""

from __future__ import annotations

import io
import sys
import threading
import time
import wave
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from gateway_fixture import ANSWER, THOUGHT, USAGE, listening
from speech_fixture import speech_server
from step_audio.audio import encode_wav
from step_audio.clips import SAMPLE_RATE
from step_audio_client import (
    ChatDelta,
    ReasoningDelta,
    ResponseDone,
    SpeechStarted,
    TextDelta,
    Transcript,
    TurnTimes,
    Unavailable,
)
from step_audio_server.commands import talk_playback
from step_audio_server.commands.cli import main
from step_audio_server.commands.talk_playback import PlaybackClock
from step_audio_server.commands.talk_show import Show
from step_audio_training.speech import Voice, speak
from waiting import wait_until

LONG = " ".join(["Once upon a time there was a king who had three daughters and a very large garden."] * 5)


@pytest.fixture(scope="module")
def settings():
    return {"api_key": ["sk-1"]}


@pytest.fixture(scope="module")
def aloud(fake):
    """A gateway that has a voice."""
    with speech_server() as speech, listening(fake, speech=speech) as url:
        yield url


@pytest.fixture(scope="module")
def question(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recordings") / "question.wav"
    path.write_bytes(encode_wav(speak("what is three plus four", Voice(variant="f3")).samples / 2))
    return path


@pytest.fixture
def talk(monkeypatch, capsys):
    """Run the command; its exit status, and what it wrote on stdout and stderr."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")

    def run(*arguments: object) -> tuple[int, str, str]:
        status = main(["talk", *map(str, arguments)])
        return status, *capsys.readouterr()

    return run


@pytest.mark.long
def test_recordings_are_turns_in_real_time(talk, url, fake, question, tmp_path):
    before, began = fake.begun, time.monotonic()
    status, out, err = talk("--url", url, "--audio", question, "--audio", question, "--temperature", 0)
    assert (status, out) == (0, f"{ANSWER}\n{ANSWER}\n"), "the answers, and nothing else"
    assert err.count(f"heard: {ANSWER}") == err.count(THOUGHT) == err.count("first word") == 2
    assert "turn over" in err and "20 prompt tokens, 6 new" in err
    assert fake.begun - before == 4, "with what was heard in words"
    (messages,) = [asked for asked, options in fake.asked[-2:] if len(asked) == 3]
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    length = len(question.read_bytes()) / 2 / SAMPLE_RATE
    assert time.monotonic() - began > 2 * length
    assert talk("--url", url, "--audio", question, "--no-thought", "--no-captions")[2].count(THOUGHT) == 0


@pytest.mark.long
def test_a_whole_recording_is_one_turn_whatever_is_in_it(talk, url, fake, tmp_path):
    silence = tmp_path / "silence.wav"
    silence.write_bytes(encode_wav(np.zeros(SAMPLE_RATE, np.float32)))
    status, out, err = talk("--url", url, "--audio", silence)
    assert (status, out) == (1, "") and "no speech was found" in err and "--whole" in err
    status, out, err = talk("--url", url, "--audio", silence, "--whole", "--no-captions")
    assert (status, out) == (0, f"{ANSWER}\n")
    ((heard,),) = [message["content"] for message in fake.messages]
    assert heard["audio"].data == silence.read_bytes(), "to the sample"


@pytest.mark.long
def test_what_was_heard_of_the_answers_is_saved(talk, aloud, url, question, tmp_path):
    saved = tmp_path / "answers.wav"
    status, out, err = talk("--url", aloud, "--audio", question, "--save", saved)
    assert (status, out) == (0, f"{ANSWER}\n") and "first audio" in err
    with wave.open(str(saved)) as file:
        assert (file.getframerate(), file.getnframes()) == (24_000, 240 * len(ANSWER))
    status, _, err = talk("--url", url, "--audio", question, "--save", saved)
    assert status == 1 and "in writing only" in err


@pytest.mark.long
def test_speech_interrupts_what_plays_and_the_rest_is_forgotten(talk, aloud, fake, play, tmp_path):
    """Within one recording: a question, and another while the answer is being said."""
    play(ChatDelta(content=LONG, raw=LONG), ChatDelta(finish_reason="stop", usage=USAGE))
    spoken = speak("what is three plus four", Voice(variant="f3")).samples / 2
    both = tmp_path / "both.wav"
    both.write_bytes(encode_wav(np.concatenate([spoken, np.zeros(2 * SAMPLE_RATE), spoken])))
    saved = tmp_path / "answers.wav"
    status, out, _ = talk("--url", aloud, "--audio", both, "--no-captions", "--save", saved)
    assert (status, out) == (0, f"{LONG}\n{LONG}\n")
    (told,) = fake.messages[1]["content"]
    assert LONG.startswith(told["text"]) and 0 < len(told["text"]) < len(LONG)
    with wave.open(str(saved)) as file:
        assert 0 < file.getnframes() / 240 - len(LONG) < len(LONG), "the second whole, the first not"


@pytest.mark.long
def test_answers_that_fail_and_servers_that_are_not_there(talk, url, play, question, tmp_path):
    play(Unavailable("no server answers"))
    status, out, err = talk("--url", url, "--audio", question)
    assert (
        (status, out) == (1, "")
        and "no answer: the server is not available" in err
        and "could not be written down" in err
    )
    assert talk("--url", "http://127.0.0.1:9", "--audio", question)[0] == 1
    status, _, err = talk("--url", url, "--audio", tmp_path / "nowhere.wav")
    assert status == 1 and "nowhere.wav" in err and "Traceback" not in err


@pytest.mark.long
def test_an_adapter_by_its_name(talk, url, fake, tmp_path, monkeypatch):
    monkeypatch.setattr(fake, "adapters", {"terse": 7, "medical": 8})
    silence = tmp_path / "silence.wav"
    silence.write_bytes(encode_wav(np.zeros(SAMPLE_RATE // 5, np.float32)))
    said = ("--url", url, "--audio", silence, "--whole", "--no-captions")
    assert talk(*said, "--adapter", "terse")[:2] == (0, f"{ANSWER}\n") and fake.options.adapter == "terse"
    assert talk(*said)[:2] == (0, f"{ANSWER}\n") and fake.options.adapter is None
    begun = fake.begun
    for name in ("curt", "tiny"):  # the second is the model's own
        status, out, err = talk(*said, "--adapter", name)
        assert (status, out) == (1, "") and f"there is no adapter '{name}' here, but terse, medical" in err
    monkeypatch.setattr(fake, "adapters", {})
    assert "there is no adapter 'terse' here, nor any other" in talk(*said, "--adapter", "terse")[2]
    assert fake.begun == begun
    gone = talk("--url", "http://127.0.0.1:9", *said[2:], "--adapter", "terse")
    assert gone[0] == 1 and "no gateway answers at http://127.0.0.1:9" in gone[2]
    with pytest.raises(SystemExit, match="2"):
        talk(*said, "--adapter", "terse", "--model", "tiny")


def test_what_was_played_is_counted(monkeypatch):
    now = 5.0
    monkeypatch.setattr(talk_playback, "time", SimpleNamespace(monotonic=lambda: now))
    playback = PlaybackClock()
    assert playback.cut() is None
    playback.play("a", bytes(48_000))
    playback.play("b", bytes(48_000))
    assert playback.left == 2
    now += 1.25
    assert playback.cut() == ("b", 250) and len(playback.heard) == 60_000 and playback.cut() is None
    playback.play("c", bytes(48_000))
    now += 60
    assert playback.left == 0 and playback.cut() is None and len(playback.heard) == 108_000


def test_lines_stay_whole_whatever_comes_between():
    out, aside = io.StringIO(), io.StringIO()
    show, times = Show(out, aside, thought=True), TurnTimes(speech_ended=1.0, turn_ended=1.5, first_text=2.25)
    usage = {"input_tokens": 20, "output_tokens": 6}
    for event in (
        SpeechStarted("u", 0), ReasoningDelta("It is "), Transcript("u", "two plus two"), ReasoningDelta("four."),
        TextDelta("a", "Fo"), ReasoningDelta(" Indeed."), TextDelta("a", "ur."), ReasoningDelta(" So."),
        SpeechStarted("v", 9), ResponseDone("r", "cancelled", "turn_detected", usage=usage),
    ):  # fmt: skip
        show.push(event, times)
    assert out.getvalue() == "Four.\n"
    assert aside.getvalue().split("\n") == [
        "…", "It is four.", "heard: two plus two", "", " Indeed.", "", " So.", "…",
        "interrupted; after the end of speech: turn over 0.50 s, first word 1.25 s; 20 prompt tokens, 6 new", "",
    ]  # fmt: skip


class Devices(SimpleNamespace):
    """In the place of the package sounddevice: a microphone that hears `speech`, a loudspeaker that plays in time."""

    class PortAudioError(Exception):
        pass

    def __init__(self, speech: bytes):
        self.speech, self.played = speech, bytearray()
        self.RawInputStream = lambda **how: _Stream(self, how, self._record)
        self.RawOutputStream = lambda **how: _Stream(self, how, self._play)

    def _record(self, callback, frames):
        piece, self.speech = self.speech[: 2 * frames], self.speech[2 * frames :]
        callback(piece.ljust(2 * frames, b"\0"), frames, None, None)

    def _play(self, callback, frames):
        out = bytearray(2 * frames)
        callback(memoryview(out), frames, None, None)
        self.played += out


class _Stream:
    def __init__(self, devices, how, step):
        assert (how["channels"], how["dtype"]) == (1, "int16")
        self._how, self._step = how, step
        self._open = True
        self._thread = threading.Thread(target=self._run)

    def _run(self):
        while self._open:
            self._step(self._how["callback"], self._how["blocksize"])
            time.sleep(self._how["blocksize"] / self._how["samplerate"])

    def start(self):
        self._thread.start()

    def close(self):
        self._open = False
        self._thread.join()

    def __enter__(self):
        self.start()

    def __exit__(self, *_):
        self.close()


@pytest.mark.long
def test_by_microphone_and_loudspeaker_until_it_is_interrupted(talk, aloud, fake, question, monkeypatch):
    pcm = question.read_bytes()[44:]
    devices = Devices(pcm)
    monkeypatch.setitem(sys.modules, "sounddevice", devices)
    ctrl_c = threading.Thread(
        target=_interrupt_after, args=(lambda: any(devices.played) and fake.closed == fake.begun > 0,)
    )
    ctrl_c.start()
    status, out, err = talk("--url", aloud)
    ctrl_c.join()
    assert status == 130 and out == f"{ANSWER}\n" and "listening" in err and "stopped" in err
    assert bytes(devices.played).strip(b"\0")


def _interrupt_after(condition) -> None:
    import os
    import signal

    try:
        wait_until(condition, "the end of the answer")
        time.sleep(1)  # for its words to be shown
    finally:
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.long
def test_a_machine_without_devices(talk, aloud, url, monkeypatch):
    def fails(**_):
        raise Devices.PortAudioError("Error querying device -1")

    devices = Devices(b"")
    devices.RawOutputStream = fails
    monkeypatch.setitem(sys.modules, "sounddevice", devices)
    status, _, err = talk("--url", aloud)
    assert status == 1 and "no loudspeaker" in err and "--audio FILE" in err
    devices.RawInputStream = fails
    assert "no microphone" in talk("--url", url)[2], "where nothing sounds, no loudspeaker is needed"
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    status, _, err = talk("--url", aloud)
    assert status == 1 and "[talk]" in err and "Traceback" not in err

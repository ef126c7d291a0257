"""The questions: those held out from training, and those of a data set."""

import io
import subprocess
import sys
import wave

import numpy as np
import pytest

from evaluation_fixture import GOOD
from step_audio.chat_template import NO_THOUGHT
from step_audio_client import Audio
from step_audio_client.messages import split_audio
from step_audio_evaluation.data_set import load_data_set
from step_audio_evaluation.held_out import TASKS, at_budgets, at_noise_levels, cut, held_out
from step_audio_evaluation.items import EvaluationError

# -- held-out questions


@pytest.mark.long
def test_held_out_is_the_seed_s_and_a_larger_set_holds_the_smaller():
    small, same, large = (held_out(TASKS, n, 5) for n in (1, 1, 2))
    assert [i.task for i in small] == list(TASKS)
    assert small == same and all(i in large for i in small) and len(large) == 2 * len(small)
    assert held_out(["arithmetic"], 1, 6) != held_out(["arithmetic"], 1, 5)
    assert len({i.id for i in large}) == len(large)


@pytest.mark.processes
def test_what_speaks_ends_with_a_command_that_is_killed():
    program = "import os, time; from step_audio_evaluation.held_out import _speakers\n"
    program += "print(_speakers().submit(os.getpid).result(), flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as running:
        assert running.stdout and running.stdout.readline()
        running.kill()
        running.communicate(timeout=60)  # until the last of those that write there has ended


@pytest.mark.processes
def test_held_out_requests_are_complete():
    for one in held_out(TASKS, 1, 0):
        _, audio = split_audio(one.request())
        assert audio == list(one.audio)
        assert (one.kind == "word") == bool(one.options)
        for data in audio:
            with wave.open(io.BytesIO(data)) as file:
                assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16_000, 1, 2)
                samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
            assert len(samples) > 4000 and np.abs(samples).max() > 100


@pytest.mark.processes
def test_sums_are_the_same_with_thought_without_and_with_a_part():
    whole, none, part = (held_out([task], 6, 1) for task in TASKS[:3])
    for a, b, c in zip(whole, none, part, strict=True):
        assert a.audio == b.audio == c.audio and a.messages == b.messages == c.messages and a.expected == c.expected
        assert a.prefix is None and b.prefix == NO_THOUGHT
        assert c.prefix.startswith("<think>\nI hear: ") and c.prefix.endswith("\n</think>\n")
        assert b.request()[-1] == {"role": "assistant", "content": NO_THOUGHT}


def test_cut_ends_with_a_step():
    thought = "I hear: what is four plus ten. 4+10. 4+10=14, 14+0=14."
    steps = ["I hear: what is four plus ten", " 4+10", " 4+10=14", " 14+0=14"]
    cuts = {cut(thought, share) for share in np.linspace(0, 1, 101)}
    whole = {thought[: thought.index(step) + len(step)] for step in steps}
    assert cuts == whole - {thought[:-1]} | {cut(thought, 1.0)}


@pytest.mark.processes
def test_noise_levels_share_recordings():
    items = at_noise_levels(["clean", 10.0, 0.0], 2, 3)
    assert [i.id for i in items[:5]] == [
        "arithmetic@clean-00000", "arithmetic@clean-00001", "arithmetic@10dB-00000", "arithmetic@10dB-00001",
        "arithmetic@0dB-00000",
    ]  # fmt: skip
    clean, ten, zero = (_samples(items[n]) for n in (0, 2, 4))
    assert items[0].expected == items[2].expected and len(clean) == len(ten)
    difference = [np.mean((noisy - clean) ** 2) for noisy in (ten, zero)]
    assert 8 < 10 * np.log10(difference[1] / difference[0]) < 11  # 10 dB less what is clipped


def _samples(one):
    with wave.open(io.BytesIO(one.audio[0])) as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768


def test_what_nobody_asks_about_is_not_spoken(monkeypatch):
    spoken = []
    monkeypatch.setattr("step_audio_evaluation.held_out.speak_apart", lambda make, wanted: spoken.extend(wanted) or [])
    assert held_out([], 9, 0) == at_noise_levels([], 9, 0) == at_budgets([], 9, 0) == [] == spoken


def test_data_set(data_set):
    two = {"audio": ["clips/a.wav", "clips/b.wav"], "question": "Sum?", "answer": 12, "task": "t", "id": 7}
    text = {"question": "Say hi", "answer": "hi", "system": "Be kind."}
    first, second, third = load_data_set(data_set(GOOD, two, "", text))
    assert (first.id, first.task, first.kind, first.expected) == ("set/1", "set", "choice", "cat")
    prompt = (
        "Which?\nPlease choose the answer from the following options, "
        "do not provide any additional explanations or content: \nA. dog\nB. cat\n"
    )
    assert first.request() == [
        {"role": "user", "content": [{"type": "text", "text": f"{prompt}\n"}, {"type": "audio", "audio": Audio(b"a")}]}
    ]
    assert (second.id, second.task, second.kind, second.expected) == ("set/7", "t", "number", "12")
    assert split_audio(second.request())[1] == [b"a", b"b"]
    assert third.messages[0] == {"role": "system", "content": "Be kind."} and third.kind == "text"
    assert third.messages[1]["content"] == [{"type": "text", "text": "Say hi"}]


def test_data_set_options(data_set):
    (one,) = load_data_set(data_set({**GOOD, "answer": "b"}), audio_first=True, think=False)
    assert one.expected == "cat" and one.prefix == NO_THOUGHT
    assert [part["type"] for part in one.messages[0]["content"]] == ["audio", "text"]
    assert one.messages[0]["content"][1]["text"].endswith("B. cat\n")


def test_data_set_as_programs_export_it(data_set):
    nulls = {"audio": None, "choices": None, "id": None, "task": None, "system": None, "comment": None}
    file = data_set({"question": "Say hi", "answer": "hi"}, {"question": "2+3?", "answer": 5, **nulls})
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    first, second = load_data_set(file)
    assert (first.kind, first.audio, second.kind, second.audio) == ("text", (), "number", ())
    assert second.messages == ({"role": "user", "content": [{"type": "text", "text": "2+3?"}]},)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("{", "not valid JSON"),
        ('{"question": "q \\ud83d", "answer": 1}', r"question: \ud83d is half a character: write both halves or"),
        ({**GOOD, "choices": ["cat", "\ude00"]}, r"choices: \ude00 is half a character"),
        pytest.param(f'{{"question": {"[" * 100_000}', "nested too deeply: only texts, numbers and", id="deep"),
        ({**GOOD, "question": None}, "question: Field required"),
        ("[]", "not a JSON object"),
        ({**GOOD, "audio": "clips/c.wav"}, "audio: there is no file"),
        ({**GOOD, "audio": 3}, "audio: "),
        ({**GOOD, "answer": "C"}, "answer: 'C' is neither one of the choices"),
        ({**GOOD, "answer": True}, "answer: "),
        ({**GOOD, "choices": ["cat"]}, "choices: "),
        ({**GOOD, "colour": "red"}, "colour: Extra"),
        ({"audio": "clips/a.wav", "answer": "x"}, "question: Field required"),
        ({**GOOD, "id": "1"}, "id: '1' is line 1's too"),
    ],
)
def test_data_set_errors_name_file_line_and_key(data_set, line, text):
    with pytest.raises(EvaluationError) as raised:
        load_data_set(data_set(GOOD, line))
    assert f"set.jsonl, line 2: {text}" in str(raised.value) and "\n" not in str(raised.value)


def test_no_data_set(tmp_path, data_set):
    with pytest.raises(EvaluationError, match="cannot be read: No such file"):
        load_data_set(tmp_path / "none.jsonl")
    with pytest.raises(EvaluationError, match="no lines"):
        load_data_set(data_set(""))

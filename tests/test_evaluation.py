"""`step-audio eval`: the questions, the scores, the figures, the run that is broken off and goes on."""

import asyncio
import contextlib
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
import wave
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

from step_audio.chat_template import NO_THOUGHT
from step_audio_client import Audio, Generation, Reply, RequestError, Sampling, ServerBusy, ToolCall, Usage
from step_audio_client.messages import split_audio
from step_audio_evaluation import run as running
from step_audio_evaluation.agreement import Greedy, agreement, first_difference
from step_audio_evaluation.answers import Answer, AnswerFile
from step_audio_evaluation.data_set import load_data_set
from step_audio_evaluation.held_out import TASKS, at_noise_levels, cut, held_out
from step_audio_evaluation.items import EvaluationError, Item
from step_audio_evaluation.plots import plot_noise
from step_audio_evaluation.report import grade, make_report
from step_audio_evaluation.scoring import (
    Score,
    chosen_option,
    is_call,
    is_number,
    is_word,
    last_number,
    normalised_words,
    score,
    word_errors,
)  # fmt: skip
from step_audio_evaluation.statistics import bootstrap_ratio, mcnemar, paired_difference, wilson
from step_audio_evaluation.tables import markdown, sentences, table, write
from step_audio_server.commands import cli
from step_audio_server.commands.evaluate import EvaluationOptions, evaluate

SETTINGS = {"model": "stub", "seed": 0, "sampling": {"temperature": 0.0}}


def item(id_="q-0", text="What is 2+3?", expected="5", **more) -> Item:
    return Item(id_, "sums", ({"role": "user", "content": text},), (), more.pop("kind", "number"), expected, **more)


def reply(content, *calls) -> Reply:
    return Reply("hm", content, tuple(ToolCall(n, "c", *call) for n, call in enumerate(calls)))


# -- scores


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("47 minus 38 is 9.", "9"), ("47-38=9", "9"), ("it is -4", "-4"), ("it is \N{MINUS SIGN}4", "-4"),
        ("1,234,567 apples", "1234567"), ("2.50", "2.5"), ("5, then 6", "6"), ("about 50 %", "50"), ("a1 b2", None),
        ("none", None), ("", None), ("(12)", "12"), ("the 3rd of 4.", "4"),
    ],
)  # fmt: skip
def test_last_number(text, number):
    assert last_number(text) == (None if number is None else Decimal(number))


def test_numbers_are_compared_by_value():
    assert is_number("9.0", "9") and is_number("1,000", "1000") and not is_number("90", "9")
    assert not is_number("nine", "9")


def test_word():
    options = ("rising", "falling", "steady")
    assert is_word("The tone is Falling!", "falling", options)
    assert not is_word("rising or falling", "falling", options)
    assert not is_word("It falls", "falling", options)
    assert not is_word("", "falling", options)
    assert is_word("Monday.", "Monday", ("Monday", "Tuesday"))


def test_words_and_errors():
    assert normalised_words("Don\N{RIGHT SINGLE QUOTATION MARK}t -- STOP, me\nnow.") == ["don't", "stop", "me", "now"]
    for first, second, errors in [
        ("a b c", "a b c", 0), ("a b c", "", 3), ("", "a", 1), ("a b c d", "a x c", 2), ("a b", "b a", 2),
        ("a b c", "x a b c", 1),
    ]:  # fmt: skip
        assert word_errors(first.split(), second.split()) == errors == word_errors(second.split(), first.split())


@pytest.mark.parametrize(
    ("calls", "right"),
    [
        ([("calculator", '{"expression": "519*455"}')], True),
        ([("calculator", '{"expression": " 519 * 455"}')], True),
        ([("calculator", '{"expression": "519*45"}')], False),
        ([("clock", '{"expression": "519*455"}')], False),
        ([("calculator", '{"expression": 519}')], False),
        ([("calculator", "[1]")], False),
        ([("calculator", "{")], False),
        ([], False),
        ([("calculator", '{"expression": "519*455"}')] * 2, False),
    ],
)
def test_call(calls, right):
    assert is_call(reply(None, *calls).tool_calls, "calculator", "519*455") is right


OPTIONS = ["a dog barks", "A cat", "no dog", "cat food"]


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("B", 1), ("b", 1), ("(B)", 1), ("B.", 1), ("**B.** A cat", 1), ("B. A cat", 1), ("B) a cat", 1), ("[d]", 3),
        ("A cat", 1), ("a cat.", 1), ("The answer is (C).", 2), ("Answer: D", 3), ("The answer is B because", 1),
        ("I first thought option A, but the answer is B.", 1), ("I hear that a dog barks outside.", 0),
        ("It is cat food.", 3), ("a dog barks, a cat", None), ("E", None), ("The answer is A cat", 1), ("", None),
        ("A dog barks", 0), ("horse", None), ("There is no dog", 2), ("B.A cat", 1), ("The answer is A", 0),
    ],
)  # fmt: skip
def test_chosen_option(text, index):
    assert chosen_option(text, OPTIONS) == index


@pytest.mark.parametrize(
    ("text", "options", "index"),
    [
        ("C# major", ["C major", "C# major"], 1), ("c# Major.", ["C major", "C# major"], 1),
        ("**C# major**", ["C major", "C# major"], 1), ("C Major", ["C major", "C# major"], 0),
        ("It is C# major.", ["C major", "C# major"], None), ("B. C# major", ["C major", "C# major"], 1),
        ("The answer is C# major", ["C major", "C# major", "D major"], None),
        ("5", ["-5", "5"], 1), ("-5.", ["-5", "5"], 0), ("$50", ["50%", "$50"], 1), ("50", ["50%", "$50"], None),
        ("+", ["+", "-"], 0), ("-", ["+", "-"], 1), ("*", ["+", "*"], 1), ("!", ["+", "-"], None),
        ("", ["+", "-"], None), ("!", ["+", "plus"], None), ("(B)", ["+", "-"], 1), ("A", ["A+", "A-"], 0),
        ("mW", ["MW", "mW"], 1), ("mw", ["MW", "mW"], None), ("x", ["x", "x", "y"], None),
    ],
)  # fmt: skip
def test_options_that_differ_by_signs(text, options, index):
    assert chosen_option(text, options) == index


@pytest.mark.parametrize(
    ("kind", "expected", "options"),
    [
        ("number", "0", ()), ("word", "high", ("high", "low")), ("transcript", "!", ()), ("tool_call", "", ()),
        ("choice", "+", ("+", "-")), ("text", "!", ()), ("text", "", ()),
    ],
)  # fmt: skip
def test_a_failed_request_is_wrong_whatever_is_expected(kind, expected, options):
    assert not score(item(kind=kind, expected=expected, options=options), None).correct


def test_score_looks_at_the_kind():
    assert score(item(), reply("It is 5.")) == Score(True)
    assert score(item(), reply("It is 6.")) == score(item(), None) == score(item(), reply(None)) == Score(False)
    call = ("calculator", '{"expression": "2+3"}')
    assert score(item(), reply("5", call)) == Score(False)  # what was to be done by head was handed on
    assert score(item(kind="tool_call", expected="2+3"), reply(None, call)) == Score(True)
    said = item(kind="transcript", expected="two plus three")
    assert score(said, reply("Two plus tree")) == Score(False, 1, 3)
    assert score(said, reply("Two, plus three.")) == Score(True, 0, 3)
    assert score(said, None) == Score(False, 3, 3)
    assert score(item(kind="text", expected="Big Ben"), reply("big ben.")) == Score(True)
    sign = item(kind="text", expected="!")
    assert score(sign, reply(" ! ")) == Score(True)
    assert score(sign, reply("?")) == score(sign, reply(None)) == Score(False)
    assert score(item(kind="choice", expected="y", options=("x", "y")), reply("B")) == Score(True)
    assert score(item(kind="choice", expected="y", options=("x", "y")), reply("A")) == Score(False)


def test_only_what_stands_behind_the_thought_counts():
    assert score(item(), item().parse("It is 6.\n</think>\nFive: 5.")).correct
    assert not score(item(), item().parse("It is 5.\n</think>\nSix: 6.")).correct
    assert not score(item(), item().parse("It is 5.")).correct  # the thought never ended
    direct = item(prefix=NO_THOUGHT)
    assert score(direct, direct.parse("It is 5.")).correct


def test_a_call_counts_only_where_there_are_tools():
    text = '<tool_call>function\ncalculator\n{"expression": "2+3"}</tool_call>'
    tool = {"type": "function", "function": {"name": "calculator"}}
    assert item(kind="tool_call", expected="2+3", tools=(tool,)).parse(f"Hm.\n</think>\n{text}").tool_calls
    assert not item().parse(f"Hm.\n</think>\n{text}").tool_calls


# -- figures


def test_wilson():
    # Newcombe 1998, table I.
    for successes, trials, low, high in [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)]:
        found = wilson(successes, trials)
        assert (round(found.low, 4), round(found.high, 4)) == (low, high)
    assert wilson(20, 20).high == 1.0


def test_wilson_holds_what_it_promises():
    trials, share = 60, 0.9
    weights = [math.comb(trials, k) * share**k * (1 - share) ** (trials - k) for k in range(trials + 1)]
    held = sum(w for k, w in enumerate(weights) if wilson(k, trials).low <= share <= wilson(k, trials).high)
    assert 0.93 < held < 0.98


def test_bootstrap_of_a_share_is_near_its_wilson_interval():
    right = [1] * 80 + [0] * 20
    drawn, formula = bootstrap_ratio(right, [1] * 100, seed=3), wilson(80, 100)
    assert drawn == bootstrap_ratio(right, [1] * 100, seed=3)
    assert abs(drawn.low - formula.low) < 0.02 and abs(drawn.high - formula.high) < 0.02
    assert bootstrap_ratio([0, 0], [3, 4], 0).high == 0


def test_bootstrap_weighs_by_words():
    """One long recording full of errors: a mean of rates would say 0.5."""
    found = bootstrap_ratio([9, 0] * 30, [9, 1] * 30, seed=0)
    assert found.low < 0.9 < found.high and found.low > 0.8


def test_paired_difference():
    first, second = [True] * 50 + [False] * 10, [True] * 35 + [False] * 15 + [True] * 3 + [False] * 7
    found = paired_difference(first, second, seed=0)
    assert (found.pairs, found.only_first, found.only_second) == (60, 15, 3)
    assert found.value == pytest.approx(0.2) and 0 < found.interval.low < 0.2 < found.interval.high
    assert found.p == pytest.approx(0.00754, abs=1e-5)  # binom.test(3, 18)
    assert mcnemar(0, 0) == mcnemar(4, 4) == 1.0


# -- held-out questions


def test_held_out_is_the_seed_s_and_a_larger_set_holds_the_smaller():
    small, same, large = (held_out(TASKS, n, 5) for n in (1, 1, 2))
    assert [i.task for i in small] == list(TASKS)
    assert small == same and all(i in large for i in small) and len(large) == 2 * len(small)
    assert held_out(["arithmetic"], 1, 6) != held_out(["arithmetic"], 1, 5)
    assert len({i.id for i in large}) == len(large)


def test_held_out_requests_are_complete():
    for one in held_out(TASKS, 2, 0):
        _, audio = split_audio(one.request())
        assert audio == list(one.audio)
        assert (one.kind == "word") == bool(one.options)
        for data in audio:
            with wave.open(io.BytesIO(data)) as file:
                assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16_000, 1, 2)
                samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
            assert len(samples) > 4000 and np.abs(samples).max() > 100


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


# -- data sets


@pytest.fixture
def data_set(tmp_path):
    (tmp_path / "clips").mkdir()
    for name in "ab":
        (tmp_path / "clips" / f"{name}.wav").write_bytes(name.encode())

    def make(*lines) -> Path:
        file = tmp_path / "set.jsonl"
        file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
        return file

    return make


GOOD = {"audio": "clips/a.wav", "question": "Which?", "choices": ["dog", "cat"], "answer": "cat"}


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


# -- the run


class Stub:
    """A client whose answers are known. `faults`: by question, what is raised, one after the other."""

    def __init__(self, faults=None, alive=True, hold=()):
        self.faults, self.alive, self.hold = faults or {}, alive, hold
        self.asked, self.at_once, self.most = [], 0, 0

    async def ready(self):
        return self.alive

    async def complete(self, messages, sampling, tools, continue_final_message):
        text = messages[0]["content"]
        self.asked.append(text)
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            await asyncio.sleep(1000 if text in self.hold else 0.001)
            if self.faults.get(text):
                raise self.faults[text].pop(0)
        finally:
            self.at_once -= 1
        return Generation([1, 2], f"Hm.\n</think>\nIt is {text}.", [], "stop", Usage(9, 2))


def questions(count):
    return [item(f"q-{n}", str(n), str(n)) for n in range(count)]


def run(items, client, directory, concurrency=4, settings=SETTINGS):
    answers = AnswerFile(directory, settings)
    stream = io.StringIO()
    asyncio.run(running.run(items, client, Sampling(temperature=0), answers, concurrency, stream))
    return answers, stream.getvalue()


def test_run(tmp_path):
    items, client = questions(20), Stub()
    answers, shown = run(items, client, tmp_path)
    assert client.most == 4 and sorted(client.asked, key=int) == [str(n) for n in range(20)]
    assert all(one.score.correct for one in grade(items, answers.of))
    assert shown.splitlines()[-1] == "answers: 20 of 20" and len(shown.splitlines()) == 10
    lines = (tmp_path / "answers.jsonl").read_text().splitlines()
    assert len(lines) == 20 and json.loads(lines[0])["expected"] in map(str, range(20))


def test_run_goes_on_where_it_was_broken_off(tmp_path):
    items = questions(6)
    run(items[:4], Stub(), tmp_path)
    file = tmp_path / "answers.jsonl"
    file.write_bytes(file.read_bytes()[:-10])  # killed within the fourth line
    client = Stub()
    answers, _ = run(items, client, tmp_path)
    assert len(client.asked) == 3 and len(answers.of) == 6
    again = Stub()
    answers, _ = run(items, again, tmp_path)
    assert again.asked == [] and all(one.score.correct for one in grade(items, answers.of))


def test_run_refuses_to_mix_settings(tmp_path):
    run(questions(1), Stub(), tmp_path)
    with pytest.raises(EvaluationError, match="holds answers with seed 0, not 1: choose another --output"):
        AnswerFile(tmp_path, {**SETTINGS, "seed": 1})
    with pytest.raises(EvaluationError, match="with data None, not 'x'"):
        AnswerFile(tmp_path, {**SETTINGS, "data": "x"})
    with pytest.raises(EvaluationError, match="with model 'stub', not None"):
        AnswerFile(tmp_path, {"seed": 0, "sampling": {"temperature": 0.0}})
    (tmp_path / "settings.json").unlink()
    with pytest.raises(EvaluationError, match="choose another"):
        AnswerFile(tmp_path, SETTINGS)


def test_run_refuses_other_questions(tmp_path):
    run(questions(2), Stub(), tmp_path)
    with pytest.raises(EvaluationError, match="another question as q-1"):
        run([item("q-1", "1", "9")], Stub(), tmp_path)


def test_a_file_that_holds_no_answers(tmp_path):
    AnswerFile(tmp_path, SETTINGS)
    good = Answer(id="q-0", expected="0").model_dump_json().encode()
    for line in (b'{"id": "x"}', b'{"id": "x", "expected": "\xff"}', b"\xff\xfe", b"\0" * 9, b"[" * 100_000):
        (tmp_path / "answers.jsonl").write_bytes(good + b"\n" + line + b"\n")
        with pytest.raises(EvaluationError, match=r"answers.jsonl, line 2: not an answer: remove the line"):
            AnswerFile(tmp_path, SETTINGS)


@pytest.mark.parametrize("text", ["[]", "null", "{", "\xff", pytest.param("[" * 100_000, id="deep")])
def test_settings_that_are_none(tmp_path, text):
    (tmp_path / "settings.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(EvaluationError, match=r"settings.json does not say how .* choose another --output"):
        AnswerFile(tmp_path, SETTINGS)


def test_failed_requests_are_kept_counted_wrong_and_asked_again(tmp_path):
    items = questions(5)
    answers, _ = run(items, Stub({"2": [RequestError("too much audio")]}), tmp_path)
    graded = grade(items, answers.of)
    assert [one.score.correct for one in graded] == [True, True, False, True, True]
    assert answers.of["q-2"].error == "too much audio"
    row = make_report(graded, SETTINGS, "today").rows[0]
    assert (row.n, row.correct, row.failed) == (5, 4, 1)
    client = Stub()
    answers, _ = run(items, client, tmp_path)
    assert client.asked == ["2"] and answers.of["q-2"].error is None


def test_a_recording_that_vanished(tmp_path):
    gone = replace(item(), messages=({"role": "user", "content": [{"type": "audio"}]},), audio=(tmp_path / "gone.wav",))
    answers, _ = run([gone], Stub(), tmp_path / "out")
    assert answers.of[gone.id].error == f"{tmp_path / 'gone.wav'} cannot be read: No such file or directory"


def test_a_full_queue_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "BUSY_PAUSES", (0.001, 0.001))
    busy = [ServerBusy("the server's queue is full")]
    answers, _ = run(questions(2), Stub({"0": busy * 2, "1": busy * 3}), tmp_path)
    assert answers.of["q-0"].error is None and "queue is full" in answers.of["q-1"].error


def test_a_server_that_is_gone_ends_the_run(tmp_path):
    client = Stub({"3": [RequestError("no server answers")]}, alive=False)
    with pytest.raises(EvaluationError, match="no server answers; the same command goes on"):
        run(questions(50), client, tmp_path, concurrency=1)
    assert list(AnswerFile(tmp_path, SETTINGS).of) == ["q-0", "q-1", "q-2"]


# -- the report


@pytest.fixture
def graded():
    items, answers = [], {}

    def add(task, n, expected, text, kind="number", snr=None, tags=()):
        one = replace(item(f"{task}@{snr}-{n:05}", kind=kind, expected=expected), task=task, snr_db=snr, tags=tags)
        items.append(one)
        answers[one.id] = Answer(
            id=one.id, expected=expected, text=f"Hm.\n</think>\n{text}", token_ids=[1] * 4, finish_reason="stop"
        )

    for n in range(10):
        add("arithmetic", n, "5", "5" if n else "6", tags=("2 numbers" if n < 4 else "3 numbers",))
        add("arithmetic_no_think", n, "5", "5" if n > 5 else "7")
        add("transcription", n, "one two three four", "one two three four" if n else "one four", kind="transcript")
        for snr in ("clean", 10.0, 0.0):
            add("arithmetic", n, "5", "5" if n >= (0 if snr == "clean" else 6 - snr / 2) else "4", snr=snr)
            add("transcription", n, "one two", "one two" if snr == "clean" else "one", kind="transcript", snr=snr)
    return grade(items, answers)


def test_report(graded, tmp_path):
    report = make_report(graded, SETTINGS, "2026-01-02")
    rows = {(row.task, row.snr_db, row.tag): row for row in report.rows}
    assert len(rows) == len(report.rows) == 11
    assert rows["arithmetic", None, None].accuracy == 0.9
    assert (rows["arithmetic", None, "2 numbers"].correct, rows["arithmetic", None, "2 numbers"].n) == (3, 4)
    assert rows["transcription", None, None].wer == 2 / 40 and rows["arithmetic", None, None].wer is None
    assert rows["arithmetic", "clean", None].correct == 10 and rows["arithmetic", 0.0, None].correct == 4
    difference = report.differences["thought against no thought"]
    assert (difference.only_first, difference.only_second, difference.pairs) == (5, 0, 10)
    text = markdown(report)
    assert "# Evaluation of stub, 2026-01-02" in text and "+50.0 points on the same 10 sums" in text
    assert "arithmetic@None-00000, expected `5`:" in text
    assert "arithmetic, no noise" in table(report.rows) and "arithmetic, 10 dB SNR" in text
    assert len({len(line) for line in table(report.rows).splitlines()}) == 1
    write(report, tmp_path)
    data = json.loads((tmp_path / "report.json").read_text())
    assert data["settings"] == SETTINGS and data["rows"][0]["interval"]["low"] == wilson(9, 10).low
    assert data["wrong"][0]["id"] == "arithmetic@None-00000"


def test_plot(graded, tmp_path):
    pytest.importorskip("matplotlib")
    rows = make_report(graded, SETTINGS, "today").rows
    for name in ("a.svg", "b.svg"):
        plot_noise(rows, tmp_path / name)
    text = (tmp_path / "a.svg").read_text()
    assert text == (tmp_path / "b.svg").read_text()
    assert all(f">{word}<" in text for word in ("no noise", "10", "arithmetic", "transcription"))


# -- against torch


class Known:
    """A reference whose tokens are given; 99 ends an answer."""

    stop_ids = (99,)

    def __init__(self, tokens):
        self.tokens = tokens

    def greedy(self, item, max_tokens):
        ids = self.tokens[item.id][:max_tokens]
        return Greedy(ids, [0.5 * (n + 1) for n in range(len(ids))])

    def text(self, ids):
        return f"Hm.\n</think>\n{sum(ids)}"


def test_first_difference():
    assert first_difference([], []) is None and first_difference([1, 2], [1, 2]) is None
    assert first_difference([1, 2], [1, 3]) == 1 and first_difference([1, 2], [1]) == first_difference([1], [1, 2]) == 1


def test_agreement():
    def served(name, ids, reason="stop", error=None):
        text = f"Hm.\n</think>\n{sum(ids)}"
        return Answer(id=name, expected="", text=text, token_ids=ids, finish_reason=reason, error=error)

    items = [item(name, kind="number", expected="9" if name == "c" else "6") for name in "abcdef"]
    answers = {
        "a": served("a", [1, 2, 3]),  # without its last token, as the engine leaves end_id out
        "b": served("b", [1, 2, 99]),
        "c": served("c", [1, 5, 3]),  # one in the middle
        "d": served("d", [1, 2], "length"),
        "e": served("e", [1, 2]),  # torch goes on
        "f": served("f", [], None, "failed"),
    }
    wanted = {"a": [1, 2, 3, 99], "b": [1, 2, 99], "c": [1, 2, 3, 99], "d": [1, 2, 3], "e": [1, 2, 4, 99]}
    steps = []
    found = agreement(items, answers, Known(wanted), lambda: steps.append(1))
    assert (found.items, found.identical, found.tokens, len(steps)) == (5, 3, 12, 5)
    assert [(one.id, one.position, one.margin) for one in found.differing] == [("c", 1, 1.0), ("e", 2, 1.5)]
    assert (found.correct, found.reference_correct) == (2, 1)  # a for both; of c, 9 is served where torch says 6
    assert found.before_difference == 10 / 12 and found.equal == 11 / 12
    text = sentences(make_report([], SETTINGS, "today", found))[0]
    assert "3 of 5 answers have the same tokens (60.0 %)" in text and "right are 2 as served and 1 in torch" in text
    assert "leads by at most 1.5" in text


# -- the command


FEW = ["arithmetic", "arithmetic_no_think", "tool_result", "second_turn", "compare", "text_only"]


def test_eval_of_a_served_model(service, checkpoint, tmp_path, capsys):
    output = tmp_path / "out"
    options = EvaluationOptions(
        output, service.address, tasks=FEW, per_task=2, snr=(0.0,), seed=3, sampling={"max_tokens": 6},
        against_torch=checkpoint,
    )  # fmt: skip
    said = []
    assert evaluate(options, said.append) == 0
    report = json.loads((output / "report.json").read_text())
    assert report["settings"]["model"] == checkpoint.name and report["settings"]["sampling"]["max_tokens"] == 6
    assert {row["task"] for row in report["rows"]} == {*FEW, "transcription"}
    assert all(row["failed"] == 0 for row in report["rows"])
    found = report["agreement"]
    assert (found["items"], found["identical"], found["equal"]) == (16, 16, 1.0)
    assert f"| {FEW[0]}" in capsys.readouterr().out and (output / "report.md").is_file()
    before = (output / "answers.jsonl").read_bytes()
    assert evaluate(replace(options, against_torch=None, per_task=1), said.append) == 0  # fewer: all are there
    assert (output / "answers.jsonl").read_bytes() == before


def test_eval_of_a_data_set(service, data_set, tmp_path, capsys):
    (tmp_path / "clips" / "a.wav").write_bytes(held_out(["beeps"], 1, 0)[0].audio[0])
    file = data_set(GOOD, {**GOOD, "audio": "clips/b.wav"})  # the second is no recording
    command = ["eval", "--url", service.address, "--data", str(file), "--output", str(tmp_path / "out")]
    assert cli.main([*command, "--preset", "mmau", "--max-tokens", "4"]) == 1
    captured = capsys.readouterr()
    assert "1 of 2 requests failed and count as wrong" in captured.err and "| set " in captured.out
    sampling = {"max_tokens": 4, "temperature": 0.7, "repetition_penalty": 1.0}
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["sampling"] == sampling
    assert cli.main([*command, "--preset", "mmau", "--max-tokens", "5"]) == 1
    assert "choose another --output" in capsys.readouterr().err


def test_ctrl_c_keeps_what_is_there(service, tmp_path):
    """In a process of its own: a signal to this one would be for all that other tests have loaded, too."""
    command = ["--url", service.address, "--output", str(tmp_path), "--tasks", "text_only", "--per-task", "40"]
    running = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "step_audio_server.commands.cli",
            "eval",
            *command,
            "--concurrency",
            "2",
            "--max-tokens",
            "300",
        ],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    answers = tmp_path / "answers.jsonl"
    try:
        while running.poll() is None and not (answers.exists() and answers.read_bytes().count(b"\n") >= 2):
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=120)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)  # what speaks for it, too
    assert running.returncode == 130, errors
    assert re.search(r"stopped with \d+ of 40 answers", errors) and "Traceback" not in errors
    kept = [json.loads(line) for line in answers.read_text().splitlines()]
    assert 2 <= len(kept) < 40 and all(answer["error"] is None for answer in kept)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("--url 127.0.0.1:9 --tasks text_only --per-task 1", "no server answers at 127.0.0.1:9"),
        ("--url 127.0.0.1:9 --tasks singing", "there is no task singing; use arithmetic"),
        ("--url 127.0.0.1:9 --tasks", "nothing to ask"),
        ("--url 127.0.0.1:9 --data nowhere.jsonl", "nowhere.jsonl cannot be read"),
        ("--url 127.0.0.1:9 --max-tokens 0", "max_tokens must be at least 1"),
        ("--url 127.0.0.1:9 --seed -1", "seed"),
        ("--url 127.0.0.1:9 --against-torch nowhere", "nowhere does not exist"),
        ("--url 127.0.0.1:9 --against-torch nowhere --temperature 1", "compares greedy answers"),
        ("--checkpoint nowhere --tasks text_only --per-task 1", "nowhere does not exist"),
    ],
)
def test_eval_refuses(arguments, text, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["eval", "--output", "out", *arguments.split()]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("step-audio: ") and text in line


@pytest.mark.parametrize("arguments", ["--snr loud", "--snr nan", "--per-task 0", "--preset none", "--concurrency 0"])
def test_eval_wrong_arguments(arguments, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["eval", "--output", str(tmp_path), *arguments.split()])
    assert ended.value.code == 2

"""`step-audio eval`, on a served model and refused."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import ModuleType

import pytest

from evaluation_fixture import GOOD, item
from step_audio_evaluation.answers import AnswerFile, EvaluatedAnswer
from step_audio_evaluation.held_out import held_out
from step_audio_server.commands import cli
from step_audio_server.commands import evaluate as command
from step_audio_server.commands.evaluate import EvaluationOptions, evaluate

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


def test_eval_of_a_published_data_set_in_rounds(service, data_set, tmp_path, capsys):
    (tmp_path / "clips" / "a.wav").write_bytes(held_out(["beeps"], 1, 0)[0].audio[0])
    file = data_set({"file_name": "a.wav", "official_answer": "yes", "category": "navigate", "id": 0})
    arguments = ["--data", str(file), "--format", "big-bench-audio", "--audio-dir", str(tmp_path / "clips")]
    output = ["--repeat", "2", "--max-tokens", "4", "--output", str(tmp_path / "out")]
    assert cli.main(["eval", "--url", service.address, *arguments, *output]) == 0
    assert "rounds, spread" in capsys.readouterr().out
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert settings["sampling"]["temperature"] == 0.7 and settings["format"] == "big-bench-audio"
    answers = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    assert {answer["id"] for answer in answers} == {"set/0", "set/0#2"}
    assert answers[0]["token_ids"] != answers[1]["token_ids"]  # drawn with seeds of their own


def test_eval_by_budgets(service, tmp_path, capsys):
    options = ["--budgets", "0", "4", "unlimited", "--per-task", "2", "--max-tokens", "12"]
    assert cli.main(["eval", "--url", service.address, "--output", str(tmp_path), *options]) == 0
    assert "arithmetic, 4 tokens of thought" in capsys.readouterr().out
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert len(answers) == 6 and all(answer["error"] is None for answer in answers)


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
            os.killpg(running.pid, signal.SIGKILL)
    assert running.returncode == 130, errors
    assert re.search(r"stopped with \d+ of 40 answers", errors) and "Traceback" not in errors
    kept = [json.loads(line) for line in answers.read_text().splitlines()]
    assert 2 <= len(kept) < 40 and all(answer["error"] is None for answer in kept)


@pytest.fixture
def no_reference(monkeypatch):
    """transformers takes seconds to load, and is not asked here."""
    monkeypatch.setitem(sys.modules, "step_audio_evaluation.torch_reference", ModuleType("torch_reference"))


def test_what_may_fail_comes_after_the_report(no_reference, tmp_path, checkpoint, monkeypatch, capsys):
    """Where torch gives up, or nothing can draw, the answers are counted all the same."""
    asked = replace(item(), task="text_only", snr_db="clean")
    known = AnswerFile(tmp_path / "before", {"seed": 0})
    known.add(
        EvaluatedAnswer(id=asked.id, expected=asked.expected, text=asked.expected, token_ids=[1], finish_reason="stop")
    )

    async def answers(*_):
        return {"model": "stub", "seed": 0}, known

    def out_of_memory(*_):
        raise MemoryError

    monkeypatch.setattr(command, "_items", lambda *_: [asked])
    monkeypatch.setattr(command, "_answers", answers)
    output = tmp_path / "before"
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(command, "_agreement", out_of_memory)
        evaluate(EvaluationOptions(output, "nowhere", against_torch=checkpoint), print)
    assert json.loads((output / "report.json").read_text())["rows"][0]["n"] == 1
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    said = []
    assert evaluate(EvaluationOptions(output, "nowhere"), said.append) == 0
    assert said[0] == "noise.svg is not drawn: pip install -e '.[train]'"
    assert "| text_only" in capsys.readouterr().out and (output / "report.md").is_file()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        pytest.param(
            "--url 127.0.0.1:9 --tasks text_only --per-task 1",
            "no server answers at 127.0.0.1:9",
            marks=pytest.mark.processes,
        ),
        ("--url 127.0.0.1:9 --tasks singing", "there is no task singing; use arithmetic"),
        ("--url 127.0.0.1:9 --tasks", "nothing to ask"),
        ("--url 127.0.0.1:9 --voices opera", "there is no set opera; use sums-espeak, "),
        ("--url 127.0.0.1:9 --data nowhere.jsonl", "nowhere.jsonl cannot be read"),
        ("--url 127.0.0.1:9 --max-tokens 0", "max_tokens must be at least 1"),
        ("--url 127.0.0.1:9 --seed -1", "seed"),
        ("--url 127.0.0.1:9 --against-torch nowhere", "nowhere does not exist"),
        ("--url 127.0.0.1:9 --against-torch nowhere --temperature 1", "compares greedy answers"),
        pytest.param(
            "--checkpoint nowhere --tasks text_only --per-task 1", "nowhere does not exist", marks=pytest.mark.processes
        ),
        ("--url 127.0.0.1:9 --format mmau", "are about a data set: give --data, too"),
        ("--url 127.0.0.1:9 --budgets 4 --against-torch x", "leave out --budgets"),
        ("--adapter terse", "--adapter names one of a running server's --lora-modules: give its --url, too"),
        ("--url 127.0.0.1:9 --repeat 2", "greedy answers are the same each time"),
    ],
)
def test_eval_refuses(no_reference, arguments, text, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["eval", "--output", "out", *arguments.split()]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("step-audio: ") and text in line


def test_a_voice_that_is_not_there_is_named_with_what_brings_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("step_audio_server.commands.evaluate.sets_that_can_be_made", lambda: ("sums-espeak",))
    assert cli.main(["eval", "--output", str(tmp_path / "out"), "--url", "127.0.0.1:9", "--voices", "sums-human"]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.endswith("sums-human needs a voice that is not installed: apt-get install asterisk-core-sounds-en-g722")


@pytest.mark.parametrize(
    "arguments",
    ["--snr loud", "--snr nan", "--per-task 0", "--budgets -1", "--budgets all", "--preset none", "--concurrency 0"],
)
def test_eval_wrong_arguments(arguments, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["eval", "--output", str(tmp_path), *arguments.split()])
    assert ended.value.code == 2

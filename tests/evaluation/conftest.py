"""A data set on disk, and graded answers."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from evaluation_fixture import item
from step_audio_evaluation.answers import EvaluatedAnswer
from step_audio_evaluation.report import grade


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


@pytest.fixture
def graded():
    items, answers = [], {}

    def add(task, n, expected, text, kind="number", snr=None, tags=()):
        one = replace(item(f"{task}@{snr}-{n:05}", kind=kind, expected=expected), task=task, snr_db=snr, tags=tags)
        items.append(one)
        answers[one.id] = EvaluatedAnswer(
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

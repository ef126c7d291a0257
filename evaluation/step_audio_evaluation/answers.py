"""The file of answers: one JSON object a line, written as they come, so that a broken-off evaluation goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict

from pydantic import Field, ValidationError

from step_audio.config import Strict
from step_audio_evaluation.items import EvaluationError

SETTINGS, ANSWERS = "settings.json", "answers.jsonl"


class SpecialSettings(TypedDict, total=False):
    """What answers of a data set, or with an adapter, hang on besides."""

    data: str
    data_sha256: str
    format: str
    audio_first: bool
    think: bool
    adapter: str


class EvaluationSettings(SpecialSettings):
    """What the answers of one folder hang on, which must not be mixed."""

    model: str
    seed: int
    sampling: Mapping[str, Any]


class EvaluatedAnswer(Strict):
    """What came back for one question. `error` is set where nothing did; then the question is asked again next time."""

    id: str
    expected: str  # for who reads the file
    text: str = ""
    token_ids: list[int] = Field(default_factory=list)
    finish_reason: Literal["stop", "length"] | None = None
    prompt_tokens: int = 0
    error: str | None = None


class AnswerFile:
    """The answers of one output folder, `of` by id. `add` is on the disk when it returns."""

    def __init__(self, directory: Path, settings: EvaluationSettings):
        """Opens or begins the folder. Raises EvaluationError where it holds answers that were got otherwise."""
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / ANSWERS
        self.of: dict[str, EvaluatedAnswer] = {}
        self._check(directory / SETTINGS, settings)
        if self.path.exists():
            self._read()

    def add(self, answer: EvaluatedAnswer) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(answer.model_dump_json() + "\n")
        self.of[answer.id] = answer

    def _check(self, file: Path, wanted: EvaluationSettings) -> None:
        settings: dict[str, object] = json.loads(json.dumps(wanted))  # as they will be read back
        if not file.exists():
            if self.path.exists():
                raise EvaluationError(f"{self.path} has no {SETTINGS} beside it: choose another --output")
            file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
            return
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            before = None
        if not isinstance(before, dict):
            raise EvaluationError(f"{file} does not say how the answers beside it were got: choose another --output")
        for key in sorted({*settings, *before}):
            if settings.get(key) != before.get(key):
                raise EvaluationError(
                    f"{file.parent} holds answers with {key} {before.get(key)!r}, not {settings.get(key)!r}: "
                    "choose another --output"
                )

    def _read(self) -> None:
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):  # broken off within a line
            with self.path.open("r+b") as file:
                file.truncate(whole)
        for number, line in enumerate(data[:whole].split(b"\n")[:-1], 1):  # bytes: a line may be no UTF-8
            try:
                answer = EvaluatedAnswer.model_validate_json(line)
            except ValidationError:
                raise EvaluationError(
                    f"{self.path}, line {number}: not an answer: remove the line and it is asked again, "
                    "or choose another --output"
                ) from None
            self.of[answer.id] = answer  # what was asked again stands further down

"""Data sets, a JSON object a line or an array of them, asked as the model card's evaluations ask."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterator, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from pydantic import Field, StrictFloat, StrictInt, StrictStr, ValidationError, model_validator

from step_audio.chat_template import NO_THOUGHT
from step_audio.config import Strict
from step_audio.validation import first_fault
from step_audio_evaluation.formats import PublishedFormat, line_of
from step_audio_evaluation.items import EvaluationError, Item, Kind

CHOOSE = "Please choose the answer from the following options, do not provide any additional explanations or content: "


class Line(Strict):
    """`audio`: a file or several, relative to the data set. `answer`: with choices, one of them or its letter.

    A null is as if it were not there: exports have every key in every line.
    """

    question: StrictStr
    answer: StrictStr | StrictInt | StrictFloat
    audio: StrictStr | list[StrictStr] = Field(default_factory=list)
    choices: list[StrictStr] | None = Field(None, min_length=2, max_length=26)
    id: StrictStr | StrictInt | None = None
    task: StrictStr | None = None
    system: StrictStr | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        return {key: value for key, value in data.items() if value is not None} if isinstance(data, dict) else data

    def prompt(self) -> str:
        """The user's text."""
        if self.choices is None:
            return self.question
        options = "".join(
            f"{letter}. {choice}\n" for letter, choice in zip(string.ascii_uppercase, self.choices, strict=False)
        )
        return f"{self.question}\n{CHOOSE}\n{options}"

    def answer_kind(self, pairs: Sequence[tuple[str, ...]] = ()) -> tuple[Kind, str, tuple[str, ...]]:
        """How the answer is looked at, what is right, and out of what. Raises ValueError."""
        answer = str(self.answer).strip()
        if self.choices is not None:
            if answer in self.choices:
                return "choice", answer, tuple(self.choices)
            letter = string.ascii_uppercase.find(answer.upper()) if len(answer) == 1 else -1
            if not 0 <= letter < len(self.choices):
                raise ValueError("is neither one of the choices nor the letter of one")
            return "choice", self.choices[letter], tuple(self.choices)
        for pair in pairs:
            if answer.lower() in pair:
                return "choice", answer.lower(), pair
        return ("number" if _is_number(answer) else "text"), answer, ()


def _is_number(answer: str) -> bool:
    if re.fullmatch(r"-?\d{1,3}(,\d{3})+|-?\d+/[1-9]\d*", answer):
        return True
    try:
        return Decimal(answer).is_finite()
    except InvalidOperation:
        return False


def load_data_set(
    path: Path,
    audio_first: bool = False,
    think: bool = True,
    form: PublishedFormat | None = None,
    audio_dir: Path | None = None,
) -> list[Item]:
    """`form`: whose rows these are; None: lines of our own. `audio_dir`: what paths of recordings are relative to;
    None: the folder of the data set. Raises EvaluationError, which names the file, the line and the key."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # with the mark that spreadsheets put in front, or without
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    items = list(_items(path, text, audio_first, think, form, audio_dir or path.parent))
    if not items:
        raise EvaluationError(f"{path} has no lines")
    return items


def _rows(path: Path, text: str) -> Iterator[tuple[str, str, object]]:
    """What a row is called, its number, and what it holds."""
    if text.lstrip().startswith("["):
        rows = _json(text, str(path))
        assert isinstance(rows, list)
        yield from ((f"{path}, row {number}", str(number), row) for number, row in enumerate(rows, 1))
        return
    for number, raw in enumerate(text.split("\n"), 1):
        if raw.strip():
            where = f"{path}, line {number}"
            yield where, str(number), _json(raw, where)


def _items(
    path: Path, text: str, audio_first: bool, think: bool, form: PublishedFormat | None, audio_dir: Path
) -> Iterator[Item]:
    seen: dict[str, str] = {}
    for where, number, data in _rows(path, text):
        line = _line(data, where, form)
        files = tuple(audio_dir / name for name in ([line.audio] if isinstance(line.audio, str) else line.audio))
        if missing := [file for file in files if not file.is_file()]:
            raise EvaluationError(f"{where}: audio: there is no file {missing[0]}")
        try:
            kind, expected, options = line.answer_kind(form.pairs if form else ())
        except ValueError as error:
            raise EvaluationError(f"{where}: answer: {line.answer!r} {error}") from None
        id_ = number if line.id is None else str(line.id)
        if id_ in seen:
            raise EvaluationError(f"{where}: id: {id_!r} is {seen[id_]}'s too")
        seen[id_] = where.rpartition(", ")[2]
        task = line.task or path.stem
        first = audio_first or (form is not None and form.audio_first)
        yield Item(
            f"{path.stem}/{id_}", task, _messages(line, len(files), first), files, kind, expected, options,
            prefix=None if think else NO_THOUGHT,
        )  # fmt: skip


def _json(raw: str, where: str) -> object:
    try:
        return json.loads(raw)
    except RecursionError:
        raise EvaluationError(
            f"{where}: nested too deeply: only texts, numbers and lists of texts are read, leave the rest out"
        ) from None
    except ValueError as error:
        raise EvaluationError(f"{where}: not valid JSON: {error}") from None


def _line(data: object, where: str, form: PublishedFormat | None) -> Line:
    if not isinstance(data, dict):
        raise EvaluationError(f"{where}: not a JSON object")
    try:
        line = Line.model_validate(line_of(form, data) if form else data)
    except ValidationError as error:  # before ValueError, which it is
        raise EvaluationError(f"{where}: {first_fault(error, depth=1)}") from None
    except ValueError as error:
        raise EvaluationError(f"{where}: {error}") from None
    for key, value in line.model_dump().items():
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:  # JSON can spell what no request and no report can hold
            half = ascii(error.object[error.start])[1:-1]
            raise EvaluationError(f"{where}: {key}: {half} is half a character: write both halves or neither") from None
    return line


def _messages(line: Line, recordings: int, audio_first: bool) -> tuple[dict[str, Any], ...]:
    audio = [{"type": "audio"}] * recordings
    if audio_first or not audio:
        content = [*audio, {"type": "text", "text": line.prompt()}]
    else:  # the published server puts a line's end between text and audio
        content = [{"type": "text", "text": line.prompt() + "\n"}, *audio]
    system = [{"role": "system", "content": line.system}] if line.system else []
    return (*system, {"role": "user", "content": content})

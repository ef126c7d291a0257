"""Published data sets in the shape they are published in, asked as StepFun's evaluations asked them."""

from __future__ import annotations

import ast
import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, StrictFloat, StrictInt, StrictStr, field_validator

LETTERS = "abcd"


@dataclass(frozen=True)
class PublishedFormat:
    """`preset`: how answers are drawn. `question`: asked of every row, whose own question is spoken. `pairs`: answers
    that are told apart, though they are not listed in the question."""

    preset: str
    question: str | None = None
    audio_first: bool = False
    pairs: tuple[tuple[str, ...], ...] = ()


FORMATS: Mapping[str, PublishedFormat] = MappingProxyType(
    {
        "mmau": PublishedFormat("mmau"),
        "mmsu": PublishedFormat("mmsu"),
        "mmar": PublishedFormat("mmar"),
        "spoken-mqa": PublishedFormat("spoken-mqa", "Solve the given math question step by step."),
        "big-bench-audio": PublishedFormat(
            "big-bench-audio",
            '仅用 "valid" 或 "invalid"，"yes" 或 "no"，或者数字来直接回答上面的问题，不要添加任何其他描述。',
            audio_first=True,
            pairs=(("valid", "invalid"), ("yes", "no")),
        ),
    }
)


class PublishedRow(BaseModel):
    """A row of any of them: one key of several names each; keys that are not needed are let pass."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    audio: StrictStr = Field(validation_alias=AliasChoices("audio_path", "audio_id", "file_name", "audio", "path"))
    answer: StrictStr | StrictInt | StrictFloat | None = Field(
        None, validation_alias=AliasChoices("answer_gt", "official_answer", "answer", "solution")
    )
    answer_index: StrictInt | None = None
    question: StrictStr | None = Field(None, validation_alias=AliasChoices("question", "instruction"))
    choices: list[StrictStr] | None = Field(None, validation_alias=AliasChoices("choices", "options"))
    id: StrictStr | StrictInt | None = Field(None, validation_alias=AliasChoices("id", "question_id", "key"))
    task: StrictStr | None = Field(
        None, validation_alias=AliasChoices("task_name", "task", "modality", "category", "subset", "split")
    )

    @field_validator("audio", mode="before")
    @classmethod
    def _path(cls, value: Any) -> Any:
        return value.get("path") if isinstance(value, Mapping) else value  # as `datasets` writes a recording

    @field_validator("choices", mode="before")
    @classmethod
    def _list(cls, value: Any) -> Any:
        """Some tables hold a list as its text."""
        if isinstance(value, str) and value.lstrip().startswith("["):
            try:
                return ast.literal_eval(value)
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                return value
        return value


def line_of(form: PublishedFormat, data: Mapping[str, Any]) -> dict[str, Any]:
    """The row as a line of a data set of our own. Raises ValueError (pydantic's, too)."""
    columns = {f"choice_{letter}": data.get(f"choice_{letter}") for letter in LETTERS}
    listed = [text for text in columns.values() if text is not None]
    row = PublishedRow.model_validate({**data, "choices": listed} if listed else dict(data))
    choices = None if form.question is not None or row.choices is None else _without_letters(row.choices)
    answer = row.answer
    if answer is None:
        if row.answer_index is None or choices is None or not 0 <= row.answer_index < len(choices):
            raise ValueError("answer: Field required")
        answer = choices[row.answer_index]
    elif isinstance(answer, str):
        answer = _answer(answer, choices)
    question = form.question or row.question
    if question is None:
        raise ValueError("question: Field required")
    line = {"audio": row.audio, "question": question, "answer": answer, "choices": choices, "id": row.id}
    return line | {"task": row.task}


def _without_letters(choices: list[str]) -> list[str]:
    """ "(A) a dog", "B. a cat" without the letters, which the question's own list sets."""
    found = [
        re.fullmatch(rf"[(\[]?{letter}[)\].:]\s*(\S.*)", choice, re.S)
        for letter, choice in zip(string.ascii_uppercase, choices, strict=False)
    ]
    return [match[1] for match in found if match] if all(found) else choices


def _answer(answer: str, choices: list[str] | None) -> str:
    if choices is None:
        return answer.rpartition("####")[2].strip()  # GSM8K's answers have their reasoning in front
    if answer in choices or not (found := re.fullmatch(r"[(\[]?([A-Z])[)\].:]\s*(\S.*)?", answer, re.S)):
        return answer
    return found[2] if found[2] in choices else found[1]

"""Faults of values, in one line for people."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import BaseModel, PositiveInt, ValidationError, model_validator

from step_audio.validation import first_fault


class Part(BaseModel):
    count: PositiveInt = 1
    key: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _agree(self) -> Part:
        if self.count > 1 and self.key:
            raise ValueError("count and key exclude each other")
        return self


class Whole(BaseModel):
    part: Part


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"part": {"count": 0}}, "part.count: Input should be greater than 0, got 0"),
        ({"part": {"count": "a\nb"}}, r"part.count: .*, got 'a\\nb'"),
        ({"part": {"key": ["x" * 9999, 5]}}, r"part.key.1: Input should be a valid string, got 5"),
        ({"part": {"count": "x" * 9999}}, r"part.count: .*, got 'x{79}"),
        ({}, "part: Field required"),
        ({"part": {"count": 2, "key": ["x"]}}, "part: count and key exclude each other"),
    ],
)
def test_place_fault_and_value(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Whole(**values)
    assert re.fullmatch(said, first_fault(caught.value)), first_fault(caught.value)


def test_a_contradiction_has_no_place() -> None:
    with pytest.raises(ValidationError) as caught:
        Part(count=2, key=("x",))
    assert first_fault(caught.value) == "count and key exclude each other"


def test_secrets_are_not_quoted() -> None:
    for key in (5, ["secret", 5]):
        with pytest.raises(ValidationError) as caught:
            Part(key=key)  # type: ignore[arg-type]
        assert first_fault(caught.value).endswith("got 5")
        assert "5" not in first_fault(caught.value, secret=["key"])
        assert first_fault(caught.value, depth=1).startswith("key: ")

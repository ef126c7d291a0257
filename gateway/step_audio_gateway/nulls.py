"""Null means the default everywhere in a request, as in OpenAI's API."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, model_validator


class Lenient(BaseModel):
    """A key whose value is null is as one that is left out."""

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, value: Any) -> Any:
        return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value

"""Null means the default everywhere in a request, as in OpenAI's API; and keys that are not known."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator


class Lenient(BaseModel):
    """A key whose value is null is as one that is left out."""

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, value: Any) -> Any:
        return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value


class KnownKeys(BaseModel):
    """A key that is not known is a fault. The first is enough: one for each of a hundred thousand takes a second."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _one_is_enough(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        known = {field.alias or name for name, field in cls.model_fields.items()}
        unknown = next((k for k in value if k not in known), None)
        return {k: v for k, v in value.items() if k in known or k == unknown}


class Closed(Lenient, KnownKeys):
    """Both; nulls are left out first."""

"""What people choose, validated; a wrong value is said in a line."""

from __future__ import annotations

from typing import Any, Self

from pydantic import ValidationError

from step_audio.config import Strict
from step_audio.errors import SettingsError
from step_audio.validation import first_fault


class Settings(Strict):
    """A set of settings. A field with `repr=False` is a secret, whose value no error quotes."""

    @classmethod
    def create(cls, **values: Any) -> Self:
        """Validate. Raises SettingsError with the first fault in words."""
        try:
            return cls(**values)
        except ValidationError as error:
            secret = [name for name, field in cls.model_fields.items() if not field.repr]
            raise SettingsError(first_fault(error, secret=secret)) from None

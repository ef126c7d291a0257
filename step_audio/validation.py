"""What pydantic finds wrong with a value, in one line for people."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pydantic import ValidationError

QUOTED = 80  # characters of a wrong value that are told


def first_fault(error: ValidationError, depth: int | None = None, secret: Collection[str] = ()) -> str:
    """`limits.max_audios: Input should be greater than or equal to 0, got -1`, of the first fault.

    No key where two values contradict each other. `depth`: of the key, no more parts than these. `secret`: keys whose
    values are not quoted.
    """
    fault = error.errors()[0]
    if not fault["loc"]:
        return words(fault)
    text = ".".join(str(part) for part in fault["loc"][:depth]) + f": {words(fault)}"
    if isinstance(fault["input"], Mapping) or fault["loc"][0] in secret:  # a mapping: it lacks the key
        return text
    return f"{text}, got {fault['input']!r:.{QUOTED}}"


def words(fault: Mapping[str, Any]) -> str:
    """One of `ValidationError.errors()`, without its place."""
    if fault["type"] in ("model_type", "dict_type", "model_attributes_type"):  # pydantic would name a class of ours
        return "Input should be an object"
    return str(fault["msg"]).removeprefix("Value error, ")

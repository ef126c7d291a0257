"""How a checkpoint wants to be asked, as far as it says so: `generation_config.json`, as Hugging Face has it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from pydantic import PositiveInt, ValidationError

from step_audio.config import Strict
from step_audio.errors import CheckpointError
from step_audio.validation import first_fault

FILE = "generation_config.json"


_Section = TypeVar("_Section", bound=Strict)


class Pace(Strict):
    """How much of the thought there is for each piece of a mind-paced answer, in tokens. The defaults are those of
    the paper (arXiv 2510.09592), for text."""

    think_tokens: PositiveInt = 80
    speak_tokens: PositiveInt = 20


class Suggestions(Strict):
    """What the model can do, for people who wonder: what they may say to it, and ask it about a recording."""

    say: tuple[str, ...] = ()
    ask: tuple[str, ...] = ()


def pace_of(checkpoint: Path) -> Pace:
    """What its file has under `mind_paced_speaking`, or the paper's. Raises CheckpointError."""
    return _section(checkpoint, "mind_paced_speaking", Pace)


def suggestions_of(checkpoint: Path) -> Suggestions:
    """What its file has under `suggestions`, or none. Raises CheckpointError."""
    return _section(checkpoint, "suggestions", Suggestions)


def _section(checkpoint: Path, key: str, kind: type[_Section]) -> _Section:
    try:
        data = json.loads((checkpoint / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return kind()
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{checkpoint / FILE} cannot be read: {error}") from None
    said = data.get(key) if isinstance(data, dict) else None
    try:
        return kind() if said is None else kind.model_validate(said)
    except ValidationError as error:
        raise CheckpointError(f"{checkpoint / FILE}: {key}: {first_fault(error)}") from None

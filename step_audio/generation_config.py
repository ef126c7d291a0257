"""How a checkpoint wants to be asked, as far as it says so: `generation_config.json`, as Hugging Face has it."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import PositiveInt, ValidationError

from step_audio.config import Strict
from step_audio.errors import CheckpointError
from step_audio.validation import first_fault

FILE, KEY = "generation_config.json", "mind_paced_speaking"


class Pace(Strict):
    """How much of the thought there is for each piece of a mind-paced answer, in tokens. The defaults are those of
    the paper (arXiv 2510.09592), for text."""

    think_tokens: PositiveInt = 80
    speak_tokens: PositiveInt = 20


def pace_of(checkpoint: Path) -> Pace:
    """What its file has under `mind_paced_speaking`, or the paper's. Raises CheckpointError."""
    try:
        data = json.loads((checkpoint / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Pace()
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{checkpoint / FILE} cannot be read: {error}") from None
    said = data.get(KEY) if isinstance(data, dict) else None
    try:
        return Pace() if said is None else Pace.model_validate(said)
    except ValidationError as error:
        raise CheckpointError(f"{checkpoint / FILE}: {KEY}: {first_fault(error)}") from None

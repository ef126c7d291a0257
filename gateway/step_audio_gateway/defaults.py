"""What is done where a request says nothing: the server's own, settled when it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, get_args

from pydantic import ValidationError

from step_audio.errors import SettingsError
from step_audio.validation import first_fault
from step_audio_client import Thinking
from step_audio_gateway.controls import Effort
from step_audio_gateway.schemas import SamplingFields
from step_audio_gateway.settings import GatewaySettings


@dataclass(frozen=True)
class Defaults:
    """`efforts`: tokens of thought, by what `reasoning_effort` calls them; those that are missing have no bound.
    `sampling`: parameters by name."""

    thinking: Thinking
    efforts: Mapping[str, int]
    sampling: Mapping[str, Any]

    @classmethod
    def of(cls, settings: GatewaySettings) -> Self:
        """Raises SettingsError."""
        if settings.default_thinking == "off" and settings.default_thinking_budget is not None:
            raise SettingsError("--default-thinking-budget needs --default-thinking on")
        efforts = {name: _tokens(name, said) for name, said in _pairs("reasoning-effort-budgets", settings).items()}
        sampling = _pairs("default-sampling", settings)
        if unknown := sampling.keys() - SamplingFields.model_fields.keys():
            raise SettingsError(f"--default-sampling: {min(unknown)} is no sampling parameter")
        try:
            checked = SamplingFields.model_validate(sampling)
        except ValidationError as error:
            raise SettingsError(f"--default-sampling: {first_fault(error)}") from None
        return cls(
            Thinking(settings.default_thinking, settings.default_thinking_budget),
            efforts,
            {name: getattr(checked, name) for name in sampling},
        )


def _pairs(name: str, settings: GatewaySettings) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for word in getattr(settings, name.replace("-", "_")):
        key, found, value = word.partition("=")
        if not found or not key or key in pairs:
            raise SettingsError(f"--{name}: {word!r} is not NAME=VALUE, each name once")
        pairs[key] = value
    return pairs


def _tokens(name: str, said: str) -> int:
    known = [effort for effort in get_args(Effort) if effort != "none"]
    if name not in known:
        raise SettingsError(f"--reasoning-effort-budgets: there is no effort {name!r}, but {', '.join(known)}")
    if not said.isdecimal():
        raise SettingsError(f"--reasoning-effort-budgets: {said!r} is not a number of tokens")
    return int(said)

"""What the gateway can be told: by flag, else by environment, else by file, else a default.

Names are those of `vllm serve` where they mean the same. The environment has them as STEP_AUDIO_PORT, the file
(TOML) as `port` or, for those of several words, `served-model-name` or `served_model_name`.
"""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt

from step_audio.errors import SettingsError
from step_audio.settings import Settings

ENVIRONMENT_PREFIX = "STEP_AUDIO_"


def _several(value: Any) -> Any:
    """One string may hold several words, with commas between them: the environment has no lists."""
    words = [value] if isinstance(value, str) else value
    if not isinstance(words, (list, tuple)) or not all(isinstance(word, str) for word in words):
        return value  # refused by its type
    return tuple(part.strip() for word in words for part in word.split(",") if part.strip())


def _keys(value: Any) -> Any:
    words = _several(value)
    if words == () and value not in ((), []):
        raise ValueError("it is empty: give a key, or leave it out to let everybody call")
    return words


Several = Annotated[tuple[str, ...], BeforeValidator(_several)]
Keys = Annotated[tuple[str, ...], BeforeValidator(_keys)]


class GatewaySettings(Settings):
    """Everything `step-audio gateway` can be told; the descriptions are the command's help."""

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for all, then set --api-key")
    port: int = Field(9999, ge=1, le=65535, description="port to listen on")
    triton: Several = Field(("127.0.0.1:8001",), min_length=1, description="gRPC addresses of the served model")
    served_model_name: Several = Field(
        (), description="names that requests may use, the first one in replies (default: the checkpoint's)"
    )
    api_key: Keys = Field((), repr=False, description="keys that clients may use; better by environment or file")
    api_key_file: Path | None = Field(None, description="a file of keys, one a line")
    allowed_origins: Several = Field((), description="web pages that may call from a browser, besides the playground")
    allowed_media_domains: Several = Field(
        (), description="hosts that https audio_url may name: host, *.domain, or * for all public ones (default: none)"
    )
    media_timeout: PositiveFloat = Field(20.0, description="seconds for fetching one audio_url")
    max_body_bytes: PositiveInt = Field(256 << 20, description="largest request; base64 makes audio a third larger")
    request_timeout: PositiveFloat | None = Field(None, description="seconds for a whole answer (default: no limit)")
    separate_reasoning: bool = Field(
        True, description="the thought in reasoning_content; if not, all stays in content as the model wrote it"
    )
    transcription_prompt: str = Field(
        "Write down what you hear.", description="what /v1/audio/transcriptions asks the model"
    )
    log_content: bool = Field(False, description="put texts of requests and replies into the log")
    ssl_certfile: Path | None = Field(None, description="PEM certificate: serve https; browsers want it for recording")
    ssl_keyfile: Path | None = Field(None, description="PEM key of the certificate")

    def keys(self) -> tuple[str, ...]:
        """All API keys; none means that everybody may call. Raises SettingsError."""
        if self.api_key_file is None:
            return self.api_key
        try:
            lines = self.api_key_file.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"--api-key-file cannot be read: {error}") from None
        found = tuple(key for line in lines if (key := line.strip()) and not key.startswith("#"))
        if not found:  # an empty file must not open the door
            raise SettingsError("--api-key-file holds no key")
        return self.api_key + found


def add_flags(parser: argparse.ArgumentParser, leave_out: Collection[str] = ()) -> None:
    """One flag a setting; what is not given stays None."""
    group = parser.add_argument_group("HTTP")
    for name, field in GatewaySettings.model_fields.items():
        if name in leave_out:
            continue
        several = field.annotation is not None and "tuple" in str(field.annotation)
        default = field.default if field.default not in ((), None, True, False) else None
        shown = " ".join(default) if isinstance(default, tuple) else default
        group.add_argument(
            f"--{name.replace('_', '-')}",
            help=(field.description or "").replace("%", "%%") + (f" (default {shown})" if shown is not None else ""),
            default=None,
            **(
                {"action": argparse.BooleanOptionalAction}
                if field.annotation is bool
                else {"nargs": "+" if several else None, "metavar": name.rpartition("_")[2].upper()}
            ),
        )


def layers(
    names: Collection[str], flags: Mapping[str, Any], environment: Mapping[str, str], config: Path | None
) -> dict[str, Any]:
    """What was said about `names`: the flag's word before the environment's before the file's. Raises SettingsError."""
    values: dict[str, Any] = {}
    if config is not None:
        try:
            read = tomllib.loads(config.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise SettingsError(f"--config {config}: {error}") from None
        values = {name.replace("-", "_"): value for name, value in read.items()}
        if unknown := sorted(values.keys() - set(names)):
            raise SettingsError(f"--config {config}: unknown setting {unknown[0]}")
    for name in names:
        if (value := environment.get(ENVIRONMENT_PREFIX + name.upper())) is not None:
            values[name] = value
    return values | {name: value for name, value in flags.items() if name in names and value is not None}

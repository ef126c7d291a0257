"""What people choose: by flag, else by environment, else by file, else a default.

A set of settings is a class of fields. Of each field come its flag (`--max-num-seqs`), its name in the environment
(`STEP_AUDIO_MAX_NUM_SEQS`) and in a file (TOML: `max-num-seqs`, or with `_`), and those of its aliases likewise; its
description is the flag's help.
"""

from __future__ import annotations

import argparse
import os
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

from pydantic import AliasChoices, BaseModel, BeforeValidator, Field, ValidationError, create_model
from pydantic.fields import FieldInfo

from step_audio.config import Strict
from step_audio.errors import SettingsError
from step_audio.validation import first_fault

MIB = 1 << 20
PREFIX = "STEP_AUDIO_"  # of names in the environment


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


def children_environment() -> dict[str, str]:
    """Ours without the settings, keys among them: whoever may look at a child process would read them there."""
    return {name: value for name, value in os.environ.items() if not name.upper().startswith(PREFIX)}


def fields_of(settings: type[BaseModel], leave_out: Collection[str] = ()) -> dict[str, FieldInfo]:
    """What can be said, by name; where a field holds settings itself, theirs stand in its place."""
    fields: dict[str, FieldInfo] = {}
    for name, field in settings.model_fields.items():
        if (inner := _settings_within(field)) is not None:
            fields |= fields_of(inner, leave_out)
        elif name not in leave_out:
            fields[name] = field
    return fields


def values_for(settings: type[BaseModel], said: Mapping[str, Any]) -> dict[str, Any]:
    """The part of `said` that is about `settings`, nested as its fields are."""
    values: dict[str, Any] = {}
    for name, field in settings.model_fields.items():
        if (inner := _settings_within(field)) is not None:
            if part := values_for(inner, said):
                values[name] = part
        elif name in said:
            values[name] = said[name]
    return values


def add_config(parser: argparse.ArgumentParser) -> None:
    """The flag that names the file."""
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="settings by name, TOML; flags and STEP_AUDIO_* go before it"
    )


def add_flags(parser: argparse._ActionsContainer, fields: Mapping[str, FieldInfo]) -> None:
    """One flag a field; what is not given stays None."""
    for name, field in fields.items():
        flags = [f"--{alias.replace('_', '-')}" for alias in names_of(name, field)]
        text = f"{field.description}{_default(field)}".replace("%", "%%")
        form = _form(name, _plain(field.annotation))
        if any(isinstance(one, BeforeValidator) for one in field.metadata):  # it reads other words, too
            form.pop("type", None)
        parser.add_argument(*flags, dest=name, default=None, help=text, **form)


def said(fields: Mapping[str, FieldInfo], arguments: argparse.Namespace) -> dict[str, Any]:
    """What was said about `fields`, unvalidated, by name.

    The flag's word goes before the environment's, that before the file's. Raises SettingsError.
    """
    from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

    file = _read(arguments.config)

    class Layers(BaseSettings):
        """In their order; values of any type, for the settings themselves are to validate them."""

        model_config = SettingsConfigDict(extra="forbid", env_prefix=PREFIX, env_prefix_target="all")

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, InitSettingsSource(settings_cls, file)

    untyped: dict[str, Any] = {
        name: (Any, Field(None, validation_alias=field.validation_alias)) for name, field in fields.items()
    }
    flags = {name: value for name in fields if (value := getattr(arguments, name)) is not None}
    try:
        return create_model("Layers", __base__=Layers, **untyped)(**flags).model_dump(exclude_unset=True)
    except ValidationError as error:
        raise SettingsError(f"--config {arguments.config}: unknown setting {error.errors()[0]['loc'][0]}") from None


def _read(config: Path | None) -> dict[str, Any]:
    if config is None:
        return {}
    try:
        read = tomllib.loads(config.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"--config {config}: {error}") from None
    return {name.replace("-", "_"): value for name, value in read.items()}


def names_of(name: str, field: FieldInfo) -> list[str]:
    """Its own first."""
    alias = field.validation_alias
    return [str(choice) for choice in alias.choices] if isinstance(alias, AliasChoices) else [name]


def _plain(annotation: Any) -> Any:
    """Without bounds and None: `int` of `PositiveInt | None`."""
    if get_origin(annotation) is Annotated:
        return _plain(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        (kind,) = (kind for kind in get_args(annotation) if kind is not type(None))
        return _plain(kind)
    return annotation


def _settings_within(field: FieldInfo) -> type[BaseModel] | None:
    kind = _plain(field.annotation)
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _form(name: str, kind: Any) -> dict[str, Any]:
    """How argparse reads a value of the type."""
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(kind) is Literal:
        return {"choices": get_args(kind)}
    form: dict[str, Any] = {"metavar": name.rpartition("_")[2].upper()}
    if kind in (int, float):
        form["type"] = kind
    if get_origin(kind) is tuple:
        form["nargs"] = "+"
    return form


def _default(field: FieldInfo) -> str:
    """For the help; what silence means otherwise stands in the description."""
    value = field.default
    if field.is_required() or value in (None, ()) or isinstance(value, bool):
        return ""
    if isinstance(value, tuple):
        value = " ".join(value)
    elif isinstance(value, float):
        value = f"{value:g}"
    elif isinstance(value, int) and value >= MIB:
        value = f"{value // MIB} MiB"
    return f" (default {value})"

"""What all commands share: a parser each, lines to people, types of arguments."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import wraps
from typing import TypeAlias

from step_audio.errors import StepAudioError
from step_audio.extras import install_for

Echo = Callable[[str], None]  # takes a line that is meant for people
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # where commands are added to a parser


def add_command(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], int | None],
    text: str,
    extra: str | None = None,
) -> argparse.ArgumentParser:
    """A command's parser; `text` is its line in the list of commands and its description. `extra`: brings all it needs
    that is not always there; `run` is set to a function that advises it, raising StepAudioError."""

    @wraps(run)
    def advised(arguments: argparse.Namespace) -> int | None:
        try:
            return run(arguments)
        except ModuleNotFoundError as error:
            advice = install_for(error.name or "", extra)
            raise StepAudioError(f"this command needs {error.name}: {advice}") from None

    parser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(run=advised)
    return parser


def echo(line: str) -> None:
    """To people, not to pipes."""
    print(line, file=sys.stderr, flush=True)


def count(text: str) -> int:
    """An argument's type: at least 1. argparse calls it by this name where a value is not."""
    if (value := int(text)) < 1:
        raise ValueError
    return value


count.__name__ = "count"  # argparse says "invalid count value"

"""Flags that another server has and this one has not: told what to use instead, and not taken for a misspelling."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from step_audio.errors import SettingsError


def add_foreign_flags(
    parser: argparse._ActionsContainer, refused: Mapping[str, str], always: Collection[str] = ()
) -> None:
    """In no help. `refused`: with what to do instead. `always`: they ask for what is so without them, and do nothing.

    Parsing raises SettingsError for the first of the refused.
    """
    for flag in always:
        parser.add_argument(flag, action="store_true", help=argparse.SUPPRESS)
    for flag, instead in refused.items():
        parser.add_argument(flag, nargs="*", action=_Refused, const=instead, help=argparse.SUPPRESS)


class _Refused(argparse.Action):
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        raise SettingsError(f"{option_string} is no flag of this server's: {self.const}")

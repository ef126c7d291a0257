"""Filling of `config.pbtxt` templates: `${key}` placeholders, and no silence about any of them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from step_audio.errors import ArtefactError

PLACEHOLDER = re.compile(r"\$\{([^}]*)\}")


class Pbtxt(str):
    """A value that is text of the format itself, not to be escaped."""


def keys(text: str) -> set[str]:
    """The placeholders in `text`."""
    return set(PLACEHOLDER.findall(text))


def fill(text: str, values: Mapping[str, object], name: str) -> str:
    """Replace every `${key}` of template `name`. Booleans become true/false, strings are escaped for pbtxt.

    Raises ArtefactError for a key the template lacks, or a placeholder without a value.
    """
    wanted = keys(text)
    if unknown := sorted(set(values) - wanted):
        raise ArtefactError(f"{name}: the template has no {', '.join(unknown)}")
    if unfilled := sorted(wanted - set(values)):
        raise ArtefactError(f"{name}: no value for {', '.join(unfilled)}")
    return PLACEHOLDER.sub(lambda match: _text(values[match[1]]), text)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Pbtxt):
        return value
    return str(value).replace("\\", "\\\\").replace('"', '\\"')

"""The documents, and the commands in them."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from paths import ROOT
from step_audio_server.commands.cli import _parser

PAGES = [*sorted(ROOT.glob("*.md")), ROOT / "docker/README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES += sorted((ROOT / "models").rglob("*.md"))
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
ENDS = ("|", "&&", "||", ";", "&", ">", "2>")  # of a command within a line
# What stands before the command where a container runs it: our image, or a service of docker/compose.yaml.
IN_CONTAINER = re.compile(r"(?:\S+/)?step-audio-triton:\S+|build|serve|cpu|vllm")


def blocks(page: Path, *languages: str) -> Iterator[str]:
    for language, text in re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S):
        if language in languages:
            yield text


def lines(page: Path) -> Iterator[list[str]]:
    """Shell lines of the page, in words; comments left out, lines that go on joined, here-documents skipped."""
    for block in blocks(page, "", "sh", "bash", "console"):
        block = re.sub(r"<<'?(\w+)'?\n.*?^\1$", "\n", block, flags=re.M | re.S)
        for line in block.replace("\\\n", " ").splitlines():
            try:
                words = shlex.split(line.removeprefix("$ "), comments=True)
            except ValueError:  # not a command: a drawing, an excerpt
                continue
            if words:
                yield words


@cache
def subcommands() -> dict[str, argparse.ArgumentParser]:
    (action,) = [a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return action.choices


def our_commands(words: list[str]) -> Iterator[list[str]]:
    """What follows `step-audio`, in the shell, in a container or as one's command."""
    for n, word in enumerate(words):
        rest = words[n + 1 :]
        end = next((m for m, later in enumerate(rest) if later in ENDS), len(rest))
        begins = word == "step-audio" or ("run" in words[:n] and IN_CONTAINER.fullmatch(word))
        if begins and end and not rest[0].startswith("-"):
            assert rest[0] in subcommands(), f"no such command: {shlex.join(words)}"
            yield rest[:end]
            return

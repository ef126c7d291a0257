"""Pinned versions, a Dockerfile's instructions, and its RUN lines executed in a folder in place of the image's root."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from paths import ROOT

# Folders of the image that RUN lines and ENV name.
IMAGE_FOLDERS = re.compile(r"(?<![\w.)}])/(opt|tmp|home|weights|engines)(?=[/\s\"':]|$)")


def pins() -> dict[str, str]:
    """docker/versions.env."""
    return dict(re.findall(r"^(\w+)=(.+)$", (ROOT / "docker/versions.env").read_text("utf-8"), re.MULTILINE))


@dataclass(frozen=True)
class Instruction:
    name: str
    value: str


def instructions(path: Path) -> list[Instruction]:
    """In order, continued lines joined, comments left out."""
    lines = [line for line in path.read_text("utf-8").splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [Instruction(*line.split(None, 1)) for line in joined.splitlines() if line.strip()]


def values(path: Path, name: str) -> list[str]:
    return [found.value for found in instructions(path) if found.name == name]


def defaults(path: Path) -> dict[str, str]:
    """ARG NAME=DEFAULT."""
    return dict(value.split("=", 1) for value in values(path, "ARG"))


def execute(path: Path, root: Path, arguments: dict[str, str], environment: dict[str, str]) -> str:
    """ARG, ENV, COPY and RUN in order, with `root` for the image's top; returns what was printed.

    Raises CalledProcessError of the RUN line that fails.
    """

    def inside(text: str) -> str:
        return IMAGE_FOLDERS.sub(rf"{root}/\1", text)

    given = {"HOME": str(root), **environment}
    said = ""
    for instruction in instructions(path):
        if instruction.name == "ARG":
            name, _, value = instruction.value.partition("=")
            given[name] = arguments.get(name, value)
        elif instruction.name == "ENV":
            for name, value in re.findall(r"(\w+)=(\S+)", inside(instruction.value)):
                given[name] = re.sub(r"\$\{(\w+)\}", lambda match: given[match[1]], value)
        elif instruction.name == "COPY":
            *sources, target = inside(instruction.value).split()
            for source in sources:
                place = Path(target) / Path(source).name if target.endswith("/") else Path(target)
                place.parent.mkdir(parents=True, exist_ok=True)
                subprocess.run(["cp", "-r", ROOT / source, place], check=True)
        elif instruction.name == "RUN":
            shell = ["/bin/bash", "-euo", "pipefail", "-c", inside(instruction.value)]
            done = subprocess.run(shell, env=given, cwd=root, capture_output=True, text=True, errors="replace")
            said += done.stdout + done.stderr
            if done.returncode:
                raise subprocess.CalledProcessError(done.returncode, instruction.value, done.stdout, done.stderr)
    return said


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    os.chmod(path, 0o755)
    return path

"""A virtual environment for each peer, made on demand: what one pins would break another."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from step_audio.command_line import Echo
from step_audio.errors import StepAudioError

REQUIREMENTS = Path(__file__).parent / "requirements"
STAMP = "installed.txt"  # in an environment: the requirements that it has
# llama-cpp-python is compiled here, the library alone.
LEFT_OUT = ("LLAVA_BUILD", "LLAMA_BUILD_COMMON", "LLAMA_BUILD_TOOLS", "LLAMA_BUILD_EXAMPLES", "LLAMA_BUILD_SERVER")
COMPILE = {"CMAKE_ARGS": " ".join(f"-D{name}=OFF" for name in LEFT_OUT)}


@dataclass(frozen=True)
class Environment:
    """`folder`/`name`, with the packages of `requirements`/`name`.txt."""

    folder: Path
    name: str
    requirements: Path = REQUIREMENTS

    @property
    def bin(self) -> Path:
        return self.folder / self.name / "bin"

    @property
    def python(self) -> Path:
        return self.bin / "python"

    @property
    def wanted(self) -> str:
        return (self.requirements / f"{self.name}.txt").read_text("utf-8")

    def install(self, echo: Echo) -> None:
        """Does nothing where it is there. Raises StepAudioError where it cannot be made."""
        stamp = self.folder / self.name / STAMP
        if stamp.is_file() and stamp.read_text("utf-8") == self.wanted:
            return
        echo(f"{self.name}: installing into {self.folder / self.name}")
        shutil.rmtree(self.folder / self.name, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._run([sys.executable, "-m", "venv", str(self.folder / self.name)])
        given = str(self.requirements / f"{self.name}.txt")
        self._run([str(self.python), "-m", "pip", "install", "--quiet", "--no-deps", "--requirement", given])
        stamp.write_text(self.wanted, "utf-8")

    def _run(self, command: list[str]) -> None:
        try:
            ran = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **COMPILE})
        except OSError as error:
            raise StepAudioError(f"{self.name} cannot be installed: {error}") from None
        if ran.returncode:
            said = [line for line in ran.stderr.splitlines() if line.strip()] or ["it does not say why"]
            reason = next((line for line in said if "ERROR" in line), said[-1])
            raise StepAudioError(f"{self.name} cannot be installed into {self.folder / self.name}: {reason.strip()}")

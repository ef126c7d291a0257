"""Run the commands of docs/benchmarks.md that drive NVIDIA's tools, against a server of the small model started here.

    python benchmarks/smoke.py

Addresses and folders of the page are replaced by this server's; numbers and options are the page's. AIPerf gets an
environment of its own on first use.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from peers.compare import ENVIRONMENTS
from peers.environments import Environment
from step_audio.command_line import echo
from step_audio.errors import StepAudioError
from step_audio_server.commands.own_server import both_doors, own_server

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/benchmarks.md"
AIPERF = "aiperf"
# As the page has them.
GRPC, HTTP, FOLDER = "127.0.0.1:8001", "http://127.0.0.1:9999", "figures"


def commands(page: str) -> Iterator[list[str]]:
    """Shell lines that call AIPerf, or `step-audio bench` with perf_analyzer; in words."""
    for block in re.findall(r"^```sh\n(.*?)^```$", page, re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == [AIPERF] or (words[:2] == ["step-audio", "bench"] and "--perf-analyzer" in words):
                yield words


def here(words: list[str], grpc: str, http: str, folder: Path, aiperf: Path) -> list[str]:
    """The same command on this machine."""
    programs = {AIPERF: str(aiperf), "step-audio": str(Path(sys.executable).parent / "step-audio")}
    program, *rest = words
    changed = (re.sub(rf"^{FOLDER}(?=/|$)", str(folder), word) for word in rest)
    return [programs[program], *(word.replace(HTTP, http).replace(GRPC, grpc) for word in changed)]


def main() -> int:
    environment = Environment(ENVIRONMENTS, AIPERF)
    environment.install(echo)
    with (
        tempfile.TemporaryDirectory() as scratch,
        (Path(scratch) / "gateway.log").open("wb") as log,
        both_doors(own_server(None), log, echo) as (service, url),
    ):
        for number, words in enumerate(commands(PAGE.read_text("utf-8"))):
            command = here(words, service.address, url, Path(scratch) / str(number), environment.bin / AIPERF)
            echo(f"$ {shlex.join(words)}")
            begin = time.monotonic()
            status = subprocess.run(command, cwd=ROOT).returncode
            echo(f"{words[0]}: status {status} after {time.monotonic() - begin:.0f} s")
            if status:
                return status
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except StepAudioError as error:
        sys.exit(f"error: {error}")

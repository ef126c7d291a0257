"""Unmodified clients of others against the small model, served here: `run_all.py [CLIENT...]`.

Each gets an environment of its own on first use. Prints and writes a line for each case: the client, its version, what
was tried, and "ok" or what failed. The whole list goes into docs/clients.md with --page.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from material import NoMaterial, material

from peers.environments import STAMP, Environment
from step_audio.command_line import echo
from step_audio.errors import StepAudioError
from step_audio.markdown import markdown_table
from step_audio_server.commands.bench import CACHE
from step_audio_server.commands.own_server import both_doors, own_server

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PAGE = ROOT / "docs/clients.md"
RESULTS = "## What was tried\n"  # the page's last part begins with it
ENVIRONMENTS = CACHE / "clients"
SECONDS = 600  # for all cases of a client


@dataclass(frozen=True)
class Client:
    """`package`: the one whose version is told."""

    name: str
    script: str
    environment: str
    package: str

    @property
    def version(self) -> str:
        if self.script.endswith(".mjs"):
            return str(json.loads((HERE / "package.json").read_text("utf-8"))["dependencies"][self.package])
        return dict(line.split("==") for line in self.made.wanted.split())[self.package]

    @property
    def made(self) -> Environment:
        return Environment(ENVIRONMENTS, self.environment, HERE / "requirements")

    def install(self) -> None:
        """Raises StepAudioError."""
        self.made.install(echo)
        if self.script.endswith(".mjs"):
            install_packages(self.made)

    @property
    def command(self) -> list[str]:
        if self.script.endswith(".py"):
            return [str(self.made.python), str(HERE / self.script)]
        folder = self.made.folder / self.made.name
        for module in HERE.glob("*.mjs"):  # which look for packages beside and above themselves only
            shutil.copy(module, folder)
        return [str(self.made.bin / "node"), str(folder / self.script)]


CLIENTS = {
    "openai": Client("openai for Python", "with_openai.py", "openai", "openai"),
    "openai-realtime": Client("openai for Python", "with_openai_realtime.py", "openai", "openai"),
    "openai-js": Client("openai for JavaScript", "with_openai.mjs", "node", "openai"),
    "openai-js-realtime": Client("openai for JavaScript", "with_openai_realtime.mjs", "node", "openai"),
    "agents": Client("OpenAI agents for JavaScript", "with_agents.mjs", "node", "@openai/agents-realtime"),
    "langchain": Client("LangChain, `ChatOpenAI`", "with_langchain.py", "langchain", "langchain-openai"),
    "litellm": Client("LiteLLM", "with_litellm.py", "litellm", "litellm"),
    "instructor": Client("instructor", "with_instructor.py", "instructor", "instructor"),
    "ai-sdk": Client("AI SDK", "with_ai_sdk.mjs", "node", "ai"),
    "livekit": Client("LiveKit agents", "with_livekit.py", "livekit", "livekit-plugins-openai"),
    "livekit-realtime": Client("LiveKit agents", "with_livekit_realtime.py", "livekit", "livekit-plugins-openai"),
    "pipecat": Client("Pipecat", "with_pipecat.py", "pipecat", "pipecat-ai"),
    "pipecat-realtime": Client("Pipecat", "with_pipecat_realtime.py", "pipecat", "pipecat-ai"),
}
Row = tuple[Client, str, str]  # a case, and "ok" or what failed


def install_packages(environment: Environment) -> None:
    """Of JavaScript, beside the environment's own Node. Raises StepAudioError."""
    folder, wanted = environment.folder / environment.name, (HERE / "package-lock.json").read_text("utf-8")
    stamp = folder / "node_modules" / STAMP
    if stamp.is_file() and stamp.read_text("utf-8") == wanted:
        return
    for name in ("package.json", "package-lock.json"):
        shutil.copy(HERE / name, folder)
    path = f"{environment.bin}{os.pathsep}{os.environ['PATH']}"  # npm is a script for the Node on the path
    command = [str(environment.bin / "npm"), "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(command, cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True)
    if done.returncode:
        raise StepAudioError(f"packages cannot be installed into {folder}: {' '.join(done.stderr.split())[-300:]}")
    stamp.write_text(wanted, "utf-8")


def run(client: Client, asked: Path, log: Path) -> list[Row]:
    with log.open("w") as errors:
        try:
            done = subprocess.run(
                [*client.command, str(asked)], stdout=subprocess.PIPE, stderr=errors, text=True, timeout=SECONDS
            )
            out, end = done.stdout, f"the script ended with status {done.returncode}" if done.returncode else ""
        except subprocess.TimeoutExpired as late:
            out, end = (late.stdout or b"").decode(), f"not done after {SECONDS} s"
    told = [json.loads(line) for line in out.splitlines() if line.startswith('{"case"')]
    rows = [(client, one["case"], one["error"] or "ok") for one in told]
    return [*rows, (client, "all of them", end or "nothing was tried")] if end or not told else rows


def table(rows: Sequence[Row]) -> str:
    def cell(text: str) -> str:
        return text.replace("|", "\\|").replace("<", "&lt;")

    cells = [[client.name, client.version, cell(case), cell(end)] for client, case, end in rows]
    return markdown_table([["client", "version", "case", ""], *cells], numbers=False)


def write_page(rows: Sequence[Row]) -> None:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    right = sum(end == "ok" for *_, end in rows)
    said = (
        f"Written by `make clients` on {datetime.now(UTC):%Y-%m-%d}, at commit {commit}, against the small model: "
        f"{right} of {len(rows)} right.\n"
    )
    text = PAGE.read_text("utf-8")
    PAGE.write_text(f"{text[: text.index(RESULTS)]}{RESULTS}\n{said}\n{table(rows)}\n", "utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="CLIENT", help=f"all, unless some are given: {', '.join(CLIENTS)}")
    parser.add_argument("--logs", type=Path, default=ROOT / ".work" / "clients", help="default %(default)s")
    parser.add_argument("--page", action="store_true", help="write the table into docs/clients.md")
    given = parser.parse_args()
    if unknown := set(given.names) - set(CLIENTS):
        parser.error(f"no such client: {', '.join(sorted(unknown))}")
    chosen = [CLIENTS[name] for name in given.names or CLIENTS]
    for client in chosen:
        client.install()
    given.logs.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    with (
        tempfile.TemporaryDirectory() as scratch,
        (given.logs / "gateway.log").open("wb") as log,
        both_doors(own_server(None, ROOT / ".work"), log, echo, speech="built-in") as (_, url),
    ):
        asked = Path(scratch) / "asked.json"
        asked.write_text(json.dumps(material(url, Path(scratch))), "utf-8")
        for client in chosen:
            found = run(client, asked, given.logs / f"{client.script}.log")
            for _, case, end in found:
                echo(f"{client.name} {client.version}: {case}: {end}")
            rows += found
    print(table(rows))
    if given.page:
        write_page(rows)
    return 0 if all(end == "ok" for *_, end in rows) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (StepAudioError, NoMaterial) as error:
        sys.exit(f"error: {error}")

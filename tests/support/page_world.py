"""A page's shell blocks, run by bash from the top to the bottom in a world that is made of folders.

Programs of other people are stand-ins, which hand their arguments and environment to `PageWorld` and get a status
back. So what the shell does is real: variables, functions, quoting, here-documents, and every path that one command
hands to the next. `step-audio build` is a dry run against a hub (`hub_fixture`), after which its artefacts are said to
be there; `convert` converts; `serve` reads its settings, and finds what was built where it is told to look, or fails.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shlex
import shutil
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import chdir, redirect_stderr, redirect_stdout
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import yaml

from document_fixture import our_commands
from parquet_fixture import parquet
from paths import ROOT
from step_audio.config import CONFIG_FILES
from step_audio.errors import StepAudioError
from step_audio_build.stages.calibration import DEFAULT_DATA
from step_audio_build.stages.cpu_build import default_work_dir
from step_audio_gateway import command as gateway_command
from step_audio_server.commands.cli import _parser, main
from step_audio_server.records import FILE as DEATHS
from step_audio_server.settings import ServeSettings

# What each host of the guides has where, when nothing else is said: container's folder -> host's.
MOUNTS = {"/engines": "/data/engines", "/weights": "/data/weights", "/models": "/data/models", "/tmp": "/container/tmp"}
# What our image has where nothing is mounted over it (docker/Dockerfile).
IMAGE_FOLDERS = {"/engines": "/container/engines", "/weights": "/container/weights", "/opt": "/container/opt"}
ADAPTERS = ("data/models/terse", "data/models/medical")
RUN_FOLDER = "server-8001"  # of a work directory, once it has been served from
WEIGHTS = ("data/weights/Step-Audio-R1.1", "data/models/Step-Audio-R1.1", "data/model", "here/Step-Audio-R1.1")
# Programs that only have to be called: others' tests are about what they are given, or nothing here can be.
OTHERS = (
    "apt-get", "aiperf", "curl", "dpkg", "gpg", "kubectl", "less", "make", "mpirun", "nvidia-ctk", "nvidia-smi", "pip",
    "python", "python3", "reboot", "sh", "systemctl", "tail", "tee", "trtllm-build", "wget",
)  # fmt: skip
REQUESTING = ("base64", "docker", "helm", "hf", "sudo", "step-audio", *OTHERS)

EMPTY: Mapping[str, str] = {}
VLLM_IMAGE = dict(re.findall(r"(STEP_AUDIO_LLM\w+)=(\S+)", (ROOT / "docker/Dockerfile.vllm").read_text("utf-8")))

STAND_IN = """#!/bin/bash
exec 9>"{world}/lock"; flock 9
{{ printf '%s\\0' "$PWD" "${{0##*/}}" "$#" "$@"; env -0; }} > "{world}/asked"
{{ read -r status; cat; }} < "{world}/answer"
exit "$status"
"""
# Of these the pages also use what needs no world: in a pipe, on a file beside them.
REAL = {"sed": "-i", "grep": "-o"}

Step = Callable[[list[str], Mapping[str, str]], str]


class Refused(Exception):
    """A command of the page would not have worked."""


class PageWorld:
    def __init__(self, root: Path, checkpoint: Path) -> None:
        """`checkpoint`: a whole one, which stands for all weights."""
        self.root, self.checkpoint = root, checkpoint
        self.here, self.mounts = root / "here", dict(MOUNTS)
        self.image: dict[str, str] = {}  # variables of the image that a command runs in
        self.built: dict[tuple[Path, str], Path] = {}  # work directory and profile -> checkpoint
        self.values: list[str] = []  # of the release: what helm was told
        self.refusals: list[str] = []
        for name in WEIGHTS:
            self._plant(root / name)
        for path in ROOT.iterdir():
            (self.here / path.name).symlink_to(path)
        (self.here / ".venv").unlink(missing_ok=True)
        (self.here / ".venv/bin").mkdir(parents=True)
        (self.here / ".venv/bin/activate").touch()
        for name in ("question.wav", "mmsu.jsonl"):
            (self.here / name).touch()
        for folder in ("data/engines", *ADAPTERS):
            (root / folder).mkdir(parents=True)
        self.bin = root / "bin"
        for name in (*REQUESTING, *REAL):
            path = self.bin / name
            path.parent.mkdir(exist_ok=True)
            text = STAND_IN.format(world=root)
            if name in REAL:
                pass_on = f'[[ "$1" = {REAL[name]} && "$*" = */engines/* ]] || exec {shutil.which(name)} "$@"'
                text = text.replace("exec 9", f"{pass_on}\nexec 9", 1)
            path.write_text(text)
            path.chmod(0o755)

    def run(self, script: str) -> list[str]:
        """What was refused, one sentence each; none where all of it works."""
        if "install -d" in script:  # the page makes it
            (self.root / "data/engines").rmdir()
        if "/deaths.jsonl" in script:  # it tells of a server that has run, and died
            for name in (DEATHS, "tritonserver.log", "tritonserver.log.1"):
                (self.root / "data/engines" / RUN_FOLDER).mkdir(exist_ok=True)
                (self.root / "data/engines" / RUN_FOLDER / name).touch()
        for pipe in ("asked", "answer"):
            os.mkfifo(self.root / pipe)
        ended = threading.Event()
        server = threading.Thread(target=self._serve, args=(ended,))
        server.start()
        given = {"LEADER": "leader", "WORKER": "worker", "HOME": str(self.root), "PATH": f"{self.bin}:/usr/bin:/bin"}
        done = subprocess.run(
            ["bash", "-euc", script], cwd=self.here, env=given, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        ended.set()
        (self.root / "asked").write_bytes(b"")  # wakes it
        server.join()
        if done.returncode and not self.refusals:
            self.refusals.append(done.stderr.strip() or f"status {done.returncode}")
        return self.refusals

    def _serve(self, ended: threading.Event) -> None:
        while True:
            asked = (self.root / "asked").read_bytes()
            if ended.is_set():
                return
            place, name, count, *words = asked.decode().split("\0")
            given, variables = words[: int(count)], words[int(count) :]
            environment = dict(variable.partition("=")[::2] for variable in variables if variable)
            self.place = Path(place)
            status, said = 0, ""
            try:
                said = self.do([name, *given], environment)
            except Exception as error:  # else the page would wait for an answer
                status = 1
                kind = "" if isinstance(error, Refused | StepAudioError) else f"{type(error).__name__}: "
                self.refusals.append(f"{shlex.join([name, *given])}: {kind}{error}")
            (self.root / "answer").write_text(f"{status}\n{said}")

    def do(self, words: list[str], environment: Mapping[str, str]) -> str:
        """What it prints. Raises Refused, or StepAudioError."""
        match words:
            case ["sudo", *rest] if rest[0] == "install":
                self.path(rest[-1], {}).mkdir(parents=True, exist_ok=True)
            case ["sudo", *rest]:
                return self.do(rest, environment)
            case ["docker", *rest]:
                return self._docker(rest, environment)
            case ["helm", *rest]:
                for flag, value in pairwise(rest):
                    if flag == "--values":
                        self._exists(self.place / value)
                if rest[0] in ("install", "upgrade") and rest[2].startswith("deploy/"):
                    self._exists(self.place / rest[2] / "Chart.yaml")
                    self._helm(rest[3:])
            case ["base64", *_, file]:
                self._exists(self.place / file)
            case ["tail" | "less", *_, file]:
                self._exists(self.path(file))
            case ["aiperf", *rest]:
                self._exists(self.place / rest[rest.index("--tokenizer") + 1])
            case ["mpirun", *rest]:
                if len(places := {word for word in rest if word.startswith("--model-repository=")}) > 1:
                    raise Refused(f"the ranks serve different repositories: {', '.join(sorted(places))}")
            case ["sed" | "grep", *rest]:
                files = [str(self.path(word)) if word.startswith("/engines") else word for word in rest]
                done = subprocess.run(
                    [f"/bin/{words[0]}", *files], capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"}
                )
                if done.returncode:
                    raise Refused(done.stderr or "nothing found")
                return done.stdout
            case ["trtllm-build", *rest]:
                flags = dict(zip(rest[::2], rest[1::2], strict=True))
                self._exists(self.path(flags["--checkpoint_dir"]) / "rank0.safetensors")
                engine = self.path(flags["--output_dir"])
                engine.mkdir(parents=True)
                shutil.copy(self.path(flags["--checkpoint_dir"]) / "config.json", engine)
            case ["hf", "download", data, "--repo-type", "dataset", "--local-dir", place] if data == DEFAULT_DATA:
                train = self.path(place) / "3.0.0/train-00000-of-00001.parquet"
                train.parent.mkdir(parents=True)
                train.write_bytes(parquet("article"))
                (self.path(place) / "README.md").touch()
            case ["pip", "download", *rest]:
                (name,) = [word for word in rest if "==" in word]
                (self.place / f"{name.replace('-', '_').replace('==', '-')}-py3-none-any.whl").touch()
            case ["python3", "-m", "venv", place]:
                shutil.copytree(self.bin, Path(place) / "bin")
            case ["python", script, *_]:
                self._exists(self.place / script)
            case _:
                for given in our_commands(words):
                    self._ours([word for word in given if word != "..."], "..." in given)
        return ""

    def path(self, name: str, mounts: Mapping[str, str] | None = None) -> Path:
        """Of this machine; `mounts`: of the container that says it."""
        if not name.startswith("/"):
            return self.place / name
        for inside, outside in (self.mounts if mounts is None else mounts).items():
            if name == inside or name.startswith(f"{inside}/"):
                name = outside + name[len(inside) :]
                break
        return self.root / name.lstrip("/")

    # step-audio

    def _ours(self, given: list[str], incomplete: bool = False) -> None:
        """`incomplete`: the page leaves the rest to the reader."""
        given = [self._mapped(word) for word in given]
        try:
            with redirect_stderr(io.StringIO()) as said:
                arguments = _parser().parse_args(given)
        except SystemExit:
            raise Refused(said.getvalue().strip().splitlines()[-1]) from None
        if incomplete:
            return
        for name in ("audio", "whisper", "data"):
            for file in _listed(getattr(arguments, name, None)):
                self._exists(self.place / file)
        match given[0]:
            case "build":
                self._build(given, arguments)
            case "serve":
                self._serve_it(arguments)
            case "plan" | "convert":
                self._main(given)
            case "export-encoder":
                self._exists(self.place / arguments.checkpoint)
                (self.place / arguments.output).touch()
            case "doctor":
                self._exists(self.place / arguments.work_dir)
            case "train":
                self._plant(self.place / arguments.output / "checkpoint")
            case "make-tiny":
                self._plant(self.place / arguments.output)
            case _:
                if checkpoint := getattr(arguments, "checkpoint", None):
                    self._exists(self.place / checkpoint)

    def _mapped(self, word: str) -> str:
        flag, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
        if not value.startswith("/"):
            return word
        if not any(value == inside or value.startswith(f"{inside}/") for inside in self.mounts):
            raise Refused(f"{value} is in no folder that there is")  # and would be one of this very machine
        return f"{flag}{equals}{self.path(value)}"

    def _main(self, given: list[str]) -> str:
        with chdir(self.place), redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
            status = main(given)
        if status:
            raise Refused((out.getvalue() + err.getvalue()).strip().splitlines()[-1])
        return out.getvalue()

    def _build(self, given: list[str], arguments: argparse.Namespace) -> None:
        """What it would do, and then it is said to be done."""
        said = self._main(given if arguments.dry_run else [*given, "--dry-run"])
        place = self.place / (arguments.checkpoint or Path(*re.findall(r"^    fetch .* to (\S+)$", said, re.M)))
        (manifest,) = re.findall(r" and (\S+)/repository\.manifest\.json$", said, re.M)
        if not arguments.dry_run:
            self._plant(place)
            self.built[Path(manifest).parent, Path(manifest).name] = place

    def _serve_it(self, arguments: argparse.Namespace) -> None:
        with patch.dict(os.environ, self.image):
            read, _ = gateway_command.serve_settings(arguments, ServeSettings)
        read.setdefault("checkpoint", arguments.directory)
        default = default_work_dir(self.place / read["checkpoint"])
        settings = ServeSettings.create(**{"work_dir": default} | read)
        checkpoint = (self.place / settings.checkpoint).resolve()
        if not any((checkpoint / name).is_file() for name in CONFIG_FILES):
            raise Refused(f"there is no checkpoint {checkpoint.relative_to(self.root)}")
        for folder in settings.adapters.values():
            self._exists(self.path(str(folder)))
        if settings.profile is not None and settings.llm != "vllm":
            found = self.built.get(((self.place / settings.work_dir).resolve(), settings.profile))
            if found is None or found.resolve() != checkpoint:
                raise Refused(f"{settings.profile} was not built of {checkpoint.name} in {settings.work_dir}")

    # Containers

    def _docker(self, words: list[str], environment: Mapping[str, str]) -> str:
        if words[0] == "compose":
            return self._compose(words[1:], environment)
        if words[0] == "build":
            self._exists(self.place / words[words.index("-f") + 1])
        if words[0] == "cp":
            self._exists(self.place / words[1])
            target = self.path(words[2].partition(":")[2])
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch()
        if words[0] == "run":
            mounts = {}
            for flag, value in pairwise(words):
                if flag == "-v":
                    outside, inside = value.split(":")[:2]
                    mounts[inside] = outside
            self._within(mounts, ["docker", *words])
        return ""

    def _compose(self, words: list[str], environment: Mapping[str, str]) -> str:
        for flag in ("--env-file", "-f"):
            self._exists(self.place / words[words.index(flag) + 1])
        services = yaml.safe_load((ROOT / "docker/compose.yaml").read_text("utf-8"))["services"]
        at = next(n for n, word in enumerate(words) if word in ("run", "up", "build", "exec", "logs", "ps"))
        verb, rest = words[at], words[at + 1 :]
        name = next((word for word in rest if word in services), None)
        if name is None or verb not in ("run", "up", "exec"):
            return "5f2c" if verb == "ps" else ""
        mounts = {}
        for volume in services[name]["volumes"]:
            outside, inside = _filled(volume, environment).split(":")[:2]
            mounts[inside] = outside if outside.startswith("/") else f"/volumes/{outside}"
        behind = rest[rest.index(name) + 1 :]
        if verb == "exec":
            self._within(mounts | {"/tmp": MOUNTS["/tmp"]}, behind)
        elif name != "cpu":
            command = behind or [_filled(word, environment) for word in services[name]["command"]]
            self._within(mounts, ["run", name, *command], VLLM_IMAGE if name == "vllm" else {})
        return ""

    def _within(self, mounts: Mapping[str, str], words: Sequence[str], image: Mapping[str, str] = EMPTY) -> None:
        """One of our commands in a container, whose folders are there."""
        for outside in mounts.values():
            if not outside.startswith("/volumes/"):
                self._exists(self.root / outside.lstrip("/"))
        before, self.mounts, self.image = (
            self.mounts,
            {**mounts, **{inside: outside for inside, outside in IMAGE_FOLDERS.items() if inside not in mounts}},
            dict(image),
        )
        try:
            for given in our_commands(list(words)):
                self._ours(given)
        finally:
            self.mounts, self.image = before, {}

    def _helm(self, words: list[str]) -> None:
        from helm_fixture import container, values_of

        given = [words[n + 1] for n, word in enumerate(words) if word == "--set"]
        install = "--reuse-values" not in words
        told = given if install else [*self.values, *given]
        if not install or not self.values:  # a second installation is another way to do the first
            self.values = told
        values = values_of(told)
        volume = values.get("models", {}).get("hostPath") or "/claim"
        (self.root / volume.lstrip("/")).mkdir(exist_ok=True)
        build = {"enabled": True, "onUpgrade": False} | values.get("build", {})
        if build["enabled"] and (install or build["onUpgrade"]):
            self._within({"/models": volume}, ["step-audio", *container("build", values)["args"]])
        if values.get("engine", {}).get("replicas", 1):
            self._within({"/models": volume}, ["step-audio", *container("engine", values)["args"]])

    def _plant(self, place: Path) -> None:
        if not place.exists():
            shutil.copytree(self.checkpoint, place)

    def _exists(self, place: Path) -> None:
        if not place.exists():
            raise Refused(f"{place} is not there")


def _listed(value) -> list:
    return value if isinstance(value, list) else [] if value is None else [value]


def _filled(text: str, environment: Mapping[str, str]) -> str:
    """Compose's `${NAME:-default}`."""
    return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: environment.get(found[1]) or found[2], text)

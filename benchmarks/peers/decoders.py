"""Peers that have the decoder alone: each is a process in its environment, a way to the model like any other."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from peers.environments import Environment
from peers.gguf import Width, write_gguf
from peers.hugging_face import write_hugging_face
from step_audio.errors import StepAudioError
from step_audio_benchmark.bare_engine import random_prompt
from step_audio_benchmark.load import Level, LoadRun
from step_audio_benchmark.records import Record
from step_audio_benchmark.workload import Question, Workload

WORKERS = Path(__file__).parent / "workers"


@dataclass(frozen=True)
class Peer:
    """width: of the GGUF file that it reads; None: a Hugging Face folder."""

    name: str
    environment: str
    worker: str
    width: Width | None

    def export(self, checkpoint: Path, folder: Path) -> Path:
        """The weights as this peer reads them. Raises CheckpointError."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.width is None:
            write_hugging_face(checkpoint, folder / "hugging-face")
            return folder / "hugging-face"
        file = folder / f"decoder.{self.width}.gguf"
        write_gguf(checkpoint, file, self.width)
        return file


# openvino-genai makes its graph of GGUF files of float16 only. llama.cpp's own choice is q8_0.
PEERS = {
    peer.name: peer
    for peer in (
        Peer("openvino-genai", "openvino-genai", "run_openvino_genai.py", "f16"),
        Peer("llama.cpp", "llama.cpp", "run_llama_cpp.py", "bf16"),
        Peer("llama.cpp-f32", "llama.cpp", "run_llama_cpp.py", "f32"),
        Peer("llama.cpp-q8_0", "llama.cpp", "run_llama_cpp.py", "q8_0"),
        Peer("transformers", "transformers", "run_transformers.py", None),
    )
}


@dataclass(frozen=True)
class Size:
    """What a peer has to have room for."""

    vocab_size: int
    positions: int  # of one request
    concurrency: int

    @classmethod
    def of(cls, vocab_size: int, workload: Workload, levels: Sequence[Level]) -> Size:
        seconds = max(workload.clip_seconds, default=0.0)
        prompt = len(random_prompt(Question("", None, seconds, 0), vocab_size))
        return cls(vocab_size, prompt + workload.output_tokens, max(level.concurrency or 1 for level in levels))


class Decoder:
    """A way to the model: prompts are the ids that the bare engine gets, and nothing is encoded or sent.

    exact: computes in float32; else in what the processor has for 16 bits, if anything.
    """

    def __init__(self, peer: Peer, environment: Environment, weights: Path, size: Size, exact: bool, log: IO[bytes]):
        self.name = peer.name
        self._size, self._log = size, log
        self._process = subprocess.Popen(
            [
                str(environment.python), str(WORKERS / peer.worker), str(weights),
                "--threads", str(len(os.sched_getaffinity(0))), "--positions", str(size.positions),
                "--concurrency", str(size.concurrency), *["--exact"] * exact,
            ],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
        )  # fmt: skip
        self.versions: dict[str, str] = self._read()["versions"]

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise StepAudioError(f"{self.name} ended with status {self._process.wait()}: {self._log.name} says why")
        said: dict[str, Any] = json.loads(line)
        return said

    async def run(
        self, level: Level, questions: Sequence[Question], workload: Workload, on_done: Callable[[], None]
    ) -> LoadRun:
        """Raises StepAudioError where the process has ended."""
        if level.concurrency is None:
            raise StepAudioError(f"{self.name} is asked so many at once, not so many a second")
        asked = [
            {"ids": random_prompt(question, self._size.vocab_size).tolist(), "seed": question.seed}
            for question in questions
        ]
        cell = {
            "concurrency": level.concurrency,
            "tokens": workload.output_tokens,
            "sampling": dict(workload.sampling),
            "requests": asked,
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(cell).encode() + b"\n")
        self._process.stdin.flush()
        said = await asyncio.to_thread(self._read)
        records = list(map(_record, said["records"], asked, questions))
        for _ in records:
            on_done()
        return LoadRun(records, max(one.ended or 0.0 for one in records) - min(one.sent for one in records))


def _record(said: dict[str, Any], asked: dict[str, Any], question: Question) -> Record:
    record = Record(said["sent"], question.audio_seconds, ended=said["ended"])
    record.prompt_tokens, record.output_tokens = len(asked["ids"]), said["count"]
    for when, ids in said["pieces"]:
        record.pieces.append((when, len(ids)))
        record.token_ids += ids
    return record

"""The CPU's engine in this process, with nothing around it: what serving is measured against."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from step_audio.arrays import Int32Array
from step_audio.engine import Engine, EngineOptions, GenerationRequest, SamplingParams
from step_audio.engine.request import SequenceOutput
from step_audio.mel import TOKENS_PER_SECOND
from step_audio_benchmark.load import Level, LoadRun, OwnLoad
from step_audio_benchmark.records import Record
from step_audio_benchmark.workload import Question, Workload

TEXT_POSITIONS = 30  # of a prompt, around its recording


def random_prompt(question: Question, vocab_size: int) -> Int32Array:
    """Ids, as many as the question has positions."""
    length = TEXT_POSITIONS + round(question.audio_seconds * TOKENS_PER_SECOND)
    return np.random.default_rng(question.seed).integers(0, vocab_size, length, np.int32)


class BareEngine:
    """Prompts are random ids of the vocabulary, as many as a question has positions: nothing is decoded, encoded or
    sent. One way to the model, and a target."""

    name = "engine alone"

    def __init__(self, engine_dir: Path):
        self._engine = Engine(EngineOptions(engine_dir))
        self._asked = 0

    def close(self) -> None:
        self._engine.shutdown()

    async def run(
        self, level: Level, questions: Sequence[Question], workload: Workload, on_done: Callable[[], None]
    ) -> LoadRun:
        return await OwnLoad(self).run(level, questions, workload, on_done)

    async def ask(self, question: Question, workload: Workload) -> Record:
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        record = Record(time.perf_counter(), question.audio_seconds)

        def on_output(output: SequenceOutput) -> None:  # called by the engine's thread
            now = time.perf_counter()
            if output.token_ids:
                record.pieces.append((now, len(output.token_ids)))
            record.output_tokens += len(output.token_ids)
            record.token_ids += output.token_ids
            if output.error is not None:
                record.error = str(output.error)
            if output.final:
                record.ended = now
                loop.call_soon_threadsafe(ended.set)

        ids = random_prompt(question, self._engine.spec.vocab_size)
        record.prompt_tokens = len(ids)
        self._asked += 1
        sampling = SamplingParams(seed=question.seed, **workload.sampling)
        self._engine.submit(GenerationRequest(f"{self._asked}", ids, workload.output_tokens, on_output, sampling))
        await ended.wait()
        return record

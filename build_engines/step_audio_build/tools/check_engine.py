"""One rank of `check`: loads the engine in TensorRT-LLM's runtime and lets it answer.

Run as `python -m step_audio_build.tools.check_engine JOB.json`, by mpirun where there are several ranks. The calls are
those of tensorrt_llm/runtime/model_runner_cpp.py@0383291; ranks above 0 are given nothing back and just take part.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from pydantic import PositiveFloat, PositiveInt

from step_audio.config import Strict
from step_audio_build.artefacts.manifest import write_atomically

WARM_UP_TOKENS = 4


class CheckQuestion(Strict):
    """A prompt as the engine takes it."""

    name: str
    ids: list[int]  # from vocab_size upwards: rows of the table
    table: Path | None = None  # .npy, float32 [rows, hidden]


class CheckJob(Strict):
    """What the check's process is asked: questions for an engine, and where to write the answers."""

    engine: Path
    questions: list[CheckQuestion]
    answers: Path  # written by rank 0
    max_tokens: PositiveInt
    end_id: int
    kv_fraction: PositiveFloat


class Answers(Strict):
    """What an engine answered, in token ids."""

    load_seconds: float
    tokens: dict[str, list[int]]  # by the question's name, without the prompt
    again: dict[str, list[int]]  # the same asked once more


def main(argv: list[str]) -> int:
    import numpy as np
    import tensorrt_llm
    import torch
    from tensorrt_llm.runtime import ModelRunnerCpp

    job = CheckJob.model_validate_json(Path(argv[0]).read_text(encoding="utf-8"))
    started = time.monotonic()
    rank = tensorrt_llm.mpi_rank()
    runner = ModelRunnerCpp.from_dir(
        str(job.engine), rank=rank, kv_cache_free_gpu_memory_fraction=job.kv_fraction, enable_chunked_context=True
    )
    load_seconds = time.monotonic() - started

    def ask(question: CheckQuestion, max_tokens: int) -> list[int]:
        table = None
        if question.table is not None:  # [1, rows, hidden]: one table, and every request's task is the first
            table = torch.from_numpy(np.load(question.table)).to(torch.bfloat16)[None]
        answer = runner.generate(
            [torch.tensor(question.ids, dtype=torch.int32)],
            max_new_tokens=max_tokens,
            end_id=job.end_id,
            pad_id=job.end_id,
            top_k=1,
            prompt_table=table,
            prompt_tasks=None if table is None else "0",
            return_dict=True,
            output_sequence_lengths=True,
        )
        if rank:
            return []
        tokens: list[int] = answer["output_ids"][0][0].tolist()[: int(answer["sequence_lengths"][0][0])]
        length = len(question.ids)
        return tokens[length:] if tokens[:length] == question.ids else tokens

    ask(job.questions[0], WARM_UP_TOKENS)
    first, again = ({question.name: ask(question, job.max_tokens) for question in job.questions} for _ in range(2))
    if rank == 0:
        answers = Answers(load_seconds=load_seconds, tokens=first, again=again)
        write_atomically(job.answers, answers.model_dump_json(indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

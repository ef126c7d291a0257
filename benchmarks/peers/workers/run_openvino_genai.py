"""openvino-genai's continuous batching, on a GGUF file, which it makes its graph of."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import openvino
import openvino_genai as genai
from protocol import Answer, Closed, PeerCell, answer_cells, in_bfloat16, now

BLOCK = 32  # positions


def load(given: argparse.Namespace) -> Callable[[PeerCell], Iterator[Answer]]:
    scheduler = genai.SchedulerConfig()
    scheduler.num_kv_blocks = given.concurrency * (-(-given.positions // BLOCK) + 1)
    scheduler.max_num_batched_tokens = 1024
    # Its own choice for the cache is 8 bits; ours is what is computed in.
    kind = "bf16" if in_bfloat16(given) else "f32"
    settings = {
        "INFERENCE_NUM_THREADS": given.threads,
        "INFERENCE_PRECISION_HINT": kind,
        "KV_CACHE_PRECISION": kind,
    }
    pipeline = genai.ContinuousBatchingPipeline(given.model, scheduler, "CPU", settings)

    def run(cell: PeerCell) -> Iterator[Answer]:
        handles: dict[int, Any] = {}

        def start(number: int, request: dict[str, Any]) -> None:
            config = genai.GenerationConfig(max_new_tokens=cell.tokens, ignore_eos=True, do_sample=not cell.greedy)
            if not cell.greedy:
                config.update_generation_config(**cell.sampling)
                config.rng_seed = request["seed"]
            ids = openvino.Tensor(np.array([request["ids"]], np.int64))
            handles[number] = pipeline.add_request(number, ids, config)

        loop = Closed(cell, start)
        while loop.active:
            pipeline.step()
            when = now()
            for number in list(loop.active):
                if handles[number].can_read():
                    (output,) = handles[number].read().values()
                    if loop.take(number, list(output.generated_ids), when):
                        del handles[number]
        while pipeline.has_non_finished_requests():
            pipeline.step()
        yield from loop.answers.values()

    return run


if __name__ == "__main__":
    answer_cells(["openvino-genai", "openvino"], load)

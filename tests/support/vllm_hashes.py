"""Run by vLLM's Python: by what vLLM knows the blocks of a prompt, as JSON, for prompts given as JSON."""

from __future__ import annotations

import dataclasses
import json
import sys

import torch
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.request import Request

from step_audio.vllm.options import VllmOptions
from step_audio.vllm.process import prompt_of

BLOCK = 4


def hashes(ids: list[int], rows: list[list[float]]) -> list[str]:
    """`ids` from 10 on are rows, of two numbers."""
    values = dict.fromkeys(field.name for field in dataclasses.fields(VllmOptions))
    options = VllmOptions(**values | {"dtype": "float32", "vocab_size": 10, "hidden_size": 2})
    arrays = {"ids": memoryview(torch.tensor(ids, dtype=torch.int32).numpy())}
    if rows:
        arrays["table"] = memoryview(torch.tensor(rows).numpy()).cast("B")
    prompt = prompt_of(arrays, options)
    request = Request(
        "a", prompt["prompt_token_ids"], SamplingParams(max_tokens=1), None, prompt_embeds=prompt.get("prompt_embeds"),
        prompt_is_token_ids=prompt.get("is_token_ids"), block_hasher=get_request_block_hasher(BLOCK, sha256),
    )  # fmt: skip
    return [one.hex() for one in request.block_hashes]


if __name__ == "__main__":
    init_none_hash(sha256)
    print(json.dumps([hashes(*prompt) for prompt in json.load(sys.stdin)]))

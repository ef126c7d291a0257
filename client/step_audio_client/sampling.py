"""How an answer is drawn: the caller's words to the engine's inputs."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

import numpy as np

from step_audio.arrays import AnyArray
from step_audio_client.errors import RequestError
from step_audio_client.wire import scalar


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Defaults are those of the model card's examples.

    `temperature` 0 is greedy. The engine itself samples only when top_k or top_p is set and ignores a lone
    temperature, so `top_p` is always sent along.
    """

    max_tokens: int | None = None  # None: what is left of the context
    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int | None = None
    min_tokens: int | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None  # None: a fresh one
    logprobs: bool = False

    def inputs(self) -> dict[str, AnyArray]:
        """Under the names of the `tensorrt_llm` model, each of shape [1, 1]. Raises RequestError."""
        if self.max_tokens is not None and self.max_tokens < 1:
            raise RequestError(f"max_tokens must be at least 1, not {self.max_tokens}")
        if self.temperature == 0:
            values: dict[str, tuple[float | None, type[np.generic]]] = {"runtime_top_k": (1, np.int32)}
        else:
            values = {
                "temperature": (self.temperature, np.float32),
                "runtime_top_p": (self.top_p, np.float32),
                "runtime_top_k": (self.top_k, np.int32),
                # To the engine no seed is seed 0: everybody would always get the same answer.
                "seed": (secrets.randbits(63) if self.seed is None else self.seed, np.uint64),
            }
        values |= {
            "request_output_len": (self.max_tokens, np.int32),
            "min_tokens": (self.min_tokens, np.int32),
            "repetition_penalty": (self.repetition_penalty, np.float32),
            "presence_penalty": (self.presence_penalty, np.float32),
            "frequency_penalty": (self.frequency_penalty, np.float32),
            "return_log_probs": (self.logprobs or None, np.bool_),
        }
        given = {name: (value, kind) for name, (value, kind) in values.items() if value is not None}
        for name, (value, kind) in given.items():  # numpy 1 would wrap it round
            if issubclass(kind, np.integer) and not np.iinfo(kind).min <= value <= np.iinfo(kind).max:
                raise RequestError(f"{name} {value} is out of range")
        return {name: scalar(value, kind) for name, (value, kind) in given.items()}

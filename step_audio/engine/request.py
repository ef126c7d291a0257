"""What goes into the engine and what comes out of it. Names and meanings are TensorRT-LLM's."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from step_audio.arrays import AnyArray, Int32Array, UInt64Array
from step_audio.errors import InvalidRequest, StepAudioError
from step_audio.guides import GuideSpec
from step_audio.lora import LoraTensors

Finished = Literal["stop", "length", "cancelled"]
TopLogProbs = list[tuple[int, float]]  # of one place: the likeliest tokens, the likeliest first


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is drawn. The defaults are TensorRT-LLM's: with neither top_k nor top_p, greedy.

    Raises InvalidRequest on construction, naming the parameter and its range.
    """

    temperature: float = 1.0  # 0 is greedy, whatever top_k and top_p say
    top_k: int = 0  # 0: no limit (but see above); beyond 1024 it is 1024, the limit of the GPU kernel
    top_p: float = 0.0  # 0: no limit (but see above)
    min_p: float = 0.0  # only tokens with at least this share of the likeliest one's probability; 0: no limit
    seed: int = 0  # the same seed draws the same tokens; not setting one is setting 0, as on a GPU
    min_tokens: int = 0  # end_id cannot be drawn before that many tokens
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if not math.isfinite(value):
                raise InvalidRequest(f"{name} must be a finite number, not {value}", name)
        ranges = {
            "temperature": (self.temperature >= 0, "at least 0"),
            "top_k": (self.top_k >= 0, "at least 0 (0 is no limit)"),
            "top_p": (0 <= self.top_p <= 1, "between 0 and 1"),
            "min_p": (0 <= self.min_p <= 1, "between 0 and 1"),
            "seed": (0 <= self.seed < 2**64, "between 0 and 2^64 - 1"),
            "min_tokens": (self.min_tokens >= 0, "at least 0"),
            "repetition_penalty": (self.repetition_penalty > 0, "greater than 0 (1 is no penalty)"),
        }
        for name, (valid, allowed) in ranges.items():
            if not valid:
                raise InvalidRequest(f"{name} must be {allowed}, not {getattr(self, name)}", name)


@dataclass(frozen=True, slots=True)
class SequenceStats:
    """What one answer cost until then. Times are monotonic nanoseconds, 0 if not reached."""

    num_input_tokens: int
    num_output_tokens: int
    reused_blocks: int  # of the KV cache, found computed when the sequence was first scheduled
    new_blocks: int
    total_blocks: int
    arrival_ns: int
    first_scheduled_ns: int
    first_token_ns: int
    last_token_ns: int


@dataclass(slots=True)  # there is one for each token, and frozen it takes four times as long to make
class SequenceOutput:
    """New tokens of one answer.

    As with TensorRT-LLM the end_id that ended an answer is not among its tokens, while a stop word is:
    an answer shorter than allowed has ended by itself. The last output of an answer may have no tokens.
    """

    request_id: str
    sequence_index: int
    token_ids: list[int]  # the new ones
    log_probs: list[float]  # one per token if the request asked for them, else empty
    cum_log_prob: float  # sum over the answer so far, 0.0 unless asked for
    top_log_probs: list[TopLogProbs] = field(default_factory=list)  # one per token if asked for, else empty
    finished: Finished | None = None  # set on the answer's last output
    error: StepAudioError | None = None  # the request ended by a fault; final is set
    final: bool = False  # the last output of the whole request; there is exactly one, ever
    stats: SequenceStats | None = None  # with the first token, and with `finished`


@dataclass(slots=True)
class GenerationRequest:
    """One prompt and how to continue it. `on_output` is called from the engine's thread and must be quick."""

    request_id: str  # unique among the active requests
    input_ids: Int32Array  # [n]; ids from vocab_size on are rows of prompt_table
    max_new_tokens: int  # reduced to what max_seq_len leaves, as on a GPU
    on_output: Callable[[SequenceOutput], None]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    end_id: int | None = None
    stop_words: list[list[int]] = field(default_factory=list)
    bad_words: list[list[int]] = field(default_factory=list)
    prompt_table: AnyArray | None = None  # [rows, hidden]; uint16 is bfloat16's bits
    extra_ids: UInt64Array | None = None  # [n], tell apart equal ids of different clips in the KV cache
    num_return_sequences: int = 1  # sequence i draws with seed + i
    return_log_probs: bool = False
    num_top_log_probs: int = 0  # of the likeliest tokens, in each place; as many as have a finite logit
    guide: GuideSpec | None = None
    lora_task_id: int | None = None  # the adapter's
    lora: LoraTensors | None = None  # the adapter itself, with the first request that names it
    adapter: int = -1  # its place in the executor, found when the request is accepted; -1: none

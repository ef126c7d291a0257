"""What a server tells its clients of itself."""

from __future__ import annotations

from collections.abc import Collection
from typing import TypedDict

LLM = "tensorrt_llm"  # the name of its model, which all ranks load
HEARTBEAT = "heartbeat-"  # so begins the id by which that model is asked whether it answers


class ServedLimits(TypedDict):
    """What one request may hold; seconds and bytes are of all its recordings together."""

    max_audios: int
    max_audio_seconds: float
    max_audio_bytes: int


class ServedPace(TypedDict):
    """In what pieces the model thinks and speaks at once, where a request does not say, in tokens."""

    think_tokens: int
    speak_tokens: int


class ServedSuggestions(TypedDict):
    """What may be said to the model, and asked of it about a recording."""

    say: list[str]
    ask: list[str]


class ServingInfo(TypedDict):
    """JSON of the `tokenizer` model's output `serving_info`. `max_seq_len`: positions of prompt and answer.

    `max_batch_size`: generations that the LLM computes at once. `tokens_per_block`: positions of one block of its KV
    cache. `chat_template`: its Jinja source. `sampling_parameters`: those that the LLM's backend takes. `adapters`: of
    each LoRA adapter's name its `lora_task_id`.
    """

    model: str
    vocab_size: int
    max_seq_len: int
    max_batch_size: int
    tokens_per_block: int
    chat_template: str
    limits: ServedLimits
    adapters: dict[str, int]
    sampling_parameters: list[str]
    mind_paced_speaking: ServedPace
    suggestions: ServedSuggestions


def no_adapter(name: str, served: Collection[str]) -> str:
    """The refusal of an adapter that is not among those served."""
    there = f"but {', '.join(served)}" if served else "nor any other"
    return f"there is no adapter {name!r} here, {there}"

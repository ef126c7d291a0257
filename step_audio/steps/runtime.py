"""What the models of the repository read when they start: one JSON file in the work copy of the repository."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AliasChoices,
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
)

from step_audio.chat_template import load_template
from step_audio.config import DType, ModelConfig, Strict
from step_audio.generation_config import Pace, Suggestions
from step_audio.mel import LengthRule
from step_audio.serving_info import ServedLimits, ServedPace, ServingInfo


def _audios(value: Any) -> Any:
    """Of `4`, `audio=4`, `{"audio": 4}`, and with other kinds of which there may be none."""
    if isinstance(value, str) and value.startswith("{"):
        value = json.loads(value)
    elif isinstance(value, str) and "=" in value:
        value = dict(pair.split("=", 1) for pair in value.split(","))
    if not isinstance(value, dict):
        return value
    if others := [kind for kind, most in value.items() if kind != "audio" and str(most) != "0"]:
        raise ValueError(f"{others[0]}: the model hears recordings, and takes nothing else")
    return value.get("audio")


class Limits(Strict):
    """What one request may hold. Checked before anything is decoded, as far as it can be known then."""

    max_audios: Annotated[NonNegativeInt, BeforeValidator(_audios)] = Field(
        default=64,
        validation_alias=AliasChoices("max_audios", "limit_mm_per_prompt"),
        description="recordings in a request: 4, or as vLLM has it, audio=4",
    )
    # 85 minutes fill 65,536 positions.
    max_audio_seconds: NonNegativeFloat = Field(default=5100.0, description="of all recordings of a request")
    max_audio_bytes: PositiveInt = Field(default=512 << 20, description="of all recordings of a request")
    strict_audio: bool = Field(default=False, description="refuse recordings of which anything is lost")


class Runtime(Strict):
    """What the models of the repository read when they start; written by `step_audio_server.repository.assembly`."""

    model: ModelConfig
    name: str  # of the checkpoint, for people
    tokenizer_file: Path
    encoder_file: Path  # ONNX, a plan of TensorRT's or, with encoder_gpu, the checkpoint's folder
    encoder_gpu: str | None = None  # for torch, as CUDA_VISIBLE_DEVICES names it
    chat_template: str  # "default", "published", or a path
    length_rule: LengthRule
    max_seq_len: PositiveInt
    max_batch_size: PositiveInt  # generations that the LLM computes at once
    max_prompt_table_rows: PositiveInt
    tokens_per_block: PositiveInt  # of the LLM's KV cache
    encoder_batch_clips: PositiveInt
    encoder_cache_bytes: NonNegativeInt
    table_dtype: DType  # of the prompt table: the engine's own
    limits: Limits
    sampling_parameters: tuple[str, ...]  # that the LLM's backend takes
    adapters: dict[str, PositiveInt] = Field(default_factory=dict)  # name -> lora_task_id
    pace: Pace = Pace()
    suggestions: Suggestions = Suggestions()

    @classmethod
    def load(cls, path: str | Path) -> Runtime:
        return cls.model_validate_json(Path(path).read_text(encoding="utf-8"))

    def serving_info(self) -> ServingInfo:
        """What a client may know (the `tokenizer` model's second output)."""
        limits = self.limits
        return {
            "model": self.name,
            "vocab_size": self.model.text.vocab_size,
            "max_seq_len": self.max_seq_len,
            "max_batch_size": self.max_batch_size,
            "tokens_per_block": self.tokens_per_block,
            "chat_template": load_template(self.chat_template).source,
            "limits": ServedLimits(
                max_audios=limits.max_audios,
                max_audio_seconds=limits.max_audio_seconds,
                max_audio_bytes=limits.max_audio_bytes,
            ),
            "adapters": self.adapters,
            "sampling_parameters": list(self.sampling_parameters),
            "mind_paced_speaking": ServedPace(think_tokens=self.pace.think_tokens, speak_tokens=self.pace.speak_tokens),
            "suggestions": {"say": list(self.suggestions.say), "ask": list(self.suggestions.ask)},
        }

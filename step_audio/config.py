"""What a checkpoint says about itself: every dimension the rest of the product uses.

Step-Audio-R1.1 is published in two forms, both read here: `config.json` with nested `text_config`
and `audio_encoder_config`, and the flat `config_origin.json` of the training code
(`num_attention_groups`, `max_seq_len`, `torch_dtype`). Nothing has a default that could hide a
missing number: the 32B model has rms_norm_eps 1e-5 where the config class's default is 1e-6.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt, ValidationError, model_validator

from step_audio.errors import CheckpointError
from step_audio.validation import first_fault

CONFIG_FILES = ("config.json", "config_origin.json")  # in the order they are looked for

DType = Literal["float32", "bfloat16", "float16"]


class Strict(BaseModel):
    """Frozen, and closed to unknown keys: a misspelt setting is an error, not a silence."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TextConfig(Strict):
    """The Qwen2 decoder."""

    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt
    head_dim: PositiveInt
    vocab_size: PositiveInt  # rows of the embedding, padding rows included
    max_position_embeddings: PositiveInt  # positions, prompt and answer together
    rms_norm_eps: PositiveFloat
    rope_theta: PositiveFloat
    dtype: DType

    @model_validator(mode="after")
    def _consistent(self) -> TextConfig:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd, rotary embedding needs pairs")
        return self


class AudioEncoderConfig(Strict):
    """The Whisper-shaped encoder and the adaptor behind it."""

    n_mels: PositiveInt
    n_audio_ctx: PositiveInt  # rows of the positional embedding, one per 20 ms
    n_audio_state: PositiveInt
    n_audio_head: PositiveInt
    n_audio_layer: PositiveInt
    llm_dim: PositiveInt
    kernel_size: PositiveInt  # of the adaptor's convolution
    adapter_stride: PositiveInt

    @model_validator(mode="after")
    def _consistent(self) -> AudioEncoderConfig:
        if self.n_audio_state % self.n_audio_head:
            raise ValueError(
                f"n_audio_state {self.n_audio_state} is not a multiple of n_audio_head {self.n_audio_head}"
            )
        return self


class ModelConfig(Strict):
    """A Step-Audio checkpoint's configuration.

    >>> ModelConfig.from_directory("Step-Audio-R1.1").text.hidden_size
    5120
    """

    text: TextConfig
    audio: AudioEncoderConfig

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        if self.audio.llm_dim != self.text.hidden_size:
            raise ValueError(
                f"audio_encoder_config.llm_dim {self.audio.llm_dim} differs from hidden_size {self.text.hidden_size}"
            )
        return self

    @classmethod
    def from_directory(cls, directory: str | Path) -> ModelConfig:
        """Read `config.json`, or else `config_origin.json`. Raises CheckpointError."""
        directory = Path(directory)
        if not directory.is_dir():
            raise CheckpointError(f"checkpoint directory {directory} does not exist")
        for name in CONFIG_FILES:
            if (directory / name).is_file():
                try:
                    raw = json.loads((directory / name).read_text(encoding="utf-8"))
                except ValueError as error:
                    raise CheckpointError(f"{directory / name} is not valid JSON: {error}") from None
                return cls.from_dict(raw, name)
        raise CheckpointError(f"{directory} has neither {' nor '.join(CONFIG_FILES)}")

    @classmethod
    def from_dict(cls, raw: Any, source: str = "config.json") -> ModelConfig:
        """Accept the nested or the flat form. `source` names the file in errors."""
        if not isinstance(raw, dict):
            raise CheckpointError(f"{source}: expected a JSON object")
        if not isinstance(raw.get("audio_encoder_config"), dict):
            raise CheckpointError(f"{source}: audio_encoder_config is missing")
        text = {**raw, **raw["text_config"]} if isinstance(raw.get("text_config"), dict) else raw
        audio = raw["audio_encoder_config"]

        def need(table: dict[str, Any], where: str, *names: str) -> Any:
            for name in names:
                if table.get(name) is not None:
                    return table[name]
            raise CheckpointError(f"{source}: {where}{' or '.join(names)} is missing")

        if text.get("rope_scaling") is not None:
            raise CheckpointError(f"{source}: rope_scaling is set, which Step-Audio-R1 does not use")
        if text.get("tie_word_embeddings"):
            raise CheckpointError(f"{source}: tie_word_embeddings is true, Step-Audio-R1 has a head of its own")
        heads = need(text, "", "num_attention_heads")
        hidden = need(text, "", "hidden_size")
        for name, value in (("num_attention_heads", heads), ("hidden_size", hidden)):  # computed with below
            if type(value) is not int or value < 1:
                raise CheckpointError(f"{source}: {name} must be a positive integer, got {value!r}")
        if not text.get("head_dim") and hidden % heads:
            raise CheckpointError(f"{source}: hidden_size {hidden} is not a multiple of num_attention_heads {heads}")
        try:
            return cls(
                text=TextConfig(
                    hidden_size=hidden,
                    intermediate_size=need(text, "", "intermediate_size"),
                    num_hidden_layers=need(text, "", "num_hidden_layers"),
                    num_attention_heads=heads,
                    num_key_value_heads=need(text, "", "num_key_value_heads", "num_attention_groups"),
                    head_dim=text.get("head_dim") or hidden // heads,
                    vocab_size=need(text, "", "vocab_size"),
                    max_position_embeddings=need(text, "", "max_position_embeddings", "max_seq_len"),
                    rms_norm_eps=need(text, "", "rms_norm_eps"),
                    rope_theta=need(text, "", "rope_theta"),
                    dtype=need(text, "", "torch_dtype", "dtype"),
                ),
                audio=AudioEncoderConfig(
                    **{key: need(audio, "audio_encoder_config.", key) for key in AudioEncoderConfig.model_fields}
                ),
            )
        except ValidationError as error:
            raise CheckpointError(f"{source}: {first_fault(error)}") from None

"""config.json in its nested form, as transformers' class."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig, Qwen2Config


class StepAudioConfig(PreTrainedConfig):  # type: ignore[misc]
    """`text_config` is Qwen2's."""

    model_type = "step_audio_2"

    def __init__(
        self,
        text_config: dict[str, Any] | Qwen2Config | None = None,
        audio_encoder_config: dict[str, Any] | None = None,
        **others: Any,
    ):
        given = text_config.to_dict() if isinstance(text_config, Qwen2Config) else text_config or {}
        self.text_config = Qwen2Config(**{**given, "architectures": ["Qwen2ForCausalLM"]})
        self.audio_encoder_config = dict(audio_encoder_config or {})
        super().__init__(**others)

    def get_text_config(self, *_: Any, **__: Any) -> Qwen2Config:
        return self.text_config

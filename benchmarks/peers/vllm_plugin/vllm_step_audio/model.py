"""The model in vLLM: our encoder and adaptor, as published, before vLLM's own Qwen2."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.models.interfaces import MultiModalEmbeddings, SupportsMultiModal
from vllm.model_executor.models.utils import (
    AutoWeightsLoader,
    WeightsMapper,
    init_vllm_registered_model,
    maybe_prefix,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from step_audio.config import AudioEncoderConfig
from step_audio.encoder import AudioEncoder
from vllm_step_audio.processor import PATCH, DummyInputs, Info, Processor, token_count


@MULTIMODAL_REGISTRY.register_processor(Processor, info=Info, dummy_inputs=DummyInputs)
class StepAudioForCausalLM(nn.Module, SupportsMultiModal):  # type: ignore[misc]
    """Clips of one batch are encoded together; what lies behind a clip's end does not count."""

    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_prefix={
            "encoder.": "audio.encoder.",
            "adapter.": "audio.adapter.",
            "model.": "language_model.model.",
            "lm_head.": "language_model.lm_head.",
        }
    )

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        return PATCH

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__()
        config = vllm_config.model_config.hf_config
        sizes = {name: config.audio_encoder_config[name] for name in AudioEncoderConfig.model_fields}
        with self._mark_tower_model(vllm_config, "audio"):
            self.audio = AudioEncoder(AudioEncoderConfig(**sizes), "L")
        with self._mark_language_model(vllm_config):
            self.language_model = init_vllm_registered_model(
                vllm_config=vllm_config,
                hf_config=config.text_config,
                prefix=maybe_prefix(prefix, "language_model"),
                architectures=["Qwen2ForCausalLM"],
            )
        self.make_empty_intermediate_tensors = self.language_model.make_empty_intermediate_tensors

    def embed_multimodal(self, **inputs: Any) -> MultiModalEmbeddings:
        mels = inputs.get("input_features")
        if mels is None or not len(mels):
            return []
        kind = self.audio.adapter.linear2.weight.dtype
        lengths = [mel.shape[-1] for mel in mels]
        batch = torch.zeros(len(lengths), mels[0].shape[-2], max(lengths), dtype=kind)
        for row, mel, length in zip(batch, mels, lengths, strict=True):
            row[:, :length] = mel
        found = self.audio(batch, torch.tensor(lengths))
        return [rows[: token_count(length)] for rows, length in zip(found, lengths, strict=True)]

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        **_: Any,
    ) -> torch.Tensor:
        return self.language_model.model(input_ids, positions, intermediate_tensors, inputs_embeds=inputs_embeds)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        return self.language_model.compute_logits(hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        return AutoWeightsLoader(self).load_weights(weights, mapper=self.hf_to_vllm_mapper)

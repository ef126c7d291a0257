"""vLLM's plug-in for Step-Audio-R1.1: `vllm serve` reads the checkpoint as it is published."""

from __future__ import annotations


def register() -> None:
    """vLLM calls it in each of its processes."""
    from transformers import AutoConfig
    from vllm import ModelRegistry

    from vllm_step_audio.config import StepAudioConfig

    AutoConfig.register(StepAudioConfig.model_type, StepAudioConfig, exist_ok=True)
    ModelRegistry.register_model("StepAudio2ForCausalLM", "vllm_step_audio.model:StepAudioForCausalLM")

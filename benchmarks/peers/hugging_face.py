"""A checkpoint's decoder as the folder of a plain Qwen2 model, which transformers and vLLM read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from step_audio.checkpoint import Checkpoint, decoder_tensors
from step_audio.config import ModelConfig
from step_audio.safetensors import safetensors_header
from step_audio_build.convert.decoder_only import qwen2_config

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def write_hugging_face(checkpoint: Path, folder: Path) -> None:
    """`checkpoint`: in the published layout. Weights keep their type. Raises CheckpointError."""
    text, source = ModelConfig.from_directory(checkpoint).text, Checkpoint(checkpoint)
    names = list(decoder_tensors(text))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(qwen2_config(text), indent=1) + "\n", "utf-8")
    for name in TOKENIZER:
        if (checkpoint / name).is_file():
            shutil.copy(checkpoint / name, folder)
    with (folder / "model.safetensors").open("wb") as out:
        out.write(safetensors_header({name: (source.dtype(name), source.tensors[name].shape) for name in names}))
        for name in names:
            out.write(source.read(name).tobytes())

"""A checkpoint's decoder as the folder of a plain Qwen2 model, which transformers and vLLM read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from step_audio.checkpoint import Checkpoint, decoder_tensors
from step_audio.config import ModelConfig
from step_audio.safetensors import safetensors_header

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def write_hugging_face(checkpoint: Path, folder: Path) -> None:
    """`checkpoint`: in the published layout. Weights keep their type. Raises CheckpointError."""
    text, source = ModelConfig.from_directory(checkpoint).text, Checkpoint(checkpoint)
    names = list(decoder_tensors(text))
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "num_hidden_layers": text.num_hidden_layers,
        "num_attention_heads": text.num_attention_heads,
        "num_key_value_heads": text.num_key_value_heads,
        "max_position_embeddings": text.max_position_embeddings,
        "vocab_size": text.vocab_size,
        "rms_norm_eps": text.rms_norm_eps,
        "rope_theta": text.rope_theta,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "torch_dtype": text.dtype,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", "utf-8")
    for name in TOKENIZER:
        if (checkpoint / name).is_file():
            shutil.copy(checkpoint / name, folder)
    with (folder / "model.safetensors").open("wb") as out:
        out.write(safetensors_header({name: (source.dtype(name), source.tensors[name].shape) for name in names}))
        for name in names:
            out.write(source.read(name).tobytes())

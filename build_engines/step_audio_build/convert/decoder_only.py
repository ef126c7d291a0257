"""The decoder alone as a Hugging Face Qwen2 model, for tools that know only those: NVIDIA's quantiser is one.

A shard that holds nothing but decoder tensors is linked, the others are written anew without the encoder's.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from step_audio.checkpoint import INDEX_FILE, Checkpoint, decoder_tensors
from step_audio.config import ModelConfig, TextConfig
from step_audio.errors import CheckpointError
from step_audio.safetensors import safetensors_header
from step_audio.tokenizer import Tokenizer
from step_audio_build.artefacts.artefact import finish, finished, fresh_partial, publish, require_space
from step_audio_build.artefacts.manifest import Identity, Manifest, source_files, to_json

FORMAT = 1
CHUNK = 64 << 20  # bytes copied at a time


def write_decoder_only(checkpoint_dir: Path, directory: Path) -> Manifest:
    """Write `directory`: config.json, tokenizer, shards and their index. Does nothing when it is there already.

    Tensor names need no change: `model.*` and `lm_head.weight` are Qwen2ForCausalLM's own. Raises CheckpointError,
    and ArtefactError when the directory is of another checkpoint or the disk is too small.
    """
    checkpoint = Checkpoint(checkpoint_dir)
    config = ModelConfig.from_directory(checkpoint_dir)
    checkpoint.verify(config)
    wanted = decoder_tensors(config.text)
    identity = Identity(kind="text-only", format=FORMAT, source=source_files(checkpoint, wanted), settings={})
    if manifest := finished(directory / "manifest.json", identity, directory):
        return manifest
    partial = fresh_partial(directory)
    require_space(partial, _bytes_written(checkpoint, set(wanted), partial), "the decoder for the quantiser")
    weight_map: dict[str, str] = {}
    for name, file in checkpoint.files.items():
        keys = [key for key in file.tensors if key in wanted]
        if len(keys) == len(file.tensors):
            _link(file.path, partial / name)
        elif keys:
            _write_shard(checkpoint, keys, partial / name)
        weight_map |= dict.fromkeys(keys, name)
    total = sum(checkpoint.tensors[key].stop - checkpoint.tensors[key].start for key in weight_map)
    (partial / INDEX_FILE).write_text(to_json({"metadata": {"total_size": total}, "weight_map": weight_map}))
    (partial / "config.json").write_text(to_json(qwen2_config(config.text)))
    _write_tokenizer(partial, Tokenizer.from_directory(checkpoint_dir), config.text.max_position_embeddings)
    publish(partial, directory)
    return finish(directory / "manifest.json", identity, directory, [p.name for p in directory.iterdir()], {})


def qwen2_config(text: TextConfig) -> dict[str, Any]:
    """config.json of transformers' Qwen2ForCausalLM."""
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "num_hidden_layers": text.num_hidden_layers,
        "num_attention_heads": text.num_attention_heads,
        "num_key_value_heads": text.num_key_value_heads,
        "head_dim": text.head_dim,
        "vocab_size": text.vocab_size,
        "max_position_embeddings": text.max_position_embeddings,
        "rms_norm_eps": text.rms_norm_eps,
        "rope_theta": text.rope_theta,
        "rope_scaling": None,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "torch_dtype": text.dtype,
    }


def bytes_written(checkpoint_dir: Path) -> int:
    """What `write_decoder_only` adds to the disk when the work directory is on the checkpoint's."""
    checkpoint = Checkpoint(checkpoint_dir)
    wanted = decoder_tensors(ModelConfig.from_directory(checkpoint_dir).text)
    return _bytes_written(checkpoint, set(wanted), checkpoint.directory)


def _bytes_written(checkpoint: Checkpoint, wanted: set[str], target: Path) -> int:
    linked = checkpoint.directory.stat().st_dev == target.stat().st_dev
    size = 0
    for file in checkpoint.files.values():
        if not (linked and wanted.issuperset(file.tensors)):
            size += sum(info.stop - info.start for key, info in file.tensors.items() if key in wanted)
    return size


def _link(source: Path, target: Path) -> None:
    """A hard link, or a copy where the disk is another one. A hub cache's file is itself a link: follow it."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def _write_shard(checkpoint: Checkpoint, keys: list[str], path: Path) -> None:
    """A safetensors file of `keys`, their bytes as they are."""
    with path.open("wb") as target:
        target.write(safetensors_header({key: (checkpoint.dtype(key), checkpoint.tensors[key].shape) for key in keys}))
        for key in keys:
            info = checkpoint.tensors[key]
            with info.file.open("rb") as source:
                source.seek(info.start)
                left = info.stop - info.start
                while left:
                    data = source.read(min(CHUNK, left))
                    if not data:
                        raise CheckpointError(f"{info.file.name} is truncated: it ends inside {key}")
                    target.write(data)
                    left -= len(data)


def _write_tokenizer(directory: Path, tokenizer: Tokenizer, model_max_length: int) -> None:
    """Without the published repository's `auto_map`: what reads this runs no code of a checkpoint."""
    (directory / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    content = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": model_max_length,
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    (directory / "tokenizer_config.json").write_text(to_json(content))

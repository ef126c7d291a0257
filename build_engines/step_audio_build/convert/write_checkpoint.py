"""Writes a checkpoint in the published layout: either form of the config, shards with an index, tokenizer."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from tokenizers import Tokenizer

from step_audio.arrays import Float32Array
from step_audio.checkpoint import INDEX_FILE, expected_tensors, from_float32
from step_audio.config import DType, ModelConfig
from step_audio.safetensors import Shapes, byte_size, safetensors_header
from step_audio_build.artefacts.manifest import to_json
from step_audio_build.convert.small_tokenizer import STEP_TOKENS


def write_checkpoint(
    directory: Path,
    config: ModelConfig,
    weights: Mapping[str, Float32Array],
    tokenizer: Tokenizer,
    shards: int = 1,
    nested: bool = True,
    extra_files: Mapping[str, str] | None = None,
) -> None:
    """`weights`: float32, by the checkpoint's tensor names; stored in `config.text.dtype`.

    `nested` chooses between config.json and the flat config_origin.json; with one shard there is no index. The
    directory appears when it is complete; an empty one may be there. `extra_files`: text by file name.
    """
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    dtype = config.text.dtype
    write_config(partial, config, nested)
    _write_tokenizer(partial, tokenizer, config.text.max_position_embeddings)
    groups = _shards(expected_tensors(config), shards, dtype)
    for name, group in groups.items():
        with (partial / name).open("wb") as file:
            file.write(_header(group, dtype))
            for key in group:
                file.write(from_float32(weights[key], dtype).data)
    _write_index(partial, groups, config)
    for name, text in (extra_files or {}).items():
        (partial / name).write_text(text)
    os.replace(partial, directory)


def make_sparse(output_dir: str | Path, config: ModelConfig, shards: int = 4) -> None:
    """A checkpoint of `config` at its true size whose weights are all zero and take no disk space, without
    tokenizer: for measuring a conversion."""
    directory = Path(output_dir)
    directory.mkdir(parents=True)
    write_config(directory, config, nested=True)
    groups = _shards(expected_tensors(config), shards, config.text.dtype)
    for name, group in groups.items():
        header = _header(group, config.text.dtype)
        with (directory / name).open("wb") as file:
            file.write(header)
            file.truncate(len(header) + _size(group, config.text.dtype))
    _write_index(directory, groups, config)


def _shards(shapes: Shapes, count: int, dtype: DType) -> dict[str, Shapes]:
    """File name -> its tensors, in order, of about equal bytes."""
    names = (
        ["model.safetensors"] if count == 1 else [f"model-{n + 1:05}-of-{count:05}.safetensors" for n in range(count)]
    )
    groups: dict[str, Shapes] = {name: {} for name in names}
    total, done = _size(shapes, dtype), 0
    for key, shape in shapes.items():
        groups[names[min(done * count // total, count - 1)]][key] = shape
        done += _size({key: shape}, dtype)
    return {name: group for name, group in groups.items() if group}


def _size(shapes: Shapes, dtype: DType) -> int:
    return sum(byte_size(dtype, shape) for shape in shapes.values())


def _header(shapes: Shapes, dtype: DType) -> bytes:
    return safetensors_header({name: (dtype, shape) for name, shape in shapes.items()})


def _write_index(directory: Path, groups: dict[str, Shapes], config: ModelConfig) -> None:
    if len(groups) > 1:
        weight_map = {key: name for name, group in groups.items() for key in group}
        total = _size(expected_tensors(config), config.text.dtype)
        (directory / INDEX_FILE).write_text(to_json({"metadata": {"total_size": total}, "weight_map": weight_map}))


def write_config(directory: Path, config: ModelConfig, nested: bool) -> None:
    text = {
        **config.text.model_dump(exclude={"dtype", "head_dim", "max_position_embeddings", "num_key_value_heads"}),
        "num_attention_groups": config.text.num_key_value_heads,
        "max_seq_len": config.text.max_position_embeddings,
        "torch_dtype": config.text.dtype,
        "rope_scaling": None,
        "tie_word_embeddings": False,
    }
    audio = {**config.audio.model_dump(), "n_codebook_size": 4096}
    if nested:
        text |= {
            "num_key_value_heads": config.text.num_key_value_heads,
            "max_position_embeddings": config.text.max_position_embeddings,
        }
        head = {"architectures": ["StepAudio2ForCausalLM"], "model_type": "step_audio_2"}
        content = {**head, "text_config": text, "audio_encoder_config": audio, "torch_dtype": config.text.dtype}
        (directory / "config.json").write_text(to_json(content))
    else:
        head = {"architectures": ["StepAudioForCausalLMV2"], "model_type": "step_audio_qwen2"}
        (directory / "config_origin.json").write_text(to_json({**head, **text, "audio_encoder_config": audio}))


def _write_tokenizer(directory: Path, tokenizer: Tokenizer, model_max_length: int) -> None:
    tokenizer.save(str(directory / "tokenizer.json"))
    special = {
        "additional_special_tokens": STEP_TOKENS,
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    (directory / "special_tokens_map.json").write_text(to_json(special))
    content = {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_prefix_space": False,
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "model_max_length": model_max_length,
        "unk_token": None,
        **special,
    }
    (directory / "tokenizer_config.json").write_text(to_json(content))

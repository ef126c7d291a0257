"""A checkpoint's decoder as a GGUF file, which llama.cpp and openvino-genai read.

The format is ggml's: a header of typed values, a table of tensors, and their bytes, each aligned
to 32. Dimensions are told innermost first.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from step_audio.arrays import Float32Array
from step_audio.checkpoint import Checkpoint, to_float32
from step_audio.config import ModelConfig, TextConfig

Value = tuple[str, tuple[int, bytes]]  # name, type, bytes
Width = Literal["f32", "f16", "bf16", "q8_0"]

MAGIC, VERSION, ALIGNMENT = b"GGUF", 3, 32
UINT32, INT32, FLOAT32, STRING, ARRAY = 4, 5, 6, 8, 9  # types of values
NORMAL, CONTROL, UNUSED = 1, 3, 5  # types of tokens
TYPES: Mapping[Width, int] = {"f32": 0, "f16": 1, "q8_0": 8, "bf16": 30}  # of tensors
FILE_TYPES: Mapping[Width, int] = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}  # of whole files
BLOCK = 32  # weights of q8_0 that share a scale

OUTER = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight",
         "output.weight": "lm_head.weight"}  # fmt: skip
LAYER = {
    "attn_norm.weight": "input_layernorm.weight", "ffn_norm.weight": "post_attention_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight", "attn_q.bias": "self_attn.q_proj.bias",
    "attn_k.weight": "self_attn.k_proj.weight", "attn_k.bias": "self_attn.k_proj.bias",
    "attn_v.weight": "self_attn.v_proj.weight", "attn_v.bias": "self_attn.v_proj.bias",
    "attn_output.weight": "self_attn.o_proj.weight", "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight", "ffn_down.weight": "mlp.down_proj.weight",
}  # fmt: skip


def write_gguf(checkpoint: Path, file: Path, width: Width) -> None:
    """width: of matrices; norms and biases are float32. checkpoint: as published. Raises CheckpointError."""
    text, source = ModelConfig.from_directory(checkpoint).text, Checkpoint(checkpoint)
    tensors = list(_tensors(text))
    with file.open("wb") as out:
        values = [*_sizes(text, width), *_tokenizer(checkpoint, text.vocab_size)]
        out.write(MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(values)))
        for name, (kind, value) in values:
            out.write(_string(name) + struct.pack("<I", kind) + value)
        offset = 0
        for name, origin in tensors:
            shape = source.tensors[origin].shape
            of = width if len(shape) > 1 else "f32"
            out.write(_string(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape)))
            out.write(struct.pack("<IQ", TYPES[of], offset))
            offset += _aligned(_size(of, int(np.prod(shape))))
        for _, origin in tensors:
            _pad(out)
            values_of = to_float32(source.read(origin))
            out.write(_encoded(values_of, width if values_of.ndim > 1 else "f32"))
        _pad(out)


def _tensors(text: TextConfig) -> Iterator[tuple[str, str]]:
    """Names here and in the checkpoint."""
    yield from OUTER.items()
    for layer in range(text.num_hidden_layers):
        yield from ((f"blk.{layer}.{ours}", f"model.layers.{layer}.{theirs}") for ours, theirs in LAYER.items())


def _sizes(text: TextConfig, width: Width) -> Iterator[Value]:
    yield "general.architecture", _text("qwen2")
    yield "general.alignment", _number(ALIGNMENT)
    yield "general.file_type", _number(FILE_TYPES[width])
    yield "qwen2.context_length", _number(text.max_position_embeddings)
    yield "qwen2.embedding_length", _number(text.hidden_size)
    yield "qwen2.block_count", _number(text.num_hidden_layers)
    yield "qwen2.feed_forward_length", _number(text.intermediate_size)
    yield "qwen2.attention.head_count", _number(text.num_attention_heads)
    yield "qwen2.attention.head_count_kv", _number(text.num_key_value_heads)
    yield "qwen2.attention.layer_norm_rms_epsilon", (FLOAT32, struct.pack("<f", text.rms_norm_eps))
    yield "qwen2.rope.freq_base", (FLOAT32, struct.pack("<f", text.rope_theta))
    yield "qwen2.vocab_size", _number(text.vocab_size)


def _tokenizer(checkpoint: Path, rows: int) -> Iterator[Value]:
    """Of tokenizer.json. Rows of the model that it has no token for get names of their own."""
    content = json.loads((checkpoint / "tokenizer.json").read_text("utf-8"))
    names, kinds = [f"[PAD{row}]" for row in range(rows)], [UNUSED] * rows
    added = {token["content"]: token["id"] for token in content["added_tokens"]}
    for known, kind in ((content["model"]["vocab"], NORMAL), (added, CONTROL)):
        for name, row in known.items():
            names[row], kinds[row] = name, kind
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in content["model"]["merges"]]
    yield "tokenizer.ggml.model", _text("gpt2")
    yield "tokenizer.ggml.pre", _text("qwen2")
    yield "tokenizer.ggml.tokens", _array(STRING, map(_string, names), rows)
    yield "tokenizer.ggml.token_type", _array(INT32, (struct.pack("<i", kind) for kind in kinds), rows)
    yield "tokenizer.ggml.merges", _array(STRING, map(_string, merges), len(merges))
    yield "tokenizer.ggml.eos_token_id", _number(added["<|endoftext|>"])


def _number(value: int) -> tuple[int, bytes]:
    return UINT32, struct.pack("<I", value)


def _text(value: str) -> tuple[int, bytes]:
    return STRING, _string(value)


def _array(kind: int, values: Iterable[bytes], count: int) -> tuple[int, bytes]:
    return ARRAY, struct.pack("<IQ", kind, count) + b"".join(values)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _size(width: Width, count: int) -> int:
    return count * {"f32": 4, "f16": 2, "bf16": 2, "q8_0": 1}[width] + (count // BLOCK * 2 if width == "q8_0" else 0)


def _encoded(values: Float32Array, width: Width) -> bytes:
    if width == "f32":
        return values.tobytes()
    if width == "f16":
        return values.astype(np.float16).tobytes()
    if width == "bf16":  # of weights that were bfloat16: nothing is rounded
        return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    blocks = values.reshape(-1, BLOCK)
    scales = np.abs(blocks).max(1, keepdims=True) / np.float32(127)
    with np.errstate(divide="ignore", invalid="ignore"):
        quantised = np.where(scales > 0, np.rint(blocks / scales), 0).astype(np.int8)
    packed = np.empty((len(blocks), 2 + BLOCK), np.uint8)
    packed[:, :2] = scales.astype(np.float16).view(np.uint8)
    packed[:, 2:] = quantised.view(np.uint8)
    return packed.tobytes()


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _pad(out: BinaryIO) -> None:
    out.write(b"\0" * (_aligned(out.tell()) - out.tell()))

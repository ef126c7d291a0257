"""A published checkpoint's weights: where each tensor lies, whether all of them are there, and their bytes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from step_audio.arrays import AnyArray, Float32Array
from step_audio.config import AudioEncoderConfig, DType, ModelConfig, TextConfig
from step_audio.errors import CheckpointError
from step_audio.safetensors import DTYPES, STORAGE, SafetensorsFile, Shapes, TensorInfo

INDEX_FILE = "model.safetensors.index.json"
ADAPTER_WIDTH = 2048  # of adapter.linear1, in every Step-Audio size; no config key holds it


class Checkpoint:
    """Every tensor of a checkpoint directory, with or without `model.safetensors.index.json`.

    `tensors` maps names to TensorInfo, `files` file names to SafetensorsFile. Only headers are read here.
    Raises CheckpointError when a file or a tensor that the index names is missing, or a header is wrong.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        if not self.directory.is_dir():
            raise CheckpointError(f"checkpoint directory {directory} does not exist")
        index = self.directory / INDEX_FILE
        weight_map = _read_index(index) if index.is_file() else None
        names = sorted(
            set(weight_map.values()) if weight_map else (p.name for p in self.directory.glob("*.safetensors"))
        )
        if not names:
            raise CheckpointError(f"{directory} has no .safetensors file")
        self.files = {name: SafetensorsFile.open(self.directory / name) for name in names}
        self.tensors: dict[str, TensorInfo] = {}
        if weight_map:
            for key, name in weight_map.items():
                if key not in self.files[name].tensors:
                    raise CheckpointError(f"{INDEX_FILE} places {key} in {name}, which does not have it")
                self.tensors[key] = self.files[name].tensors[key]
            return
        for name, file in self.files.items():
            for key, info in file.tensors.items():
                if key in self.tensors:
                    raise CheckpointError(f"{key} is in both {self.tensors[key].file.name} and {name}")
                self.tensors[key] = info

    def verify(self, config: ModelConfig) -> list[str]:
        """Check that every tensor of `config` is there with its shape and a float dtype.

        Returns the names that `config` does not know, which are ignored elsewhere. Raises CheckpointError.
        """
        expected = expected_tensors(config)
        if missing := [name for name in expected if name not in self.tensors]:
            raise CheckpointError(f"the checkpoint lacks {_first(missing)}")
        wrong = [
            f"{name} is {list(self.tensors[name].shape)}, config.json says {list(shape)}"
            for name, shape in expected.items()
            if self.tensors[name].shape != shape
        ]
        if wrong:
            raise CheckpointError(f"the checkpoint does not match its config.json: {_first(wrong)}")
        odd = [f"{name} is {self.tensors[name].dtype}" for name in expected if self.tensors[name].dtype not in DTYPES]
        if odd:
            raise CheckpointError(f"quantised checkpoints are not supported, use the original one: {_first(odd)}")
        return [name for name in self.tensors if name not in expected]

    def dtype(self, name: str) -> DType:
        """Raises CheckpointError for a tensor that is not there or is no float."""
        info = self._info(name)
        if info.dtype not in DTYPES:
            raise CheckpointError(f"{name} is {info.dtype}, expected one of {', '.join(DTYPES)}")
        return DTYPES[info.dtype][0]

    def read(self, name: str) -> AnyArray:
        """The whole tensor in its storage type (bfloat16 as uint16 bits)."""
        shape = self._info(name).shape
        return self.read_rows(name, 0, shape[0] if shape else 1).reshape(shape)

    def read_rows(self, name: str, start: int, stop: int) -> AnyArray:
        """Rows `start` to `stop` of the first dimension, [stop - start, ...], in a buffer of their own."""
        info = self._info(name)
        storage = STORAGE[self.dtype(name)]
        rows = info.shape[0] if info.shape else 1
        if not 0 <= start <= stop <= rows:
            raise ValueError(f"rows {start} to {stop} of {name}, which has {rows}")
        out: AnyArray = np.empty((stop - start, *info.shape[1:]), storage)
        row_bytes = (info.stop - info.start) // max(rows, 1)
        view = out.reshape(-1).view(np.uint8).data
        with info.file.open("rb", buffering=0) as file:
            done = 0
            while done < len(view):
                count = os.preadv(file.fileno(), [view[done:]], info.start + start * row_bytes + done)
                if count == 0:
                    raise CheckpointError(f"{info.file.name} is truncated: it ends inside {name}")
                done += count
        return out

    def _info(self, name: str) -> TensorInfo:
        try:
            return self.tensors[name]
        except KeyError:
            raise CheckpointError(f"the checkpoint lacks {name}") from None


def _read_index(path: Path) -> dict[str, str]:
    weight_map = read_weight_map(path)
    missing = sorted({name for name in weight_map.values() if not (path.parent / name).is_file()})
    if missing:
        raise CheckpointError(f"{path.name} names files that are not there: {_first(missing)}; download them again")
    return weight_map


def read_weight_map(path: Path) -> dict[str, str]:
    """Of an index: tensor -> file, whether that is there or not. Raises CheckpointError."""
    try:
        weight_map: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        plain = all(isinstance(name, str) and Path(name).name == name for name in weight_map.values())
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{path.name} is malformed: it needs a weight_map of tensor names to files") from None
    if not weight_map or not plain:
        raise CheckpointError(f"{path.name}: weight_map must name files of the same directory")
    return weight_map


def _first(items: list[str], count: int = 3) -> str:
    return ", ".join(items[:count]) + (f" and {len(items) - count} more" if len(items) > count else "")


def expected_tensors(config: ModelConfig) -> Shapes:
    """Name and shape of every tensor that a checkpoint of `config` holds."""
    return {**encoder_tensors(config.audio), **decoder_tensors(config.text)}


def encoder_tensors(audio: AudioEncoderConfig) -> Shapes:
    """`encoder.*` and `adapter.*`. Linear weights are [out, in], convolutions [out, in, kernel]."""
    state, kernel = audio.n_audio_state, audio.kernel_size

    def pair(name: str, *shape: int) -> Iterable[tuple[str, tuple[int, ...]]]:
        return [(f"{name}.weight", shape), (f"{name}.bias", shape[:1])]

    out: list[tuple[str, tuple[int, ...]]] = []
    out += pair("encoder.conv1", state, audio.n_mels, 3)
    out += pair("encoder.conv2", state, state, 3)
    out += [("encoder.positional_embedding.weight", (audio.n_audio_ctx, state))]
    for n in range(audio.n_audio_layer):
        block = f"encoder.blocks.{n}"
        out += pair(f"{block}.attn.query", state, state)
        out += [(f"{block}.attn.key.weight", (state, state))]  # Whisper's key has no bias
        out += pair(f"{block}.attn.value", state, state)
        out += pair(f"{block}.attn.out", state, state)
        out += pair(f"{block}.attn_ln", state)
        out += pair(f"{block}.mlp.0", 4 * state, state)
        out += pair(f"{block}.mlp.2", state, 4 * state)
        out += pair(f"{block}.mlp_ln", state)
    out += pair("encoder.after_norm", state)
    out += pair("adapter.conv", state, state, kernel)
    out += pair("adapter.linear1", ADAPTER_WIDTH, state)
    out += pair("adapter.linear2", audio.llm_dim, ADAPTER_WIDTH)
    return dict(out)


def decoder_tensors(text: TextConfig) -> Shapes:
    """The Qwen2 decoder under Hugging Face's names, weights [out, in]."""
    hidden, inner = text.hidden_size, text.intermediate_size
    widths = {
        "q_proj": text.num_attention_heads * text.head_dim,
        "k_proj": text.num_key_value_heads * text.head_dim,
        "v_proj": text.num_key_value_heads * text.head_dim,
    }
    out: Shapes = {"model.embed_tokens.weight": (text.vocab_size, hidden)}
    for n in range(text.num_hidden_layers):
        layer = f"model.layers.{n}"
        out[f"{layer}.input_layernorm.weight"] = (hidden,)
        for name, width in widths.items():
            out[f"{layer}.self_attn.{name}.weight"] = (width, hidden)
            out[f"{layer}.self_attn.{name}.bias"] = (width,)
        out[f"{layer}.self_attn.o_proj.weight"] = (hidden, widths["q_proj"])
        out[f"{layer}.post_attention_layernorm.weight"] = (hidden,)
        out[f"{layer}.mlp.gate_proj.weight"] = (inner, hidden)
        out[f"{layer}.mlp.up_proj.weight"] = (inner, hidden)
        out[f"{layer}.mlp.down_proj.weight"] = (hidden, inner)
    out["model.norm.weight"] = (hidden,)
    out["lm_head.weight"] = (text.vocab_size, hidden)
    return out


def to_float32(array: AnyArray) -> Float32Array:
    """Storage -> float32 values, exact; uint16 is bfloat16's."""
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return array.astype(np.float32, copy=False)


def from_float32(array: Float32Array, dtype: DType) -> AnyArray:
    """float32 values -> storage of `dtype`, rounded to nearest, ties to even.

    Raises CheckpointError when a finite value would become infinite, which float16's range makes possible.
    """
    if dtype == "float32":
        return array
    if dtype == "float16":
        with np.errstate(over="ignore"):
            out = array.astype(np.float16)
        if np.isinf(out).any() and not np.isinf(array).any():
            raise CheckpointError("a weight is beyond float16's range (65504), use bfloat16")
        return out
    bits = np.ascontiguousarray(array).view(np.uint32)
    rounded = ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    # Adding may carry a NaN's payload over into infinity or zero; keep its upper half and make it quiet.
    return np.where(np.isnan(array), (bits >> 16).astype(np.uint16) | np.uint16(0x40), rounded)

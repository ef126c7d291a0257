"""Read an engine directory the way TensorRT-LLM reads its checkpoints: `config.json` and `rank{r}.safetensors`.

The directory of the CPU engine has the layout of a TensorRT-LLM engine directory (`version`,
`pretrained_config`, `build_config`) with the rank files of the checkpoint beside it. This file knows
TensorRT-LLM's meaning of every tensor and nothing of how the files were made, so a wrong conversion
shows as an error or a wrong answer here, on a machine without a GPU.

What the names mean (TensorRT-LLM 1.2, `layers/mlp.py`, `layers/attention.py`, `models/qwen`):
- `mlp.fc` is the half that goes through SiLU (Hugging Face `gate_proj`), `mlp.gate` the other (`up_proj`);
- `attention.qkv` of one rank is its share of Q, then of K, then of V; with fewer KV heads than ranks each
  KV head is repeated on consecutive ranks;
- `dense` and `proj` are split by columns, `qkv`, `fc`, `gate` and `lm_head` by rows;
- `lm_head` is padded with rows up to a multiple of the number of ranks; norms and the embedding are whole.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np

from step_audio.arrays import AnyArray
from step_audio.config import DType
from step_audio.errors import ArtefactError, CheckpointError
from step_audio.lora import Dimensions
from step_audio.safetensors import SAFETENSORS_NAME, STORAGE, SafetensorsFile


@dataclass(frozen=True)
class EngineSpec:
    """Dimensions of the decoder and the limits the engine was built with."""

    vocab_size: int  # rows of the embedding; ids from here on are rows of a request's prompt table
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    norm_epsilon: float
    rotary_base: float
    dtype: DType
    max_batch_size: int  # sequences that may run at once
    max_seq_len: int  # positions of one sequence, prompt and answer together
    max_num_tokens: int  # positions computed in one step, over all sequences
    max_prompt_embedding_table_size: int  # prompt table rows, over max_batch_size requests
    tokens_per_block: int  # positions of one KV cache block
    max_lora_rank: int = 0  # of adapters; 0: built without them

    @property
    def dimensions(self) -> Dimensions:
        queries, values = (heads * self.head_size for heads in (self.num_heads, self.num_kv_heads))
        return Dimensions(self.hidden_size, self.intermediate_size, queries, values, self.num_layers)

    @property
    def max_prompt_vocab_size(self) -> int:
        """Prompt table rows that one request may bring."""
        return self.max_prompt_embedding_table_size // self.max_batch_size


@dataclass(frozen=True)
class LayerWeights:
    """One decoder layer, ranks merged; matrices are [out, in]."""

    input_layernorm: AnyArray
    qkv: AnyArray  # [(heads + 2 kv_heads) * head_size, hidden], Q then K then V
    qkv_bias: AnyArray
    dense: AnyArray
    post_layernorm: AnyArray
    fc: AnyArray
    gate: AnyArray
    proj: AnyArray


@dataclass(frozen=True)
class Weights:
    """The whole decoder. Arrays have the engine's dtype, bfloat16 as raw uint16; see
    `step_audio.checkpoint.to_float32`."""

    vocab_embedding: AnyArray  # [vocab, hidden]
    layers: Sequence[LayerWeights]
    ln_f: AnyArray
    lm_head: AnyArray  # [vocab, hidden], padding rows removed


def load_engine(engine_dir: str | Path) -> tuple[EngineSpec, Weights]:
    """Read `config.json` and every rank file. Raises ArtefactError naming the file or tensor at fault."""
    spec, weights = open_engine(engine_dir)
    return spec, replace(weights, layers=list(weights.layers))


def open_engine(engine_dir: str | Path) -> tuple[EngineSpec, Weights]:
    """The same; a layer is read each time that it is asked for, and in memory only as long as it is used."""
    directory = Path(engine_dir)
    config = _read_config(directory)
    spec = _spec(config["pretrained_config"], config["build_config"])
    tp_size = _tp_size(config["pretrained_config"])
    return spec, _merge(spec, [_Rank(directory / f"rank{rank}.safetensors", spec) for rank in range(tp_size)])


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    if not path.is_file():
        raise ArtefactError(f"{path} does not exist: build the engine first")
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ArtefactError(f"{path} is not valid JSON: {error}") from None
    for section in ("pretrained_config", "build_config"):
        if not isinstance(config, dict) or not isinstance(config.get(section), dict):
            raise ArtefactError(f"{path}: {section} is missing; is this a checkpoint rather than an engine directory?")
    return config


def _integer(table: dict[str, Any], name: str) -> int:
    value = table.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise ArtefactError(f"engine config.json: {name} is missing or not a positive integer")
    return value


def _number(table: dict[str, Any], name: str) -> float:
    value = table.get(name)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or value <= 0:
        raise ArtefactError(f"engine config.json: {name} is missing or not a positive number")
    return float(value)


def _tp_size(model: dict[str, Any]) -> int:
    mapping = model.get("mapping") or {}
    for name in ("pp_size", "cp_size"):
        if mapping.get(name, 1) != 1:
            raise ArtefactError(f"engine config.json: mapping.{name} is {mapping[name]}; the CPU engine serves 1")
    return _integer(mapping, "tp_size")


def _spec(model: dict[str, Any], build: dict[str, Any]) -> EngineSpec:
    """Everything that would change the numbers is either used or refused, never ignored."""
    served = {
        "architecture": "Qwen2ForCausalLM",
        "hidden_act": "silu",
        "position_embedding_type": "rope_gpt_neox",
        "rotary_scaling": None,
        "use_parallel_embedding": False,
        "attn_bias": True,
        "mlp_bias": False,
        "qk_layernorm": False,
        "tie_word_embeddings": False,
    }
    for name, value in served.items():
        if model.get(name, value) != value:
            raise ArtefactError(f"engine config.json: {name} is {model[name]!r}; the CPU engine serves {value!r}")
    if any((model.get("quantization") or {}).get(name) for name in ("quant_algo", "kv_cache_quant_algo")):
        raise ArtefactError("engine config.json: quantization is set; the CPU engine serves unquantized weights")
    dtype = str(model.get("dtype"))
    if dtype not in STORAGE:
        raise ArtefactError(f"engine config.json: dtype {dtype!r} is none of {', '.join(STORAGE)}")
    hidden, heads = _integer(model, "hidden_size"), _integer(model, "num_attention_heads")
    plugins = build.get("plugin_config") or {}
    return EngineSpec(
        vocab_size=_integer(model, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=_integer(model, "intermediate_size"),
        num_layers=_integer(model, "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=_integer(model, "num_key_value_heads"),
        head_size=model.get("head_size") or hidden // heads,
        norm_epsilon=_number(model, "norm_epsilon"),
        rotary_base=_number(model, "rotary_base"),
        dtype=dtype,
        max_batch_size=_integer(build, "max_batch_size"),
        max_seq_len=_integer(build, "max_seq_len"),
        max_num_tokens=_integer(build, "max_num_tokens"),
        max_prompt_embedding_table_size=build.get("max_prompt_embedding_table_size") or 0,
        tokens_per_block=plugins.get("tokens_per_block") or 32,
        max_lora_rank=_integer(build.get("lora_config") or {}, "max_lora_rank") if plugins.get("lora_plugin") else 0,
    )


class _Rank:
    """One rank file, memory-mapped: a tensor costs memory only once it is used."""

    def __init__(self, path: Path, spec: EngineSpec):
        if not path.is_file():
            raise ArtefactError(f"{path.name} is missing from the engine directory: build the engine again")
        self.name, self.dtype = path.name, spec.dtype
        try:
            self.tensors = SafetensorsFile.open(path, "build the engine again").tensors
        except CheckpointError as error:
            raise ArtefactError(str(error)) from None
        self.data = np.memmap(path, np.uint8, mode="r")

    def __call__(self, name: str, *shape: int) -> AnyArray:
        """A view of the tensor `name`, which must have exactly this shape and the engine's dtype."""
        info = self.tensors.get(name)
        if info is None:
            raise ArtefactError(f"{self.name}: tensor {name} is missing")
        dtype = SAFETENSORS_NAME[self.dtype]
        if (info.dtype, info.shape) != (dtype, shape):
            raise ArtefactError(
                f"{self.name}: tensor {name} is {info.dtype} {list(info.shape)}, expected {dtype} {list(shape)}"
            )
        storage: np.dtype[Any] = np.dtype(STORAGE[self.dtype])
        raw: AnyArray = self.data[info.start : info.stop]
        if info.start % storage.itemsize:  # the format does not promise alignment
            raw = raw.copy()
        return raw.view(storage).reshape(shape).view(np.ndarray)


class _Layers(Sequence[LayerWeights]):
    """Made when they are asked for."""

    def __init__(self, count: int, make: Callable[[int], LayerWeights]):
        self._count, self._make = count, make

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> LayerWeights: ...
    @overload
    def __getitem__(self, index: slice) -> list[LayerWeights]: ...
    def __getitem__(self, index: int | slice) -> LayerWeights | list[LayerWeights]:
        found = range(self._count)[index]
        return [self._make(one) for one in found] if isinstance(found, range) else self._make(found)


def _merge(spec: EngineSpec, ranks: list[_Rank]) -> Weights:
    tp = len(ranks)
    hidden, head = spec.hidden_size, spec.head_size
    for name in ("num_heads", "intermediate_size"):
        if getattr(spec, name) % tp:
            raise ArtefactError(f"engine config.json: {name} {getattr(spec, name)} is not a multiple of tp_size {tp}")
    if max(spec.num_kv_heads, tp) % min(spec.num_kv_heads, tp):
        raise ArtefactError(f"engine config.json: {spec.num_kv_heads} KV heads cannot be shared by {tp} ranks")
    q_rows = spec.num_heads // tp * head
    kv_rows = max(spec.num_kv_heads // tp, 1) * head
    inner = spec.intermediate_size // tp
    padded_vocab = math.ceil(spec.vocab_size / tp) * tp

    def merged(name: str, axis: int, *shape: int) -> AnyArray:
        parts = [rank(name, *shape) for rank in ranks]
        return parts[0] if tp == 1 else np.concatenate(parts, axis)

    def merged_qkv(name: str, *columns: int) -> AnyArray:
        parts = [rank(name, q_rows + 2 * kv_rows, *columns) for rank in ranks]
        if tp == 1:
            return parts[0]
        copies = max(tp // spec.num_kv_heads, 1)  # ranks that hold the same KV head
        for first in range(0, tp, copies):
            for rank in range(first + 1, first + copies):
                if not np.array_equal(parts[first][q_rows:], parts[rank][q_rows:]):
                    raise ArtefactError(f"{ranks[rank].name}: {name} should repeat the KV head of {ranks[first].name}")
        queries = [part[:q_rows] for part in parts]
        keys = [part[q_rows : q_rows + kv_rows] for part in parts[::copies]]
        values = [part[q_rows + kv_rows :] for part in parts[::copies]]
        return np.concatenate(queries + keys + values)

    def layer(prefix: str) -> LayerWeights:
        whole: Callable[..., AnyArray] = ranks[0]
        return LayerWeights(
            input_layernorm=whole(f"{prefix}.input_layernorm.weight", hidden),
            qkv=merged_qkv(f"{prefix}.attention.qkv.weight", hidden),
            qkv_bias=merged_qkv(f"{prefix}.attention.qkv.bias"),
            dense=merged(f"{prefix}.attention.dense.weight", 1, hidden, q_rows),
            post_layernorm=whole(f"{prefix}.post_layernorm.weight", hidden),
            fc=merged(f"{prefix}.mlp.fc.weight", 0, inner, hidden),
            gate=merged(f"{prefix}.mlp.gate.weight", 0, inner, hidden),
            proj=merged(f"{prefix}.mlp.proj.weight", 1, hidden, inner),
        )

    return Weights(
        vocab_embedding=ranks[0]("transformer.vocab_embedding.weight", spec.vocab_size, hidden),
        layers=_Layers(spec.num_layers, lambda index: layer(f"transformer.layers.{index}")),
        ln_f=ranks[0]("transformer.ln_f.weight", hidden),
        lm_head=merged("lm_head.weight", 0, padded_vocab // tp, hidden)[: spec.vocab_size],
    )

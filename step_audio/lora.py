"""LoRA adapters as TensorRT-LLM's runtime takes them: which matrices, under which numbers, in which layout.

A request names one by `lora_task_id`. The first one brings `lora_weights` [rows, width] and `lora_config` [rows, 3]
along, a row for each adapted matrix: its config is (module's number, layer, rank r), its weights are A [r, in] and
B [out, r] one behind the other, the scale multiplied into B, padded with zeros to the longest row (TensorRT-LLM
docs/source/advanced/lora.md @05316d3, examples/hf_lora_convert.py @05316d3). They are whole: each rank takes its share.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from step_audio.arrays import AnyArray, Float32Array, Int32Array, all_finite
from step_audio.checkpoint import to_float32
from step_audio.config import TextConfig
from step_audio.errors import InvalidRequest


@dataclass(frozen=True)
class Module:
    """A matrix of a decoder layer that can be adapted."""

    name: str  # TensorRT-LLM's (tensorrt_llm/lora_manager.py, LORA_MODULE_IDS)
    number: int
    theirs: str  # Hugging Face's, within the layer


# As with the weights, TensorRT-LLM's `fc` is what goes through SiLU: h_to_4h is gate_proj, and `mlp_gate` is up_proj.
MODULES = (
    Module("attn_q", 1, "self_attn.q_proj"),
    Module("attn_k", 2, "self_attn.k_proj"),
    Module("attn_v", 3, "self_attn.v_proj"),
    Module("attn_dense", 4, "self_attn.o_proj"),
    Module("mlp_h_to_4h", 5, "mlp.gate_proj"),
    Module("mlp_4h_to_h", 6, "mlp.down_proj"),
    Module("mlp_gate", 7, "mlp.up_proj"),
)
_BY_NUMBER = {module.number: module for module in MODULES}


@dataclass(frozen=True)
class Dimensions:
    """Of a decoder, all ranks together."""

    hidden: int
    inner: int
    queries: int  # all heads'
    values: int
    layers: int

    @classmethod
    def of(cls, text: TextConfig) -> Dimensions:
        queries, values = (n * text.head_dim for n in (text.num_attention_heads, text.num_key_value_heads))
        return cls(text.hidden_size, text.intermediate_size, queries, values, text.num_hidden_layers)

    @property
    def widths(self) -> dict[str, tuple[int, int]]:
        """Module's name -> inputs and outputs of its matrix."""
        return {
            "attn_q": (self.hidden, self.queries),
            "attn_k": (self.hidden, self.values),
            "attn_v": (self.hidden, self.values),
            "attn_dense": (self.queries, self.hidden),
            "mlp_h_to_4h": (self.hidden, self.inner),
            "mlp_4h_to_h": (self.inner, self.hidden),
            "mlp_gate": (self.hidden, self.inner),
        }


Factors = dict[tuple[int, str], tuple[Float32Array, Float32Array]]
"""(layer, module's name) -> A [r, in] and B [out, r], so that B A is what is added to the matrix [out, in]."""


@dataclass(frozen=True, eq=False)
class LoraTensors:
    """An adapter on its way to the LLM."""

    weights: AnyArray  # [rows, width], in the engine's type; uint16 is bfloat16's bits
    config: Int32Array  # [rows, 3]


def task_id(name: str) -> int:
    """The number of the adapter of that name, the same on every server. 31 bits, as TensorRT-LLM's tools have them."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") >> 1 or 1


def unpack(tensors: LoraTensors, decoder: Dimensions, max_rank: int) -> Factors:
    """Raises InvalidRequest, where there is one with TensorRT-LLM's text (cpp/tensorrt_llm/runtime/loraUtils.cpp
    @2a9abd9)."""
    weights, config = tensors.weights, tensors.config
    if weights.ndim != 2 or config.ndim != 2 or config.shape[1] != 3:
        raise InvalidRequest("Invalid shape for lora_weights or lora_config tensor", "lora_config")
    if len(weights) != len(config):
        raise InvalidRequest("Expected dim1 lora_weights and lora_keys to have the same size", "lora_weights")
    if not all_finite(weights):
        raise InvalidRequest("lora_weights holds NaN or infinity", "lora_weights")
    sizes, factors = decoder.widths, Factors()
    for row, (number, layer, rank) in zip(weights, config.tolist(), strict=True):
        if (module := _BY_NUMBER.get(number)) is None:
            raise InvalidRequest(f"lora module {number} not enabled for this model", "lora_config")
        if not 0 <= layer < decoder.layers:
            raise InvalidRequest("Expected layerId to be in the range [0, numModelLayers)", "lora_config")
        if not 0 < rank <= max_rank:
            raise InvalidRequest(
                f"Invalid low_rank ({rank}). low_rank must be smaller than mMaxLowRank ({max_rank})", "lora_config"
            )
        inputs, outputs = sizes[module.name]
        if row.size < rank * (inputs + outputs):
            raise InvalidRequest(f"lora_weights has to few values for {module.name}", "lora_weights")
        values = to_float32(row[: rank * (inputs + outputs)])
        factors[layer, module.name] = (
            values[: rank * inputs].reshape(rank, inputs),
            values[rank * inputs :].reshape(outputs, rank),
        )
    return factors


def pack(factors: Factors) -> tuple[Float32Array, Int32Array]:
    """`lora_weights` and `lora_config` of an adapter, as float32."""
    numbers = {module.name: module.number for module in MODULES}
    width = max(a.size + b.size for a, b in factors.values())
    weights = np.zeros((len(factors), width), np.float32)
    config = np.empty((len(factors), 3), np.int32)
    for row, ((layer, name), (a, b)) in enumerate(factors.items()):
        weights[row, : a.size] = a.reshape(-1)
        weights[row, a.size : a.size + b.size] = b.reshape(-1)
        config[row] = numbers[name], layer, len(a)
    return weights, config

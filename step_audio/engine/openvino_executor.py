"""The decoder on OpenVINO's CPU runtime, with its paged attention node.

The graph is built here from the weights, node by node; no conversion step, no torch. The node's Python
name is private (`openvino.op._PagedAttentionExtension`): this is the only file that uses it, and the
package pins the version of OpenVINO for it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset15 as opset
from openvino.op import Constant, _PagedAttentionExtension

from step_audio.arrays import AnyArray, Float32Array
from step_audio.engine.executor import Batch
from step_audio.engine.int8_weights import quantised
from step_audio.engine.quickest import Quickest
from step_audio.engine.signal_stack import signal_stack_kept
from step_audio.engine.trtllm_checkpoint import EngineSpec, Weights
from step_audio.errors import ArtefactError
from step_audio.lora import Factors

PRECISIONS = {"f32": ov.Type.f32, "bf16": ov.Type.bf16}
# Weights of a decoder that is too small to share a step, and of one that is small enough to be compiled twice: with one
# thread and with all. All are quicker on idle processors; beside busy ones they wait for each other, and take from
# whoever sends, encodes and decodes sound.
TINY_BYTES, SMALL_BYTES = 4 << 20, 32 << 20
HELD = ("key_cache.", "value_cache.", "lora_a.", "lora_b.")  # inputs that stay bound
SHARES = "lora_shares"
NOTHING = np.empty(0, np.float32)
RAGGED_INPUTS = ("past_lens", "subsequence_begins", "block_indices", "block_indices_begins")


class OpenVinoExecutor:
    """`Executor` over a compiled graph.

    precision: of arithmetic and cache, "f32" or "bf16", whatever the weights have ("bf16" halves the cache; a CPU
    without AVX-512 cannot compute it and gets "f32"); threads: 0 is one for a tiny decoder, for a small one what is
    quicker at the moment, and else OpenVINO's choice; int8: matrices in 8 bits, and where a CPU multiplies such, what
    is multiplied with them, too, in groups of 32; adapters: places for them, which cost a step the same whether they
    are used or not.
    """

    def __init__(
        self,
        spec: EngineSpec,
        weights: Weights,
        num_blocks: int,
        precision: str,
        threads: int,
        int8: bool = False,
        adapters: int = 0,
    ):
        self.num_blocks = num_blocks
        self._rank, self._adapters = spec.max_lora_rank, adapters
        core = ov.Core()
        # Asked for bf16 where there is none, the plug-in computes in f32 and then refuses a cache of bf16.
        if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            precision = "f32"
        kind = PRECISIONS[precision]
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": kind,
            "KV_CACHE_PRECISION": kind,
            # Kernels prepared for shapes seen before. Every step has another shape here, and with the default
            # of 5000 the process grows by hundreds of megabytes within minutes.
            "CPU_RUNTIME_CACHE_CAPACITY": 100,
            # A pinned thread waits where something else has its processor: behind the other steps' processes a token
            # took up to twice as long. And pinning is done anew in every step, by system calls.
            "ENABLE_CPU_PINNING": False,
        }
        self._weights = weights  # the graph reads their memory but does not own it
        decoder = _decoder(spec, weights, int8, adapters)
        self._held: dict[str, ov.Tensor] = {}
        self._ways: list[_Compiled] = []
        for count in _thread_counts(weights, threads):
            with signal_stack_kept():
                compiled = core.compile_model(
                    decoder, "CPU", {**settings, **({"INFERENCE_NUM_THREADS": count} if count else {})}
                )
            self._ways.append(_Compiled(compiled, spec.tokens_per_block, num_blocks, self._held))
            if compiled.get_property("INFERENCE_NUM_THREADS") >= (os.cpu_count() or 1):
                break
        self._quickest = Quickest(len(self._ways))

    def forward(self, batch: Batch) -> Float32Array:
        size = len(batch.position_ids)
        way = self._quickest.choose(size)
        begin = time.perf_counter()
        logits = self._ways[way].forward(batch, self._shares(batch))
        self._quickest.took(size, way, time.perf_counter() - begin)
        return logits

    def load_adapter(self, place: int, factors: Factors) -> None:
        for (layer, module), (a, b) in factors.items():
            rows = slice(place * self._rank, place * self._rank + len(a))
            self._held[f"lora_a.{layer}.{module}"].data[rows] = a
            self._held[f"lora_b.{layer}.{module}"].data[rows] = b.T

    def _shares(self, batch: Batch) -> Float32Array:
        """[T, ranks of all places]: 1 for those of a position's own adapter, 0 for all others."""
        if not self._adapters:
            return NOTHING
        places = np.full(len(batch.past_lens), -1, np.int32) if batch.adapters is None else batch.adapters
        own = np.repeat(places, np.diff(batch.subsequence_begins))[:, None] == np.arange(self._adapters)
        return np.repeat(own, self._rank, 1).astype(np.float32)


class _Compiled:
    """The graph, compiled for a number of threads. held: caches and adapters of other numbers, to share; filled if it
    is empty."""

    def __init__(self, compiled: ov.CompiledModel, tokens_per_block: int, num_blocks: int, held: dict[str, ov.Tensor]):
        self._request = compiled.create_infer_request()
        # Bound once and written anew in every step: binding arrays takes 0.1 ms a step.
        self._inputs: dict[str, ov.Tensor] = {}
        self._views: dict[str, AnyArray] = {}  # of these, in their present shapes
        for port in compiled.inputs:
            name, shape = port.get_any_name(), port.get_partial_shape()
            if not name.startswith(HELD):
                axes = [axis.get_length() if axis.is_static else 0 for axis in shape]
                self._inputs[name] = ov.Tensor(port.get_element_type(), axes)
                self._views[name] = self._inputs[name].data
                self._request.set_tensor(name, self._inputs[name])
                continue
            # Only after compiling is it known which type and layout the plug-in wants for its cache.
            cache = not name.startswith("lora_")
            if cache and shape[2].get_length() != tokens_per_block:
                raise ArtefactError(
                    f"engine config.json: plugin_config.tokens_per_block is {tokens_per_block}, "
                    f"the CPU runtime has blocks of {shape[2].get_length()}"
                )
            if name not in held:
                axes = [
                    num_blocks if cache else shape[0].get_length(),
                    *(axis.get_length() for axis in list(shape)[1:]),
                ]
                held[name] = ov.Tensor(port.get_element_type(), axes)
                held[name].data.view(np.uint8)[...] = 0  # touch the pages now, not in the first requests
            self._request.set_tensor(name, held[name])

    def forward(self, batch: Batch, shares: Float32Array) -> Float32Array:
        for name, tensor in self._inputs.items():
            values: AnyArray = shares if name == SHARES else getattr(batch, name)
            if self._views[name].shape != np.shape(values):
                tensor.shape = np.shape(values)
                self._views[name] = tensor.data
            self._views[name][...] = values
        self._request.infer(share_outputs=True)
        logits: Float32Array = self._request.get_output_tensor(0).data
        return logits


def _thread_counts(weights: Weights, threads: int) -> list[int]:
    """0 is OpenVINO's choice."""
    size = _read_by_a_step(weights)
    if threads:
        return [threads]
    if size > SMALL_BYTES:
        return [0]
    return [1] if size <= TINY_BYTES else [1, 0]


def _read_by_a_step(weights: Weights) -> int:
    """Bytes of the matrices, without the embedding, of which a step reads a few rows."""
    layers: Iterable[AnyArray] = (array for layer in weights.layers for array in vars(layer).values())
    return sum(array.nbytes for array in (*layers, weights.lm_head))


def _decoder(spec: EngineSpec, weights: Weights, int8: bool, adapters: int = 0) -> ov.Model:
    """Qwen2: pre-norm blocks of attention (biased QKV, rotary positions) and SiLU-gated MLP.

    Adapters of all places lie one under the other; of what their A makes of a position, its own one's goes on to B.
    """
    linear = _linear_int8 if int8 else _linear
    parameters: list[ov.Node] = []
    ranks = adapters * spec.max_lora_rank

    def parameter(name: str, shape: list[int], kind: ov.Type) -> ov.Node:
        node = opset.parameter(ov.PartialShape(shape), kind, name=name)
        node.output(0).get_tensor().set_names({name})
        parameters.append(node)
        return node

    hidden = parameter("embeddings", [-1, spec.hidden_size], ov.Type.f32)
    positions = parameter("position_ids", [-1], ov.Type.i32)
    ragged = [parameter(name, [-1], ov.Type.i32) for name in RAGGED_INPUTS]
    max_context_len = parameter("max_context_len", [], ov.Type.i32)
    logit_indices = parameter("logit_indices", [-1], ov.Type.i32)
    shares = parameter(SHARES, [-1, ranks], ov.Type.f32) if ranks else None

    def adapted(y: ov.Node | ov.Output, x: ov.Node | ov.Output, layer: int, module: str) -> ov.Node | ov.Output:
        """`y` of `x` by a matrix, and what the adapters add."""
        if shares is None:
            return y
        inputs, outputs = spec.dimensions.widths[module]
        a, b = (
            parameter(f"{name}.{layer}.{module}", [ranks, width], ov.Type.f32)
            for name, width in (("lora_a", inputs), ("lora_b", outputs))
        )
        inner = opset.multiply(opset.matmul(x, a, False, True), shares)
        return opset.add(y, opset.matmul(inner, b, False, False))

    # [T, 1, 1, head]: looked up rather than computed, because bfloat16 cannot count positions beyond 256.
    cos, sin = (
        opset.gather(opset.constant(table), positions, opset.constant(np.int32(0)))
        for table in rotary_tables(spec.max_seq_len, spec.head_size, spec.rotary_base)
    )

    def attention(layer: int, queries: ov.Node, keys: ov.Node, values: ov.Node) -> ov.Node:
        dynamic = ov.PartialShape([-1, -1, -1, -1])
        caches = []
        for name in (f"key_cache.{layer}", f"value_cache.{layer}"):
            cache = opset.parameter(dynamic, ov.Type.dynamic, name=name)
            cache.output(0).get_tensor().set_names({name})
            parameters.append(cache)
            caches.append(cache)
        node = _PagedAttentionExtension(
            [
                value.output(0)
                for value in (queries, keys, values, *caches, *ragged, *_attention_options(spec, max_context_len))
            ]
        )
        # The plug-in takes the head counts from here: the tensors are flat.
        info = node.get_rt_info()
        info["num_k_heads"] = info["num_v_heads"] = spec.num_kv_heads
        info["k_head_size"] = info["v_head_size"] = spec.head_size
        return node

    q_size, kv_size = spec.num_heads * spec.head_size, spec.num_kv_heads * spec.head_size
    split = opset.constant(np.array([q_size, kv_size, kv_size], np.int64))
    axis = opset.constant(np.int64(1))
    for index, layer in enumerate(weights.layers):
        normed = _rms_norm(hidden, layer.input_layernorm, spec.norm_epsilon)
        qkv = opset.variadic_split(opset.add(linear(normed, layer.qkv), _values(layer.qkv_bias)), axis, split)
        flat = [
            adapted(qkv.output(part), normed, index, module)
            for part, module in enumerate(("attn_q", "attn_k", "attn_v"))
        ]
        queries = _rotate(flat[0], cos, sin, spec.num_heads, spec.head_size)
        keys = _rotate(flat[1], cos, sin, spec.num_kv_heads, spec.head_size)
        heads = attention(index, queries, keys, opset.reshape(flat[2], _shape(0, -1), True)).output(0)
        hidden = opset.add(hidden, adapted(linear(heads, layer.dense), heads, index, "attn_dense"))
        normed = _rms_norm(hidden, layer.post_layernorm, spec.norm_epsilon)
        fc = adapted(linear(normed, layer.fc), normed, index, "mlp_h_to_4h")
        gated = opset.multiply(opset.swish(fc), adapted(linear(normed, layer.gate), normed, index, "mlp_gate"))
        hidden = opset.add(hidden, adapted(linear(gated, layer.proj), gated, index, "mlp_4h_to_h"))
    wanted = opset.gather(hidden, logit_indices, opset.constant(np.int32(0)))
    logits = linear(_rms_norm(wanted, weights.ln_f, spec.norm_epsilon), weights.lm_head)
    result = opset.result(opset.convert(logits, "f32"))
    return ov.Model([result], parameters, "decoder")


def rotary_tables(positions: int, head_size: int, base: float) -> tuple[Float32Array, Float32Array]:
    """Cosines and sines, float32 [positions, 1, 1, head_size], the second half as the first; angles in float64, whose
    error does not grow."""
    frequencies = base ** -(np.arange(0, head_size, 2, dtype=np.float64) / head_size)
    angles = np.arange(positions, dtype=np.float64)[:, None, None, None] * np.tile(frequencies, 2)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def _attention_options(spec: EngineSpec, max_context_len: ov.Node) -> list[ov.Node]:
    """Inputs 9 to 27 of the node: plain causal attention, every optional feature off."""

    def empty(kind: type, *shape: int) -> ov.Node:
        return opset.constant(np.zeros(shape or (0,), kind))

    zero = opset.constant(np.int32(0))
    return [
        opset.constant(np.float32(spec.head_size**-0.5)),  # scale
        zero,  # sliding_window
        empty(np.float32),  # alibi_slopes
        max_context_len,
        empty(np.int32),  # score_aggregation_window
        empty(np.int32),  # rotated_block_indices
        empty(np.int32, 0, 0),  # rotation_deltas
        empty(np.float32, 0, 0),  # rotation_trig_lut
        empty(np.float32),  # xattention_threshold
        zero,  # xattention_block_size
        zero,  # xattention_stride
        empty(np.float32),  # sinks
        zero,  # adaptive_rkv_start_size
        empty(np.int32),  # adaptive_rkv_evictable_sizes
        empty(np.int32),  # adaptive_rkv_diversity_block_set_indices
        empty(np.int32),  # adaptive_rkv_diversity_block_set_indices_begins
        empty(np.int32),  # token_type_ids
        empty(np.uint8),  # qq_bias
        empty(np.int32),  # qq_bias_begins
    ]


def _values(array: AnyArray) -> ov.Node:
    """A constant over the array's own memory, as float32; the plug-in folds the conversion away."""
    if array.dtype == np.float32:
        return Constant(ov.Tensor(array, array.shape, ov.Type.f32), shared_memory=True)
    kind = ov.Type.bf16 if array.dtype == np.uint16 else ov.Type.f16
    return opset.convert(Constant(ov.Tensor(array, array.shape, kind), shared_memory=True), "f32")


def _shape(*sizes: int) -> ov.Node:
    return opset.constant(np.array(sizes, np.int64))


def _linear(x: ov.Node | ov.Output, weight: AnyArray) -> ov.Node:
    return opset.matmul(x, _values(weight), False, True)


def _linear_int8(x: ov.Node | ov.Output, weight: AnyArray) -> ov.Node:
    """Written in the shape that the plug-in recognises, and so never as float32 in memory."""
    values, scales = quantised(weight)
    return opset.matmul(x, opset.multiply(opset.convert(values, "f32"), scales), False, True)


def _rms_norm(x: ov.Node, weight: AnyArray, epsilon: float) -> ov.Node:
    """Written in the shape that the plug-in recognises and runs as one kernel."""
    square = opset.power(x, opset.constant(np.float32(2)))
    mean = opset.reduce_mean(square, opset.constant(np.array([-1], np.int64)), True)
    root = opset.sqrt(opset.add(mean, opset.constant(np.float32(epsilon))))
    return opset.multiply(opset.multiply(x, opset.divide(opset.constant(np.float32(1)), root)), _values(weight))


def _rotate(x: ov.Node | ov.Output, cos: ov.Node, sin: ov.Node, heads: int, size: int) -> ov.Node:
    """Rotary positions, GPT-NeoX pairing: the first half of a head with its second half. [T, heads * size].

    Written in the shape that the plug-in recognises and runs as one kernel: [batch, heads, positions, size].
    """
    by_head = opset.reshape(x, _shape(-1, heads, 1, size), False)
    halves = opset.variadic_split(by_head, opset.constant(np.int64(3)), _shape(size // 2, size // 2))
    turned = opset.concat([opset.multiply(halves.output(1), opset.constant(np.float32(-1))), halves.output(0)], -1)
    rotated = opset.add(opset.multiply(by_head, cos), opset.multiply(turned, sin))
    return opset.reshape(rotated, _shape(-1, heads * size), False)

"""How many bytes each part of a running engine takes of one GPU.

Computed: weights, prompt table, KV cache. Bounded from above, by formulas that are checked against published logs:
activations and the runtime's buffers. Assumed: what the driver, CUDA and NCCL take (`runtime_bytes`). TensorRT-LLM
itself measures what is left when it makes the KV cache: a bound that is too high only makes the plan too modest.
"""

from __future__ import annotations

import math
from functools import cache

from step_audio.checkpoint import encoder_tensors
from step_audio.config import AudioEncoderConfig, TextConfig
from step_audio.lora import Dimensions
from step_audio.settings import MIB
from step_audio_build.convert.convert_decoder import rank_tensors
from step_audio_build.planning.profiles import KvCacheDType, Precision

BF16 = 2  # bytes
FP32 = 4
AWQ_GROUP = 128  # input columns that share a scale
LINEAR = (".attention.qkv.weight", ".attention.dense.weight", ".mlp.fc.weight", ".mlp.gate.weight", ".mlp.proj.weight")
"""What a quantisation touches; lm_head, embedding, norms and biases stay as they are."""

MAX_TENSOR_ELEMENTS = 2**31 - 1
"""TensorRT: "The volume must be less than 2^31 elements" (NvInfer.h, ITensor::setDimensions). The prompt table is one
input tensor."""

PLUGIN_WORKSPACES = 256 * MIB  # of the GEMM and attention plugins: an assumption, generous
BUFFER_COPIES = 12  # see buffer_bytes

# Assumptions, for GPU 0, which has most. Each rank is a process of its own and sees all GPUs.
DRIVER_RESERVE = 600 * MIB  # never free: nvidia-smi shows 46068 MiB in all and 45469 MiB free on an idle L40S
RANK_PROCESS = 800 * MIB  # CUDA context, modules, cuBLAS of the rank: 0.77 GiB unaccounted for in the log that
# TensorRT-LLM's docs/source/reference/memory.md shows
OTHER_PROCESS = 512 * MIB  # CUDA context of a process that does little there. Triton opens none in the other ranks, for
# its memory pools are off; TensorRT-LLM has been seen to open one of each rank on GPU 0 (issue 3058: 590 MiB shown)
NCCL = 400 * MIB  # channels and buffers


@cache  # it lists hundreds of tensors, and a table of plans asks for the same few again and again
def weight_bytes(text: TextConfig, tp: int, precision: Precision, kv_cache_dtype: KvCacheDType = "bfloat16") -> int:
    """Of one rank: what the converter writes for it, its linear layers in `precision`, with their scales.

    Norms and the embedding are on every rank in full. Scales as TensorRT-LLM 1.2.1's quantization/layers.py declares
    them. Raises ArtefactError when the model cannot be split `tp` ways.
    """
    total = 0
    for tensor in rank_tensors(text, tp):
        if tensor.name.endswith(LINEAR):
            rows, columns = tensor.shape
            total += _linear_bytes(rows, columns, precision)
        else:
            total += BF16 * math.prod(tensor.shape)
    if kv_cache_dtype == "fp8":
        total += 2 * FP32 * text.num_hidden_layers  # kv_cache_scaling_factor and its reciprocal
    return total


def _linear_bytes(rows: int, columns: int, precision: Precision) -> int:
    """rows: outputs. columns: inputs."""
    match precision:
        case "bfloat16":
            return BF16 * rows * columns
        case "int8":
            return rows * columns + BF16 * rows  # per_channel_scale
        case "int4":
            return rows * columns // 2 + BF16 * rows
        case "fp8":
            return rows * columns + 2 * FP32  # weights_scaling_factor, activation_scaling_factor
        case "awq":  # weights_scaling_factor [groups, rows], prequant_scaling_factor [columns]
            return rows * columns // 2 + BF16 * (columns // AWQ_GROUP * rows + columns)


def prompt_table_bytes(text: TextConfig, rows: int) -> int:
    """[rows, hidden] of the model's type, not split, on every rank for as long as the server runs.

    TensorRT-LLM's batch_manager/promptTuningBuffers.cpp makes it, before the KV cache. Each running request has its own
    table beside it from its first chunk to its end: `fill` there copies it to the GPU
    (`LlmRequest::movePromptEmbeddingTableToGpu`), and nothing lets go of it while the request waits or decodes. No more
    requests than max_batch_size are begun (executor/executorImpl.cpp, `mMaxNumActiveRequests`), and none may have more
    rows than its share of the table.
    """
    return BF16 * rows * text.hidden_size


def kv_bytes_per_token(text: TextConfig, tp: int, kv_cache_dtype: KvCacheDType) -> int:
    """Keys and values of all layers, of this rank's heads. With fewer heads than ranks, each rank holds one."""
    heads = max(text.num_key_value_heads // tp, 1)
    return 2 * text.num_hidden_layers * heads * text.head_dim * (1 if kv_cache_dtype == "fp8" else BF16)


def lora_bytes(text: TextConfig, tp: int, rank: int) -> int:
    """Of a rank's caches, what one adapter takes that has all of `MODULES` in this rank.

    A page of the cache holds one adapter of the size that `lora_cache_optimal_adapter_size` says, in slots as wide as
    the smallest module needs for a rank of 1 (TensorRT-LLM batch_manager/peftCacheManager.cpp @0cedd9a,
    getPageManagerConfig). Of each matrix A or B is split over the GPUs, the other whole on each.
    """
    split_inputs = ("attn_dense", "mlp_4h_to_h")
    sizes = [
        inputs // tp + outputs if name in split_inputs else inputs + outputs // tp
        for name, (inputs, outputs) in Dimensions.of(text).widths.items()
    ]
    slot = min(sizes)
    return BF16 * slot * sum(rank * -(-size // slot) for size in sizes) * text.num_hidden_layers


def lora_activation_bytes(text: TextConfig, tp: int, max_num_tokens: int) -> int:
    """At most: what the adapters of one layer add, before it is added."""
    queries, values = (n * text.head_dim for n in (text.num_attention_heads, text.num_key_value_heads))
    split = queries + 2 * values + 2 * text.intermediate_size
    return BF16 * max_num_tokens * (split // tp + 2 * text.hidden_size)


def activation_bytes(text: TextConfig, tp: int, max_num_tokens: int, max_batch_size: int) -> int:
    """At most: TensorRT's execution context memory.

    TensorRT lets tensors that are not alive at once share memory, and layers all of it (TensorRT-LLM's
    docs/source/reference/memory.md). Here one layer's tensors count as if all were alive together, for a full step:
    three of the hidden size, gate, up and their product, queries with keys and values, attention's output. Then the
    logits of one position a sequence, in the model's type and in float32, and the plugins' workspaces.
    """
    heads = text.num_attention_heads // tp
    kv_heads = max(text.num_key_value_heads // tp, 1)
    per_token = 3 * text.hidden_size + 3 * text.intermediate_size // tp + (2 * heads + 2 * kv_heads) * text.head_dim
    return BF16 * max_num_tokens * per_token + (BF16 + FP32) * max_batch_size * text.vocab_size + PLUGIN_WORKSPACES


def buffer_bytes(text: TextConfig, max_batch_size: int, max_seq_len: int) -> int:
    """At most: "GPU memory for runtime buffers" and "for decoder" in TensorRT-LLM's log.

    Both are made of tensors [max_batch_size, vocabulary] and [max_batch_size, max_seq_len] of four bytes. How many is
    not documented; twelve of each are more than either of two published logs show.
    """
    return BUFFER_COPIES * FP32 * max_batch_size * (text.vocab_size + max_seq_len)


def encoder_bytes(audio: AudioEncoderConfig, clips: int) -> int:
    """At most, on GPU 0: weights in 16 bits, activations of `clips` clips, and a process of its own.

    Attention counts as not fused: two float32 copies of the scores [heads, positions, positions] of one layer. Beside
    them 16 float32 tensors [positions, width]: residual, norm, queries, keys, values, output, two of four times the
    width in the MLP, and two to spare.
    """
    weights = BF16 * sum(math.prod(shape) for shape in encoder_tensors(audio).values())
    positions = audio.n_audio_ctx
    scores = 2 * FP32 * audio.n_audio_head * positions**2
    return weights + clips * (scores + 16 * FP32 * positions * audio.n_audio_state) + OTHER_PROCESS


def runtime_bytes(gpus: int) -> int:
    """Assumed: driver, CUDA contexts, NCCL, and the all-reduce workspace of TensorRT-LLM 1.2.1.

    The last is two buffers and three more, each of 8 MB (16 MB for two ranks) for every rank (plugin/plugin.py,
    CustomAllReduceHelper).
    """
    total = DRIVER_RESERVE + RANK_PROCESS
    if gpus > 1:
        total += (gpus - 1) * OTHER_PROCESS + NCCL + 5 * gpus * (16_000_000 if gpus == 2 else 8_000_000)
    return total

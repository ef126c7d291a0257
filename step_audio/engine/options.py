"""How an engine is served, and what it tells of itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeGuard, get_args

from step_audio.engine.scheduler import Policy
from step_audio.engine.trtllm_checkpoint import EngineSpec

Precision = Literal["f32", "bf16"]
Matrices = Literal["stored", "int8"]
ExecutorName = Literal["openvino", "torch"]

DEFAULT_KV_CACHE_BYTES = 2 << 30  # unless the sequences the engine was built for need less


def are_matrices(text: str) -> TypeGuard[Matrices]:
    return text in get_args(Matrices)


@dataclass(frozen=True)
class EngineOptions:
    """How an engine directory is served; the names are those of the `tensorrtllm` backend's parameters."""

    engine_dir: str | Path
    max_tokens_in_paged_kv_cache: int | None = None  # None: max_batch_size full sequences, at most 2 GiB
    enable_kv_cache_reuse: bool = True
    enable_chunked_context: bool = True
    batch_scheduler_policy: Policy = "guaranteed_no_evict"
    max_queue_size: int = 0  # requests waiting for their first step; 0 is unlimited
    normalize_log_probs: bool = True
    xgrammar_tokenizer_info_path: str | Path | None = None  # None: requests with a guide are refused
    precision: Precision | None = None  # None: float32 for weights of float32, bfloat16 for the 16-bit types
    matrices: Matrices = "stored"  # the decoder's as they are, or rounded to 8 bits
    max_loras: int = 0  # adapters that are held, if the engine was built for any; none is ever put out for another
    threads: int = 0  # of the executor; 0 is its own choice
    executor: ExecutorName = "openvino"

    def precision_for(self, spec: EngineSpec) -> Precision:
        """Of arithmetic and KV cache."""
        return self.precision or ("f32" if spec.dtype == "float32" else "bf16")

    def num_blocks(self, spec: EngineSpec) -> int:
        """KV cache blocks for an engine of this spec."""
        tokens = self.max_tokens_in_paged_kv_cache
        if tokens is None:
            size = 4 if self.precision_for(spec) == "f32" else 2
            per_token = 2 * spec.num_layers * spec.num_kv_heads * spec.head_size * size
            tokens = min(spec.max_batch_size * spec.max_seq_len, DEFAULT_KV_CACHE_BYTES // per_token)
        return max(-(-tokens // spec.tokens_per_block), 2)


@dataclass(frozen=True)
class EngineStats:
    """A moment's numbers; `scheduled`, `context` and `generation` are those of the last step, 0 when idle."""

    healthy: bool  # the last step, if any, was computed without a fault of the executor
    iteration: int  # steps so far
    active_requests: int
    waiting_requests: int  # of these, not yet scheduled
    max_batch_size: int
    scheduled: int  # sequences
    context: int  # of these, computing their prompt
    generation: int
    kv_blocks_max: int
    kv_blocks_free: int
    kv_blocks_used: int
    kv_blocks_reused: int  # ever
    kv_blocks_allocated: int  # ever
    tokens_per_block: int
    total_requests: int  # accepted ever
    total_generated_tokens: int

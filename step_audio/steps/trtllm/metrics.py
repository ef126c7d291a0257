"""The engine's counters under the names that NVIDIA's backend reports (`nv_trt_llm_*`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from step_audio.engine import EngineStats


@dataclass(frozen=True)
class Reading:
    """The value of one gauge now."""

    family: str
    description: str
    label: str  # label name within the family
    value_of: str  # label value
    value: float


FAMILIES = {
    "nv_trt_llm_request_metrics": ("TRT LLM request metrics", "request_type"),
    "nv_trt_llm_kv_cache_block_metrics": ("TRT LLM KV cache block metrics", "kv_cache_block_type"),
    "nv_trt_llm_inflight_batcher_metrics": ("TRT LLM inflight batcher metrics", "inflight_batcher_specific_metric"),
    "nv_trt_llm_general_metrics": ("General TRT LLM metrics", "general_type"),
}


def readings(stats: EngineStats) -> Iterator[Reading]:
    """Memory gauges are left out: this engine's memory is the process's own, which the system reports."""
    values: dict[str, dict[str, float]] = {
        "nv_trt_llm_request_metrics": {
            "active": stats.active_requests,
            "max": stats.max_batch_size,
            "scheduled": stats.scheduled,
            "context": stats.context,
            "waiting": stats.waiting_requests,
        },
        "nv_trt_llm_kv_cache_block_metrics": {
            "max": stats.kv_blocks_max,
            "free": stats.kv_blocks_free,
            "used": stats.kv_blocks_used,
            "tokens_per": stats.tokens_per_block,
            "reused": stats.kv_blocks_reused,
            "fraction": stats.kv_blocks_used / max(stats.kv_blocks_max, 1),
        },
        "nv_trt_llm_inflight_batcher_metrics": {"generation_requests": stats.generation},
        "nv_trt_llm_general_metrics": {"iteration_counter": stats.iteration},
    }
    for family, table in values.items():
        description, label = FAMILIES[family]
        for value_of, value in table.items():
            yield Reading(family, description, label, value_of, float(value))

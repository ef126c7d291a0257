"""What vLLM's process and the stub before it are told: a file that `step-audio serve` writes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

GPU_MEMORY_UTILIZATION = 0.9  # vLLM's own default
PATIENCE = 8.0  # seconds
STEP = 8192  # positions


@dataclass(frozen=True)
class VllmOptions:
    """Names are vLLM's where it has the option."""

    model: str  # a folder of a Qwen2 model with its tokenizer
    socket: str  # where the process listens
    dtype: str
    vocab_size: int
    hidden_size: int
    max_seq_len: int
    max_batch_size: int
    max_num_tokens: int
    max_prompt_vocab_size: int  # rows of the prompt table that one request may bring
    enable_prefix_caching: bool
    enable_chunked_prefill: bool
    tensor_parallel_size: int
    kv_cache_bytes: int | None  # of each rank; None: what gpu_memory_utilization leaves
    cpu_kv_cache_bytes: int  # where there is no GPU, and kv_cache_bytes does not say
    gpu_memory_utilization: float  # of the memory of each GPU, weights and all
    stop_ids: tuple[int, ...]  # the tokenizer's own stop tokens, which no guide holds

    @property
    def patience(self) -> float:
        """Seconds that a step may take: PATIENCE for one of STEP positions, and in proportion for a larger one."""
        return PATIENCE * max(1.0, self.max_num_tokens / STEP)

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", "utf-8")

    @classmethod
    def read(cls, path: str | Path) -> VllmOptions:
        values = json.loads(Path(path).read_text("utf-8"))
        return cls(**{**values, "stop_ids": tuple(values["stop_ids"])})

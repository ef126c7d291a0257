"""What vLLM's process is told of a server's settings."""

from __future__ import annotations

import json

from step_audio.artefacts import Artefacts
from step_audio.config import ModelConfig
from step_audio.vllm.options import GPU_MEMORY_UTILIZATION, VllmOptions
from step_audio_server.settings import ServeSettings

SPARE = 256  # positions: vLLM keeps a block for itself, and blocks, of 128 at most, are whole
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def write_options(settings: ServeSettings, model: ModelConfig, artefacts: Artefacts) -> VllmOptions:
    """Into `settings.vllm_dir`, which the stub reads, too."""
    text, length = model.text, settings.resolved_max_seq_len(model)
    heads = -(-text.num_key_value_heads // settings.vllm_ranks)
    position = 2 * text.num_hidden_layers * heads * text.head_dim * BYTES[artefacts.table_dtype]
    options = VllmOptions(
        model=str(artefacts.engine_dir.resolve()),
        socket=str((settings.vllm_dir / "socket").resolve()),
        dtype=artefacts.table_dtype,
        vocab_size=text.vocab_size,
        hidden_size=text.hidden_size,
        max_seq_len=length,
        max_batch_size=settings.max_batch_size,
        max_num_tokens=settings.max_num_tokens if settings.chunked_context else max(settings.max_num_tokens, length),
        max_prompt_vocab_size=artefacts.max_prompt_table_rows,
        enable_prefix_caching=settings.kv_cache_reuse,
        enable_chunked_prefill=settings.chunked_context,
        tensor_parallel_size=settings.vllm_ranks,
        kv_cache_bytes=settings.kv_cache_tokens and (settings.kv_cache_tokens + SPARE) * position,
        cpu_kv_cache_bytes=4 * length * position,
        gpu_memory_utilization=settings.gpu_memory_utilization or GPU_MEMORY_UTILIZATION,
        stop_ids=tuple(json.loads(artefacts.xgrammar_tokenizer_info_file.read_text("utf-8"))["stop_token_ids"]),
    )
    settings.vllm_dir.mkdir(parents=True, exist_ok=True)
    options.write(settings.vllm_dir / "options.json")
    return options

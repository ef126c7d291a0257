"""Assembly of what `tritonserver` is started on: a work copy of the model repository, and the backends.

WORK/server-PORT/runtime.json       what the Python models read
WORK/server-PORT/serving_info.json  what clients are told
WORK/server-PORT/repository/        model_repository/ with every config.pbtxt filled
WORK/server-PORT/backends/          without a GPU: python (the server's own) and tensorrtllm (ours)
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from step_audio.artefacts import Artefacts
from step_audio.config import ModelConfig
from step_audio.generation_config import pace_of, suggestions_of
from step_audio.lora import task_id
from step_audio.steps.runtime import Runtime
from step_audio_server import encoder_gpu
from step_audio_server.assets import asset
from step_audio_server.repository.sampling_inputs import ensemble_values, llm_values, taken
from step_audio_server.repository.template import fill
from step_audio_server.settings import ServeSettings

if TYPE_CHECKING:
    from step_audio_build.planning.profiles import Profile

TRITON_TYPES = {"float32": "TYPE_FP32", "bfloat16": "TYPE_BF16", "float16": "TYPE_FP16"}

SERVING_INFO = "serving_info.json"

# How often the LLM backend looks for cancelled direct requests, and reports its gauges.
CANCELLATION_CHECK_MS = 100
STATS_CHECK_MS = 50


def assemble(settings: ServeSettings, model: ModelConfig, artefacts: Artefacts, profile: Profile | None = None) -> Path:
    """Write runtime.json and repository/, replacing what was there; returns the repository.

    `profile`: for NVIDIA's backend and the GPUs that it says; None: for ours.
    """
    work = settings.run_dir
    work.mkdir(parents=True, exist_ok=True)
    runtime = Runtime(
        model=model,
        name=settings.checkpoint.resolve().name,
        tokenizer_file=artefacts.tokenizer_file,
        encoder_file=artefacts.encoder_file,
        encoder_gpu=encoder_gpu.first() if settings.encoder_device == "cuda" else None,
        chat_template=settings.chat_template,
        length_rule=settings.length_rule,
        max_seq_len=settings.resolved_max_seq_len(model),
        max_batch_size=settings.max_batch_size,
        max_prompt_table_rows=artefacts.max_prompt_table_rows,
        tokens_per_block=artefacts.tokens_per_block,
        encoder_batch_clips=settings.encoder_batch_clips,
        encoder_cache_bytes=settings.encoder_cache_bytes,
        table_dtype=artefacts.table_dtype,
        limits=settings.limits,
        adapters={name: task_id(name) for name in settings.adapters},
        sampling_parameters=tuple(one.name for one in taken(nvidia=profile is not None)),
        pace=pace_of(settings.checkpoint),
        suggestions=suggestions_of(settings.checkpoint),
    )
    runtime_file = work / "runtime.json"
    runtime_file.write_text(runtime.model_dump_json(indent=2), encoding="utf-8")
    (work / SERVING_INFO).write_text(json.dumps(runtime.serving_info()), encoding="utf-8")

    repository = work / "repository"
    shutil.rmtree(repository, ignore_errors=True)
    values = template_values(settings, runtime, runtime_file, artefacts, profile)
    for folder in sorted(asset("model_repository").iterdir()):
        if not folder.is_dir():
            continue
        shutil.copytree(folder, repository / folder.name, ignore=shutil.ignore_patterns("__pycache__"))
        (repository / folder.name / "1").mkdir(exist_ok=True)  # an ensemble's version folder is empty: git drops it
        config = repository / folder.name / "config.pbtxt"
        config.write_text(fill(config.read_text("utf-8"), values.get(folder.name, {}), folder.name), "utf-8")
    return repository


def template_values(
    settings: ServeSettings, runtime: Runtime, runtime_file: Path, artefacts: Artefacts, profile: Profile | None
) -> dict[str, dict[str, object]]:
    """Model name -> placeholder -> value."""
    step: dict[str, object] = {"runtime_file": runtime_file}
    batched = step | {"preprocessing_batch_size": settings.preprocessing_batch_size}
    n_mels: dict[str, object] = {"n_mels": runtime.model.audio.n_mels}
    table_type: dict[str, object] = {"prompt_embedding_table_data_type": TRITON_TYPES[runtime.table_dtype]}
    parameters = taken(nvidia=profile is not None)
    sampling = ensemble_values(parameters)
    hidden_size: dict[str, object] = {"hidden_size": runtime.model.text.hidden_size}
    return {
        "audio_featurizer": batched | n_mels,
        "prompt_builder": batched,
        "audio_encoder": batched
        | n_mels
        | table_type
        | hidden_size
        | {"encoder_placement": "kind: KIND_CPU" if profile is None else "kind: KIND_GPU, gpus: [ 0 ]"},
        "step_audio_continue": n_mels | sampling,
        "step_audio_r1": sampling,
        "step_audio_text": sampling,
        "lease": {
            "run_dir": runtime_file.parent,
            "max_seconds_without_lease": settings.max_seconds_without_lease,
        },
        "tokenizer": {
            "tokenizer_json_file": runtime.tokenizer_file,
            "serving_info_file": runtime_file.with_name(SERVING_INFO),
        },
        "tensorrt_llm": table_type
        | {
            "lora_weights_data_type": TRITON_TYPES[runtime.table_dtype],
            "encoder_input_features_data_type": TRITON_TYPES[runtime.table_dtype],
            "logits_datatype": "TYPE_FP32",
            "max_batch_size": settings.max_batch_size,
            "max_queue_size": settings.max_queue_size,
            "engine_dir": artefacts.engine_dir,
            "xgrammar_tokenizer_info_path": artefacts.xgrammar_tokenizer_info_file,
            "decoder_matrices": settings.decoder_matrices,
            "vllm_options": settings.vllm_dir / "options.json" if settings.llm == "vllm" else "",
            "batch_scheduler_policy": settings.batch_scheduler_policy,
            "cancellation_check_period_ms": CANCELLATION_CHECK_MS,
            "stats_check_period_ms": STATS_CHECK_MS,
            "enable_kv_cache_reuse": settings.kv_cache_reuse,
            "enable_chunked_context": settings.chunked_context,
        }
        | llm_values(parameters)
        | _batcher_and_cache(settings, runtime, profile)
        | _adapter_caches(settings, runtime, profile),
    }


def _batcher_and_cache(settings: ServeSettings, runtime: Runtime, profile: Profile | None) -> dict[str, object]:
    """What our backend and NVIDIA's are told differently; the template says why, of the batcher.

    The size of the KV cache: ours takes tokens. NVIDIA's takes the fraction of the memory that is free after its engine
    is loaded, unless it can read a number of tokens, which an empty string is not (TensorRT-LLM
    triton_backend/inflight_batcher_llm/src/model_instance_state.cc @0c8de69, getKvCacheConfigFromParams).
    """
    if profile is None:
        return {
            "dynamic_batching": "",
            "max_tokens_in_paged_kv_cache": settings.kv_cache_tokens or 4 * runtime.max_seq_len,
            "kv_cache_free_gpu_mem_fraction": 0.9,
        }
    from step_audio_build.planning.memory_plan import kv_fraction

    rows = runtime.max_prompt_table_rows
    queue = f"default_queue_policy {{ max_queue_size: {settings.max_queue_size} }}"
    return {
        "dynamic_batching": f"dynamic_batching {{ {queue} }}",
        "max_tokens_in_paged_kv_cache": "",
        "kv_cache_free_gpu_mem_fraction": kv_fraction(profile, runtime.model, runtime.max_batch_size, rows),
    }


def _adapter_caches(settings: ServeSettings, runtime: Runtime, profile: Profile | None) -> dict[str, object]:
    """Of NVIDIA's two caches the host's holds all that are served, for it drops what has no room, and nobody would send
    it again; the GPU's is what the plan has given it."""
    nothing: dict[str, object] = dict.fromkeys(
        ("lora_cache_adapter_size", "lora_cache_gpu_memory_fraction", "lora_cache_host_memory_bytes"), ""
    )
    if profile is None or not profile.max_lora_rank:
        return nothing | {"max_loras": len(settings.adapters)}
    from step_audio_build.planning.memory_plan import lora_fraction
    from step_audio_build.planning.memory_sizes import lora_bytes

    fraction = lora_fraction(profile, runtime.model, runtime.max_batch_size, runtime.max_prompt_table_rows)
    one = lora_bytes(runtime.model.text, profile.gpus, profile.max_lora_rank)
    return nothing | {
        "max_loras": "",
        "lora_cache_adapter_size": profile.max_lora_rank,
        "lora_cache_gpu_memory_fraction": f"{fraction:.4f}",
        "lora_cache_host_memory_bytes": (len(settings.adapters) + 1) * one,
    }


def assemble_backends(run_dir: Path, server_backends: Path, stub: Path) -> Path:
    """backends/, for `--backend-directory`.

    Files are copied, not linked: tritonserver resolves links and refuses a library outside the directory.
    """
    backends = run_dir / "backends"
    shutil.rmtree(backends, ignore_errors=True)
    shutil.copytree(server_backends / "python", backends / "python", ignore=shutil.ignore_patterns("__pycache__"))
    copied = Path(shutil.copy(stub, backends / "python" / "triton_python_backend_stub"))
    copied.chmod(0o755)
    shutil.copytree(asset("backends"), backends, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    return backends

"""The command line of TensorRT-LLM 1.2.1's `trtllm-build` for a profile: every flag with its reason and source.

A flag that would only repeat trtllm-build's default is given where a wrong value would not show: an engine without
paged context attention serves, but neither reuses its KV cache nor takes long prompts in chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from step_audio.lora import MODULES
from step_audio_build.planning.memory_plan import MemoryPlan
from step_audio_build.planning.profiles import ISSUES, Profile

PROGRAM = "trtllm-build"

# Files of https://github.com/NVIDIA/TensorRT-LLM at commits of its 1.x line.
BUILD = "tensorrt_llm/commands/build.py @65f1d15"
PLUGIN = "tensorrt_llm/plugin/plugin.py @c20322f"
BUILDER = "tensorrt_llm/builder.py @008b2b8"
TABLE = "cpp/tensorrt_llm/batch_manager/promptTuningBuffers.cpp @2868d79"


@dataclass(frozen=True)
class TrtllmBuildJob:
    """What a value may depend on."""

    profile: Profile
    plan: MemoryPlan
    checkpoint_dir: Path
    engine_dir: Path
    timing_cache: Path
    workers: int


@dataclass(frozen=True)
class Flag:
    """A flag of `trtllm-build`: its value for a job, why it is given, and where that is written."""

    value: Callable[[TrtllmBuildJob], object]
    why: str
    source: str


FLAGS: dict[str, Flag] = {
    "--checkpoint_dir": Flag(lambda job: job.checkpoint_dir, "TensorRT-LLM checkpoint, one file a rank", BUILD),
    "--output_dir": Flag(lambda job: job.engine_dir, "one engine a rank, and config.json", BUILD),
    "--workers": Flag(lambda job: job.workers, "all ranks at once, or as many as host memory allows", BUILD),
    "--max_batch_size": Flag(
        lambda job: job.plan.build.max_batch_size, "the plan's; it also divides the prompt table", f"{BUILD}; {TABLE}"
    ),
    "--max_seq_len": Flag(lambda job: job.plan.build.max_seq_len, "prompt and answer together", BUILD),
    "--max_num_tokens": Flag(
        lambda job: job.plan.build.max_num_tokens,
        "positions of one step, and the chunk of a long prompt; activations grow with it",
        f"{BUILD}; docs/source/reference/memory.md @7ff5302",
    ),
    "--max_beam_width": Flag(lambda job: 1, "answers are sampled", BUILD),
    "--max_prompt_embedding_table_size": Flag(
        lambda job: job.plan.build.max_prompt_embedding_table_size,
        "the plan's: rows of one request times max_batch_size; more than 0 switches audio on",
        f"{BUILD}; {TABLE}",
    ),
    "--logits_dtype": Flag(lambda job: "float32", "what the Triton model's config says of its logits", BUILD),
    "--kv_cache_type": Flag(lambda job: "paged", "in-flight batching needs it", BUILD),
    "--tokens_per_block": Flag(
        lambda job: job.plan.build.tokens_per_block, "how finely KV cache is reused; the default", PLUGIN
    ),
    "--gpt_attention_plugin": Flag(lambda job: "bfloat16", "in-flight batching needs it; the model's type", PLUGIN),
    "--gemm_plugin": Flag(
        lambda job: "disable" if job.profile.precision == "fp8" else "bfloat16",
        "cuBLASLt for products that are not quantised; with FP8 trtllm-build's default",
        PLUGIN,
    ),
    "--remove_input_padding": Flag(lambda job: "enable", "in-flight batching needs it", PLUGIN),
    "--context_fmha": Flag(lambda job: "enable", "memory linear in the length; paged context needs it", BUILDER),
    "--use_paged_context_fmha": Flag(
        lambda job: "enable", "KV reuse and prompts longer than max_num_tokens need it", f"{PLUGIN}; {BUILDER}"
    ),
    "--use_fp8_context_fmha": Flag(
        lambda job: "enable" if job.profile.kv_cache_dtype == "fp8" else "disable",
        "must go together with an FP8 KV cache, or trtllm-build turns it off with a warning",
        BUILDER,
    ),
    "--multiple_profiles": Flag(
        lambda job: "disable", "several have doubled the weights' memory", f"{PLUGIN}; memory.md @5a211b9"
    ),
    "--input_timing_cache": Flag(lambda job: job.timing_cache, "a rebuild takes less time; ignored if absent", BUILD),
    "--output_timing_cache": Flag(lambda job: job.timing_cache, "written by rank 0", f"{BUILD}; {BUILDER}"),
}

LORA_FLAGS: dict[str, Flag] = {
    "--lora_plugin": Flag(
        lambda job: "bfloat16", "adapters; the model's type", f"{PLUGIN}; docs/source/advanced/lora.md"
    ),
    "--lora_target_modules": Flag(
        lambda job: " ".join(module.name for module in MODULES),
        "of queries, keys and values all or none; what an adapter lacks costs nothing",
        f"{BUILD}; tensorrt_llm/layers/attention.py",
    ),
    "--max_lora_rank": Flag(lambda job: job.profile.max_lora_rank, "the profile's", BUILD),
}
"""For a profile that serves adapters."""

LEFT_OUT: dict[str, str] = {
    "--gather_generation_logits": f"a cancelled stream can crash the server with it ({ISSUES}/10810)",
    "--gather_context_logits": "keeps the logits of all prompt positions, which nothing reads",
    "--gather_all_token_logits": "both of these",
    "--max_input_len": "the runtime takes max_seq_len - 1 with chunked context, whatever it says",
    "--reduce_fusion": "TensorRT-LLM turns it off for Qwen2",
    "--user_buffer": "TensorRT-LLM turns it off without --reduce_fusion",
    "--streamingllm": "no longer supported",
    "--nccl_plugin": "TensorRT-LLM sets it itself where there are several ranks",
}
"""Flags that others use, and why they are not here."""


def command(
    profile: Profile,
    plan: MemoryPlan,
    checkpoint_dir: Path,
    engine_dir: Path,
    timing_cache: Path,
    workers: int,
) -> list[str]:
    """`trtllm-build` and its arguments.

    `timing_cache` is a file, read where it is there and written at the end. `workers`: ranks that are built at once.
    """
    job = TrtllmBuildJob(profile, plan, checkpoint_dir, engine_dir, timing_cache, workers)
    flags = FLAGS | (LORA_FLAGS if profile.max_lora_rank else {})
    return [PROGRAM, *(part for name, flag in flags.items() for part in (name, *str(flag.value(job)).split(" ")))]

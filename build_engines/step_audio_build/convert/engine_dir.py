"""A TensorRT-LLM checkpoint -> an engine directory for machines without a GPU.

It looks like the output of `trtllm-build`: config.json with `pretrained_config` and `build_config`. Where a GPU's
directory has compiled engines, this one has links to the rank files, from which the CPU backend loads.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from step_audio.errors import ArtefactError
from step_audio.settings import Settings
from step_audio_build.artefacts.manifest import read_manifest, to_json, write_atomically

VERSION = "1.2.1"  # of TensorRT-LLM, whose layout this is


class BuildConfig(Settings):
    """The limits that an engine is built for, under `trtllm-build`'s names."""

    max_batch_size: PositiveInt  # requests decoded together
    max_seq_len: PositiveInt  # tokens, prompt and answer together
    max_num_tokens: PositiveInt  # tokens of one step over all requests; the chunk of a long prompt
    max_prompt_embedding_table_size: PositiveInt  # audio embeddings; each request may have 1/max_batch_size
    max_lora_rank: NonNegativeInt = 0  # of adapters; 0: none
    tokens_per_block: PositiveInt = Field(default=32, description="granularity of the KV cache and of its reuse")

    @model_validator(mode="after")
    def _consistent(self) -> BuildConfig:
        if self.tokens_per_block & (self.tokens_per_block - 1):
            raise ValueError(f"tokens_per_block {self.tokens_per_block} is not a power of two")
        if self.max_prompt_embedding_table_size < self.max_batch_size:
            raise ValueError(
                f"max_prompt_embedding_table_size {self.max_prompt_embedding_table_size} leaves no row for each of "
                f"max_batch_size {self.max_batch_size} requests"
            )
        if self.max_num_tokens < max(self.max_batch_size, self.tokens_per_block):
            raise ValueError(
                f"max_num_tokens {self.max_num_tokens} is below max_batch_size {self.max_batch_size} "
                f"or tokens_per_block {self.tokens_per_block}"
            )
        return self

    def to_dict(self) -> dict[str, Any]:
        """`build_config` as `trtllm-build` writes it."""
        return {
            "max_input_len": self.max_seq_len,
            "max_seq_len": self.max_seq_len,
            "max_batch_size": self.max_batch_size,
            "max_beam_width": 1,
            "max_num_tokens": self.max_num_tokens,
            "opt_num_tokens": self.max_batch_size,
            "max_prompt_embedding_table_size": self.max_prompt_embedding_table_size,
            "gather_context_logits": False,
            "gather_generation_logits": False,
            "kv_cache_type": "PAGED",
            **({"lora_config": {"max_lora_rank": self.max_lora_rank}} if self.max_lora_rank else {}),
            "plugin_config": {
                "lora_plugin": "auto" if self.max_lora_rank else None,
                "tokens_per_block": self.tokens_per_block,
                "remove_input_padding": True,
                "context_fmha": True,
                "paged_kv_cache": True,
                "use_paged_context_fmha": True,
            },
        }


def build_cpu_engine_dir(
    trtllm_checkpoint_dir: str | Path, engine_dir: str | Path, build: BuildConfig
) -> dict[str, Any]:
    """Write `engine_dir` and return its config.json. Quick, so an older one is simply replaced.

    The two directories may be moved together: the links are relative. Raises ArtefactError when the checkpoint is
    unfinished, the limits exceed the model's, or the directory holds compiled engines.
    """
    source, target = Path(trtllm_checkpoint_dir), Path(engine_dir)
    manifest = read_manifest(source / "manifest.json")
    if manifest is None:
        raise ArtefactError(f"{source} is not a finished TensorRT-LLM checkpoint; run the conversion first")
    manifest.check(source)
    pretrained = json.loads((source / "config.json").read_text(encoding="utf-8"))
    positions = pretrained["max_position_embeddings"]
    if build.max_seq_len > positions:
        raise ArtefactError(f"max_seq_len {build.max_seq_len} is above the model's {positions} positions; lower it")
    links = list(target.glob("rank*.safetensors"))
    if any(target.glob("rank*.engine")) or not all(link.is_symlink() for link in links):
        raise ArtefactError(f"{target} holds compiled engines or weights; choose another directory for the CPU")

    target.mkdir(parents=True, exist_ok=True)
    (target / "config.json").unlink(missing_ok=True)  # no config.json, no engine: it comes last
    for link in links:
        link.unlink()
    for output in manifest.outputs:
        if output.name.startswith("rank"):
            # resolve(): the link is followed from the real directory, whatever links led there
            (target / output.name).symlink_to(os.path.relpath(source.resolve() / output.name, target.resolve()))
    config = {"version": VERSION, "pretrained_config": pretrained, "build_config": build.to_dict()}
    write_atomically(target / "config.json", to_json(config))
    return config

"""What a build hands to a server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from step_audio.config import DType


@dataclass(frozen=True)
class Artefacts:
    """What the build scripts made."""

    engine_dir: Path
    encoder_file: Path
    tokenizer_file: Path
    xgrammar_tokenizer_info_file: Path
    table_dtype: DType
    max_prompt_table_rows: int
    tokens_per_block: int  # of the LLM's KV cache

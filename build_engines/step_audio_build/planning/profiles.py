"""The machines that the product is made for, each in two shapes, as data: profiles/NAME.toml and profiles/gpus.toml.

A profile says what is wished for; `memory_plan` says what of it fits. What is known to fail in TensorRT-LLM 1.2.1 is
refused here, before anything is built.
"""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from step_audio.clips import CLIP_SAMPLES, SAMPLE_RATE
from step_audio.config import Strict
from step_audio.errors import SettingsError
from step_audio.mel import TOKENS_PER_SECOND, frame_count, token_count
from step_audio.validation import first_fault

FOLDER = Path(__file__).parents[1] / "profiles"
GPUS_FILE = "gpus.toml"
MARKERS_PER_CLIP = 2  # <audio_start> and <audio_end>
FP8_SM = 89  # Ada is the first with FP8 in its tensor cores
NUM_TOKENS_WARNED = 16_384  # trtllm-build advises against more

Precision = Literal["bfloat16", "int8", "int4", "fp8", "awq"]
KvCacheDType = Literal["bfloat16", "fp8"]
EncoderPrecision = Literal["float32", "bfloat16", "float16"]

ISSUES = "https://github.com/NVIDIA/TensorRT-LLM/issues"
REFUSED = {
    "gather_generation_logits": f"it lets a cancelled stream crash the server ({ISSUES}/10810)",
    "gather_context_logits": "it keeps the logits of every prompt position, and nothing here reads them",
    "kv_cache_host_memory_bytes": f"requests got tokens of other requests with it ({ISSUES}/8813)",
    "enable_trt_overlap": "it makes a second prompt table",
}
"""Settings that people look for, and why there is no such key."""


class Gpu(Strict):
    """One card."""

    name: str  # words of the name that nvidia-smi prints: "H20" is not "H200", nor "H20-3e"
    memory_bytes: PositiveInt  # nvidia-smi's total
    bandwidth: PositiveFloat  # bytes/s between the GPU and its memory
    sm: PositiveInt  # compute capability: an engine runs on the one it was built on
    nvlink: bool


class Profile(Strict):
    """A machine, and what is to run on it."""

    name: str  # the file's, without .toml
    gpu: Gpu
    gpus: PositiveInt  # ranks of the decoder
    max_seq_len: PositiveInt  # positions, prompt and answer together
    max_batch_size: PositiveInt  # sequences in flight, at most
    max_num_tokens: int = Field(8192, ge=32)  # positions computed in one step; a long prompt's chunk, of whole blocks
    precision: Precision = "bfloat16"
    kv_cache_dtype: KvCacheDType = "bfloat16"
    fp8_kv_cache_despite_faults: bool = False  # what kv_cache_dtype "fp8" asks for
    max_audio_seconds: PositiveFloat  # that one request's prompt table must hold
    max_lora_rank: int = Field(0, ge=0, le=64)  # of adapters; 0: none can be served; beyond 64 no request carries one
    max_loras: PositiveInt = 4  # adapters at work at once
    kv_fraction: float = Field(0.85, gt=0, lt=1)  # kv_cache_free_gpu_mem_fraction, at most
    encoder_batch_clips: PositiveInt = 4  # clips in one run of the audio encoder

    @model_validator(mode="after")
    def _known_to_work(self) -> Profile:
        if self.kv_cache_dtype == "fp8" and self.precision != "fp8":
            raise ValueError(
                'kv_cache_dtype "fp8" needs precision "fp8": with other weights trtllm-build turns paged context '
                "attention off, and with it KV reuse and long prompts in chunks"
            )
        if self.kv_cache_dtype == "fp8" and not self.fp8_kv_cache_despite_faults:
            raise ValueError(
                f"an FP8 KV cache gave wrong answers with Qwen2.5 ({ISSUES}/4218, {ISSUES}/2699); leave "
                "kv_cache_dtype out, or set fp8_kv_cache_despite_faults = true and compare the answers"
            )
        if self.precision == "fp8" and self.gpu.sm < FP8_SM:
            raise ValueError(f'precision "fp8" needs a GPU of compute capability {FP8_SM}, not {self.gpu.sm}')
        if self.max_num_tokens < self.max_batch_size:
            raise ValueError(f"max_num_tokens {self.max_num_tokens} is below max_batch_size {self.max_batch_size}")
        if audio_positions(self.max_audio_seconds) >= self.max_seq_len:
            raise ValueError(
                f"{self.max_audio_seconds:g} s of audio are {audio_positions(self.max_audio_seconds)} positions, "
                f"which max_seq_len {self.max_seq_len} has no room for; lower max_audio_seconds"
            )
        return self

    def warnings(self) -> list[str]:
        """What has gone wrong for others on such a machine, one line each."""
        lines = []
        if self.kv_cache_dtype == "fp8":
            lines.append(f"FP8 KV cache: compare the answers with those of bfloat16 ({ISSUES}/4218, {ISSUES}/2699)")
        if self.max_num_tokens > NUM_TOKENS_WARNED:
            lines.append(f"max_num_tokens {self.max_num_tokens}: trtllm-build advises at most {NUM_TOKENS_WARNED}")
        if self.gpus > 1 and not self.gpu.nvlink:
            lines.append(
                "no NVLink: where loading hangs, enlarge /dev/shm (docker --shm-size) and set NCCL_P2P_DISABLE=1 "
                f"({ISSUES}/9680)"
            )
        if self.gpus > 1 and self.gpu.nvlink:
            lines.append(
                "the audio encoder shares GPU 0 with the decoder: where decoding hangs, set "
                f"FORCE_NCCL_ALL_REDUCE_STRATEGY=1 ({ISSUES}/1601)"
            )
        return lines


def audio_rows(seconds: float) -> int:
    """Rows of the prompt table, one per audio token, of a recording of this length, which is cut into clips."""
    clips, rest = divmod(math.ceil(seconds * SAMPLE_RATE), CLIP_SAMPLES)
    return clips * token_count(frame_count(CLIP_SAMPLES)) + (token_count(frame_count(rest)) if rest else 0)


def audio_seconds(rows: int) -> int:
    """The longest recording, in whole seconds, that `rows` rows are enough for."""
    seconds = math.ceil(rows / TOKENS_PER_SECOND)
    while audio_rows(seconds) > rows:
        seconds -= 1
    return seconds


def audio_positions(seconds: float) -> int:
    """Positions of the prompt that such a recording takes: its rows, and the markers around each clip."""
    return audio_rows(seconds) + MARKERS_PER_CLIP * math.ceil(seconds * SAMPLE_RATE / CLIP_SAMPLES)


def profile_names() -> list[str]:
    """Those that come along."""
    return sorted(path.stem for path in FOLDER.glob("*.toml") if path.name != GPUS_FILE)


def load_profile(name_or_path: str | Path) -> Profile:
    """One that comes along, by its name, or any by the path of its TOML file. Raises SettingsError."""
    path = Path(name_or_path)
    if path.suffix != ".toml":
        if str(name_or_path) not in profile_names():
            raise SettingsError(
                f"there is no profile {name_or_path}; use {', '.join(profile_names())}, or the path of a .toml file"
            )
        path = FOLDER / f"{name_or_path}.toml"
    values = _read(path)
    if refused := [key for key in REFUSED if key in values]:
        raise SettingsError(f"{path.name}: there is no {refused[0]}: {REFUSED[refused[0]]}")
    try:
        return Profile(**{**values, "name": path.stem, "gpu": _gpu(values.get("gpu"), path.name)})
    except ValidationError as error:
        raise SettingsError(f"{path.name}: {first_fault(error)}") from None


def _gpu(value: Any, where: str) -> Gpu:
    """`gpu = "H100"`, or a table of the same keys as in gpus.toml and `name`."""
    cards = _read(FOLDER / GPUS_FILE)
    if isinstance(value, str) and value in cards:
        value = {"name": value, **cards[value]}
    if not isinstance(value, dict):
        raise SettingsError(f"{where}: gpu must be one of {', '.join(cards)}, or a table [gpu] as in {GPUS_FILE}")
    value = dict(value)
    try:
        return Gpu(memory_bytes=int(value.pop("memory_mib", 0)) << 20, **value)
    except (ValidationError, TypeError, ValueError) as error:
        reason = first_fault(error) if isinstance(error, ValidationError) else "memory_mib must be a number"
        raise SettingsError(f"{where}: gpu: {reason}") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from None
    except ValueError as error:  # not TOML, or not text
        raise SettingsError(f"{path.name} is not valid TOML: {error}") from None

"""What a build for GPUs is told, and where everything of it lies.

    WORK/decoder-tp4-bfloat16/   TensorRT-LLM checkpoint: config.json, rank0..3.safetensors, manifest.json
    WORK/decoder-tp4-int8/       the same of another precision
    WORK/qwen2/                  the decoder as a Hugging Face model, where NVIDIA's quantiser needs one
    WORK/encoder-L.onnx, tokenizer.json, xgrammar_tokenizer_info.json
    WORK/NAME-REVISION/          the checkpoint, where it is downloaded
    WORK/PROFILE/                encoder.plan, engine/, check.json, and the manifest and log of each stage

What does not depend on the GPU is shared by all profiles of a work directory.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import PositiveInt, model_validator

from step_audio.checkpoint import encoder_tensors
from step_audio.command_line import Echo
from step_audio.config import DType, ModelConfig
from step_audio.mel import LengthRule
from step_audio.settings import Settings
from step_audio_build.planning.memory_plan import MemoryPlan, plan
from step_audio_build.planning.profiles import EncoderPrecision, Profile
from step_audio_build.stages.calibration import DEFAULT_DATA

DTYPE: DType = "bfloat16"  # of all that is not quantised, the prompt table included, as the model was trained

# triton-inference-server/tensorrtllm_backend dockerfile/Dockerfile.triton.trt_llm_backend@0b9d7d5: TensorRT-LLM's
# examples are copied to /app/examples.
QUANTIZE_SCRIPT = Path("/app/examples/quantization/quantize.py")

DEFAULT_MODEL = "stepfun-ai/Step-Audio-R1.1@8abb296c09123345b09de57dbc2830b6a12134b1"
MODEL = re.compile(r"([\w.-]+/[\w.-]+)@([\w./-]+)")


class BuildSettings(Settings):
    """Everything `step-audio build` can be told."""

    profile: Profile
    work_dir: Path
    checkpoint: Path | None = None  # a directory that is there, or else
    model: str | None = None  # HF_ID@REVISION, to be downloaded
    length_rule: LengthRule = "L"
    encoder_precision: EncoderPrecision = "bfloat16"
    quantize_script: Path = QUANTIZE_SCRIPT  # NVIDIA's, for precisions fp8 and awq
    calibration_data: str = (
        DEFAULT_DATA  # of the quantiser: the data set on the hub, or a folder, as `calibration` says
    )
    workers: PositiveInt | None = None  # ranks whose engines are built at once; None: as many as fit into memory

    @model_validator(mode="after")
    def _one_source(self) -> BuildSettings:
        if (self.checkpoint is None) == (self.model is None):
            raise ValueError(f"give either --checkpoint DIR or --model HF_ID@REVISION (say {DEFAULT_MODEL})")
        if self.model is not None and not MODEL.fullmatch(self.model):
            raise ValueError(f"--model needs a pinned revision, as in {DEFAULT_MODEL}")
        return self


@dataclass(frozen=True)
class Layout:
    """Where a profile's artefacts lie in a work directory. What serving reads needs no more than these two."""

    work: Path
    profile: Profile

    @property
    def own(self) -> Path:
        return self.work / self.profile.name

    @property
    def engine(self) -> Path:
        return self.own / "engine"

    @property
    def encoder_plan(self) -> Path:
        return self.own / "encoder.plan"

    def manifest(self, stage: str) -> Path:
        return self.own / f"{stage}.manifest.json"

    def log(self, stage: str) -> Path:
        return self.own / f"{stage}.log"

    def timing_cache(self, part: str) -> Path:
        """Of one architecture: TensorRT refuses another one's."""
        return self.work / f"{part}-sm{self.profile.gpu.sm}.timing-cache"

    def encoder_onnx(self, rule: LengthRule) -> Path:
        return self.work / f"encoder-{rule}.onnx"

    @property
    def tokenizer(self) -> Path:
        return self.work / "tokenizer.json"

    @property
    def xgrammar_tokenizer_info(self) -> Path:
        return self.work / "xgrammar_tokenizer_info.json"

    @property
    def plain_decoder(self) -> Path:
        """Not quantised, and shared with servers on a CPU."""
        return self.work / f"decoder-tp{self.profile.gpus}-{DTYPE}"

    @property
    def decoder(self) -> Path:
        if self.profile.precision == "bfloat16":
            return self.plain_decoder
        kv = "-kv-fp8" if self.profile.kv_cache_dtype == "fp8" else ""
        return self.work / f"decoder-tp{self.profile.gpus}-{self.profile.precision}{kv}"

    @property
    def decoder_only(self) -> Path:
        return self.work / "qwen2"


@dataclass
class BuildJob:
    """One run of `step-audio build`: what is asked for, and what follows from it."""

    settings: BuildSettings
    echo: Echo

    @property
    def profile(self) -> Profile:
        return self.settings.profile

    @cached_property
    def layout(self) -> Layout:
        return Layout(self.settings.work_dir, self.profile)

    @property
    def checkpoint(self) -> Path:
        """Where it is, or will be when it has been downloaded."""
        if self.settings.checkpoint is not None:
            return self.settings.checkpoint
        assert self.settings.model is not None
        repository, revision = self.settings.model.split("@")
        # Commits are told apart by 12 digits; a branch's name may have slashes.
        return self.settings.work_dir / f"{repository.split('/')[1]}-{revision.replace('/', '-')[:12]}"

    @cached_property
    def model(self) -> ModelConfig:
        return ModelConfig.from_directory(self.checkpoint)

    @cached_property
    def plan(self) -> MemoryPlan:
        return plan(self.profile, self.model)

    @property
    def encoder_parameters(self) -> int:
        shapes = encoder_tensors(self.model.audio).values()
        return sum(math.prod(shape) for shape in shapes)

"""The audio encoder on one GPU, in torch and as TensorRT's plan, beside ONNX Runtime on the CPU: row by row."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from step_audio.arrays import Float32Array, Int64Array
from step_audio.config import DType
from step_audio.encoder import AudioEncoder, load_encoder
from step_audio.mel import LengthRule
from step_audio.steps.encoder_engine import OnnxEncoderEngine
from step_audio_benchmark.one_gpu import Found, Job
from step_audio_build.artefacts.manifest import write_atomically
from step_audio_build.convert.export_encoder import export_encoder
from step_audio_build.planning.profiles import EncoderPrecision
from step_audio_build.tools import subprocess_runner
from step_audio_build.tools.encoder_plan import Parity, PlanJob, compare

RULE: LengthRule = "L"
CLIPS = 3  # those of the comparison, in one run
TYPES: Mapping[DType, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class TorchEncoderEngine:
    """`EncoderEngine` on a device."""

    max_clips = float("inf")

    def __init__(self, encoder: AudioEncoder, device: str, dtype: torch.dtype):
        self._encoder, self._device, self._dtype = encoder.to(device, dtype), device, dtype

    @torch.inference_mode()
    def run(self, features: Float32Array, frames: Int64Array) -> Float32Array:
        mel = torch.from_numpy(features).to(self._device, self._dtype)
        out: Float32Array = self._encoder(mel, torch.from_numpy(frames).to(self._device)).float().cpu().numpy()
        return out


def plan_job(job: Job, precision: EncoderPrecision) -> PlanJob:
    audio = job.config.audio
    return PlanJob(
        onnx=job.work / "encoder.onnx",
        plan=job.work / f"encoder-{precision}.plan",
        timing_cache=job.work / "encoder.timing-cache",
        report=job.work / f"encoder-{precision}.json",
        precision=precision,
        clips=CLIPS,
        n_mels=audio.n_mels,
        max_frames=2 * audio.n_audio_ctx,
        length_rule=RULE,
    )


def encoder(job: Job) -> Found:
    """In torch on the device, in float32 (without TF32) and in bfloat16."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    export_encoder(job.checkpoint, plan_job(job, "float32").onnx, RULE)
    reference = OnnxEncoderEngine(plan_job(job, "float32").onnx, os.cpu_count() or 1)
    found: Found = {}
    for precision in ("float32", "bfloat16"):
        ours = TorchEncoderEngine(load_encoder(job.checkpoint, job.config.audio, RULE), job.device, TYPES[precision])
        found[f"torch {precision}"] = _told(compare(plan_job(job, precision), ours, reference))
    return found


def tensorrt(job: Job) -> Found:
    """As the plan that a build makes, in a process of its own; nothing where TensorRT is not installed."""
    if not job.cuda or find_spec("tensorrt") is None:
        return {"left out": "TensorRT's wheel is not installed" if job.cuda else "it needs a GPU"}
    found: Found = {}
    for precision in ("float32", "bfloat16"):
        asked = plan_job(job, precision)
        file = asked.report.with_suffix(".job.json")
        write_atomically(file, asked.model_dump_json(indent=1) + "\n")
        command = [sys.executable, "-m", "step_audio_build.tools.encoder_plan", str(file)]
        subprocess_runner.run(command, asked.report.with_suffix(".log"), job.echo)
        found[f"TensorRT {precision}"] = _told(Parity.model_validate_json(Path(asked.report).read_text("utf-8")))
    return found


def _told(parity: Parity) -> Found:
    return {
        "rows": parity.rows,
        "least cosine": round(parity.min_cosine, 6),
        "largest error": float(np.float32(parity.max_error)),
    }

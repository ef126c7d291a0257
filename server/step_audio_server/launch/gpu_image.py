"""The NGC image: what of it is here, without starting any of it."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

from step_audio.errors import StepAudioError

IMAGE = "nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3"

# Where the image has its server (triton-inference-server/server build.py @e1db8a60, l. 1931-1945).
TRITON = Path("/opt/tritonserver")
PARTS = (
    Path("bin/tritonserver"),
    Path("backends/python/triton_python_backend_stub"),
    Path("backends/tensorrtllm/libtriton_tensorrtllm.so"),  # NVIDIA's C++ backend, gone from later images
    Path("backends/tensorrtllm/trtllmExecutorWorker"),
)


class GpuImageError(StepAudioError):
    """This machine, or the image, lacks what serving on GPUs needs."""


def missing_parts() -> list[Path]:
    """What of the image's server is not there."""
    return [path for part in PARTS if not (path := TRITON / part).exists()]


def require_gpu_image() -> Path:
    """The image's tritonserver. Raises GpuImageError naming the first part that is missing."""
    if missing := missing_parts():
        raise GpuImageError(f"{missing[0]} is missing: serve on GPUs inside {IMAGE}")
    return TRITON / PARTS[0]


def require_no_gpu_image() -> None:
    """Raises GpuImageError in the image for GPUs, which has no server for a CPU: a profile was forgotten."""
    if not missing_parts() and importlib.util.find_spec("pytriton") is None:
        raise GpuImageError("this image serves on GPUs: give --profile, as to `step-audio build`")


def require_mpirun() -> None:
    """Raises GpuImageError."""
    if shutil.which("mpirun") is None:
        raise GpuImageError(f"mpirun is not on PATH, and several GPUs need it: serve inside {IMAGE}")

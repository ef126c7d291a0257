"""The GPUs that this machine has, as nvidia-smi reports them, and the versions of what builds for them."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from step_audio.errors import ArtefactError
from step_audio_build.planning.profiles import Profile

QUERY = ["nvidia-smi", "--query-gpu=name,compute_cap,memory.total,driver_version", "--format=csv,noheader,nounits"]
TIMEOUT = 60.0  # seconds; without the persistence daemon nvidia-smi initialises every GPU first
MEMORY_SLACK = 0.95  # of a profile's memory: ECC and the driver take a little, another model of the card a lot


@dataclass(frozen=True)
class FoundGpu:
    """A GPU of this machine, as nvidia-smi describes it."""

    name: str
    sm: int  # compute capability, 89 or 90
    memory_bytes: int
    driver: str


def visible_gpus() -> list[FoundGpu]:
    """In nvidia-smi's order, without those that CUDA_VISIBLE_DEVICES hides. Raises ArtefactError."""
    try:
        answer = subprocess.run(QUERY, capture_output=True, text=True, timeout=TIMEOUT)
    except FileNotFoundError:
        raise ArtefactError("nvidia-smi is not installed: engines are built on the GPUs that run them") from None
    except subprocess.TimeoutExpired:
        raise ArtefactError(f"nvidia-smi did not answer within {TIMEOUT:.0f} s; check the driver") from None
    if answer.returncode:
        lines = (answer.stdout + answer.stderr).strip().splitlines()
        raise ArtefactError(f"nvidia-smi failed: {lines[-1] if lines else f'status {answer.returncode}'}")
    try:
        found = [_gpu(line) for line in answer.stdout.splitlines() if line.strip()]
    except ValueError:
        raise ArtefactError(f"nvidia-smi answered {answer.stdout.strip()!r}, which is not understood") from None
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None or not all(part.strip().isdigit() for part in chosen.split(",")):
        return found  # unset, or names of devices, which nvidia-smi's order does not tell
    return [found[int(part)] for part in chosen.split(",") if int(part) < len(found)]


def _gpu(line: str) -> FoundGpu:
    name, capability, mebibytes, driver = (part.strip() for part in line.split(","))
    major, minor = capability.split(".")
    return FoundGpu(name, 10 * int(major) + int(minor), int(mebibytes) << 20, driver)


def require(profile: Profile) -> FoundGpu:
    """One of the GPUs that the profile's ranks run on. Raises ArtefactError when there are too few, or others."""
    found = visible_gpus()
    if len(found) < profile.gpus:
        raise ArtefactError(f"profile {profile.name} needs {profile.gpus} GPUs, {len(found)} are visible")
    used = found[: profile.gpus]
    for gpu in used:
        if gpu.sm != profile.gpu.sm:
            raise ArtefactError(
                f"profile {profile.name} is for {profile.gpu.name} (sm{profile.gpu.sm}), this is {gpu.name} "
                f"(sm{gpu.sm}); choose a profile of this GPU"
            )
        if gpu.memory_bytes < MEMORY_SLACK * profile.gpu.memory_bytes:
            raise ArtefactError(
                f"profile {profile.name} counts on {profile.gpu.memory_bytes / 1e9:.1f} GB, {gpu.name} has "
                f"{gpu.memory_bytes / 1e9:.1f} GB; choose a profile of this GPU"
            )
    if len({gpu.name for gpu in used}) > 1:
        raise ArtefactError(f"the GPUs differ ({', '.join(sorted({gpu.name for gpu in used}))}); use equal ones")
    return used[0]


# TensorRT's wheels have gone by several names.
DISTRIBUTIONS = {
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "tensorrt_llm": ("tensorrt-llm",),
    "modelopt": ("nvidia-modelopt",),
}


def installed_version(tool: str) -> str | None:
    """Without importing it, which takes half a minute for TensorRT-LLM."""
    for name in DISTRIBUTIONS[tool]:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None

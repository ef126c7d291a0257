"""The GPUs that this machine has, as nvidia-smi reports them, and the versions of what builds for them."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from step_audio.errors import ArtefactError
from step_audio_build.planning.profiles import Profile

CSV = "--format=csv,noheader,nounits"
QUERY = ("--query-gpu=name,compute_cap,memory.total,driver_version,mig.mode.current", CSV)
VISIBLE = "CUDA_VISIBLE_DEVICES"
# For programs that use GPUs: by default CUDA numbers the fastest one 0, and nvidia-smi, by which they are looked at
# beforehand, by their places in the machine.
NUMBERED = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
TIMEOUT = 60.0  # seconds; without the persistence daemon nvidia-smi initialises every GPU first
MEMORY_SLACK = 0.95  # of a profile's memory: ECC and the driver take a little, another model of the card a lot


@dataclass(frozen=True)
class FoundGpu:
    """A GPU of this machine, as nvidia-smi describes it."""

    name: str
    sm: int  # compute capability: 80, 89, 90 or 100
    memory_bytes: int
    driver: str
    index: int = 0  # nvidia-smi's
    mig: bool = False  # divided: a program sees one of its parts


def visible_gpus() -> list[FoundGpu]:
    """Those that CUDA_VISIBLE_DEVICES names, in its order; without it all, in nvidia-smi's. Raises ArtefactError."""
    answer = nvidia_smi(*QUERY)
    try:
        found = [_gpu(index, line) for index, line in enumerate(filter(str.strip, answer.splitlines()))]
    except ValueError:
        raise ArtefactError(f"nvidia-smi answered {answer.strip()!r}, which is not understood") from None
    chosen = os.environ.get(VISIBLE)
    return found if chosen is None else _chosen(chosen, found)


def nvidia_smi(*arguments: str) -> str:
    """Its answer. Raises ArtefactError."""
    try:
        answer = subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, timeout=TIMEOUT)
    except FileNotFoundError:
        raise ArtefactError("nvidia-smi is not installed: engines are built on the GPUs that run them") from None
    except subprocess.TimeoutExpired:
        raise ArtefactError(f"nvidia-smi did not answer within {TIMEOUT:.0f} s; check the driver") from None
    if answer.returncode:
        lines = (answer.stdout + answer.stderr).strip().splitlines()
        raise ArtefactError(f"nvidia-smi failed: {lines[-1] if lines else f'status {answer.returncode}'}")
    return answer.stdout


def _gpu(index: int, line: str) -> FoundGpu:
    name, capability, mebibytes, driver, *mode = (part.strip() for part in line.split(","))
    major, minor = capability.split(".")
    sm = 10 * int(major) + int(minor)
    return FoundGpu(name, sm, int(mebibytes) << 20, driver, index, mig=mode == ["Enabled"])


def _chosen(named: str, found: list[FoundGpu]) -> list[FoundGpu]:
    """As CUDA takes the variable (CUDA C++ Programming Guide, "CUDA Environment Variables"): numbers, or UUIDs or their
    beginnings; what stands behind a name that is nobody's is hidden. Raises ArtefactError for parts of GPUs (MIG).
    """
    names = [name.strip() for name in named.split(",")]
    if parts := [name for name in names if name.startswith("MIG-")]:
        raise ArtefactError(f"{VISIBLE} names {parts[0]}, a part of a GPU (MIG), and ranks need whole ones")
    uuids = nvidia_smi("--query-gpu=uuid", CSV).split() if any(name.startswith("GPU-") for name in names) else []
    visible: list[FoundGpu] = []
    for name in names:
        if name.startswith("GPU-"):
            indices = [index for index, uuid in enumerate(uuids) if uuid.startswith(name)]
        else:
            indices = [int(name)] if name.isdigit() and int(name) < len(found) else []
        if len(indices) != 1 or found[indices[0]] in visible:
            break
        visible.append(found[indices[0]])
    return visible


def require(profile: Profile) -> FoundGpu:
    """One of the GPUs that the profile's ranks run on. Raises ArtefactError when there are too few, or others."""
    found = visible_gpus()
    if len(found) < profile.gpus:
        chosen = f" ({VISIBLE}={os.environ[VISIBLE]})" if VISIBLE in os.environ else ""
        raise ArtefactError(f"profile {profile.name} needs {profile.gpus} GPUs, {len(found)} are visible{chosen}")
    used = found[: profile.gpus]
    for gpu in used:
        if gpu.mig:
            raise ArtefactError(
                f"GPU {gpu.index} is divided (MIG), and ranks need whole ones: nvidia-smi -i {gpu.index} -mig 0, on "
                "the machine itself"
            )
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

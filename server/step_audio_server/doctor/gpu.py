"""Driver, GPUs, what else runs on them, the links between them, and what their memory holds."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Sequence

from step_audio.errors import ArtefactError
from step_audio_build.planning.gpus import MEMORY_SLACK, TIMEOUT, FoundGpu, require
from step_audio_build.planning.memory_plan import MemoryPlan
from step_audio_build.planning.profiles import Profile, load_profile, profile_names
from step_audio_server.doctor.finding import Finding, fault, in_words, ok, warning
from step_audio_server.doctor.pins import CUDA_VERSION, DRIVER_VERSION, OLDEST_DRIVER, numbers

CUDA_LINE = re.compile(r"CUDA (?:UMD )?Version\s*:\s*([\d.]+)")
NVLINK = re.compile(r"NV\d+")  # so many NVLinks between two GPUs
BUSY = 1 << 30  # bytes in use on a GPU that count as another program's; the driver's own share is less


def driver(gpus: Sequence[FoundGpu]) -> Finding:
    version = gpus[0].driver
    if numbers(version) >= numbers(DRIVER_VERSION):
        return ok("driver", version)
    advice = f"CUDA {CUDA_VERSION} in the image wants {DRIVER_VERSION} or later"
    if numbers(version) >= numbers(OLDEST_DRIVER):
        return warning("driver", version, f"{advice}; update it if the server does not start")
    return fault("driver", version, f"{advice}; update it")


def cuda() -> Finding:
    """What the driver can run."""
    match = CUDA_LINE.search(_nvidia_smi())
    if match is None:
        return warning("CUDA", "nvidia-smi does not say which version", f"{CUDA_VERSION} is needed; update the driver")
    version, major = match[1], int(CUDA_VERSION.split(".")[0])
    if numbers(version) >= numbers(CUDA_VERSION):
        return ok("CUDA", f"the driver runs up to {version}")
    advice = f"the image has {CUDA_VERSION}; update the driver"
    if numbers(version) >= (major,):
        return warning("CUDA", f"the driver runs up to {version}", advice)
    return fault("CUDA", f"the driver runs up to {version}", advice)


def cards(gpus: Sequence[FoundGpu], profile: Profile | None) -> Finding:
    """That they are what the profile is for."""
    kinds = Counter(f"{gpu.name} (sm{gpu.sm}, {in_words(gpu.memory_bytes)})" for gpu in gpus)
    found = ", ".join(f"{count} x {kind}" for kind, count in kinds.items())
    if profile is None:
        return ok("GPUs", found)
    try:
        require(profile)
    except ArtefactError as error:
        fitting = suitable(gpus)
        advice = f"profiles for this machine: {', '.join(fitting)}" if fitting else "use another machine"
        return fault("GPUs", f"{found}; {error}" if found else str(error), advice)
    return ok("GPUs", found)


def suitable(gpus: Sequence[FoundGpu]) -> list[str]:
    """The profiles that come along whose GPUs are these, by name and memory."""
    names = []
    for name in profile_names():
        wanted = load_profile(name)
        fitting = [
            gpu
            for gpu in gpus
            if wanted.gpu.name in gpu.name.split()
            and MEMORY_SLACK <= gpu.memory_bytes / wanted.gpu.memory_bytes <= 1 / MEMORY_SLACK
        ]
        if len(fitting) >= wanted.gpus:
            names.append(name)
    return names


def load(gpus: Sequence[FoundGpu]) -> list[Finding]:
    """MIG, and memory that other programs hold: the share of the KV cache is taken of what is free."""
    findings = []
    for index, line in enumerate(
        _nvidia_smi("--query-gpu=memory.used,mig.mode.current", "--format=csv,noheader,nounits").splitlines()
    ):
        used, _, mode = (part.strip() for part in line.partition(","))
        if mode == "Enabled":
            findings.append(
                fault(f"GPU {index}", "MIG is on", "ranks need whole GPUs: nvidia-smi -mig 0, on the machine itself")
            )
        elif used.isdigit() and int(used) << 20 > BUSY:
            findings.append(
                warning(
                    f"GPU {index}",
                    f"{in_words(int(used) << 20)} are in use",
                    "end what else runs there (nvidia-smi lists it), unless it is this server",
                )
            )
    return findings or [ok("GPU memory", f"free on all {len(gpus)}" if len(gpus) > 1 else "free")]


def fits(memory_plan: MemoryPlan) -> Finding:
    """What the memory of each GPU holds, as `step-audio plan` computes it."""
    if not memory_plan.fits:
        advice = f"see step-audio plan --profile {memory_plan.profile.name}"
        return fault("GPU plan", "; ".join(memory_plan.reasons), advice)
    batch = memory_plan.build.max_batch_size
    return ok("GPU plan", f"{batch} requests at once, {memory_plan.kv_tokens:,} tokens of KV cache")


def links(profile: Profile | None) -> Finding:
    """How the GPUs that the ranks run on are connected, the slowest way decides."""
    kinds = topology(_nvidia_smi("topo", "-m"), profile.gpus if profile else None)
    if not kinds:
        return ok("links", "one GPU needs none")
    found = ", ".join(sorted(kinds))
    if all(NVLINK.fullmatch(kind) for kind in kinds):
        return ok("links", f"NVLink between all ({found})")
    if profile is not None and profile.gpu.nvlink:
        return warning("links", found, f"{profile.gpu.name} of this profile have NVLink; check `nvidia-smi nvlink -s`")
    if "SYS" in kinds:
        # NVIDIA/TensorRT-LLM issue 9680: a hang of the ranks on 4 x L40S, which have no NVLink.
        return warning("links", found, "over two sockets: if the ranks hang at start, set NCCL_P2P_DISABLE=1")
    return ok("links", f"PCIe ({found})")


def topology(matrix: str, gpus: int | None = None) -> set[str]:
    """The kinds of link in `nvidia-smi topo -m` between the first `gpus`: NV18, PIX, PXB, PHB, NODE, SYS."""
    table = [line.split()[1:] for line in matrix.splitlines() if line.startswith("GPU")]  # the head begins with a tab
    size = min(len(table), gpus or len(table))
    return {table[a][b] for a in range(size) for b in range(size) if a != b}


def _nvidia_smi(*arguments: str) -> str:
    """Raises ArtefactError."""
    try:
        answer = subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, timeout=TIMEOUT)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ArtefactError(f"nvidia-smi: {error}") from None
    if answer.returncode:
        lines = (answer.stdout + answer.stderr).strip().splitlines()
        raise ArtefactError(f"nvidia-smi failed: {lines[-1] if lines else f'status {answer.returncode}'}")
    return answer.stdout

"""Driver, GPUs, what else runs on them, the links between them, and what their memory holds."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence

from step_audio.errors import ArtefactError
from step_audio_build.planning.gpus import CSV, MEMORY_SLACK, FoundGpu, nvidia_smi, require
from step_audio_build.planning.memory_plan import MemoryPlan
from step_audio_build.planning.profiles import Profile, load_profile, profile_names
from step_audio_build.planning.vllm_plan import VllmPlan
from step_audio_server.doctor.finding import Finding, fault, in_words, ok, warning
from step_audio_server.doctor.pins import (
    COMPATIBLE_BRANCHES,
    CUDA_VERSION,
    DRIVER_VERSION,
    ENTRYPOINT,
    OLDEST_DRIVER,
    numbers,
)

CUDA_LINE = re.compile(r"CUDA (?:UMD )?Version\s*:\s*([\d.]+)")
NVLINK = re.compile(r"NV\d+")  # so many NVLinks between two GPUs
CONSUMER = ("GeForce", "TITAN")  # cards on which CUDA's forward compatibility does not work
BUSY = 1 << 30  # bytes in use on a GPU that count as another program's; the driver's own share is less

# What NVIDIA's entrypoint found when it tried the image's own CUDA driver libraries on an older driver; it exports it.
STATUS, USABLE = "_CUDA_COMPAT_STATUS", "CUDA Driver OK"


def driver(gpus: Sequence[FoundGpu]) -> Finding:
    """By what the image supports: its own version, or an older branch with libraries that its entrypoint sets up."""
    version = gpus[0].driver
    if numbers(version) >= numbers(DRIVER_VERSION):
        return ok("driver", version)
    branch = numbers(version)[:1]
    branches = ", ".join(f"R{number}" for number in COMPATIBLE_BRANCHES)
    wanted = f"CUDA {CUDA_VERSION} in the image wants {DRIVER_VERSION} or later"
    if any(word in gpu.name for gpu in gpus for word in CONSUMER):
        compatible = False
    else:
        compatible = branch in [(number,) for number in COMPATIBLE_BRANCHES]
        wanted += f", or on data-centre GPUs one of {branches}"
    status = os.environ.get(STATUS)
    if compatible and status == USABLE:
        return ok("driver", f"{version}, with the image's CUDA {CUDA_VERSION} libraries (forward compatibility)")
    if compatible and status is None:
        echo = warning if branch >= numbers(OLDEST_DRIVER) else fault  # minor version compatibility may do
        advice = (
            f"start through {ENTRYPOINT}, which sets up CUDA's forward compatibility, or update to {DRIVER_VERSION}"
        )
        return echo("driver", version, advice)
    if compatible:
        return fault("driver", f"{version}; forward compatibility: {status}", f"update to {DRIVER_VERSION}")
    if branch >= numbers(OLDEST_DRIVER):
        return warning("driver", version, f"{wanted}; update it if the server does not start")
    return fault("driver", version, f"{wanted}; update it")


def cuda() -> Finding:
    """What the driver can run; with the image's libraries on an older driver, what they can."""
    match = CUDA_LINE.search(nvidia_smi())
    if match is None:
        return warning("CUDA", "nvidia-smi does not say which version", f"{CUDA_VERSION} is needed; update the driver")
    version, major = match[1], int(CUDA_VERSION.split(".")[0])
    if numbers(version) >= numbers(CUDA_VERSION) or os.environ.get(STATUS) == USABLE:
        return ok("CUDA", f"the driver runs up to {version}")
    advice = f"the image has {CUDA_VERSION}; see the line of the driver"
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
            if set(wanted.gpu.name.split()) <= set(gpu.name.split())
            and not (wanted.gpu.nvlink and "PCIe" in gpu.name.split())  # a slower card under the same name
            and MEMORY_SLACK <= gpu.memory_bytes / wanted.gpu.memory_bytes <= 1 / MEMORY_SLACK
        ]
        if len(fitting) >= wanted.gpus:
            names.append(name)
    return names


def load(gpus: Sequence[FoundGpu]) -> list[Finding]:
    """MIG, and memory that other programs hold: the share of the KV cache is taken of what is free."""
    findings = []
    lines = nvidia_smi("--query-gpu=memory.used", CSV).splitlines()
    for gpu in gpus:
        index, used = gpu.index, lines[gpu.index].strip()
        if gpu.mig:
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


def fits_vllm(memory_plan: VllmPlan) -> Finding:
    """The same for vLLM, as `step-audio plan --llm vllm` computes it."""
    if not memory_plan.fits:
        return fault("GPU plan", " ".join(memory_plan.reasons), f"see {memory_plan.command}")
    return ok(
        "GPU plan", f"{memory_plan.utilization:g} of each GPU for vLLM, {memory_plan.kv_tokens:,} tokens of KV cache"
    )


def links(gpus: Sequence[FoundGpu], profile: Profile | None) -> Finding:
    """How the GPUs that the ranks run on are connected, the slowest way decides."""
    used = gpus[: profile.gpus] if profile else gpus
    kinds = topology(nvidia_smi("topo", "-m"), [gpu.index for gpu in used])
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


def topology(matrix: str, gpus: Sequence[int]) -> set[str]:
    """The kinds of link in `nvidia-smi topo -m` between these of its GPUs: NV18, PIX, PXB, PHB, NODE, SYS."""
    table = [line.split()[1:] for line in matrix.splitlines() if line.startswith("GPU")]  # the head begins with a tab
    return {table[a][b] for a in gpus for b in gpus if a != b}

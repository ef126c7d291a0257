"""The NGC image for GPUs: its server, NVIDIA's backend, the programs and versions that engines are built with."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from itertools import chain

from step_audio_build.planning.gpus import installed_version
from step_audio_build.planning.profiles import Profile
from step_audio_build.stages.build import MODULES, QUANTISER_MODULES
from step_audio_build.stages.quantized import CALIBRATED
from step_audio_build.tools.trtllm_build import PROGRAM
from step_audio_server.doctor.finding import Finding, fault, ok
from step_audio_server.doctor.pins import TENSORRT_LLM_VERSION, TENSORRT_VERSION
from step_audio_server.launch import gpu_image

VERSIONS = {"tensorrt_llm": ("TensorRT-LLM", TENSORRT_LLM_VERSION), "tensorrt": ("TensorRT", TENSORRT_VERSION)}


def image() -> Finding:
    """Triton with the C++ `tensorrtllm` backend and its worker."""
    missing = gpu_image.missing_parts()
    if not missing:
        return ok("image", f"tritonserver and the tensorrtllm backend in {gpu_image.TRITON}")
    more = f" and {len(missing) - 1} more" if missing[1:] else ""
    return fault(
        "image", f"no {missing[0]}{more}", f"run inside {gpu_image.IMAGE}, see docker/README.md in the repository"
    )


def versions() -> list[Finding]:
    """By the packages' metadata: importing TensorRT-LLM is slow, and wants a GPU."""
    findings = []
    for module, (name, wanted) in VERSIONS.items():
        version = installed_version(module)
        if version is None:
            findings.append(fault(name, "not installed", f"the image has {wanted}"))
        elif version != wanted:
            advice = f"{wanted} is what this release is written for; engines of another version do not load"
            findings.append(fault(name, version, advice))
        else:
            findings.append(ok(name, version))
    return findings


def packages(profile: Profile | None) -> Finding:
    """What the stages of a build import besides: without it one of them would end after hours of the others."""
    calibrated = profile is not None and profile.precision in CALIBRATED
    needed = dict.fromkeys(["huggingface_hub", *chain(*MODULES.values()), *(QUANTISER_MODULES if calibrated else ())])
    others = [name for name in needed if name not in VERSIONS]
    if missing := [name for name in others if find_spec(name) is None]:
        return fault("packages", f"{', '.join(missing)} not installed", "the image has them: docker/Dockerfile")
    return ok("packages", ", ".join(others))


def programs(profile: Profile | None) -> Finding:
    needed = [PROGRAM, *(["mpirun"] if profile is None or profile.gpus > 1 else [])]
    missing = [name for name in needed if shutil.which(name) is None]
    if missing:
        return fault("programs", f"{', '.join(missing)} not on PATH", "the image has them; leave its PATH as it is")
    return ok("programs", ", ".join(needed))

"""How a server with our backend for the LLM is started: nvidia-pytriton's, or, for vLLM on GPUs, NVIDIA's own."""

from __future__ import annotations

import sys
from pathlib import Path

from step_audio.steps.memory import SERVER_ALLOCATOR
from step_audio_server.launch.installation import Installation
from step_audio_server.launch.launch import Launch, python_environment, serving_flags, shm_flag, shm_prefix
from step_audio_server.launch.ports import Ports


def cpu_launch(
    installation: Installation, repository: Path, backends: Path, ports: Ports, drain_timeout: int
) -> Launch:
    """Raises ArtefactError."""
    prefix = shm_prefix(ports)
    environment = python_environment()
    return Launch(
        command=(
            str(installation.binary),
            f"--model-repository={repository}",
            f"--backend-directory={backends}",
            shm_flag(prefix),
            "--disable-auto-complete-config",
            *serving_flags(ports, drain_timeout),
            "--allow-gpu-metrics=false",
        ),
        environment=SERVER_ALLOCATOR
        | environment
        | {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
        | _of_its_kind(installation),
        prefix=prefix,
        drain_timeout=drain_timeout,
    )


def _of_its_kind(installation: Installation) -> dict[str, str]:
    if installation.libraries:
        return {"LD_LIBRARY_PATH": ":".join(map(str, installation.libraries))}
    return {"CUDA_VISIBLE_DEVICES": ""}  # the GPUs are vLLM's: on each it sees, tritonserver takes hundreds of MB

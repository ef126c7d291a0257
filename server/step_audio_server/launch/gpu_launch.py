"""How a server on GPUs is started: one `tritonserver` by itself on one GPU, one a rank under mpirun on several.

TensorRT-LLM calls this its leader mode. Rank 0 loads the whole repository and serves. The others load `tensorrt_llm`
alone; that never returns, for in it the backend waits for the leader and then ends the process
(TensorRT-LLM triton_backend/inflight_batcher_llm/src/model_instance_state.cc @0c8de69, constructor of
ModelInstanceState). tritonserver opens its endpoints, and takes SIGTERM into its own hands, only after loading (server
src/main.cc @01f2fe42), so that a worker does neither. NVIDIA's own script hands all ranks the same ports, which goes
well for that reason (triton_backend/scripts/launch_triton_server.py @0a2e2c1f); here the workers are told outright to
open none. With metrics off, too, the backend's own are registered all the same and seen by nobody (core
src/metric_family.cc @73aad7c).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from step_audio.serving_info import LLM
from step_audio_build.tools.mpirun import MPI_ENVIRONMENT, mpirun
from step_audio_server.launch.launch import Launch, python_environment, serving_flags, shm_flag, shm_prefix
from step_audio_server.launch.ports import Ports


def gpu_launch(binary: Path, repository: Path, ports: Ports, gpus: int, drain_timeout: int) -> Launch:
    """`gpus`: ranks, one on each. Raises ArtefactError."""
    prefix = shm_prefix(ports)
    if gpus == 1:
        command = _leader(binary, repository, ports, gpus, drain_timeout, prefix)
    else:
        ranks = [
            _leader(binary, repository, ports, gpus, drain_timeout, f"{prefix}0_"),
            *(_worker(binary, repository, gpus, f"{prefix}{rank}_") for rank in range(1, gpus)),
        ]
        command = mpirun(ranks)
    return Launch(
        command=command,
        environment=gpu_environment(python_environment(), gpus),
        prefix=prefix,
        drain_timeout=drain_timeout,
        ranks=gpus,
        on_gpu=True,
    )


def gpu_environment(environment: Mapping[str, str], gpus: int) -> dict[str, str]:
    """The ranks get mpirun's environment, for they are on its machine: what the user set for NCCL, Open MPI, CUDA or
    TensorRT-LLM holds for them all. Of the GPUs that the user left visible, the first `gpus` are.
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus))))
    return {**MPI_ENVIRONMENT, **environment, "CUDA_VISIBLE_DEVICES": ",".join(visible.split(",")[:gpus])}


def _leader(
    binary: Path, repository: Path, ports: Ports, gpus: int, drain_timeout: int, prefix: str
) -> tuple[str, ...]:
    return (*_common(binary, repository, gpus, prefix), *serving_flags(ports, drain_timeout))


def _worker(binary: Path, repository: Path, gpus: int, prefix: str) -> tuple[str, ...]:
    return (
        *_common(binary, repository, gpus, prefix),
        "--model-control-mode=explicit",
        f"--load-model={LLM}",
        *(f"--allow-{name}=false" for name in ("grpc", "http", "metrics")),
    )


def _common(binary: Path, repository: Path, gpus: int, prefix: str) -> tuple[str, ...]:
    """The memory flags: tensors pass between our models in the host's memory, so Triton needs none of its pools.

    Each would begin a CUDA context, hundreds of MB: one on every GPU in every rank, for the pools of GPU memory (64 MB
    each by default) and peer access, and one of every rank on GPU 0 for pinned memory. NVIDIA's script turns them off
    where its servers share GPUs (add_multi_model_config); TensorRT-LLM sees to peer access by itself.
    """
    return (
        str(binary),
        f"--model-repository={repository}",
        shm_flag(prefix),
        "--disable-auto-complete-config",
        "--pinned-memory-pool-byte-size=0",
        "--enable-peer-access=false",
        *(f"--cuda-memory-pool-byte-size={gpu}:0" for gpu in range(gpus)),
    )

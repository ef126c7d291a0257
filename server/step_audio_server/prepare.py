"""All that `step-audio serve` does before it starts a server: what is missing is built, or said to be missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from step_audio.artefacts import Artefacts
from step_audio.chat_template import render
from step_audio.command_line import Echo
from step_audio.config import ModelConfig
from step_audio.conversation import parse_conversation
from step_audio.errors import ArtefactError, SettingsError
from step_audio_server import encoder_gpu, vllm_process
from step_audio_server.adapters import check_ranks, open_adapters
from step_audio_server.launch import gpu_image
from step_audio_server.launch.cpu_launch import cpu_launch
from step_audio_server.launch.gpu_launch import gpu_launch
from step_audio_server.launch.installation import Installation
from step_audio_server.launch.launch import Launch
from step_audio_server.launch.ports import Ports
from step_audio_server.repository.assembly import assemble, assemble_backends
from step_audio_server.repository.vllm_options import write_options
from step_audio_server.settings import ServeSettings

if TYPE_CHECKING:
    from step_audio_build.convert.engine_dir import BuildConfig
    from step_audio_build.planning.profiles import Profile


def prepare(settings: ServeSettings, ports: Ports, echo: Echo, claim: Callable[[], None]) -> Launch:
    """`claim` is called before anything is written; it may refuse, too. Raises StepAudioError."""
    if settings.llm == "vllm":
        return _for_vllm(settings, ports, echo, claim)
    if settings.profile is None:
        return _for_cpu(settings, ports, echo, claim)
    return _for_gpus(settings, settings.profile, ports, echo, claim)


def _for_cpu(settings: ServeSettings, ports: Ports, echo: Echo, claim: Callable[[], None]) -> Launch:
    gpu_image.require_no_gpu_image()
    model, artefacts = build_for_cpu(settings, echo, claim)
    return _launch(settings, model, artefacts, ports)


def _for_vllm(settings: ServeSettings, ports: Ports, echo: Echo, claim: Callable[[], None]) -> Launch:
    gpu_image.require_no_gpu_image()
    assert settings.llm_python is not None
    found = vllm_process.check(settings.llm_python)
    echo(f"vLLM {found.version}: {settings.llm_python}")
    model = ModelConfig.from_directory(settings.checkpoint)
    device = encoder_gpu.device(settings.encoder_device, found.on_gpus)
    settings = _of_profile(settings.model_copy(update={"encoder_device": device}), model, echo)
    if device == "cuda":
        echo(f"audio encoder: torch {encoder_gpu.check()} on GPU {encoder_gpu.first()}")
    artefacts = _build_for_vllm(settings, model, echo, claim)
    write_options(settings, model, artefacts)
    return _launch(settings, model, artefacts, ports)


def _launch(settings: ServeSettings, model: ModelConfig, artefacts: Artefacts, ports: Ports) -> Launch:
    installation = Installation.find()
    repository = assemble(settings, model, artefacts)
    backends = assemble_backends(settings.run_dir, installation.backends, installation.stub)
    return cpu_launch(installation, repository, backends, ports, settings.drain_timeout)


def _of_profile(settings: ServeSettings, model: ModelConfig, echo: Echo) -> ServeSettings:
    """With a profile's ranks, limits and share of memory, for vLLM; `encoder_device` is decided. Raises SettingsError
    for one that does not fit."""
    from step_audio_build.planning.profiles import audio_rows, load_profile
    from step_audio_build.planning.vllm_plan import plan_vllm

    if settings.profile is None:
        return settings
    profile = load_profile(settings.profile)
    on_gpu = settings.encoder_device == "cuda"
    plan = plan_vllm(profile, model, settings.gpu_memory_utilization, on_gpu)
    if not plan.fits:
        raise SettingsError(f"{plan.reasons[0]} See `{plan.command}`")
    echo(f"profile {profile.name}: {profile.gpus} x {profile.gpu.name}")
    decided = {
        "profile": None,
        "tp": profile.gpus,
        "dtype": profile.precision,
        "max_seq_len": profile.max_seq_len,
        "max_batch_size": profile.max_batch_size,
        "max_num_tokens": profile.max_num_tokens,
        "gpu_memory_utilization": plan.utilization,
        "max_prompt_table_rows": audio_rows(profile.max_audio_seconds),
    }
    if on_gpu and "encoder_batch_clips" not in settings.model_fields_set:  # the default is for a CPU
        decided["encoder_batch_clips"] = profile.encoder_batch_clips
    return settings.model_copy(update=decided)


def build_for_cpu(
    settings: ServeSettings, echo: Echo, claim: Callable[[], None] = lambda: None
) -> tuple[ModelConfig, Artefacts]:
    """Everything that a server with our engine needs. Raises StepAudioError; interrupted, the next call goes on."""
    from step_audio_build.artefacts.lock import building
    from step_audio_build.stages.cpu_build import CpuBuild, build

    model = ModelConfig.from_directory(settings.checkpoint)
    _try_template(settings)
    adapters = open_adapters(settings, model)
    job = CpuBuild(
        checkpoint=settings.checkpoint,
        work_dir=settings.work_dir,
        engine_dir=settings.run_dir / "engine",
        tp=settings.tp,
        dtype=settings.dtype,
        length_rule=settings.length_rule,
        limits=engine_limits(settings, model, max((one.rank for one in adapters.values()), default=0)),
    )
    claim()
    with building(settings.work_dir, echo):
        return model, build(job, echo)


def _build_for_vllm(settings: ServeSettings, model: ModelConfig, echo: Echo, claim: Callable[[], None]) -> Artefacts:
    """The same for vLLM, which reads the published shards."""
    from step_audio_build.artefacts.lock import building
    from step_audio_build.stages.cpu_build import VllmBuild, build_for_vllm

    _try_template(settings)
    job = VllmBuild(
        checkpoint=settings.checkpoint,
        work_dir=settings.work_dir,
        dtype=settings.dtype,
        length_rule=settings.length_rule,
        limits=engine_limits(settings, model),
        encoder_on_gpu=settings.encoder_device == "cuda",
    )
    claim()
    with building(settings.work_dir, echo):
        return build_for_vllm(job, echo)


def _try_template(settings: ServeSettings) -> None:
    """A broken one is told before anything is built."""
    render(parse_conversation([{"role": "user", "content": "hello"}]), settings.chat_template)


def engine_limits(settings: ServeSettings, model: ModelConfig, max_lora_rank: int = 0) -> BuildConfig:
    """What an engine of ours is built for. The prompt table is divided evenly between requests, as in C++."""
    from step_audio_build.convert.engine_dir import BuildConfig

    max_seq_len = settings.resolved_max_seq_len(model)
    rows = settings.max_prompt_table_rows or max_seq_len
    return BuildConfig.create(
        max_batch_size=settings.max_batch_size,
        max_seq_len=max_seq_len,
        max_num_tokens=settings.max_num_tokens,
        max_prompt_embedding_table_size=rows * settings.max_batch_size,
        max_lora_rank=max_lora_rank,
    )


def _for_gpus(
    settings: ServeSettings, profile_name: str, ports: Ports, echo: Echo, claim: Callable[[], None]
) -> Launch:
    """Builds nothing, for that takes an hour of the GPUs: it uses what `step-audio build` has made."""
    from step_audio_build.planning.profiles import audio_seconds, load_profile
    from step_audio_build.stages.repository import read_built

    profile = load_profile(profile_name)
    binary = gpu_image.require_gpu_image()
    if profile.gpus > 1:
        gpu_image.require_mpirun()
    model = ModelConfig.from_directory(settings.checkpoint)
    artefacts = read_built(profile, settings.work_dir, settings.checkpoint, settings.length_rule)
    check_ranks(open_adapters(settings, model), _built_lora_rank(artefacts.engine_dir, profile), profile.name)
    echo(f"profile {profile.name}: {profile.gpus} x {profile.gpu.name}")
    for warning in profile.warnings():
        echo(warning)
    settings = settings.for_engine(
        **_built_limits(artefacts.engine_dir),
        encoder_batch_clips=profile.encoder_batch_clips,
        max_audio_seconds=audio_seconds(artefacts.max_prompt_table_rows),
    )
    claim()
    repository = assemble(settings, model, artefacts, profile)
    return gpu_launch(binary, repository, ports, profile.gpus, settings.drain_timeout)


def _built_limits(engine_dir: Path) -> dict[str, int]:
    """Raises ArtefactError."""
    built = _build_config(engine_dir)
    return {name: int(built[name]) for name in ("max_batch_size", "max_seq_len")}


def _built_lora_rank(engine_dir: Path, profile: Profile) -> int:
    """Raises ArtefactError where the engine was built for another."""
    from step_audio_build.stages.engine import max_lora_rank

    if (rank := max_lora_rank(_build_config(engine_dir))) != profile.max_lora_rank:
        raise ArtefactError(
            f"the engine of profile {profile.name} was built with max_lora_rank {rank}, not {profile.max_lora_rank}; "
            f"run `step-audio build --profile {profile.name}` again"
        )
    return rank


def _build_config(engine_dir: Path) -> dict[str, Any]:
    """`trtllm-build`'s own record of what the engine was built for. Raises ArtefactError."""
    path = engine_dir / "config.json"
    try:
        built: dict[str, Any] = json.loads(path.read_text("utf-8"))["build_config"]
        if all(type(built[name]) is int for name in ("max_batch_size", "max_seq_len")):
            return built
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise ArtefactError(f"{path} is missing or not that of an engine; run `step-audio build` again")

"""All that `step-audio serve` does before it starts a server: what is missing is built, or said to be missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from step_audio.config import ModelConfig
from step_audio.errors import ArtefactError
from step_audio.serving import machine
from step_audio.serving.launch import Launch, Ports, cpu_launch
from step_audio.serving.mpi_launch import gpu_launch
from step_audio.serving.repository import assemble, assemble_backends
from step_audio.serving.settings import ServeSettings
from step_audio.serving.tritonserver import Installation

Say = Callable[[str], None]


def prepare(settings: ServeSettings, ports: Ports, say: Say) -> Launch:
    """Raises StepAudioError."""
    return _for_cpu(settings, ports, say) if settings.profile is None else _for_gpus(settings, ports, say)


def _for_cpu(settings: ServeSettings, ports: Ports, say: Say) -> Launch:
    from step_audio_build.pipeline import build

    machine.require_no_gpu_image()
    model, artefacts = build(settings, say)
    installation = Installation.find()
    repository = assemble(settings, model, artefacts)
    backends = assemble_backends(settings.run_dir, installation.backends, installation.stub)
    return cpu_launch(installation, repository, backends, ports, settings.drain_timeout)


def _for_gpus(settings: ServeSettings, ports: Ports, say: Say) -> Launch:
    """Builds nothing, for that takes an hour of the GPUs: it uses what `step-audio build` has made."""
    from step_audio_build.built import read_built
    from step_audio_build.profiles import audio_seconds, load_profile

    profile = load_profile(settings.profile)
    binary = machine.require_gpu_image()
    if profile.gpus > 1:
        machine.require_mpirun()
    model = ModelConfig.from_directory(settings.checkpoint)
    artefacts = read_built(profile, settings.work_dir, settings.checkpoint, settings.length_rule)
    say(f"profile {profile.name}: {profile.gpus} x {profile.gpu.name}")
    for warning in profile.warnings():
        say(warning)
    settings = settings.for_engine(
        **_engine_limits(artefacts.engine_dir),
        encoder_batch_clips=profile.encoder_batch_clips,
        max_audio_seconds=audio_seconds(artefacts.max_prompt_table_rows),
    )
    repository = assemble(settings, model, artefacts, profile)
    return gpu_launch(binary, repository, ports, profile.gpus, settings.drain_timeout)


def _engine_limits(engine_dir: Path) -> dict[str, int]:
    """`trtllm-build`'s own record of what the engine was built for. Raises ArtefactError."""
    path = engine_dir / "config.json"
    try:
        limits = json.loads(path.read_text("utf-8"))["build_config"]
        return {name: int(limits[name]) for name in ("max_batch_size", "max_seq_len")}
    except (OSError, ValueError, KeyError, TypeError):
        raise ArtefactError(f"{path} is missing or not that of an engine; run `step-audio build` again") from None

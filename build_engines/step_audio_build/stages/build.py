"""From a checkpoint to engines for GPUs, stage by stage. What is finished and of the same build is not done again.

Each stage is a class with the same few methods (`Stage`); what it made is named by a manifest whose identity holds the
identity of what it was made from. So no stage goes on with another build's artefacts, whatever is changed meanwhile.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from step_audio.command_line import Echo
from step_audio.config import CONFIG_FILES
from step_audio.errors import ArtefactError, StepAudioError
from step_audio_build.artefacts.artefact import free_space, require_space
from step_audio_build.stages.calibration import calibration_fault

if TYPE_CHECKING:
    from step_audio_build.stages.download import DownloadStage
    from step_audio_build.stages.layout import BuildJob, BuildSettings

    Stages = tuple[DownloadStage, *tuple["Stage", ...]]  # in the order of STAGES

# What each of the stages imports, in our process or in its own, however late.
MODULES = {
    "download": (),
    "convert": ("torch", "onnx", "onnxscript"),
    "encoder": ("torch", "tensorrt", "onnxruntime"),
    "engine": ("tensorrt_llm",),
    "check": ("torch", "tensorrt_llm"),
    "repository": (),
}
QUANTISER_MODULES = (
    "tensorrt_llm",
    "modelopt",
    "datasets",
    "transformers",
    "accelerate",
)  # of `convert` to fp8 and awq
STAGES = tuple(MODULES)


class Stage(Protocol):
    """One of the six stages of `step-audio build`, as the build sees it."""

    name: str
    needs_gpu: bool

    def finished(self) -> bool:
        """Raises ArtefactError when another build's artefact is in its place."""

    def size(self) -> int:
        """Bytes that it adds to the disk."""

    def describe(self) -> list[str]:
        """Commands and files, for people."""

    def run(self) -> None:
        """Raises StepAudioError; what it had done so far does not hinder the next run."""

    def invalidate(self) -> None:
        """Have `finished` say no. What other profiles use is left alone."""


def build(settings: BuildSettings, echo: Echo, first: str | None = None, last: str = STAGES[-1]) -> None:
    """Do the stages from `first` to `last`; raises StepAudioError.

    Without `first`, all that are not finished. With it, `first` and those behind it anew, on what is there before it.
    """
    from step_audio_build.stages.layout import BuildJob

    job = BuildJob(settings, echo)
    stages = _stages(job)
    start = 0 if first is None else STAGES.index(first)
    chosen = stages[start : STAGES.index(last) + 1]
    if not chosen:
        raise ArtefactError(f"--from {first} is behind --to {last}")
    _preflight(job, chosen)
    for stage in stages[:start]:
        if not _finished(stage):
            raise ArtefactError(f"stage {stage.name} is not finished; run `step-audio build --from {stage.name}`")
    if first is not None:
        for stage in stages[start:]:
            stage.invalidate()
    _learn_model(job, stages)
    if lacking := _lacking(job, stages, chosen):
        raise ArtefactError("; ".join(lacking))
    settings.work_dir.mkdir(parents=True, exist_ok=True)
    for stage in chosen:
        if _finished(stage):
            echo(f"{stage.name}: nothing to do")
        else:
            echo(f"{stage.name}: begins")
            stage.run()
            echo(f"{stage.name}: done")


def describe(settings: BuildSettings, first: str | None = None, last: str = STAGES[-1]) -> tuple[list[str], list[str]]:
    """What `build` would do, line by line, and what would keep it from that, GPUs and programs apart.

    Asks the hub about a model that is not here; writes nothing.
    """
    from step_audio_build.stages.layout import BuildJob

    job = BuildJob(settings, lambda line: None)
    stages = _stages(job)
    _learn_model(job, stages)
    lines = [job.plan.table(), *job.plan.reasons]
    total = 0
    chosen = stages[0 if first is None else STAGES.index(first) : STAGES.index(last) + 1]
    for stage in chosen:
        if first is None and _done(stage):
            lines.append(f"{stage.name}: nothing to do")
            continue
        size = stage.size()
        total += size
        lines.append(f"{stage.name}:" + (f" {size / 1e9:.2f} GB" if size else ""))
        lines += [f"    {line}" for line in stage.describe()]
    free = free_space(settings.work_dir)
    lines.append(f"in all {total / 1e9:.2f} GB; {settings.work_dir} has {free / 1e9:.2f} GB free")
    return lines, _lacking(job, stages, chosen)


def space_needed(job: BuildJob) -> int:
    """Bytes that a whole build would still add to the disk. The hub is not asked: its files count as the model does."""
    download, *others = _stages(job)
    unasked = 0 if _done(download) else download.size_unasked()
    return unasked + sum(stage.size() for stage in others if not _done(stage))


def _stages(job: BuildJob) -> Stages:
    """Imported here: torch and the rest are for building, not for `--help`."""
    from step_audio_build.stages.check import CheckStage
    from step_audio_build.stages.convert import ConvertStage
    from step_audio_build.stages.download import DownloadStage
    from step_audio_build.stages.encoder import EncoderStage
    from step_audio_build.stages.engine import EngineStage
    from step_audio_build.stages.repository import RepositoryStage

    others = (ConvertStage, EncoderStage, EngineStage, CheckStage, RepositoryStage)
    return DownloadStage(job), *(stage(job) for stage in others)


def _finished(stage: Stage) -> bool:
    try:
        return stage.finished()
    except ArtefactError as error:
        raise ArtefactError(f"{stage.name}: {error}; or build it anew with --from {stage.name}") from None


def _preflight(job: BuildJob, chosen: Sequence[Stage]) -> None:
    """What a later stage lacks is said before the first one has worked for an hour. Raises StepAudioError."""
    from step_audio_build.planning.gpus import require
    from step_audio_build.tools.trtllm_build import PROGRAM

    names = {stage.name for stage in chosen}
    if any(stage.needs_gpu for stage in chosen):
        require(job.profile)
    modules = dict.fromkeys(module for name in STAGES if name in names for module in MODULES[name])
    if any(stage.name == "convert" and stage.needs_gpu for stage in chosen):
        modules |= dict.fromkeys(QUANTISER_MODULES)
    programs = [PROGRAM] if "engine" in names else []
    if "check" in names and job.profile.gpus > 1:
        programs.append("mpirun")
    missing = [name for name in modules if find_spec(name) is None]
    missing += [name for name in programs if shutil.which(name) is None]
    if missing:
        raise ArtefactError(
            f"{', '.join(missing)} not found: build inside the image for GPUs, see docs/deploy.md in the repository"
        )
    if (
        any(stage.name == "convert" and stage.needs_gpu for stage in chosen)
        and not job.settings.quantize_script.is_file()
    ):
        raise ArtefactError(f"{job.settings.quantize_script} is not there; name NVIDIA's with --quantize-script")


def _learn_model(job: BuildJob, stages: Stages) -> None:
    """Its configuration comes from the hub while it is not here, a few kilobytes before all others."""
    if job.settings.model is not None and not any((job.checkpoint / name).is_file() for name in CONFIG_FILES):
        job.model = stages[0].peek()


def _lacking(job: BuildJob, stages: Stages, chosen: Sequence[Stage]) -> list[str]:
    """What some stage, however late, would end for, as far as checkpoint, plan and disk show it now."""
    found = list(stages[0].faults)
    if any(stage.name == "convert" and stage.needs_gpu for stage in chosen) and not _quantised(job):
        found += filter(None, [calibration_fault(job.settings.calibration_data)])
    if not job.plan.fits:
        found.append(f"{job.profile.name} does not fit: {'; '.join(job.plan.reasons)}")
    layout = job.layout
    for folder in (_existing(layout.work), layout.own, layout.decoder, layout.plain_decoder):
        if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
            found.append(f"{folder} is not writable by user {os.geteuid()}: chown -R {os.geteuid()} {folder}")
    try:
        needed = sum(stage.size() for stage in chosen if not _done(stage))
        require_space(layout.work, needed, f"stages {chosen[0].name} to {chosen[-1].name}")
    except StepAudioError as error:
        found.append(str(error))
    return list(dict.fromkeys(found))


def _quantised(job: BuildJob) -> bool:
    """Whether the text for calibration is read no more."""
    from step_audio_build.stages.quantized import is_finished

    try:
        return is_finished(job)
    except (StepAudioError, OSError):
        return False


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _done(stage: Stage) -> bool:
    """Whether nothing is left to do; a stage whose input is not there yet is not. Faults are told in its turn."""
    try:
        return stage.finished()
    except StepAudioError:
        return False

"""Which checks belong to this machine and to the profile that is asked for, if one is."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from step_audio.config import CONFIG_FILES, ModelConfig
from step_audio.errors import ArtefactError, StepAudioError
from step_audio_build.commands.plan import PUBLISHED
from step_audio_build.planning.gpus import VISIBLE, FoundGpu, visible_gpus
from step_audio_build.planning.memory_plan import plan
from step_audio_build.planning.profiles import Profile
from step_audio_build.planning.vllm_plan import plan_vllm
from step_audio_build.stages.build import space_needed
from step_audio_build.stages.calibration import DEFAULT_DATA
from step_audio_build.stages.layout import DEFAULT_MODEL, QUANTIZE_SCRIPT, BuildJob, BuildSettings, Layout
from step_audio_build.stages.quantized import CALIBRATED
from step_audio_gateway.settings import GatewaySettings
from step_audio_server import encoder_gpu, vllm_process
from step_audio_server.doctor import cpu, gpu, host, image
from step_audio_server.doctor.finding import Finding, Status, fault, ok, warning
from step_audio_server.launch import gpu_image
from step_audio_server.settings import ServeSettings

Check = Callable[[], Finding | Iterable[Finding] | None]


@dataclass
class Examination:
    """Nothing is raised: what a check stumbles over is a fault of its own."""

    profile: Profile | None
    work_dir: Path
    checkpoint: Path | None
    llm_python: Path | None = None  # of vLLM, which then is to compute the language model
    encoder_device: Literal["cpu", "cuda"] | None = None  # beside vLLM; None: where vLLM is
    calibration_data: str = DEFAULT_DATA  # of a profile in fp8 or awq
    findings: list[Finding] = field(default_factory=list)
    works: list[str] = field(default_factory=list)  # what this machine can do, for people

    @property
    def status(self) -> Status:
        """The worst of all."""
        found = {finding.status for finding in self.findings}
        return next((status for status in ("fault", "warning") if status in found), "ok")

    def run(self) -> Examination:
        gpus, reason = _gpus()
        ready: list[str] = []
        if gpus or self.profile is not None:
            if self._on_gpus(gpus, reason):
                names = [self.profile.name] if self.profile else gpu.suitable(gpus)
                ready += [f"profile {name} on GPUs" for name in names]
        else:
            self._add("GPUs", lambda: _no_gpus(reason, None))
        # The image for GPUs has no server for a CPU, and a profile asks for none.
        if self.profile is None and gpu_image.missing_parts() and not (gpus and self.llm_python):
            about_gpus = len(self.findings)
            if self._on_cpu():
                ready.append("any checkpoint on the CPU")
                self.findings[:about_gpus] = map(_not_needed, self.findings[:about_gpus])
        if self._host(len(gpus)):
            self.works = ready
        return self

    def _on_gpus(self, gpus: list[FoundGpu], reason: str) -> bool:
        checks: list[tuple[str, Check]] = [("GPUs", lambda: _no_gpus(reason, self.profile))]
        if gpus:
            checks = [
                ("driver", lambda: gpu.driver(gpus)),
                ("CUDA", gpu.cuda),
                ("GPUs", lambda: gpu.cards(gpus, self.profile)),
                ("GPU memory", lambda: gpu.load(gpus)),
                ("links", lambda: gpu.links(gpus, self.profile)),
            ]
        if self.llm_python is None:
            checks += [
                ("image", image.image),
                ("versions", image.versions),
                ("packages", lambda: image.packages(self.profile)),
                ("programs", lambda: image.programs(self.profile)),
            ]
        else:
            checks += self._without_tensorrt()
        return self._all(checks)

    def _on_cpu(self) -> bool:
        return self._all(self._without_tensorrt())

    def _without_tensorrt(self) -> list[tuple[str, Check]]:
        checks: list[tuple[str, Check]] = [
            ("Python", cpu.python),
            ("CPU server", cpu.server),
            ("CPU runtimes", cpu.runtimes),
        ]
        if (python := self.llm_python) is not None:
            checks += [
                ("vLLM", lambda: cpu.vllm(python)),
                ("audio encoder", lambda: cpu.encoder(self._encoder_on_gpu(python))),
            ]
        return checks

    def _encoder_on_gpu(self, python: Path) -> bool:
        """As `serve` decides; an environment that is none, a finding of its own, is taken for one of GPUs."""
        if self.encoder_device is None:
            with contextlib.suppress(StepAudioError):
                return encoder_gpu.device(None, vllm_process.check(python).on_gpus) == "cuda"
        return self.encoder_device != "cpu"

    def _host(self, gpus: int) -> bool:
        profile, model = self.profile, self._model()
        memory_plan = None if self.llm_python or profile is None or model is None else plan(profile, model)
        built = profile is not None and Layout(self.work_dir, profile).manifest("repository").is_file()
        checks: list[tuple[str, Check]] = [
            ("memory", lambda: host.memory(None if built else memory_plan)),
            ("/dev/shm", lambda: host.shared_memory(profile is not None)),
            ("disk", lambda: host.disk(self.work_dir, self._to_write(built) if memory_plan else None)),
            ("ports", lambda: host.ports(_ports())),
            ("permissions", lambda: host.permissions(self.work_dir)),
        ]
        if (checkpoint := self.checkpoint) is not None:
            checks.append(("checkpoint", lambda: host.checkpoint(checkpoint)))
        if profile is not None and built and not self.llm_python:
            checks.append(("engines", lambda: host.engines(profile, self.work_dir, self.checkpoint)))
        if profile is not None and profile.precision in CALIBRATED and not (built or self.llm_python):
            checks.append(("calibration", lambda: host.calibration(self.calibration_data, QUANTIZE_SCRIPT)))
        if ranks := profile.gpus if profile else gpus:
            checks.append(("limits", lambda: host.limits(ranks)))
        if memory_plan is not None:
            checks.insert(0, ("GPU plan", lambda: gpu.fits(memory_plan)))
        elif self.llm_python is not None and profile is not None and model is not None:
            vllm_plan = plan_vllm(profile, model, encoder_on_gpu=self._encoder_on_gpu(self.llm_python))
            checks.insert(0, ("GPU plan", lambda: gpu.fits_vllm(vllm_plan)))
        return self._all(checks) and (profile is None or memory_plan is not None or self.llm_python is not None)

    def _model(self) -> ModelConfig | None:
        """The published one where none is here; None for a checkpoint that cannot be read, a finding of its own."""
        try:
            return PUBLISHED if self.checkpoint is None else ModelConfig.from_directory(self.checkpoint)
        except (StepAudioError, OSError):
            return None

    def _to_write(self, built: bool) -> int:
        """Bytes, as `step-audio build` counts them; the published model's where none is here."""
        if built:
            return 0
        source = {"model": DEFAULT_MODEL} if self.checkpoint is None else {"checkpoint": self.checkpoint.resolve()}
        job = BuildJob(BuildSettings.create(profile=self.profile, work_dir=self.work_dir.resolve(), **source), print)
        if not any((job.checkpoint / name).is_file() for name in CONFIG_FILES):
            job.model = PUBLISHED
        return space_needed(job)

    def _all(self, checks: list[tuple[str, Check]]) -> bool:
        """All of them are made; whether none found a fault."""
        return all([self._add(name, check) for name, check in checks])

    def _add(self, name: str, check: Check) -> bool:
        try:
            found = check()
        except (StepAudioError, OSError, ValueError, ImportError) as error:
            found = fault(name, str(error), "see to what it names")
        new = [found] if isinstance(found, Finding) else list(found or ())
        self.findings += new
        return all(finding.status != "fault" for finding in new)


def _gpus() -> tuple[list[FoundGpu], str]:
    """What nvidia-smi tells, or why it does not; the reason is empty where nobody would expect it to."""
    if shutil.which("nvidia-smi") is None:
        return [], ""
    chosen = f"{VISIBLE}={os.environ[VISIBLE]} leaves none" if VISIBLE in os.environ else "nvidia-smi lists none"
    try:
        return visible_gpus(), chosen
    except ArtefactError as error:
        return [], str(error)


def _not_needed(finding: Finding) -> Finding:
    """What would be a fault of a server on GPUs, on a machine that can do without them."""
    return replace(finding, status="warning") if finding.status == "fault" else finding


def _no_gpus(reason: str, profile: Profile | None) -> Finding:
    """A flag of the container is missing, or a driver, or there are none and nobody asked."""
    if VISIBLE in reason:
        advice = f"name whole GPUs of this machine in {VISIBLE}, or unset it"
    elif not gpu_image.missing_parts():
        advice = "start the container with --gpus all (NVIDIA Container Toolkit)"
    elif profile is not None:
        advice = "install NVIDIA's driver, or leave --profile out and serve on the CPU"
    elif reason:
        advice = "update or reinstall NVIDIA's driver; without it the CPU will do"
    else:
        return ok("GPUs", "none; a CPU will do")
    return (fault if profile else warning)("GPUs", reason or "none", advice)


def _ports() -> dict[str, int]:
    """Flag -> port, where nothing else is said."""
    serve, door = ServeSettings.model_fields, GatewaySettings.model_fields
    names = {"--grpc-port": "grpc_port", "--http-port": "http_port", "--metrics-port": "metrics_port"}
    return {"--port": door["port"].default, **{flag: serve[name].default for flag, name in names.items()}}

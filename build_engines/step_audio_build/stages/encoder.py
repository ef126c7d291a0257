"""`encoder`: the TensorRT plan of the audio encoder, refused when its numbers are not the ONNX model's."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from step_audio_build.artefacts.artefact import as_source, finish, finished, publish, require_space, required
from step_audio_build.artefacts.manifest import Identity, write_atomically
from step_audio_build.planning.gpus import installed_version, require
from step_audio_build.stages.layout import BuildJob
from step_audio_build.tools import subprocess_runner

if TYPE_CHECKING:
    from step_audio_build.tools.encoder_plan import PlanJob

FORMAT = 1
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class EncoderStage:
    """The encoder's ONNX file to a TensorRT plan for this machine's kind of GPU, compared with ONNX Runtime.

    `run` raises ArtefactError when the two differ by more than the precision explains.
    """

    name = "encoder"
    needs_gpu = True

    def __init__(self, job: BuildJob):
        self.job = job

    @property
    def onnx(self) -> Path:
        return self.job.layout.encoder_onnx(self.job.settings.length_rule)

    def identity(self) -> Identity:
        gpu = require(self.job.profile)
        return Identity(
            kind="encoder plan",
            format=FORMAT,
            source=[as_source("the ONNX encoder", required(self.onnx.with_suffix(".manifest.json"), "convert"))],
            settings={
                "precision": self.job.settings.encoder_precision,
                "length_rule": self.job.settings.length_rule,
                "clips": self.job.profile.encoder_batch_clips,
                "gpu": gpu.name,
                "sm": gpu.sm,
                "tensorrt": installed_version("tensorrt"),
            },
        )

    def finished(self) -> bool:
        layout = self.job.layout
        return finished(layout.manifest(self.name), self.identity(), layout.own) is not None

    def size(self) -> int:
        return BYTES[self.job.settings.encoder_precision] * self.job.encoder_parameters

    def describe(self) -> list[str]:
        return [" ".join(self._command())]

    def run(self) -> None:
        from step_audio_build.tools.encoder_plan import Parity

        job, layout, plan_job = self.job, self.job.layout, self._plan_job()
        identity = self.identity()
        tools = {"tensorrt": installed_version("tensorrt"), "driver": require(job.profile).driver}
        require_space(layout.own, self.size(), "the encoder's plan")
        layout.own.mkdir(parents=True, exist_ok=True)
        plan_job.partial.unlink(missing_ok=True)
        write_atomically(self._job_file, plan_job.model_dump_json(indent=1) + "\n")
        try:
            subprocess_runner.run(self._command(), layout.log(self.name), job.echo)
        except BaseException:
            plan_job.partial.unlink(missing_ok=True)
            raise
        parity = Parity.model_validate_json(plan_job.report.read_text(encoding="utf-8"))
        job.echo(
            f"encoder: {parity.precision} plan against ONNX Runtime over {parity.rows} embeddings: least cosine "
            f"{parity.min_cosine:.6f}, error at most {parity.max_error:.3g}, {parity.mean_error:.3g} on average "
            f"of values of {parity.reference_rms:.3g} rms"
        )
        publish(plan_job.partial, layout.encoder_plan)
        names = [layout.encoder_plan.name, plan_job.report.name]
        finish(layout.manifest(self.name), identity, layout.own, names, tools)

    def invalidate(self) -> None:
        self.job.layout.manifest(self.name).unlink(missing_ok=True)

    @property
    def _job_file(self) -> Path:
        return self.job.layout.own / "encoder.job.json"

    def _command(self) -> list[str]:
        return [sys.executable, "-m", "step_audio_build.tools.encoder_plan", str(self._job_file)]

    def _plan_job(self) -> PlanJob:
        from step_audio_build.tools.encoder_plan import PlanJob

        audio, layout = self.job.model.audio, self.job.layout
        return PlanJob(
            onnx=self.onnx,
            plan=layout.encoder_plan,
            timing_cache=layout.timing_cache("encoder"),
            report=layout.own / "encoder.parity.json",
            precision=self.job.settings.encoder_precision,
            clips=self.job.profile.encoder_batch_clips,
            n_mels=audio.n_mels,
            max_frames=2 * audio.n_audio_ctx,
            length_rule=self.job.settings.length_rule,
        )

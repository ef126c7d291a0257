"""`convert`: the checkpoint as TensorRT-LLM and ONNX take it. Needs a GPU for the precisions fp8 and awq only."""

from __future__ import annotations

import math

from step_audio.checkpoint import Checkpoint, decoder_tensors, encoder_tensors
from step_audio.errors import CheckpointError
from step_audio.progress import Progress
from step_audio.safetensors import byte_size
from step_audio_build.artefacts.artefact import finished
from step_audio_build.artefacts.manifest import Identity, read_manifest, source_files
from step_audio_build.convert.convert_decoder import FORMAT as DECODER_FORMAT
from step_audio_build.convert.convert_decoder import convert_decoder, rank_tensors
from step_audio_build.convert.decoder_only import bytes_written
from step_audio_build.convert.export_encoder import FORMAT as ENCODER_FORMAT
from step_audio_build.convert.export_encoder import OPSET, export_encoder
from step_audio_build.stages.layout import DTYPE, BuildJob
from step_audio_build.stages.quantized import (
    CALIBRATED,
    WEIGHT_ONLY,
    calibrated,
    is_finished,
    quantize_command,
    weight_only,
)


class ConvertStage:
    """Checkpoint to TensorRT-LLM checkpoint, one file for each rank, and to the encoder's ONNX file.

    Needs no GPU, except for the precisions that are calibrated (`CALIBRATED`).
    """

    name = "convert"

    def __init__(self, job: BuildJob):
        self.job = job
        self.needs_gpu = job.profile.precision in CALIBRATED

    def finished(self) -> bool:
        """Raises ArtefactError where a directory holds another build."""
        job, layout = self.job, self.job.layout
        checkpoint = Checkpoint(job.checkpoint)
        onnx = layout.encoder_onnx(job.settings.length_rule)
        encoder = Identity(
            kind="encoder",
            format=ENCODER_FORMAT,
            source=source_files(checkpoint, encoder_tensors(job.model.audio)),
            settings={"length_rule": job.settings.length_rule, "opset": OPSET},
        )
        if finished(onnx.with_suffix(".manifest.json"), encoder, onnx.parent) is None:
            return False
        if self.needs_gpu:
            return is_finished(job)
        decoder = Identity(
            kind="decoder",
            format=DECODER_FORMAT,
            source=source_files(checkpoint, decoder_tensors(job.model.text)),
            settings={"tp": job.profile.gpus, "dtype": DTYPE},
        )
        if finished(layout.plain_decoder / "manifest.json", decoder, layout.plain_decoder) is None:
            return False
        return job.profile.precision not in WEIGHT_ONLY or is_finished(job)

    def size(self) -> int:
        """Less what a stopped conversion has written, for it is taken up."""
        job = self.job
        onnx = job.layout.encoder_onnx(job.settings.length_rule).with_suffix(".manifest.json")
        size = 0 if onnx.is_file() else 4 * job.encoder_parameters  # float32
        if self.needs_gpu:
            try:
                size += bytes_written(job.checkpoint)
            except CheckpointError:  # not downloaded yet; no more than this
                size += self._plain_bytes()
            return size + job.profile.gpus * job.plan.weights
        if read_manifest(job.layout.plain_decoder / "manifest.json") is None:
            written = sum(path.stat().st_size for path in job.layout.plain_decoder.glob("rank*.partial"))
            size += max(self._plain_bytes() - written, 0)
        return size

    def _plain_bytes(self) -> int:
        tensors = rank_tensors(self.job.model.text, self.job.profile.gpus)
        return self.job.profile.gpus * sum(byte_size(DTYPE, tensor.shape) for tensor in tensors)

    def describe(self) -> list[str]:
        job, layout = self.job, self.job.layout
        lines = [f"write {layout.encoder_onnx(job.settings.length_rule)}"]
        if self.needs_gpu:
            size = byte_size(DTYPE, (sum(map(math.prod, decoder_tensors(job.model.text).values())),))
            lines.append(f"the quantiser loads {size / 1e9:.2f} GB onto the GPUs; what has no room there makes it slow")
            lines += [
                f"write {layout.decoder_only}",
                f"in {layout.work}: {' '.join(quantize_command(job, layout.decoder))}",
            ]
        else:
            lines.append(f"write {layout.plain_decoder} ({job.profile.gpus} ranks, {DTYPE})")
            if job.profile.precision in WEIGHT_ONLY:
                lines.append(f"link it as {layout.decoder} ({WEIGHT_ONLY[job.profile.precision]})")
        return lines

    def run(self) -> None:
        job, layout = self.job, self.job.layout
        if self.needs_gpu:
            calibrated(job)
        else:
            progress = Progress("convert")
            plain = convert_decoder(job.checkpoint, layout.plain_decoder, job.profile.gpus, DTYPE, progress=progress)
            if job.profile.precision in WEIGHT_ONLY:
                weight_only(job, plain)
        job.echo("convert: encoder to ONNX")
        export_encoder(job.checkpoint, layout.encoder_onnx(job.settings.length_rule), job.settings.length_rule)

    def invalidate(self) -> None:
        """Nothing: what is converted depends on the checkpoint alone, and other profiles may use it."""

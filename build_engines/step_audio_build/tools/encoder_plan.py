"""The audio encoder's ONNX model -> a TensorRT plan, and how far the plan's numbers are from ONNX Runtime's.

Run as `python -m step_audio_build.tools.encoder_plan JOB.json`: TensorRT's builder does not return to Python for
minutes, so only a process of its own can be interrupted, and its GPU memory goes with it. The calls are those of
TensorRT 10.14's Python API, read from the docstrings of tensorrt_cu13_bindings 10.14.1.48. A plan's precision is set by
builder flags, which that release still has (deprecated since 10.12): inputs and output stay float32, as in
the ONNX model.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import PositiveInt

from step_audio.arrays import Float32Array, Int64Array
from step_audio.clips import CLIP_SECONDS
from step_audio.config import Strict
from step_audio.errors import ArtefactError, StepAudioError
from step_audio.mel import FRAMES_PER_SECOND, LengthRule, log_mel, pad_batch, token_count
from step_audio.steps.encoder_engine import EncoderEngine, OnnxEncoderEngine
from step_audio_build.artefacts.manifest import to_json, write_atomically
from step_audio_build.convert.export_encoder import MIN_FRAMES
from step_audio_build.planning.profiles import EncoderPrecision
from step_audio_build.tools.tone import gliding_tone

WORKSPACE = 1 << 30  # bytes that one layer's kernel may take beside its inputs and outputs

# The least cosine between an embedding and ONNX Runtime's. Rounding leaves it close to 1; a plan that is wrong, or
# overflows, is far below.
MIN_COSINE = {"float32": 0.9999, "float16": 0.999, "bfloat16": 0.99}


class PlanJob(Strict):
    """One run of this file."""

    onnx: Path
    plan: Path  # written under this name with .partial; the caller renames it
    timing_cache: Path  # read where it is there, and written
    report: Path
    precision: EncoderPrecision
    clips: PositiveInt  # in one run, at most
    n_mels: PositiveInt
    max_frames: PositiveInt  # 2 * n_audio_ctx
    length_rule: LengthRule

    @property
    def partial(self) -> Path:
        return self.plan.with_name(self.plan.name + ".partial")


class Parity(Strict):
    """Embeddings of the plan against ONNX Runtime's on the same clips, rows of padding left out."""

    precision: EncoderPrecision
    clips: int
    rows: int
    max_error: float
    mean_error: float
    reference_rms: float
    min_cosine: float  # of a row


def shapes(job: PlanJob) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Input -> least, usual and largest shape: the one optimisation profile that the plan has."""
    usual = min(round(CLIP_SECONDS * FRAMES_PER_SECOND) + 2, job.max_frames)
    return {
        "mel": (
            (1, job.n_mels, MIN_FRAMES),
            (job.clips, job.n_mels, usual),
            (job.clips, job.n_mels, job.max_frames),
        ),
        "frames": ((1,), (job.clips,), (job.clips,)),
    }


def build_plan(job: PlanJob) -> None:
    """Write `job.partial`. Raises ArtefactError with TensorRT's own words."""
    import tensorrt as trt

    logger = trt.Logger(trt.Logger.INFO)  # to stdout, which the caller keeps
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(job.onnx)):  # by its path, beside which large models keep their weights
        faults = "; ".join(str(parser.get_error(n)) for n in range(parser.num_errors))
        raise ArtefactError(f"TensorRT cannot read {job.onnx.name}: {faults}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE)
    if job.precision == "float32":
        config.clear_flag(trt.BuilderFlag.TF32)  # on by default, and 10 bits of mantissa
    else:
        config.set_flag({"float16": trt.BuilderFlag.FP16, "bfloat16": trt.BuilderFlag.BF16}[job.precision])
    profile = builder.create_optimization_profile()
    for name, (least, usual, largest) in shapes(job).items():
        profile.set_shape(name, least, usual, largest)
    if config.add_optimization_profile(profile) < 0:
        raise ArtefactError("TensorRT refuses the encoder's range of shapes")
    cache = _attach_timing_cache(config, job.timing_cache)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ArtefactError("TensorRT built no plan of the encoder; its messages are in the log")
    write_atomically(job.partial, memoryview(plan))
    write_atomically(job.timing_cache, memoryview(cache.serialize()))


def _attach_timing_cache(config: Any, path: Path) -> Any:
    """What was measured before, unless it is of another device or release: then measurements begin anew."""
    if path.is_file():
        cache = config.create_timing_cache(path.read_bytes())
        if config.set_timing_cache(cache, ignore_mismatch=False):
            return cache
    cache = config.create_timing_cache(b"")
    config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


def fixed_clips(job: PlanJob) -> tuple[Float32Array, Int64Array]:
    """The fixed input of the comparison: gliding tones in noise, of a usual clip's length, a third of it and 0.1 s.

    mel float32 [3, n_mels, T], frames int64 [3].
    """
    longest = min(CLIP_SECONDS, job.max_frames / FRAMES_PER_SECOND - 0.1)
    clips = []
    for seed, seconds in enumerate((longest, longest / 3, 0.1)):
        clips.append(log_mel(gliding_tone(seconds, seed), job.n_mels))
    mel, frames = pad_batch(clips, job.n_mels)
    return mel, frames.astype(np.int64)


def compare(job: PlanJob, plan: EncoderEngine, reference: EncoderEngine) -> Parity:
    """Both engines on `fixed_clips`, as many at a time as the plan takes."""
    mel, frames = fixed_clips(job)
    ours, theirs = (np.concatenate(list(_embeddings(job, engine, mel, frames))) for engine in (plan, reference))
    error = np.abs(ours - theirs)
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    cosine = (ours * theirs).sum(axis=1) / np.maximum(norms, 1e-30)
    return Parity(
        precision=job.precision,
        clips=len(frames),
        rows=len(ours),
        max_error=float(error.max()),
        mean_error=float(error.mean()),
        reference_rms=float(np.sqrt((theirs**2).mean())),
        min_cosine=float(cosine.min()),
    )


def _embeddings(job: PlanJob, engine: EncoderEngine, mel: Float32Array, frames: Int64Array) -> Iterator[Float32Array]:
    """Each clip's own rows."""
    for start in range(0, len(frames), job.clips):
        batch = slice(start, start + job.clips)
        for rows, length in zip(engine.run(mel[batch], frames[batch]), frames[batch], strict=True):
            yield rows[: token_count(int(length), job.length_rule)]


def require_parity(parity: Parity) -> None:
    """Raises ArtefactError for a plan whose embeddings are not the model's."""
    least = MIN_COSINE[parity.precision]
    if not parity.min_cosine >= least:  # a NaN is no better than a small one
        raise ArtefactError(
            f"the encoder's plan differs from ONNX Runtime: cosine {parity.min_cosine:.5f}, at least {least} is asked "
            f"for; build it with another --encoder-precision than {parity.precision}"
        )


def main(argv: list[str]) -> int:
    job = PlanJob.model_validate_json(Path(argv[0]).read_text(encoding="utf-8"))
    try:
        build_plan(job)
        from step_audio.steps.tensorrt_encoder import TensorRTEncoderEngine

        parity = compare(job, TensorRTEncoderEngine(job.partial), OnnxEncoderEngine(job.onnx))
        write_atomically(job.report, to_json(parity.model_dump()))
        require_parity(parity)
    except StepAudioError as error:
        print(f"error: {error}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

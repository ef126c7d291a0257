"""From a checkpoint directory to all that a CPU server needs, doing only what is not done yet.

    WORK/decoder-tp4-bfloat16/   TensorRT-LLM checkpoint: config.json, rank0..3.safetensors, manifest
    WORK/decoder-qwen2/          for vLLM instead: the decoder as a Qwen2 model, its shards linked where they can be
    WORK/encoder-L.onnx          and its manifest
    WORK/tokenizer.json, WORK/xgrammar_tokenizer_info.json
    WORK/server-PORT/engine/     engine-style config.json with that server's limits, and links to the rank files

A name says what its content depends on, so that another choice builds beside it and not over it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from step_audio.artefacts import Artefacts
from step_audio.checkpoint_faults import require_whole
from step_audio.command_line import Echo
from step_audio.config import DType, ModelConfig
from step_audio.errors import StepAudioError
from step_audio.mel import LengthRule
from step_audio.progress import Progress
from step_audio.tokenizer import Tokenizer
from step_audio.tokenizer_info import xgrammar_tokenizer_info
from step_audio_build.artefacts.manifest import write_atomically
from step_audio_build.convert.convert_decoder import convert_decoder
from step_audio_build.convert.decoder_only import write_decoder_only
from step_audio_build.convert.engine_dir import BuildConfig, build_cpu_engine_dir
from step_audio_build.convert.export_encoder import export_encoder


@dataclass(frozen=True)
class CpuBuild:
    """What is to be built for our engine, and where."""

    checkpoint: Path
    work_dir: Path  # shared by all servers on it
    engine_dir: Path  # of one server
    tp: int  # ranks of the decoder
    dtype: DType | None  # None: the checkpoint's own
    length_rule: LengthRule
    limits: BuildConfig


@dataclass(frozen=True)
class VllmBuild:
    """The same for vLLM."""

    checkpoint: Path
    work_dir: Path
    dtype: DType | None
    length_rule: LengthRule
    limits: BuildConfig
    encoder_on_gpu: bool  # then torch reads it from the checkpoint


def build(job: CpuBuild, echo: Echo) -> Artefacts:
    """Raises StepAudioError; interrupted, the next call goes on where this one was."""
    dtype = _begin(job)
    decoder = job.work_dir / f"decoder-tp{job.tp}-{dtype}"
    echo(f"decoder: TensorRT-LLM checkpoint for {job.tp} ranks")
    with _named("decoder"):
        convert_decoder(job.checkpoint, decoder, job.tp, dtype, progress=Progress("decoder"))
    encoder = _export_encoder(job, echo)
    build_cpu_engine_dir(decoder, job.engine_dir, job.limits)
    return _artefacts(job, job.engine_dir, encoder, dtype)


def build_for_vllm(job: VllmBuild, echo: Echo) -> Artefacts:
    """Raises as `build`."""
    dtype = _begin(job)
    decoder = job.work_dir / "decoder-qwen2"
    echo("decoder: Qwen2 for vLLM")
    with _named("decoder"):
        write_decoder_only(job.checkpoint, decoder)
    encoder = job.checkpoint.resolve() if job.encoder_on_gpu else _export_encoder(job, echo)
    return _artefacts(job, decoder, encoder, dtype)


def _begin(job: CpuBuild | VllmBuild) -> DType:
    """What both need first; returns the type of what the decoder is given."""
    require_whole(job.checkpoint)
    work = job.work_dir
    work.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_directory(job.checkpoint)
    write_atomically(work / "tokenizer.json", tokenizer.to_json())
    write_atomically(work / "xgrammar_tokenizer_info.json", xgrammar_tokenizer_info(tokenizer))
    return job.dtype or ModelConfig.from_directory(job.checkpoint).text.dtype


def _export_encoder(job: CpuBuild | VllmBuild, echo: Echo) -> Path:
    encoder = job.work_dir / f"encoder-{job.length_rule}.onnx"
    echo("encoder: ONNX")
    with _named("encoder"):
        export_encoder(job.checkpoint, encoder, job.length_rule)
    return encoder


def _artefacts(job: CpuBuild | VllmBuild, engine_dir: Path, encoder: Path, dtype: DType) -> Artefacts:
    return Artefacts(
        engine_dir=engine_dir,
        encoder_file=encoder,
        tokenizer_file=job.work_dir / "tokenizer.json",
        xgrammar_tokenizer_info_file=job.work_dir / "xgrammar_tokenizer_info.json",
        table_dtype=dtype,
        max_prompt_table_rows=job.limits.max_prompt_embedding_table_size // job.limits.max_batch_size,
        tokens_per_block=job.limits.tokens_per_block,
    )


@contextlib.contextmanager
def _named(stage: str) -> Iterator[None]:
    """Errors say which stage they are of."""
    try:
        yield
    except StepAudioError as error:
        raise type(error)(f"{stage}: {error}") from None


def default_work_dir(checkpoint: Path) -> Path:
    """Beside the checkpoint: it is as large as the checkpoint, and belongs on the same disk."""
    resolved = checkpoint.resolve()
    return resolved.with_name(f"{resolved.name}.step-audio")

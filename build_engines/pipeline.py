"""From a checkpoint directory to all that a CPU server needs, doing only what is not done yet.

    WORK/decoder-tp4-bfloat16/   TensorRT-LLM checkpoint: config.json, rank0..3.safetensors, manifest
    WORK/encoder-L.onnx          and its manifest
    WORK/tokenizer.json, WORK/xgrammar_tokenizer_info.json
    WORK/server-PORT/engine/     engine-style config.json with that server's limits, and links to the rank files

A name says what its content depends on, so that another choice builds beside it and not over it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from step_audio.chat_template import render
from step_audio.config import ModelConfig
from step_audio.conversation import parse_conversation
from step_audio.errors import StepAudioError
from step_audio.serving.repository import Artefacts
from step_audio.serving.settings import ServeSettings, SettingsError
from step_audio.tokenizer import Tokenizer, check_vocabulary
from step_audio.tokenizer_info import xgrammar_tokenizer_info
from step_audio_build.convert_decoder import convert_decoder
from step_audio_build.engine_dir import BuildConfig, build_cpu_engine_dir
from step_audio_build.export_encoder import export_encoder
from step_audio_build.manifest import write_atomically
from step_audio_build.progress import Progress


def build(settings: ServeSettings, say: Callable[[str], None] = lambda line: None) -> tuple[ModelConfig, Artefacts]:
    """Raises StepAudioError; interrupted, the next call goes on where this one was."""
    model = ModelConfig.from_directory(settings.checkpoint)
    limits = build_limits(settings, model)
    work = settings.work_dir
    work.mkdir(parents=True, exist_ok=True)

    tokenizer = Tokenizer.from_directory(settings.checkpoint)
    check_vocabulary(tokenizer, model.text.vocab_size)
    render(parse_conversation([{"role": "user", "content": "hello"}]), settings.chat_template)  # a broken one, now
    write_atomically(work / "tokenizer.json", tokenizer.to_json())
    write_atomically(work / "xgrammar_tokenizer_info.json", xgrammar_tokenizer_info(tokenizer))

    dtype = settings.dtype or model.text.dtype
    decoder = work / f"decoder-tp{settings.tp}-{dtype}"
    encoder = work / f"encoder-{settings.length_rule}.onnx"
    say(f"decoder: TensorRT-LLM checkpoint for {settings.tp} ranks")
    with _named("decoder"):
        convert_decoder(settings.checkpoint, decoder, settings.tp, dtype, progress=Progress("decoder"))
    say("encoder: ONNX")
    with _named("encoder"):
        export_encoder(settings.checkpoint, encoder, settings.length_rule)
    build_cpu_engine_dir(decoder, settings.run_dir / "engine", limits)
    return model, Artefacts(
        engine_dir=settings.run_dir / "engine",
        encoder_file=encoder,
        tokenizer_file=work / "tokenizer.json",
        xgrammar_tokenizer_info_file=work / "xgrammar_tokenizer_info.json",
        table_dtype=dtype,
        max_prompt_table_rows=limits.max_prompt_embedding_table_size // limits.max_batch_size,
    )


def build_limits(settings: ServeSettings, model: ModelConfig) -> BuildConfig:
    """The engine's limits. The prompt table is divided evenly between requests, as in C++."""
    max_seq_len = settings.resolved_max_seq_len(model)
    rows = settings.max_prompt_table_rows or max_seq_len
    try:
        return BuildConfig(
            max_batch_size=settings.max_batch_size,
            max_seq_len=max_seq_len,
            max_num_tokens=settings.max_num_tokens,
            max_prompt_embedding_table_size=rows * settings.max_batch_size,
        )
    except ValidationError as error:
        raise SettingsError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None


@contextlib.contextmanager
def _named(stage: str):
    """Errors say which stage they are of."""
    try:
        yield
    except StepAudioError as error:
        raise type(error)(f"{stage}: {error}") from None


def default_work_dir(checkpoint: Path) -> Path:
    """Beside the checkpoint: it is as large as the checkpoint, and belongs on the same disk."""
    resolved = checkpoint.resolve()
    return resolved.with_name(f"{resolved.name}.step-audio")

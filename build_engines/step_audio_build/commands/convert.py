"""`step-audio make-tiny`, `convert`, `export-encoder`: the parts of a build, one at a time."""

from __future__ import annotations

import argparse
from pathlib import Path

from pydantic import ValidationError

from step_audio.command_line import Commands, add_command, count, echo
from step_audio.errors import StepAudioError
from step_audio.validation import first_fault


def add_parts(commands: Commands) -> None:
    """Add the commands to the subparsers of `step-audio`; `run` is set."""
    _add_make_tiny(commands)
    _add_convert(commands)
    _add_export_encoder(commands)


def _add_make_tiny(commands: Commands) -> None:
    parser = add_command(commands, "make-tiny", _make_tiny, "Write a small random checkpoint in the published layout.")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    for name, default in (("seed", 0), ("hidden-size", 64), ("intermediate-size", 192), ("layers", 2), ("heads", 8)):
        kind = int if name == "seed" else count
        parser.add_argument(f"--{name}", type=kind, default=default, help="default %(default)s")
    parser.add_argument("--kv-heads", type=count, default=4, help="default %(default)s")
    parser.add_argument("--max-position-embeddings", type=count, default=32768, help="default %(default)s")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="default %(default)s")


def _make_tiny(arguments: argparse.Namespace) -> None:
    from step_audio_build.convert.make_tiny import make_tiny

    given = {name: value for name, value in vars(arguments).items() if name not in ("run", "output")}
    if arguments.hidden_size % arguments.heads:
        raise StepAudioError(f"--hidden-size {arguments.hidden_size} is not a multiple of --heads {arguments.heads}")
    try:
        config = make_tiny(arguments.output, **given)
    except ValidationError as error:
        raise StepAudioError(first_fault(error)) from None
    echo(f"{arguments.output}: {config.text.num_hidden_layers} layers of {config.text.hidden_size}, random weights")


def _add_convert(commands: Commands) -> None:
    parser = add_command(commands, "convert", _convert, "Checkpoint to TensorRT-LLM 1.2.1 checkpoint, one file a rank.")
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="DIR")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--tp", type=int, default=4, help="ranks (default %(default)s)")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), help="default: the checkpoint's own")


def _convert(arguments: argparse.Namespace) -> None:
    from step_audio.progress import Progress
    from step_audio_build.convert.convert_decoder import convert_decoder

    manifest = convert_decoder(
        arguments.checkpoint, arguments.output, arguments.tp, arguments.dtype, Progress("decoder")
    )
    size = sum(file.size for file in manifest.outputs)
    echo(f"{arguments.output}: TensorRT-LLM checkpoint for {arguments.tp} ranks, {size / 1e9:.3f} GB")


def _add_export_encoder(commands: Commands) -> None:
    about = "Checkpoint's audio encoder and adaptor to ONNX."
    parser = add_command(commands, "export-encoder", _export_encoder, about, extra="build")
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="DIR")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the .onnx file")
    parser.add_argument("--length-rule", choices=("L", "L-2"), default="L", help="default %(default)s")


def _export_encoder(arguments: argparse.Namespace) -> None:
    from step_audio_build.convert.export_encoder import export_encoder

    export_encoder(arguments.checkpoint, arguments.output, arguments.length_rule)
    echo(f"{arguments.output}: encoder and adaptor")

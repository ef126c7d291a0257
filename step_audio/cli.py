"""The `step-audio` command: arguments to calls, errors to one line and exit status 1."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from pydantic import ValidationError

from step_audio.errors import StepAudioError


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments) or 0
    except StepAudioError as error:
        print(f"step-audio: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        print(f"step-audio: this command needs {error.name}: pip install -e '.[cpu]'", file=sys.stderr)
        return 1
    except OSError as error:  # a full disk, a folder that may not be written to
        place = f"{error.filename}: " if error.filename else ""
        print(f"step-audio: {place}{error.strerror or error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `step-audio chat | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit complains
        return 141
    except KeyboardInterrupt:
        print("step-audio: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="step-audio", description="Step-Audio-R1 on Triton Inference Server")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_serve(commands)
    _add_chat(commands)
    _add_demo(commands)
    _add_make_tiny(commands)
    _add_convert(commands)
    _add_export_encoder(commands)
    return parser


def _command(commands, name: str, run, text: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(run=run)
    return parser


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _add_serve(commands) -> None:
    parser = _command(commands, "serve", _serve, "Build what is missing and serve a checkpoint on loopback.")
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="DIR", help="a Step-Audio checkpoint")
    parser.add_argument(
        "--work-dir", type=Path, metavar="DIR", help="for what is built (default: CHECKPOINT.step-audio beside it)"
    )
    parser.add_argument("--tp", type=int, help="ranks of the decoder (default 4)")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), help="default: the checkpoint's own")
    parser.add_argument("--max-batch-size", type=int, help="sequences in flight (default 32)")
    parser.add_argument("--max-seq-len", type=int, help="positions of prompt and answer (default: up to 32768)")
    parser.add_argument("--max-num-tokens", type=int, help="positions computed in one step (default 2048)")
    parser.add_argument("--max-prompt-table-rows", type=int, help="audio tokens of a request (default: max-seq-len)")
    parser.add_argument("--max-queue-size", type=int, help="requests waiting, 0 for no bound (default 256)")
    parser.add_argument(
        "--kv-cache-tokens", type=int, help="positions in the KV cache (default and least: 4 and 1 x max-seq-len)"
    )
    parser.add_argument("--no-kv-cache-reuse", dest="kv_cache_reuse", action="store_false", default=None)
    parser.add_argument("--batch-scheduler-policy", choices=("guaranteed_no_evict", "max_utilization"))
    parser.add_argument("--length-rule", choices=("L", "L-2"), help="audio tokens of a clip (default L)")
    parser.add_argument("--chat-template", help="default, published, or a Jinja file")
    parser.add_argument("--max-audios", type=int, help="recordings in a request (default 64)")
    parser.add_argument("--max-audio-seconds", type=float, help="of all recordings of a request (default 5100)")
    parser.add_argument("--max-audio-bytes", type=int, help="of all recordings of a request (default 512 MiB)")
    for name, port in (("grpc", 8001), ("http", 8000), ("metrics", 8002)):
        parser.add_argument(f"--{name}-port", type=int, help=f"on loopback (default {port})")


LIMIT_NAMES = ("max_audios", "max_audio_seconds", "max_audio_bytes")


def _serve(arguments: argparse.Namespace) -> None:
    from step_audio.serving.serve import Service
    from step_audio.serving.settings import ServeSettings
    from step_audio_build.pipeline import default_work_dir

    given = {name: value for name, value in vars(arguments).items() if value is not None and name != "run"}
    limits = {name: given.pop(name) for name in LIMIT_NAMES if name in given}
    given.setdefault("work_dir", default_work_dir(arguments.checkpoint))
    given["work_dir"] = given["work_dir"].resolve()
    Service(ServeSettings.create(**given, limits=limits), say).run()


def _add_chat(commands) -> None:
    parser = _command(commands, "chat", _chat, "Ask a running server; the answer is printed as it arrives.")
    parser.add_argument("--audio", action="append", default=[], metavar="FILE", help="a recording; repeat for more")
    parser.add_argument("--text", action="append", default=[], help="what to ask; put after the recordings")
    parser.add_argument("--system", help="system prompt")
    parser.add_argument("--prefix", help="begin the answer with this text, e.g. $'<think>\\n'")
    parser.add_argument("--url", default="127.0.0.1:8001", help="the server's gRPC address (default %(default)s)")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="default: asked from the server")
    _add_sampling(parser)


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling")
    group.add_argument("--max-tokens", type=int, help="default: what is left of the context")
    group.add_argument("--temperature", type=float, help="0 is greedy (default 0.7)")
    group.add_argument("--top-p", type=float, help="default 1.0")
    group.add_argument("--top-k", type=int)
    group.add_argument("--min-tokens", type=int)
    group.add_argument("--repetition-penalty", type=float)
    group.add_argument("--presence-penalty", type=float)
    group.add_argument("--frequency-penalty", type=float)
    group.add_argument("--seed", type=int)


SAMPLING_NAMES = (
    "max_tokens", "temperature", "top_p", "top_k", "min_tokens", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "seed",
)  # fmt: skip


def _chat(arguments: argparse.Namespace) -> int:
    from step_audio_client import Sampling
    from step_audio_client.chat import chat

    given = {name: getattr(arguments, name) for name in SAMPLING_NAMES}
    return chat(
        address=arguments.url,
        audio=arguments.audio,
        text=arguments.text,
        system=arguments.system,
        prefix=arguments.prefix,
        tokenizer=arguments.tokenizer,
        sampling=Sampling(**{name: value for name, value in given.items() if value is not None}),
    )


def _add_demo(commands) -> None:
    parser = _command(commands, "demo", _demo, "Serve a small random model here and stream its answer to a recording.")
    parser.add_argument("--work-dir", type=Path, default=Path(".work"), metavar="DIR", help="default %(default)s")


def _demo(arguments: argparse.Namespace) -> int:
    from step_audio.serving.demo import demo

    return demo(arguments.work_dir.resolve(), say)


def _count(text: str) -> int:
    if (value := int(text)) < 1:
        raise ValueError
    return value


_count.__name__ = "count"  # argparse says "invalid count value"


def _add_make_tiny(commands) -> None:
    parser = _command(commands, "make-tiny", _make_tiny, "Write a small random checkpoint in the published layout.")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    for name, default in (("seed", 0), ("hidden-size", 64), ("intermediate-size", 192), ("layers", 2), ("heads", 8)):
        kind = int if name == "seed" else _count
        parser.add_argument(f"--{name}", type=kind, default=default, help="default %(default)s")
    parser.add_argument("--kv-heads", type=_count, default=4, help="default %(default)s")
    parser.add_argument("--max-position-embeddings", type=_count, default=32768, help="default %(default)s")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="default %(default)s")


def _make_tiny(arguments: argparse.Namespace) -> None:
    from step_audio_build.make_tiny import make_tiny

    given = {name: value for name, value in vars(arguments).items() if name not in ("run", "output")}
    if arguments.hidden_size % arguments.heads:
        raise StepAudioError(f"--hidden-size {arguments.hidden_size} is not a multiple of --heads {arguments.heads}")
    try:
        config = make_tiny(arguments.output, **given)
    except ValidationError as error:
        raise StepAudioError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
    say(f"{arguments.output}: {config.text.num_hidden_layers} layers of {config.text.hidden_size}, random weights")


def _add_convert(commands) -> None:
    parser = _command(commands, "convert", _convert, "Checkpoint to TensorRT-LLM 1.2.1 checkpoint, one file a rank.")
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="DIR")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--tp", type=int, default=4, help="ranks (default %(default)s)")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), help="default: the checkpoint's own")


def _convert(arguments: argparse.Namespace) -> None:
    from step_audio_build.convert_decoder import convert_decoder
    from step_audio_build.progress import Progress

    manifest = convert_decoder(
        arguments.checkpoint, arguments.output, arguments.tp, arguments.dtype, Progress("decoder")
    )
    size = sum(file.size for file in manifest.outputs)
    say(f"{arguments.output}: TensorRT-LLM checkpoint for {arguments.tp} ranks, {size / 1e9:.3f} GB")


def _add_export_encoder(commands) -> None:
    parser = _command(commands, "export-encoder", _export_encoder, "Checkpoint's audio encoder and adaptor to ONNX.")
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="DIR")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the .onnx file")
    parser.add_argument("--length-rule", choices=("L", "L-2"), default="L", help="default %(default)s")


def _export_encoder(arguments: argparse.Namespace) -> None:
    from step_audio_build.export_encoder import export_encoder

    export_encoder(arguments.checkpoint, arguments.output, arguments.length_rule)
    say(f"{arguments.output}: encoder and adaptor")


if __name__ == "__main__":
    sys.exit(main())

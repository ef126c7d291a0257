"""The `step-audio` command: arguments to calls, errors to one line and exit status 1."""

from __future__ import annotations

import argparse
import math
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
    _add_gateway(commands)
    _add_chat(commands)
    _add_demo(commands)
    _add_make_tiny(commands)
    _add_convert(commands)
    _add_export_encoder(commands)
    _add_eval(commands)
    _add_train(commands)
    return parser


def _command(commands, name: str, run, text: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(run=run)
    return parser


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _add_serve(commands) -> None:
    from step_audio_gateway.command import add_serve_flags

    about = "Build what is missing and serve a checkpoint: Triton on loopback, the OpenAI-compatible API before it."
    parser = _command(commands, "serve", _serve, about)
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="a Step-Audio checkpoint (required)")
    parser.add_argument(
        "--work-dir", type=Path, metavar="DIR", help="for what is built (default: CHECKPOINT.step-audio beside it)"
    )
    parser.add_argument("--tp", type=int, help="ranks of the decoder (default 4)")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), help="default: the checkpoint's own")
    parser.add_argument("--max-batch-size", "--max-num-seqs", type=int, help="sequences in flight (default 32)")
    parser.add_argument(
        "--max-seq-len", "--max-model-len", type=int, help="positions of prompt and answer (default: up to 32768)"
    )
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
    add_serve_flags(parser)


LIMIT_NAMES = ("max_audios", "max_audio_seconds", "max_audio_bytes")


def _serve(arguments: argparse.Namespace) -> None:
    from step_audio.serving.serve import Service
    from step_audio.serving.settings import ServeSettings
    from step_audio_build.pipeline import default_work_dir
    from step_audio_gateway.command import serve_settings

    names = [name for name in ServeSettings.model_fields if name != "limits"]
    given, gateway = serve_settings(arguments, [*names, *LIMIT_NAMES])
    if "checkpoint" not in given:
        raise StepAudioError("which model? give --checkpoint DIR")
    limits = {name: given.pop(name) for name in LIMIT_NAMES if name in given}
    given["work_dir"] = Path(given.get("work_dir") or default_work_dir(Path(given["checkpoint"]))).resolve()
    Service(ServeSettings.create(**given, limits=limits), say, gateway).run()


def _add_gateway(commands) -> None:
    from step_audio_gateway.command import add_parser

    add_parser(commands)


def _add_chat(commands) -> None:
    parser = _command(commands, "chat", _chat, "Ask a running server; the answer is printed as it arrives.")
    parser.add_argument("--audio", action="append", default=[], metavar="FILE", help="a recording; repeat for more")
    parser.add_argument("--text", action="append", default=[], help="what to ask; put after the recordings")
    parser.add_argument("--system", help="system prompt")
    parser.add_argument("--prefix", help="begin the answer with this text, e.g. $'<think>\\n'")
    parser.add_argument("--url", default="127.0.0.1:8001", help="the server's gRPC address (default %(default)s)")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="default: asked from the server")
    _add_sampling(parser)


def _add_sampling(parser: argparse.ArgumentParser, temperature: float = 0.7) -> None:
    group = parser.add_argument_group("sampling")
    group.add_argument("--max-tokens", type=int, help="default: what is left of the context")
    group.add_argument("--temperature", type=float, help=f"0 is greedy (default {temperature:g})")
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
    parser = _command(commands, "demo", _demo, "Serve the small model of this repository and ask it something aloud.")
    parser.add_argument("--ask", metavar="TEXT", help="what espeak-ng says (default: a sum of two numbers)")
    parser.add_argument("--work-dir", type=Path, default=Path(".work"), metavar="DIR", help="default %(default)s")


def _demo(arguments: argparse.Namespace) -> int:
    from step_audio.serving.demo import QUESTION, demo

    return demo(arguments.work_dir.resolve(), arguments.ask or QUESTION, say)


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


def _add_train(commands) -> None:
    parser = _command(commands, "train", _train, "Train the small model on speech that espeak-ng makes on the fly.")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="goes on with what is there")
    parser.add_argument("--steps", type=_count, help="default: the recipe's")
    parser.add_argument("--seed", type=int, help="default: the recipe's")
    parser.add_argument("--workers", type=int, default=1, help="processes that make data (default %(default)s)")
    parser.add_argument("--device", help="cpu or cuda (default: a GPU where there is one)")


def _train(arguments: argparse.Namespace) -> None:
    from step_audio_training.command import run
    from step_audio_training.train import Recipe

    given = {name: value for name in ("steps", "seed") if (value := getattr(arguments, name)) is not None}
    run(arguments.output, Recipe(**given), arguments.workers, arguments.device, say)


def _snr(text: str) -> float | str:
    if text == "clean":
        return text
    if not math.isfinite(value := float(text)):
        raise ValueError
    return value


_snr.__name__ = "level of noise"  # argparse says "invalid level of noise value"


def _add_eval(commands) -> None:
    from step_audio_evaluation.presets import PRESETS

    parser = _command(commands, "eval", _eval, "Ask a served model questions whose answers are known, and score it.")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="answers and report; resumable")
    parser.add_argument("--url", help="gRPC address of a running server (default: one is started for --checkpoint)")
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="default: the small one that comes along")
    parser.add_argument("--tasks", nargs="*", metavar="TASK", help="held-out tasks (default: all, or none with --data)")
    parser.add_argument("--per-task", type=_count, help="questions of a task (default 100)")
    parser.add_argument("--quick", action="store_true", help="10 questions of a task")
    parser.add_argument(
        "--snr",
        nargs="*",
        type=_snr,
        metavar="DB",
        help="sums and transcripts at these levels of noise, `clean` for none (without values: clean 30 20 15 10 5 0)",
    )
    parser.add_argument("--data", type=Path, metavar="FILE", help="a data set of one JSON object a line")
    parser.add_argument("--audio-first", action="store_true", help="data set: recordings before the question")
    parser.add_argument(
        "--no-think", dest="think", action="store_false", help="data set: ask for answers without a thought"
    )
    parser.add_argument("--concurrency", type=_count, default=32, help="requests at once (default %(default)s)")
    parser.add_argument(
        "--against-torch", type=Path, metavar="DIR", help="compare tokens with this checkpoint's in torch"
    )
    parser.add_argument("--preset", choices=PRESETS, help="sampling of a published evaluation (default: greedy)")
    _add_sampling(parser, temperature=0)


def _eval(arguments: argparse.Namespace) -> int:
    from step_audio_evaluation.command import Options, evaluate
    from step_audio_evaluation.held_out import SNRS

    given = {name: value for name, value in vars(arguments).items() if value is not None and name != "run"}
    sampling = {name: given.pop(name) for name in SAMPLING_NAMES if name in given and name != "seed"}
    if "snr" in given:
        given["snr"] = given["snr"] or SNRS
    return evaluate(Options(**given, sampling=sampling), say)


if __name__ == "__main__":
    sys.exit(main())

"""The `step-audio` command: arguments to calls, errors to one line and exit status 1."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from step_audio.command_line import add_command, echo
from step_audio.errors import StepAudioError
from step_audio_server.commands.arguments import add_mind_paced, add_sampling, mind_paced_given, sampling_given


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
    from step_audio_build.commands.build import add_build
    from step_audio_build.commands.convert import add_parts
    from step_audio_build.commands.plan import add_plan
    from step_audio_gateway.command import add_parser as add_gateway
    from step_audio_server.commands.evaluate_arguments import add_eval
    from step_audio_server.doctor.command import add_doctor
    from step_audio_training.command import add_train

    parser = argparse.ArgumentParser(prog="step-audio", description="Step-Audio-R1 on Triton Inference Server")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_serve(commands)
    add_gateway(commands)
    _add_chat(commands)
    _add_demo(commands)
    add_doctor(commands)
    add_plan(commands)
    add_build(commands)
    add_parts(commands)
    add_eval(commands)
    add_train(commands)
    return parser


def _add_serve(commands) -> None:
    from step_audio_gateway.command import add_serve_flags

    about = (
        "Serve a checkpoint: Triton on loopback, the OpenAI-compatible API before it. On a CPU it is converted first."
    )
    parser = add_command(commands, "serve", _serve, about)
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="a Step-Audio checkpoint (required)")
    parser.add_argument(
        "--work-dir", type=Path, metavar="DIR", help="for what is built (default: CHECKPOINT.step-audio beside it)"
    )
    parser.add_argument(
        "--profile", metavar="NAME", help="on GPUs: what `step-audio build` made for them (default: on the CPU)"
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
        parser.add_argument(f"--{name}-port", type=int, help=f"Triton's own (default {port})")
    parser.add_argument(
        "--triton-host", metavar="IPV4", help="for Triton's own ports, which have no password (default 127.0.0.1)"
    )
    parser.add_argument("--startup-timeout", type=float, help="seconds to load in (default 600, on GPUs 1800)")
    parser.add_argument("--drain-timeout", type=int, help="seconds for running requests at the end (default 5)")
    add_serve_flags(parser)


LIMIT_NAMES = ("max_audios", "max_audio_seconds", "max_audio_bytes")


def _serve(arguments: argparse.Namespace) -> None:
    from step_audio_build.stages.cpu_build import default_work_dir
    from step_audio_gateway.command import serve_settings
    from step_audio_server.serve import Service
    from step_audio_server.settings import ServeSettings

    names = [name for name in ServeSettings.model_fields if name != "limits"]
    given, gateway = serve_settings(arguments, [*names, *LIMIT_NAMES])
    if "checkpoint" not in given:
        raise StepAudioError("which model? give --checkpoint DIR")
    limits = {name: given.pop(name) for name in LIMIT_NAMES if name in given}
    given["work_dir"] = Path(given.get("work_dir") or default_work_dir(Path(given["checkpoint"]))).resolve()
    Service(ServeSettings.create(**given, limits=limits), echo, gateway).run()


def _add_chat(commands) -> None:
    parser = add_command(commands, "chat", _chat, "Ask a running server; the answer is printed as it arrives.")
    parser.add_argument("--audio", action="append", default=[], metavar="FILE", help="a recording; repeat for more")
    parser.add_argument("--text", action="append", default=[], help="what to ask; put after the recordings")
    parser.add_argument("--system", help="system prompt")
    parser.add_argument("--prefix", help="begin the answer with this text, e.g. $'<think>\\n'")
    parser.add_argument("--url", default="127.0.0.1:8001", help="the server's gRPC address (default %(default)s)")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="default: asked from the server")
    add_mind_paced(parser)
    add_sampling(parser)


def _chat(arguments: argparse.Namespace) -> int:
    from step_audio_client import MindPaced, Sampling
    from step_audio_client.chat import chat

    pace = mind_paced_given(arguments)
    return chat(
        address=arguments.url,
        audio=arguments.audio,
        text=arguments.text,
        system=arguments.system,
        prefix=arguments.prefix,
        tokenizer=arguments.tokenizer,
        sampling=Sampling(**sampling_given(arguments)),
        mind_paced=MindPaced(**pace) if pace else None,
    )


def _add_demo(commands) -> None:
    parser = add_command(
        commands, "demo", _demo, "Serve the small model of this repository and ask it something aloud."
    )
    parser.add_argument("--ask", metavar="TEXT", help="what espeak-ng says (default: a sum of two numbers)")
    parser.add_argument("--work-dir", type=Path, default=Path(".work"), metavar="DIR", help="default %(default)s")


def _demo(arguments: argparse.Namespace) -> int:
    from step_audio_server.commands.demo import QUESTION, demo

    question = QUESTION if arguments.ask is None else arguments.ask
    if not question.strip():
        raise StepAudioError("--ask is empty: say what to ask, or leave it out for the default question")
    return demo(arguments.work_dir.resolve(), question, echo)


if __name__ == "__main__":
    sys.exit(main())

"""The `step-audio` command: arguments to calls, errors to one line and exit status 1."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from functools import cache
from pathlib import Path
from typing import TextIO

from step_audio.command_line import Commands, add_command, echo
from step_audio.containers import ADVICE
from step_audio.errors import StepAudioError
from step_audio.foreign_flags import add_foreign_flags
from step_audio.settings import add_flags, fields_of
from step_audio_server.commands.arguments import (
    add_mind_paced,
    add_sampling,
    add_tls,
    mind_paced_given,
    sampling_given,
    tls_given,
)
from step_audio_server.commands.vllm_flags import ALWAYS, REFUSED

BROKEN_PIPE = 141  # exit status where nobody reads on, as shells have it for who dies of SIGPIPE


def main(argv: list[str] | None = None) -> int:
    """The exit status. Raises SystemExit for arguments that argparse answers itself."""
    try:
        return _main(argv)
    except BrokenPipeError:  # `step-audio plan | head -1`
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                _flush(stream)
        return BROKEN_PIPE


def _main(argv: list[str] | None) -> int:
    try:
        return _run(argv)
    except StepAudioError as error:
        print(f"step-audio: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        raise
    except OSError as error:  # a full disk, a folder that may not be written to
        place = f"{error.filename}: " if error.filename else ""
        print(f"step-audio: {place}{error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("step-audio: interrupted", file=sys.stderr)
        return 130


def _run(argv: list[str] | None) -> int:
    try:
        arguments = _parser().parse_args(argv)
        status: int | None = arguments.run(arguments)
        return status or 0
    finally:
        _flush(sys.stdout)  # not at exit, when a fault could only be complained about


def _flush(stream: TextIO | None) -> None:
    """Raises OSError; what could not be written is dropped then, or the flush at exit fails again. None: closed."""
    if stream is None:
        return
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        raise


@cache
def _parser() -> argparse.ArgumentParser:
    from step_audio_build.commands.build import add_build
    from step_audio_build.commands.convert import add_parts
    from step_audio_build.commands.plan import add_plan
    from step_audio_gateway.command import add_parser as add_gateway
    from step_audio_server.commands.bench_arguments import add_bench
    from step_audio_server.commands.evaluate_arguments import add_eval
    from step_audio_server.commands.talk_arguments import add_talk
    from step_audio_server.doctor.command import add_doctor
    from step_audio_training.command import add_train

    parser = argparse.ArgumentParser(prog="step-audio", description="Step-Audio-R1 on Triton Inference Server")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_serve(commands)
    add_gateway(commands)
    _add_chat(commands)
    add_talk(commands)
    _add_demo(commands)
    add_doctor(commands)
    add_plan(commands)
    add_build(commands)
    add_parts(commands)
    add_eval(commands)
    add_bench(commands)
    add_train(commands)
    return parser


def _add_serve(commands: Commands) -> None:
    from step_audio_gateway.command import add_serve_flags
    from step_audio_server.settings import ServeSettings

    about = (
        "Serve a checkpoint: Triton on loopback, the OpenAI-compatible API before it. On a CPU it is converted first."
    )
    parser = add_command(commands, "serve", _serve, about, extra="cpu")
    parser.add_argument("directory", nargs="?", type=Path, metavar="MODEL", help="the same as --checkpoint")
    add_flags(parser, fields_of(ServeSettings))
    add_serve_flags(parser)
    add_foreign_flags(parser, REFUSED, ALWAYS)


def _serve(arguments: argparse.Namespace) -> None:
    from step_audio_build.stages.cpu_build import default_work_dir
    from step_audio_gateway.command import serve_settings
    from step_audio_server.serve import Service
    from step_audio_server.settings import ServeSettings

    if arguments.directory is not None:
        if arguments.checkpoint is not None:
            raise StepAudioError(f"which model, {arguments.directory} or --checkpoint? give one of them")
        arguments.checkpoint = arguments.directory
    given, gateway = serve_settings(arguments, ServeSettings)
    if "checkpoint" not in given:
        raise StepAudioError("which model? give its directory: step-audio serve DIR")
    given["work_dir"] = Path(given.get("work_dir") or default_work_dir(Path(given["checkpoint"]))).resolve()
    Service(ServeSettings.create(**given), echo, gateway).run()


def _add_chat(commands: Commands) -> None:
    parser = add_command(commands, "chat", _chat, "Ask a running server; the answer is printed as it arrives.")
    parser.add_argument("--audio", action="append", default=[], metavar="FILE", help=f"{ADVICE}; repeat for more")
    parser.add_argument("--text", action="append", default=[], help="what to ask; put after the recordings")
    parser.add_argument("--system", help="system prompt")
    parser.add_argument("--prefix", help="begin the answer with this text, e.g. $'<think>\\n'")
    parser.add_argument("--adapter", metavar="NAME", help="one of the server's --lora-modules (default: none)")
    parser.add_argument("--url", default="127.0.0.1:8001", help="the server's gRPC address (default %(default)s)")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="default: asked from the server")
    add_tls(parser)
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
        adapter=arguments.adapter,
        tokenizer=arguments.tokenizer,
        sampling=Sampling(**sampling_given(arguments)),
        mind_paced=MindPaced(**pace) if pace else None,
        tls=tls_given(arguments),
    )


def _add_demo(commands: Commands) -> None:
    about = "Serve the small model that comes along and ask it something aloud."
    parser = add_command(commands, "demo", _demo, about, extra="cpu")
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

"""`step-audio bench`: its arguments."""

from __future__ import annotations

import argparse
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from step_audio.command_line import Commands, add_command, count, echo
from step_audio.errors import StepAudioError
from step_audio_server.commands.arguments import API_KEY, add_tls, tls_given

if TYPE_CHECKING:
    from step_audio_benchmark.workload import Workload

# What most people's clients send, beside greedy answers.
SAMPLED = {"temperature": 0.7, "top_p": 0.9, "top_k": 50, "repetition_penalty": 1.05}


def number(text: str) -> float:
    """An argument's type: more than 0, and finite."""
    if not 0 < (value := float(text)) < math.inf:
        raise ValueError
    return value


def seconds(text: str) -> float:
    """An argument's type: at least 0, and finite."""
    if not 0 <= (value := float(text)) < math.inf:
        raise ValueError
    return value


def add_bench(commands: Commands) -> None:
    """Add the command to the subparsers of `step-audio`; `run` is set."""
    about = "Measure a served model under load: first tokens, tokens a second, where the time goes."
    parser = add_command(commands, "bench", _bench, about, extra="cpu")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="tables, figures and every request")
    parser.add_argument("--url", help="gRPC address of a running server (default: one is started for --checkpoint)")
    parser.add_argument("--http", metavar="URL", help="the OpenAI-compatible API of a running server")
    parser.add_argument("--triton-http", metavar="URL", help="Triton's HTTP port, for the time in each model")
    parser.add_argument("--model", help="name of the model over HTTP (default: the served one)")
    parser.add_argument("--pid", type=count, help="of a `step-audio serve` on this machine, for its processor time")
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="default: the small one that comes along")
    parser.add_argument(
        "--doors", nargs="+", choices=["grpc", "http"], default=["grpc", "http"], help="of the server that is started"
    )
    parser.add_argument(
        "--engine", action="store_true", help="ask the CPU's engine alone, too; of a server started here"
    )
    parser.add_argument("--perf-analyzer", action="store_true", help="let NVIDIA's perf_analyzer ask over gRPC, too")
    load = parser.add_mutually_exclusive_group()
    load.add_argument("--concurrency", nargs="+", type=count, metavar="N", help="requests at once (default 1 8 32)")
    load.add_argument("--rate", nargs="+", type=number, metavar="N", help="requests a second, at random times")
    parser.add_argument(
        "--requests", type=count, metavar="N", help="of each round and load (default 4 for each at once)"
    )
    parser.add_argument("--rounds", type=count, default=3, help="interleaved; medians are told (default %(default)s)")
    parser.add_argument("--audio", nargs="+", type=Path, metavar="FILE", help="recordings that clips are cut out of")
    parser.add_argument(
        "--clip-seconds", nargs="+", type=seconds, default=[6.6], metavar="S", help="lengths, in turn; 0: no clip"
    )
    parser.add_argument("--text", default="What do you hear?", help="what is asked (default %(default)r)")
    parser.add_argument("--output-tokens", type=count, default=128, help="of each answer (default %(default)s)")
    parser.add_argument(
        "--distinct",
        type=count,
        metavar="N",
        help="ask N questions in turn, so that prompts are cached (default: all new)",
    )
    parser.add_argument("--sampled", action="store_true", help="temperature 0.7, top_p 0.9, top_k 50; default: greedy")
    parser.add_argument("--seed", type=int, default=0, help="of clips and arrivals (default %(default)s)")
    parser.add_argument("--profile", metavar="NAME", help="of the server: its plan stands in the sheet of figures")
    parser.add_argument("--first-token-within", type=number, metavar="S", help="what a request must keep to be good")
    parser.add_argument("--token-within", type=number, metavar="S", help="the same, between tokens on average")
    add_tls(parser)


def _bench(arguments: argparse.Namespace) -> int:
    from step_audio_benchmark.figures import Objective
    from step_audio_benchmark.load import Level
    from step_audio_benchmark.run import Plan
    from step_audio_benchmark.sheet import Planned
    from step_audio_build.planning.profiles import load_profile
    from step_audio_server.commands.bench import Where, bench

    levels = (
        [Level(rate=rate) for rate in arguments.rate]
        if arguments.rate
        else [Level(concurrency=width) for width in arguments.concurrency or (1, 8, 32)]
    )
    objective = Objective(arguments.first_token_within, arguments.token_within)
    plan = Plan(_workload(arguments), levels, arguments.rounds, arguments.requests, objective)
    same = ("http", "triton_http", "model", "checkpoint", "pid", "doors", "perf_analyzer", "engine")
    given: dict[str, Any] = {name: getattr(arguments, name) for name in same}
    if arguments.perf_analyzer and (
        (arguments.url or "").startswith("grpcs://") or (arguments.http and not arguments.url)
    ):
        raise StepAudioError("perf_analyzer asks over gRPC and without TLS here: give --url HOST:PORT")
    if arguments.engine and (arguments.url or arguments.http):
        raise StepAudioError("--engine is of a server that is started here: leave out --url and --http")
    where = Where(grpc=arguments.url, key=os.environ.get(API_KEY), tls=tls_given(arguments), **given)
    planned = None if arguments.profile is None else Planned.of(load_profile(arguments.profile))
    return bench(plan, where, arguments.output, echo, sys.argv[1:], planned)


def _workload(arguments: argparse.Namespace) -> Workload:
    from step_audio_benchmark.workload import Workload
    from step_audio_server.assets import example_recordings

    clips = tuple(value for value in arguments.clip_seconds if value)
    if clips and len(clips) < len(arguments.clip_seconds):
        raise StepAudioError("--clip-seconds 0 stands alone: it asks without recordings")
    recordings = arguments.audio or (example_recordings() if clips else ())
    return Workload(
        recordings=tuple(recordings),
        clip_seconds=clips,
        output_tokens=arguments.output_tokens,
        text=arguments.text,
        distinct=arguments.distinct or 0,
        seed=arguments.seed,
        sampling=SAMPLED if arguments.sampled else {"temperature": 0.0},
    )

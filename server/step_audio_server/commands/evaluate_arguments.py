"""`step-audio eval`: its arguments."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from step_audio.command_line import Commands, add_command, count, echo
from step_audio_evaluation.formats import FORMATS
from step_audio_evaluation.presets import PRESETS
from step_audio_server.commands.arguments import SAMPLING_NAMES, TLS_NAMES, add_sampling, add_tls, tls_given


def noise_level(text: str) -> float | str:
    if text == "clean":
        return text
    if not math.isfinite(value := float(text)):
        raise ValueError
    return value


def budget(text: str) -> int | str:
    if text == "unlimited":
        return text
    if (value := int(text)) < 0:
        raise ValueError
    return value


def add_eval(commands: Commands) -> None:
    """Add the command to the subparsers of `step-audio`; `run` is set."""
    about = "Ask a served model questions whose answers are known, and score it."
    parser = add_command(commands, "eval", _eval, about, extra="cpu")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="answers and report; resumable")
    parser.add_argument("--url", help="gRPC address of a running server (default: one is started for --checkpoint)")
    parser.add_argument("--adapter", metavar="NAME", help="one of that server's --lora-modules (default: none)")
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="default: the small one that comes along")
    parser.add_argument(
        "--tasks",
        nargs="*",
        metavar="TASK",
        help="held-out tasks (default: all, or none with --data, --voices, --budgets)",
    )
    parser.add_argument("--per-task", type=count, help="questions of a task (default 100)")
    parser.add_argument("--quick", action="store_true", help="10 questions of a task")
    parser.add_argument(
        "--snr",
        nargs="*",
        type=noise_level,
        metavar="DB",
        help="sums and transcripts at these levels of noise, `clean` for none (without values: clean 30 20 15 10 5 0)",
    )
    parser.add_argument(
        "--budgets",
        nargs="*",
        type=budget,
        metavar="N",
        help="the same sums with so many tokens of thought, and `unlimited` (without values: 0 to 96, and unlimited)",
    )
    parser.add_argument(
        "--voices",
        nargs="*",
        metavar="SET",
        help="further held-out questions by voice, channel and kind, such as sums-human (without values: all for whose "
        "voices there is what it takes: py-nanotts, Debian's asterisk-core-sounds-en-g722)",
    )
    parser.add_argument(
        "--data", type=Path, metavar="FILE", help="a data set: JSON objects, a line each or in an array"
    )
    parser.add_argument(
        "--format", choices=FORMATS, help="a published data set: its rows, its prompt and order, its sampling"
    )
    parser.add_argument("--audio-dir", type=Path, metavar="DIR", help="data set: its recordings (default: its folder)")
    parser.add_argument(
        "--repeat", type=count, default=1, metavar="K", help="each question K times, with a seed each: mean and spread"
    )
    parser.add_argument("--audio-first", action="store_true", help="data set: recordings before the question")
    parser.add_argument(
        "--no-think", dest="think", action="store_false", help="data set: ask for answers without a thought"
    )
    parser.add_argument("--concurrency", type=count, default=32, help="requests at once (default %(default)s)")
    parser.add_argument(
        "--against-torch", type=Path, metavar="DIR", help="compare tokens with this checkpoint's in torch"
    )
    parser.add_argument("--preset", choices=PRESETS, help="sampling of a published evaluation (default: greedy)")
    add_tls(parser)
    add_sampling(parser, temperature=0)


def _eval(arguments: argparse.Namespace) -> int:
    from step_audio_evaluation.held_out import BUDGETS, SNRS
    from step_audio_server.commands.evaluate import EvaluationOptions, evaluate

    ours = vars(arguments).keys() - {"run", *TLS_NAMES}
    given = {name: value for name in ours if (value := getattr(arguments, name)) is not None}
    sampling = {name: given.pop(name) for name in SAMPLING_NAMES if name in given and name != "seed"}
    if "snr" in given:
        given["snr"] = given["snr"] or SNRS
    if "budgets" in given:
        given["budgets"] = given["budgets"] or BUDGETS
    return evaluate(EvaluationOptions(**given, sampling=sampling, tls=tls_given(arguments)), echo)

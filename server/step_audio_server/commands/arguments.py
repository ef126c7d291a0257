"""Flags of commands that ask a server."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from step_audio.errors import StepAudioError
from step_audio.sampling_parameters import offered

if TYPE_CHECKING:
    from step_audio_client import Tls

API_KEY = "OPENAI_API_KEY"  # of the gateway; no flag: others could read it in the list of processes

SAMPLING_NAMES = tuple(one.name for one in offered("command"))


def add_sampling(parser: argparse.ArgumentParser, **defaults: float) -> None:
    """A flag for each sampling parameter; `defaults`: where silence means something else than in the list."""
    group = parser.add_argument_group("sampling")
    for one in offered("command"):
        default = defaults.get(one.name, one.default)
        text = one.text if default is None else f"{one.text} (default {default:g})"
        group.add_argument(f"--{one.name.replace('_', '-')}", type=one.kind, metavar="N", help=text.replace("%", "%%"))


def sampling_given(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was said about sampling."""
    return {name: value for name in SAMPLING_NAMES if (value := getattr(arguments, name)) is not None}


TLS_NAMES = ("ca", "cert", "key", "name")


def add_tls(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("TLS, for --url grpcs://host:port")
    group.add_argument("--ca", type=Path, metavar="FILE", help="PEM certificates of those who sign the server's")
    group.add_argument("--cert", type=Path, metavar="FILE", help="PEM certificate of ours, for a server that wants one")
    group.add_argument("--key", type=Path, metavar="FILE", help="PEM key of --cert")
    group.add_argument("--name", help="name in the server's certificate (default: the address's)")


def tls_given(arguments: argparse.Namespace) -> Tls:
    """Raises StepAudioError, and OSError where a file cannot be read."""
    from step_audio_client import Tls

    tls = Tls(*(getattr(arguments, name) for name in TLS_NAMES))
    try:
        tls.check(arguments.url or "")
    except ValueError as error:
        raise StepAudioError(str(error)) from None
    return tls


MODES = ("think-first", "speak-first", "think-before-speak", "no-think")
PACE_NAMES = ("think_tokens", "speak_tokens", "speech_rate")


def add_mind_paced(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("mind-paced speaking")
    group.add_argument("--mode", choices=MODES, help="speak while thinking (default: the thought, then the answer)")
    group.add_argument("--think-tokens", type=int, help="thought from one segment to the next (default: the model's)")
    group.add_argument("--speak-tokens", type=int, help="of a segment at most (default: the model's)")
    group.add_argument(
        "--speech-rate",
        type=float,
        metavar="N",
        help="tokens a second at which it is played (default: not paced by it)",
    )


def mind_paced_given(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """What was said about mind-paced speaking, None without a mode. Raises StepAudioError."""
    given = {name: value for name in PACE_NAMES if (value := getattr(arguments, name)) is not None}
    if arguments.mode:
        return {"mode": arguments.mode.replace("-", "_"), **given}
    if given:
        raise StepAudioError(f"--{next(iter(given)).replace('_', '-')} needs --mode")
    return None

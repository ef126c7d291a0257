"""`step-audio talk`: its arguments."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from step_audio.command_line import Commands, add_command
from step_audio.containers import ADVICE
from step_audio.errors import StepAudioError
from step_audio_server.commands.arguments import (
    API_KEY,
    add_mind_paced,
    add_sampling,
    mind_paced_given,
    sampling_given,
)


def add_talk(commands: Commands) -> None:
    """Add the command to the subparsers of `step-audio`; `run` is set."""
    about = "Talk to a running gateway: it answers when you stop, and you may interrupt it."
    parser = add_command(commands, "talk", _talk, about)
    parser.add_argument(
        "--url",
        default="http://127.0.0.1:9999",
        help=f"the gateway's address (default %(default)s); its key comes from {API_KEY}",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model", help="name of the model (default: the served one)")
    which.add_argument("--adapter", metavar="NAME", help="one of the server's --lora-modules (default: none)")
    parser.add_argument(
        "--audio",
        action="append",
        default=[],
        metavar="FILE",
        help=f"played in real time in the place of a microphone, {ADVICE}; repeat for more turns",
    )
    parser.add_argument(
        "--whole", action="store_true", help="each FILE is one turn, whatever is heard in it: music, sounds, pauses"
    )
    parser.add_argument("--save", type=Path, metavar="FILE", help="write what was heard of the answers, as WAV")
    parser.add_argument("--system", help="system prompt")
    parser.add_argument("--no-thought", action="store_true", help="do not show the thought")
    parser.add_argument("--no-captions", action="store_true", help="do not ask for what was said, in words")
    add_mind_paced(parser)
    add_sampling(parser)


def _talk(arguments: argparse.Namespace) -> int:
    from step_audio_server.commands.talk import GatewayAddress, talk
    from step_audio_server.commands.talk_show import Show

    if arguments.whole and not arguments.audio:
        raise StepAudioError("--whole is about recordings: give --audio FILE")
    where = GatewayAddress(arguments.url, os.environ.get(API_KEY), arguments.model, arguments.adapter)
    show = Show(sys.stdout, sys.stderr, thought=not arguments.no_thought)
    return talk(where, _settings(arguments), show, arguments.audio, arguments.whole, arguments.save)


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Of the session."""
    sampling = sampling_given(arguments)
    settings: dict[str, Any] = {"include": ["reasoning"], "audio": {"input": {}}}
    if "max_tokens" in sampling:
        settings["max_output_tokens"] = sampling.pop("max_tokens")
    if arguments.system is not None:
        settings["instructions"] = arguments.system
    if not arguments.no_captions:
        settings["audio"]["input"]["transcription"] = {}
    if arguments.whole:
        settings["audio"]["input"]["turn_detection"] = None
    if pace := mind_paced_given(arguments):
        settings["mind_paced_speaking"] = pace
    return settings | sampling

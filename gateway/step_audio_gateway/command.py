"""The commands' part of the gateway: `step-audio gateway`, and the door that `step-audio serve` opens."""

from __future__ import annotations

import argparse
from typing import Any

from step_audio.command_line import Commands, add_command
from step_audio.foreign_flags import add_foreign_flags
from step_audio.settings import Settings, add_config, add_flags, fields_of, said, values_for
from step_audio_gateway.settings import GatewaySettings
from step_audio_gateway.vllm_flags import ALWAYS, REFUSED

DESCRIPTION = "Open the OpenAI-compatible HTTP API and the playground in front of servers that run already."

FIELDS = fields_of(GatewaySettings)
# `step-audio serve` knows by itself where the server is.
SERVE_FIELDS = fields_of(GatewaySettings, leave_out=("triton", "triton_ca", "triton_cert", "triton_key", "triton_name"))


def add_parser(commands: Commands) -> argparse.ArgumentParser:
    """Add the command to the subparsers of `step-audio`; `run` is set."""
    parser = add_command(commands, "gateway", run, DESCRIPTION)
    add_config(parser)
    add_flags(parser.add_argument_group("HTTP"), FIELDS)
    add_foreign_flags(parser, REFUSED, ALWAYS)
    return parser


def add_serve_flags(parser: argparse.ArgumentParser) -> None:
    """The gateway's flags for `step-audio serve`."""
    add_config(parser)
    parser.add_argument("--headless", action="store_true", help="gRPC only: no HTTP API, no playground")
    add_flags(parser.add_argument_group("HTTP"), SERVE_FIELDS)
    add_foreign_flags(parser, REFUSED, ALWAYS)


def serve_settings(
    arguments: argparse.Namespace, settings: type[Settings]
) -> tuple[dict[str, Any], GatewaySettings | None]:
    """What was said about `settings`, those of `step-audio serve`, and the gateway beside it, None if headless.

    Raises SettingsError.
    """
    values = said(fields_of(settings) | SERVE_FIELDS, arguments)
    gateway = GatewaySettings.create(**values_for(GatewaySettings, values))
    return values_for(settings, values), None if arguments.headless else gateway


def run(arguments: argparse.Namespace) -> None:
    """Raises StepAudioError."""
    from step_audio_gateway.server import serve

    serve(GatewaySettings.create(**said(FIELDS, arguments)))

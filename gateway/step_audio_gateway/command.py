"""The commands' part of the gateway: `step-audio gateway`, and the door that `step-audio serve` opens."""

from __future__ import annotations

import argparse
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from step_audio_gateway.settings import GatewaySettings, add_flags, layers

DESCRIPTION = "Open the OpenAI-compatible HTTP API and the playground in front of servers that run already."

# Names of `vllm serve` for settings of `step-audio serve`.
SERVE_ALIASES = {"max_model_len": "max_seq_len", "max_num_seqs": "max_batch_size"}


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Add the command to the subparsers of `step-audio`; `run` is set."""
    parser = commands.add_parser("gateway", help=DESCRIPTION, description=DESCRIPTION)
    _add_config(parser)
    add_flags(parser)
    parser.set_defaults(run=run)
    return parser


def add_serve_flags(parser: argparse.ArgumentParser) -> None:
    """The gateway's flags for `step-audio serve`, which knows the address of Triton by itself."""
    _add_config(parser)
    parser.add_argument("--headless", action="store_true", help="gRPC only: no HTTP API, no playground")
    add_flags(parser, leave_out=("triton",))


def serve_settings(
    arguments: argparse.Namespace, names: Collection[str]
) -> tuple[dict[str, Any], GatewaySettings | None]:
    """What was said about `names`, settings of `step-audio serve`, and about the gateway beside it, None if headless.

    Raises SettingsError.
    """
    own = [*names, *SERVE_ALIASES]
    door = [name for name in GatewaySettings.model_fields if name != "triton"]
    values = layers([*own, *door], vars(arguments), os.environ, arguments.config)
    gateway = GatewaySettings.create(**{name: values.pop(name) for name in door if name in values})
    for alias, name in SERVE_ALIASES.items():
        if alias in values:
            values.setdefault(name, values.pop(alias))
    return values, None if arguments.headless else gateway


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="settings by name, TOML; flags and STEP_AUDIO_* go before it"
    )


def run(arguments: argparse.Namespace) -> None:
    """Raises StepAudioError."""
    from step_audio_gateway.server import serve

    names = list(GatewaySettings.model_fields)
    serve(GatewaySettings.create(**layers(names, vars(arguments), os.environ, arguments.config)))

"""`step-audio doctor`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from step_audio.command_line import Commands, add_command
from step_audio.errors import SettingsError
from step_audio_build.planning.profiles import load_profile, profile_names
from step_audio_build.stages.calibration import DEFAULT_DATA

if TYPE_CHECKING:
    from step_audio_server.doctor.checks import Examination

DESCRIPTION = "What this machine has and what it lacks, one line each, with what to do; exit status 1 on a fault."


def add_doctor(commands: Commands) -> argparse.ArgumentParser:
    """Add the command to the subparsers of `step-audio`; `run` is set."""
    parser = add_command(commands, "doctor", run, DESCRIPTION)
    parser.add_argument(
        "--profile", metavar="NAME", help=f"what is to run here: {', '.join(profile_names())}, or a .toml file"
    )
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="a Step-Audio checkpoint to look at")
    parser.add_argument(
        "--work-dir", type=Path, default=Path(), metavar="DIR", help="for what is built (default: this folder)"
    )
    parser.add_argument(
        "--calibration-data",
        default=DEFAULT_DATA,
        metavar="NAME_OR_DIR",
        help="text for a profile in fp8 or awq, as for `build` (default %(default)s from the hub)",
    )
    parser.add_argument(
        "--llm-python", type=Path, metavar="FILE", help="Python of an environment with vLLM, for `serve --llm vllm`"
    )
    parser.add_argument(
        "--encoder-device",
        choices=("cpu", "cuda"),
        help="with --llm-python: where the audio encoder is to run, as for `serve` (default: where vLLM does)",
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """1 on a fault. Raises SettingsError for a profile that there is not, and for flags that do not go together."""
    from step_audio_server.doctor.checks import (
        Examination,  # looks at all that other commands need: only when asked for
    )

    if arguments.encoder_device and not arguments.llm_python:
        raise SettingsError("--encoder-device is for --llm-python alone; leave it out")
    profile = load_profile(arguments.profile) if arguments.profile else None
    report = Examination(
        profile, arguments.work_dir, arguments.checkpoint, arguments.llm_python, arguments.encoder_device,
        arguments.calibration_data,
    ).run()  # fmt: skip
    print(_json(report, arguments.profile) if arguments.json else _lines(report))
    return 1 if report.status == "fault" else 0


def _lines(report: Examination) -> str:
    lines = [finding.line() for finding in report.findings]
    return "\n".join([*lines, f"works here: {', '.join(report.works) or 'nothing, until the faults are gone'}"])


def _json(report: Examination, profile: str | None) -> str:
    """{"status", "profile", "works": [...], "findings": [{"name", "status", "found", "advice"}, ...]}"""
    findings = [finding.json() for finding in report.findings]
    return json.dumps(
        {"status": report.status, "profile": profile, "works": report.works, "findings": findings}, indent=1
    )

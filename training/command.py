"""`step-audio train`: from nothing to a checkpoint, with the plot of how it went."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from step_audio.errors import ArtefactError
from step_audio_training.export import export
from step_audio_training.plot import plot_training
from step_audio_training.train import LOG, Recipe, train


def run(output: Path, recipe: Recipe, workers: int, device: str | None, say: Callable[[str], None]) -> None:
    """OUTPUT/state.pt and log.jsonl while it goes on, OUTPUT/checkpoint and training.svg at the end.

    Raises ArtefactError.
    """
    checkpoint = output / "checkpoint"
    if checkpoint.exists():
        raise ArtefactError(f"{checkpoint} is there already; delete it or choose another output")
    model, tokenizer = train(output, recipe, workers, device)
    plot_training(output / LOG, output / "training.svg")
    export(model, tokenizer, checkpoint)
    say(f"{checkpoint}: {sum(p.numel() for p in model.parameters()) / 1e6:.1f} million parameters")

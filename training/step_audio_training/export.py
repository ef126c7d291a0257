"""The trained model as a checkpoint in the published layout."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from step_audio.arrays import Float32Array
from step_audio_build.convert.write_checkpoint import write_checkpoint
from step_audio_training.model import Listener


def export(model: Listener, tokenizer_json: str, directory: Path) -> None:
    """Write `directory`, which must not exist or be empty; weights are rounded to the config's type."""
    weights: dict[str, Float32Array] = {}
    for part in (model.audio, model.decoder):
        weights |= {name: tensor.detach().float().numpy() for name, tensor in part.state_dict().items()}
    write_checkpoint(directory, model.config, weights, Tokenizer.from_str(tokenizer_json))

"""Loss and accuracy over the steps, as an SVG."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from step_audio.arrays import Float64Array
from step_audio.plotting import pyplot, save


def plot_training(log: Path, picture: Path) -> None:
    """`log`: the JSON lines that `train` writes."""
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for name, label in (("hearing_loss", "hearing, training"), ("answer_loss", "answers, training")):
        steps = [row["step"] for row in rows if name in row]
        if steps:
            left.plot(steps, _smooth([row[name] for row in rows if name in row]), label=label)
    for axis, name, label in (
        (left, "held_out_hearing_loss", "hearing, held out"),
        (left, "held_out_answer_loss", "answers, held out"),
        (right, "held_out_phoneme_errors", "phoneme errors a frame"),
        (right, "held_out_word_errors", "word errors an embedding"),
        (right, "held_out_sound_errors", "sound errors an embedding"),
        (right, "held_out_token_accuracy", "next token of the answer"),
    ):
        watched = [row for row in rows if name in row]
        axis.plot([row["step"] for row in watched], [row[name] for row in watched], ".-", label=label)
    left.set(xlabel="step", ylabel="loss", yscale="log")
    right.set(xlabel="step", ylabel="share, held out", ylim=(0, 1.05))
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    save(figure, picture)


def _smooth(values: list[float], width: int = 50) -> Float64Array:
    """A running mean over the last `width` values."""
    total = np.cumsum([0.0, *values])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - width, 0)
    means: Float64Array = (total[ends] - total[starts]) / (ends - starts)
    return means

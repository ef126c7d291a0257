"""Loss and accuracy over the steps, as an SVG."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from step_audio.arrays import Float64Array
from step_audio.plotting import pyplot, save

LOSSES = {
    "spelled_loss": "letters, by the encoder",
    "letters_loss": "letters",
    "words_loss": "words",
    "answer_loss": "answers",
}
SHOWN = ("arithmetic", "sums-human", "sums-pico", "dictation-pico, WER", "not-understood", "speakers", "orders-pico")


def plot_training(log: Path, examined: Path, picture: Path) -> None:
    """`log` and `examined`: the JSON lines that `train` writes; of the second there may be none."""
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    looks = [json.loads(line) for line in examined.read_text().splitlines()] if examined.is_file() else []
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for axis, told, names, smooth, style in (
        (left, rows, LOSSES, _smooth, "-"),
        (right, looks, {name: name for name in SHOWN}, list, ".-"),
    ):
        for name, label in names.items():
            known = [row for row in told if name in row]  # not in every stage
            if known:
                axis.plot([row["step"] for row in known], smooth([row[name] for row in known]), style, label=label)
    left.set(xlabel="step", ylabel="loss, training", yscale="log")
    right.set(xlabel="step", ylabel="share, held out", ylim=(0, 1.05))
    for axis in (left, right):
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    save(figure, picture)


def _smooth(values: list[float], width: int = 50) -> Float64Array:
    """A running mean over the last `width` values."""
    total = np.cumsum([0.0, *values])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - width, 0)
    means: Float64Array = (total[ends] - total[starts]) / (ends - starts)
    return means

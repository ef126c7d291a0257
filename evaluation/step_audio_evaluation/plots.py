"""Right answers and word errors against noise, drawn from a report's rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from step_audio.plotting import pyplot, save
from step_audio_evaluation.report import Row
from step_audio_evaluation.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_noise(rows: Sequence[Row], file: Path) -> None:
    """An SVG with one panel of accuracy and one of word error rate. Raises ModuleNotFoundError without matplotlib."""
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    noisy = sorted((row for row in rows if row.snr_db is not None), key=_clearness)
    for n, task in enumerate(dict.fromkeys(row.task for row in rows if row.snr_db is not None)):
        own = [row for row in noisy if row.task == task]
        _curve(left, [(row, row.accuracy, row.interval) for row in own], task, f"C{n}")
        errors = [(row, row.wer, row.wer_interval) for row in own if row.wer is not None and row.wer_interval]
        _curve(right, errors, task, f"C{n}")
    for axes, title in ((left, "right answers, %"), (right, "word error rate of transcripts, %")):
        axes.set(xlabel="signal-to-noise ratio, dB", title=title)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    left.set_ylim(0, 102)
    left.legend(frameon=False, loc="lower right")
    save(figure, file)


def _clearness(row: Row) -> float:
    return float("inf") if row.snr_db == "clean" else float(row.snr_db or 0)


def _curve(axes: Axes, points: Sequence[tuple[Row, float, Interval]], task: str, color: str) -> None:
    """Noise levels one step apart, the clean recordings at the right end; bars are 95 % intervals."""
    if not points:
        return
    names = ["no noise" if row.snr_db == "clean" else f"{row.snr_db:g}" for row, _, _ in points]
    values = [100 * value for _, value, _ in points]
    # Rounding can put the value a hair outside its interval, which errorbar refuses.
    below = [100 * max(value - interval.low, 0) for _, value, interval in points]
    above = [100 * max(interval.high - value, 0) for _, value, interval in points]
    axes.errorbar(names, values, [below, above], label=task, color=color, marker="o", capsize=3)

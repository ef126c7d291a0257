"""Right answers and word errors against noise, and against how much is thought, drawn from a report's rows."""

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
        _curve(left, [(_noise(row), row.accuracy, row.interval) for row in own], task, f"C{n}")
        errors = [(_noise(row), row.wer, row.wer_interval) for row in own if row.wer is not None and row.wer_interval]
        _curve(right, errors, task, f"C{n}")
    for axes, title in ((left, "right answers, %"), (right, "word error rate of transcripts, %")):
        axes.set(xlabel="signal-to-noise ratio, dB", title=title)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    left.set_ylim(0, 102)
    left.legend(frameon=False, loc="lower right")
    save(figure, file)


def plot_budgets(rows: Sequence[Row], file: Path) -> None:
    """An SVG of accuracy against the tokens of thought. Raises ModuleNotFoundError without matplotlib."""
    figure, axes = pyplot().subplots(figsize=(5, 3.4), layout="constrained")
    points = [(str(row.budget), row.accuracy, row.interval) for row in rows if row.budget is not None]
    _curve(axes, points, "sums", "C0")
    axes.set(xlabel="tokens of thought at most", title="right answers, %")
    axes.set_ylim(0, 102)
    axes.grid(alpha=0.3)
    save(figure, file)


def _noise(row: Row) -> str:
    return "no noise" if row.snr_db == "clean" else f"{row.snr_db:g}"


def _clearness(row: Row) -> float:
    return float("inf") if row.snr_db == "clean" else float(row.snr_db or 0)


def _curve(axes: Axes, points: Sequence[tuple[str, float, Interval]], label: str, color: str) -> None:
    """Named points one step apart; bars are 95 % intervals."""
    if not points:
        return
    names = [name for name, _, _ in points]
    values = [100 * value for _, value, _ in points]
    # Rounding can put the value a hair outside its interval, which errorbar refuses.
    below = [100 * max(value - interval.low, 0) for _, value, interval in points]
    above = [100 * max(interval.high - value, 0) for _, value, interval in points]
    axes.errorbar(names, values, [below, above], label=label, color=color, marker="o", capsize=3)

"""Speed against latency, a line for each target."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from step_audio.plotting import pyplot, save
from step_audio_benchmark.report import groups, over_rounds
from step_audio_benchmark.run import Cell


def plot(cells: Sequence[Cell], file: Path) -> None:
    """An SVG: tokens a second, and the time to the first token, at each load. Raises ModuleNotFoundError."""
    grouped = groups(cells)
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for target in dict.fromkeys(target for _, target in grouped):
        levels = [level for level, name in grouped if name == target]
        values = [over_rounds(grouped[level, target]) for level in levels]
        for axes, name, factor in ((left, "tokens_rate", 1.0), (right, "first_token.p50", 1000.0)):
            kept = [(str(level), one[name]) for level, one in zip(levels, values, strict=True) if one.get(name)]
            middle = [value.median * factor for _, value in kept if value]
            below = [(value.median - value.low) * factor for _, value in kept if value]
            above = [(value.high - value.median) * factor for _, value in kept if value]
            axes.errorbar([text for text, _ in kept], middle, [below, above], label=target, marker="o", capsize=3)
    for axes, title in ((left, "tokens a second"), (right, "first token, ms")):
        axes.set(xlabel="load", title=title)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    left.legend(frameon=False)
    save(figure, file)

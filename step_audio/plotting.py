"""How pictures are written: as SVG with text in it, equal data as equal files."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def pyplot() -> ModuleType:
    """matplotlib's, set up. Raises ModuleNotFoundError."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.fonttype"] = "none"  # text stays text
    matplotlib.rcParams["svg.hashsalt"] = "step-audio"
    from matplotlib import pyplot

    return pyplot


def save(figure: Figure, file: Path) -> None:
    """And forget the figure, which pyplot keeps otherwise."""
    figure.savefig(file, metadata={"Date": None})
    pyplot().close(figure)

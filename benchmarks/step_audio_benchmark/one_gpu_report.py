"""What a run on one GPU has found, as markdown for docs/performance.md."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from step_audio.markdown import markdown_table
from step_audio_benchmark.one_gpu import Found

ASKED = 0.8  # of the bound, at batch 1


def report(found: Found, machine: Mapping[str, Any]) -> str:
    """The card and its driver, a table for each step."""
    lines = ["# One GPU", *(f"- {name}: {value}" for name, value in {**found["about"], **machine}.items())]
    for step, values in found.items():
        if step == "about":
            continue
        nested = {name: value for name, value in values.items() if isinstance(value, dict)}
        if nested:
            heads = list(next(iter(nested.values())))
            rows = [[step, *heads], *([name, *(str(value[head]) for head in heads)] for name, value in nested.items())]
        else:
            rows = [[step, ""], *([name, str(value)] for name, value in values.items())]
        lines += ["", markdown_table(rows)]
    if "decode" in found:
        share = found["decode"]["batch 1"]["share of bound"]
        lines += ["", f"At batch 1 {share:.0%} of the bound; {ASKED:.0%} are asked for on a GPU."]
    return "\n".join(lines) + "\n"


def write(folder: Path, found: Found, machine: Mapping[str, Any]) -> Path:
    path = folder / "one_gpu.md"
    path.write_text(report(found, machine), "utf-8")
    return path

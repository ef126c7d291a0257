"""A benchmark's results folder: every request, every figure, the tables, the plot."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from step_audio.markdown import markdown_table
from step_audio_benchmark.figures import Spread, flat, spread
from step_audio_benchmark.load import Level
from step_audio_benchmark.run import Cell, Plan

MILLISECONDS = 1000.0
COLUMNS = (  # heading, figure, factor
    ("tokens/s", "tokens_rate", 1.0),
    ("of one request", "request_tokens_rate", 1.0),
    ("audio s/s", "audio_rate", 1.0),
    ("good/s", "goodput", 1.0),
    ("first token ms", "first_token.p50", MILLISECONDS),
    ("p99", "first_token.p99", MILLISECONDS),
    ("first answer ms", "first_answer.p50", MILLISECONDS),
    ("between tokens ms", "token_seconds.p50", MILLISECONDS),
    ("gap p99 ms", "gaps.p99", MILLISECONDS),
)


def groups(cells: Sequence[Cell]) -> dict[tuple[Level, str], list[Cell]]:
    """The rounds of each level and target, in order."""
    found: dict[tuple[Level, str], list[Cell]] = {}
    for cell in cells:
        found.setdefault((cell.level, cell.target), []).append(cell)
    return found


def over_rounds(rounds: Sequence[Cell]) -> dict[str, Spread | None]:
    """Each figure's median, lowest and highest."""
    each = [flat(cell.figures) for cell in rounds]
    names = dict.fromkeys(name for one in each for name in one)
    return {name: spread([one.get(name) for one in each]) for name in names}


Pairs = Sequence[tuple[str, str]]  # of targets: whose figures are divided by whose


def tables(cells: Sequence[Cell], pairs: Pairs | None = None) -> str:
    """Markdown: the figures; targets beside each other; Triton's stages; processor time. pairs: by default each target
    beside the first."""
    grouped = groups(cells)
    rows = [["load", "target", "requests", *(heading for heading, _, _ in COLUMNS)]]
    for (level, target), rounds in grouped.items():
        values = over_rounds(rounds)
        failed = sum(cell.figures.failed for cell in rounds)
        asked = f"{sum(cell.figures.requests for cell in rounds)}" + (f", {failed} failed" if failed else "")
        cells_of_row = [_figure(values.get(name), factor) for _, name, factor in COLUMNS]
        rows.append([str(level), target, asked, *cells_of_row])
    parts = [markdown_table(rows)]
    parts += [text for text in (_ratios(grouped, pairs), _stages(grouped), _processor(grouped)) if text]
    return "\n\n".join(parts)


def _figure(value: Spread | None, factor: float) -> str:
    if value is None:
        return "-"
    digits = 0 if value.median * factor >= 100 else 1
    text = f"{value.median * factor:.{digits}f}"
    if value.high > value.low:
        text += f" ({value.low * factor:.{digits}f}-{value.high * factor:.{digits}f})"
    return text


def _ratios(grouped: Mapping[tuple[Level, str], Sequence[Cell]], pairs: Pairs | None) -> str:
    """One target's figures over another's, round by round."""
    names = list(dict.fromkeys(target for _, target in grouped))
    pairs = [(name, names[0]) for name in names[1:]] if pairs is None else pairs
    if not pairs:
        return ""
    rows = [["load", "ratio", "tokens/s", "first token"]]
    for level in dict.fromkeys(level for level, _ in grouped):
        for name, other in pairs:
            both = [
                [flat(cell.figures) for cell in pair]
                for pair in zip(grouped[level, name], grouped[level, other], strict=True)
            ]
            found = [
                spread([one[key] / two[key] for one, two in both if one.get(key) and two.get(key)])  # type: ignore[operator]
                for key in ("tokens_rate", "first_token.p50")
            ]
            texts = [f"{x.median:.2f} ({x.low:.2f}-{x.high:.2f})" if x else "-" for x in found]
            rows.append([str(level), f"{name} / {other}", *texts])
    return markdown_table(rows)


def _stages(grouped: Mapping[tuple[Level, str], Sequence[Cell]]) -> str:
    """Mean milliseconds a request waits in a model's queue, and is computed there."""

    def text(model: str, rounds: Sequence[Cell]) -> str:
        kept = [cell.stages[model] for cell in rounds if model in cell.stages]
        queue, compute = ([getattr(stage, part) for stage in kept] for part in ("queue", "compute"))
        return f"{statistics.mean(queue):.1f} + {statistics.mean(compute):.1f}" if kept else "-"

    return _by_cell("queue + compute, ms", "stages", grouped, text)


def _processor(grouped: Mapping[tuple[Level, str], Sequence[Cell]]) -> str:
    """Milliseconds of processor time for 1,000 tokens."""

    def text(process: str, rounds: Sequence[Cell]) -> str:
        tokens = sum(record.output_tokens for cell in rounds for record in cell.run.records) or 1
        return f"{sum(cell.processor.get(process, 0.0) for cell in rounds) * 1e6 / tokens:.0f}"

    return _by_cell("processor ms for 1,000 tokens", "processor", grouped, text)


def _by_cell(
    title: str,
    kind: Literal["stages", "processor"],
    grouped: Mapping[tuple[Level, str], Sequence[Cell]],
    text: Callable[[str, Sequence[Cell]], str],
) -> str:
    """A row for each model or process, a column for each load and target."""
    names = dict.fromkeys(name for rounds in grouped.values() for cell in rounds for name in getattr(cell, kind))
    if not names:
        return ""
    rows = [[name, *(text(name, rounds) for rounds in grouped.values())] for name in names]
    heading = [title, *(f"{level}, {target}" for level, target in grouped)]
    return markdown_table([heading, *(row for row in rows if set(row[1:]) - {"0", "-"})])


def write(folder: Path, plan: Plan, machine: Mapping[str, Any], cells: Sequence[Cell], said: str) -> None:
    """report.md, results.json and requests.jsonl. said: the tables. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    workload = {key: value for key, value in asdict(plan.workload).items() if key != "recordings"}
    workload["recordings"] = [path.name for path in plan.workload.recordings]
    results = {
        "machine": machine,
        "workload": workload,
        "rounds": plan.rounds,
        "objective": asdict(plan.objective),
        "cells": [
            {
                "target": cell.target,
                "level": asdict(cell.level),
                "round": cell.round,
                "load": cell.load,
                "figures": flat(cell.figures),
                "stages": {model: asdict(stage) for model, stage in cell.stages.items()},
                "processor_seconds": dict(cell.processor),
            }
            for cell in cells
        ],
    }
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    with (folder / "requests.jsonl").open("w", encoding="utf-8") as file:
        for cell in cells:
            for record in cell.run.records:
                line = {"target": cell.target, "level": str(cell.level), "round": cell.round, **asdict(record)}
                file.write(json.dumps(line) + "\n")
    about = "\n".join(f"- {name}: {value}" for name, value in machine.items())
    (folder / "report.md").write_text(f"# Benchmark\n\n{about}\n\n{said}\n", "utf-8")

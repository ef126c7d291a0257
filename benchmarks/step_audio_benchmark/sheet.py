"""A figure sheet: what was measured on one's own machine, beside what a profile's plan says at most, on one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from step_audio.markdown import markdown_table
from step_audio_benchmark.figures import Spread
from step_audio_benchmark.report import MILLISECONDS, groups, over_rounds
from step_audio_benchmark.run import Cell
from step_audio_build.commands.plan import PUBLISHED
from step_audio_build.planning.memory_plan import decode_bound, plan
from step_audio_build.planning.profiles import Profile

HEADINGS = ("load", "door", "tokens/s", "of one request", "first token ms", "p99", "between tokens ms")


TIMES = ("first_token.p50", "first_token.p99", "token_seconds.p50")


@dataclass(frozen=True)
class Planned:
    """What a profile's plan says of the published model."""

    profile: str
    tokens_rate: float  # of one request alone, at most: the memory's bandwidth
    summary: str

    @classmethod
    def of(cls, profile: Profile) -> Planned:
        """Raises ArtefactError for a model that cannot be split over its GPUs."""
        found = plan(profile, PUBLISHED)
        return cls(profile.name, decode_bound(found, PUBLISHED), found.summary())


def sheet(cells: Sequence[Cell], machine: Mapping[str, Any], planned: Planned | None) -> str:
    """Markdown; medians over the rounds. With a plan, a request's rate where it is alone is a share of its bound."""
    about = [f"- {name}: {value}" for name, value in machine.items()]
    if planned is not None:
        bound = f"one request alone at most {planned.tokens_rate:.1f} tokens/s"
        about.append(f"- profile: {planned.profile} ({planned.summary}); {bound}")
    rows = [[*HEADINGS, *(["of the bound"] if planned else [])]]
    for (level, target), rounds in groups(cells).items():
        found = over_rounds(rounds)
        row = [
            str(level),
            target,
            _text(found.get("tokens_rate")),
            _text(found.get("request_tokens_rate")),
            *(_text(found.get(name), MILLISECONDS) for name in TIMES),
        ]
        if planned is not None:
            between = found.get("token_seconds.p50")
            alone = level.concurrency == 1 and between is not None
            row.append(f"{1 / between.median / planned.tokens_rate:.0%}" if alone and between else "-")
        rows.append(row)
    return "\n".join(["# Figures", "", *about, "", markdown_table(rows)]) + "\n"


def _text(value: Spread | None, factor: float = 1.0) -> str:
    return "-" if value is None else f"{value.median * factor:.{0 if value.median * factor >= 100 else 1}f}"

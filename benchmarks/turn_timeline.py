"""One spoken turn of a realtime session as a picture: what is said, heard, thought, answered and played, and when.

    python benchmarks/turn_timeline.py --output docs/realtime-turn.svg

Out of the events of real turns of the small model with the built-in voice (extra `voice`): speaking first, and thinking
before it speaks. Of --rounds turns each that one is drawn whose first sound came soonest: it was disturbed least.
"""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conversations import MODES, question, talking, turn
from step_audio.clips import SAMPLE_RATE
from step_audio.command_line import count
from step_audio.plotting import pyplot, save
from step_audio_client import AudioDelta, RealtimeEvent, RealtimeSession, ReasoningDelta, SpeechStopped, TextDelta
from step_audio_client.realtime import OUTPUT_RATE

PERSON, SILENCE, THOUGHT, HEARD = "#a6d854", "#e5e5e5", "#8da0cb", "#66c2a5"
LANES = ("speech", "thought", "playback")


@dataclass(frozen=True)
class DrawnTurn:
    """Seconds from the end of the speech."""

    mode: str
    spoken: float  # how long it was spoken
    events: list[tuple[float, RealtimeEvent]]

    def times(self, kind: type[RealtimeEvent]) -> list[float]:
        return [when for when, event in self.events if isinstance(event, kind)]


async def turns(url: str, rounds: int) -> list[DrawnTurn]:
    """The quickest of each mode."""
    drawn = []
    for mode, paced in MODES.items():
        tried = []
        for i in range(rounds + 1):  # the first fills caches
            samples = question(i)
            async with RealtimeSession.connect(url) as session:
                await session.update(
                    output_modalities=["audio"], temperature=0, mind_paced_speaking=paced, include=["reasoning"]
                )
                ended, events = await turn(session, samples)
            tried.append(DrawnTurn(mode, len(samples) / SAMPLE_RATE, [(when - ended, one) for when, one in events]))
        drawn.append(min(tried[1:], key=lambda one: min(one.times(AudioDelta), default=60.0)))
    return drawn


def draw(drawn: list[DrawnTurn], file: Path) -> None:
    """An SVG of three lanes for each turn, one above the other."""
    figure, panels = pyplot().subplots(len(drawn), sharex=True, figsize=(9, 2 * len(drawn)), layout="constrained")
    for axes, one in zip(panels, drawn, strict=True):
        _lanes(axes, one)
    panels[-1].set_xlabel("seconds from the end of the speech")
    save(figure, file)


def _lanes(axes: Any, one: DrawnTurn) -> None:
    over, first = one.times(SpeechStopped)[0], one.times(AudioDelta)[0]
    axes.barh(LANES, [0] * len(LANES))  # their order
    axes.barh("speech", one.spoken, left=-one.spoken, color=PERSON)
    axes.barh("speech", over, left=0, color=SILENCE)
    axes.text(over / 2, "speech", "silence", ha="center", va="center", fontsize=8)
    if thought := one.times(ReasoningDelta):
        axes.barh("thought", thought[-1] - thought[0], left=thought[0], color=THOUGHT)
        axes.plot(thought, ["thought"] * len(thought), "|", color="black", markersize=6, alpha=0.5)
    heard = 0.0
    for when, event in one.events:
        if isinstance(event, TextDelta):
            axes.text(
                max(heard, when) + 0.05, "playback", event.text.strip(), ha="left", va="center", fontsize=8, zorder=3
            )
        if isinstance(event, AudioDelta):
            seconds = len(event.data) / 2 / OUTPUT_RATE
            heard = max(heard, when)
            axes.barh("playback", seconds, left=heard, color=HEARD)
            heard += seconds
    axes.axvline(0, color="black", linewidth=1)
    axes.axvline(first, color="black", linestyle="--", linewidth=1)
    axes.invert_yaxis()
    said = f"turn over after {over * 1000:.0f} ms, first sound after {first * 1000:.0f} ms"
    axes.set_title(f"{one.mode}: {said}", loc="left", fontsize=9)
    axes.grid(axis="x", alpha=0.3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("realtime-turn.svg"), help="default %(default)s")
    parser.add_argument("--rounds", type=count, default=10, help="default %(default)s")
    given = parser.parse_args()
    pyplot()  # missing, it is said before anything is asked

    with talking() as url:
        drawn = asyncio.run(turns(url, given.rounds))
    draw(drawn, given.output)


if __name__ == "__main__":
    main()

"""When a mind-paced answer is thought, made and heard, as a picture, above think-before-speak of the same question.

    python benchmarks/timeline.py --output docs/mind-paced-speaking.svg

Asks a running server (--address), or serves the small model of this repository, which is so fast that segments and
speech rate are scaled down. Each mode is asked --rounds times in turns, and of each the run is drawn that other
processes disturbed least: whose thought, first word and end came soonest, taken together.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import serving
from step_audio.audio import encode_wav
from step_audio.command_line import count
from step_audio.plotting import pyplot, save
from step_audio_client import Audio, ChatOptions, MindPaced, Sampling, SpeechTiming, StepAudioClient, user
from step_audio_server.assets import embedded_checkpoint
from step_audio_server.commands.demo import VOICE
from step_audio_training.arithmetic import spell_numbers
from step_audio_training.speech import speak

THOUGHT, SPEECH, HEARD = "#8da0cb", "#fc8d62", "#66c2a5"


@dataclass(frozen=True)
class TimedAnswer:
    """One measured answer, spoken at `pace`."""

    pace: MindPaced
    timing: SpeechTiming
    thought_begun: float | None  # seconds since the question, as in `timing`
    texts: list[str]  # of each segment

    @property
    def slowness(self) -> float:
        assert self.timing.first_spoken is not None
        return (
            (self.thought_begun or 0)
            + self.timing.first_spoken
            + max(segment.last or 0 for segment in self.timing.segments)
        )


async def ask(client: StepAudioClient, question: bytes, pace: MindPaced) -> TimedAnswer:
    start, thought_begun, pieces = time.monotonic(), None, []
    options = ChatOptions(sampling=Sampling(temperature=0), mind_paced=pace)
    async for delta in client.chat([user(Audio(question))], options):
        now = time.monotonic() - start
        if delta.reasoning and thought_begun is None:
            thought_begun = now
        if delta.content:
            pieces.append((now, delta.content))
    assert delta.speech
    firsts = [segment.first for segment in delta.speech.segments if segment.first is not None]
    texts = [""] * len(firsts)
    for now, piece in pieces:  # of the last segment whose first token was there
        texts[max(n for n, first in enumerate(firsts) if n == 0 or first <= now)] += piece
    return TimedAnswer(pace, delta.speech, thought_begun, [text.strip() for text in texts])


async def ask_in_turns(address: str, question: str, paces: list[MindPaced], rounds: int) -> list[TimedAnswer]:
    recording = encode_wav(0.5 * speak(spell_numbers(question), VOICE).samples)
    async with StepAudioClient(address) as client:
        # What the first answers do is left out: they fill the KV cache.
        answers = [[await ask(client, recording, pace) for pace in paces] for _ in range(rounds + 1)][1:]
    return [min(column, key=lambda answer: answer.slowness) for column in zip(*answers, strict=True)]


def draw(answers: list[TimedAnswer], question: str, rate: float, file: Path) -> None:
    """An SVG of three lanes for each answer, one above the other."""
    figure, panels = pyplot().subplots(len(answers), sharex=True, figsize=(9, 2 * len(answers)), layout="constrained")
    for axes, answer in zip(panels, answers, strict=True):
        _lanes(axes, answer, rate)
    panels[0].set_xlim(left=0)
    panels[-1].set_xlabel(f"seconds since the question: “{question}”")
    save(figure, file)


def _lanes(axes: Any, answer: TimedAnswer, rate: float) -> None:
    timing, pace = answer.timing, answer.pace
    assert timing.first_spoken is not None
    if answer.thought_begun is not None and timing.thought_ended is not None:
        length = timing.thought_ended - answer.thought_begun
        axes.barh("Formulation", length, left=answer.thought_begun, color=THOUGHT)
        middle = answer.thought_begun + length / 2
        axes.text(middle, "Formulation", f"{timing.thought_tokens} tokens", ha="center", va="center", fontsize=8)
    heard = 0.0
    spoken = [segment for segment in timing.segments if segment.first is not None]
    for segment, text in zip(spoken, answer.texts, strict=True):
        assert segment.first is not None and segment.last is not None
        axes.barh("Articulation", segment.last - segment.begun, left=segment.begun, color=SPEECH, edgecolor="white")
        begun, length = max(heard, segment.first), segment.spoken_tokens / rate
        axes.barh("playback", length, left=begun, color=HEARD, edgecolor="white")
        axes.text(begun + length / 2, "playback", text, ha="center", va="center", fontsize=8)
        heard = begun + length
    axes.axvline(timing.first_spoken, color="black", linestyle="--", linewidth=1)
    axes.invert_yaxis()
    name = pace.mode.replace("_", "-")
    sizes = f", {pace.think_tokens} tokens of thought to {pace.speak_tokens} of speech" if pace.speech_rate else ""
    before = f"first word after {timing.first_spoken * 1000:.0f} ms, {timing.thought_before} tokens thought before it"
    axes.set_title(f"{name}{sizes}: {before}", loc="left", fontsize=9)
    axes.grid(axis="x", alpha=0.3)


@contextmanager
def address_of_listener() -> Iterator[str]:
    with serving(embedded_checkpoint()) as service:
        yield service.address


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--address", help="of a server's gRPC port (default: the small model is served)")
    parser.add_argument("--output", type=Path, default=Path("mind-paced-speaking.svg"), help="default %(default)s")
    parser.add_argument("--question", default="What is 48 plus 34 plus 7?", help="what espeak-ng says")
    parser.add_argument("--think-tokens", type=count, default=12, help="default %(default)s")
    parser.add_argument("--speak-tokens", type=count, default=3, help="default %(default)s")
    parser.add_argument("--speech-rate", type=float, default=40, help="tokens a second (default %(default)s)")
    parser.add_argument("--rounds", type=count, default=40, help="default %(default)s")
    given = parser.parse_args()
    pyplot()  # missing, it is said before anything is asked

    paces = [
        MindPaced("speak_first", given.think_tokens, given.speak_tokens, given.speech_rate),
        MindPaced("think_before_speak"),
    ]
    with nullcontext(given.address) if given.address else address_of_listener() as address:
        answers = asyncio.run(ask_in_turns(address, given.question, paces, given.rounds))
    draw(answers, given.question, given.speech_rate, given.output)


if __name__ == "__main__":
    main()

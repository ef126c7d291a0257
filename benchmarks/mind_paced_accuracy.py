"""Part 1 of mind_paced.py: how often the answers are right, and how much was thought before they began."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from step_audio.markdown import markdown_table
from step_audio.progress import Progress
from step_audio_client import ChatOptions, MindPaced, PaceMode, Reply, Sampling, SpeechTiming, StepAudioClient, ToolCall
from step_audio_evaluation.items import Item
from step_audio_evaluation.scoring import score
from step_audio_evaluation.statistics import paired_difference, wilson

MODES: tuple[PaceMode, ...] = ("no_think", "think_before_speak", "think_first", "speak_first")  # as the tables go
AGAINST: tuple[PaceMode, ...] = ("think_before_speak", "no_think")
AT_ONCE = 16
LONGEST = 400  # tokens of thought and answer: who has not answered by then goes round in circles


@dataclass(frozen=True)
class Spoken:
    """One mind-paced answer."""

    reply: Reply
    timing: SpeechTiming
    prompt_tokens: int


async def speak(client: StepAudioClient, item: Item, options: ChatOptions) -> Spoken:
    """To the end. Raises RequestError."""
    content = ""
    calls: list[ToolCall] = []
    async for delta in client.chat(item.request(), options):
        content += delta.content
        calls += delta.tool_calls
    assert delta.speech and delta.usage
    return Spoken(Reply(None, content or None, tuple(calls)), delta.speech, delta.usage.prompt_tokens)


def greedy(mode: PaceMode, think_tokens: int, speak_tokens: int) -> ChatOptions:
    """Unpaced: the thought alone decides when something is said."""
    pace = MindPaced(mode, think_tokens, speak_tokens)
    return ChatOptions(sampling=Sampling(max_tokens=LONGEST, temperature=0), mind_paced=pace)


async def accuracy(address: str, items: Sequence[Item], think_tokens: int, speak_tokens: int, seed: int) -> str:
    progress = Progress("accuracy", unit="", total=len(items) * len(MODES))
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(client: StepAudioClient, item: Item, mode: PaceMode) -> Spoken:
        async with gate:
            spoken = await speak(client, item, greedy(mode, think_tokens, speak_tokens))
        progress.step()
        return spoken

    async with StepAudioClient(address) as client:
        answers = iter(await asyncio.gather(*(one(client, item, mode) for item in items for mode in MODES)))
    progress.close()
    spoken: dict[PaceMode, list[Spoken]] = {mode: [] for mode in MODES}
    for _ in items:
        for mode in MODES:
            spoken[mode].append(next(answers))
    right = {
        mode: [score(item, one.reply).correct for item, one in zip(items, spoken[mode], strict=True)] for mode in MODES
    }
    return "\n\n".join([_shares(spoken, right), _differences(right, seed)])


def _shares(spoken: dict[PaceMode, list[Spoken]], right: dict[PaceMode, list[bool]]) -> str:
    rows = []
    for mode in MODES:
        n, timings = len(right[mode]), [one.timing for one in spoken[mode]]
        rows.append((
            mode, str(n), f"{100 * sum(right[mode]) / n:.1f} %", wilson(sum(right[mode]), n).in_percent,
            f"{statistics.mean(timing.thought_before for timing in timings):.1f}",
            f"{statistics.mean(timing.thought_tokens for timing in timings):.1f}",
            f"{statistics.mean(len(timing.segments) for timing in timings):.1f}",
            str(sum(timing.first_spoken is None for timing in timings)),
        ))  # fmt: skip
    headings = ("mode", "n", "right", "95 % interval", "thought before speech", "thought", "segments", "silent")
    return markdown_table([headings, *rows])


def _differences(right: dict[PaceMode, list[bool]], seed: int) -> str:
    rows = []
    for mode, other in ((mode, other) for other in AGAINST for mode in MODES if mode != other):
        pair = paired_difference(right[mode], right[other], seed)
        rows.append((
            f"{mode} less {other}", f"{100 * pair.value:+.1f} points", pair.interval.in_percent, str(pair.only_first),
            str(pair.only_second), f"{pair.p:.2g}",
        ))  # fmt: skip
    return markdown_table(
        [("same questions", "difference", "95 % interval", "only the one", "only the other", "p"), *rows]
    )

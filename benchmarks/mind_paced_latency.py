"""Part 2 of mind_paced.py: seconds until the first word is there to be spoken."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

from bench import median_ms, p95_ms
from mind_paced_accuracy import MODES, greedy, speak
from step_audio.markdown import markdown_table
from step_audio.progress import Progress
from step_audio_client import ChatOptions, MindPaced, Sampling, StepAudioClient, Thinking
from step_audio_evaluation.items import Item

AT_ONCE = (1, 8)
SPOKEN = 40  # tokens of an answer that would never end by itself

Messages = list[dict[str, Any]]
Ways = Mapping[str, ChatOptions]


async def first_words(address: str, questions: Sequence[Item], options: tuple[int, int], rounds: int) -> str:
    """The trained model's own thoughts: sums of two numbers, and of three, which take longest to think about."""
    ways: Ways = {mode: greedy(mode, *options) for mode in MODES}
    rows: list[tuple[str, ...]] = []
    async with StepAudioClient(address) as client:
        for tag in ("2 numbers", "3 numbers"):
            chosen = [item for item in questions if tag in item.tags]
            chosen = chosen[: max(AT_ONCE) * max(1, min(2, len(chosen) // max(AT_ONCE)))]
            if not chosen:
                continue
            thoughts = [await speak(client, item, ways["think_before_speak"]) for item in chosen]
            tokens = statistics.mean(spoken.timing.thought_tokens for spoken in thoughts)
            label = f"{tag}, thoughts of {tokens:.0f} tokens"
            rows += await _compare(client, label, ways, [item.request() for item in chosen], rounds)
    return _table(rows)


async def first_words_of_long_thoughts(address: str, question: Messages, lengths: Sequence[int], rounds: int) -> str:
    """A random model never ends a thought: think_before_speak has its thought cut off after so many tokens."""
    rows: list[tuple[str, ...]] = []
    async with StepAudioClient(address) as client:
        for length in lengths:
            sampling = Sampling(max_tokens=length + SPOKEN, temperature=0)
            ways: dict[str, ChatOptions] = {
                mode: ChatOptions(sampling=sampling, mind_paced=MindPaced(mode)) for mode in MODES
            }
            ways["think_before_speak"] = ChatOptions(sampling=sampling, thinking=Thinking(budget=length))
            rows += await _compare(client, f"thoughts of {length} tokens", ways, [question] * max(AT_ONCE), rounds)
    return _table(rows)


async def _compare(
    client: StepAudioClient, label: str, ways: Ways, questions: Sequence[Messages], rounds: int
) -> list[tuple[str, ...]]:
    """Every question each way in turns, alone and with others at once; nothing of the first round counts."""
    names = list(ways)
    total = len(AT_ONCE) * (rounds + 1) * len(ways) * len(questions)
    progress = Progress(label, unit="", total=total)
    rows: list[tuple[str, ...]] = []

    async def one(name: str, question: Messages) -> float | None:
        seconds = await _first_word(client, question, ways[name])
        progress.step()
        return seconds

    for at_once in AT_ONCE:
        taken: dict[str, list[float]] = {name: [] for name in names}
        for turn in range(rounds + 1):
            for begin in range(0, len(questions), at_once):
                first = (turn + begin // at_once) % len(names)  # nobody always comes first
                for name in names[first:] + names[:first]:
                    group = questions[begin : begin + at_once]
                    found = await asyncio.gather(*(one(name, question) for question in group))
                    if turn:
                        taken[name] += [seconds for seconds in found if seconds is not None]
        slow = statistics.median(taken["think_before_speak"])
        rows += [
            (
                label, str(at_once), name, median_ms(seconds), p95_ms(seconds),
                f"{statistics.median(seconds) / slow:.2f}", str(len(seconds)),
            )
            for name, seconds in taken.items() if seconds
        ]  # fmt: skip
    progress.close()
    return rows


async def _first_word(client: StepAudioClient, messages: Messages, options: ChatOptions) -> float | None:
    """Seconds until the answer's first text; the answer is read to its end, so that nothing is still under way."""
    start, first = time.perf_counter(), None
    async for delta in client.chat(messages, options):
        if first is None and delta.content:
            first = time.perf_counter() - start
    return first


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    headings = ("question", "at once", "mode", "median", "p95", "median / think_before_speak", "answers")
    return markdown_table([headings, *rows])

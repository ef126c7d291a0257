"""Part 3 of mind_paced.py: which part of a segment's prompt and answer the KV cache holds already."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mind_paced_accuracy import greedy, speak
from step_audio.markdown import markdown_table
from step_audio.progress import Progress
from step_audio_client import PaceMode, Segment, StepAudioClient
from step_audio_evaluation.items import Item

PACED: tuple[PaceMode, ...] = ("think_first", "speak_first")
NUMBERED = 5  # segments that have a column of their own


def in_conversation(item: Item, before: Sequence[Item]) -> Item:
    """`item`, asked after spoken sums that were answered rightly; their system messages are left out."""
    system = [message for message in item.messages if message["role"] == "system"]
    turns = [message for message in item.messages if message["role"] != "system"]
    history: list[Mapping[str, Any]] = []
    for earlier in before:
        history += [message for message in earlier.messages if message["role"] != "system"]
        history.append({"role": "assistant", "content": f"{earlier.expected}."})
    audio = tuple(recording for earlier in (*before, item) for recording in earlier.audio)
    return replace(item, messages=(*system, *history, *turns), audio=audio)


async def reuse(
    address: str, items: Sequence[Item], turns: Sequence[int], questions: int, options: tuple[int, int], seed: int
) -> str:
    """One question at a time, each behind a conversation of its own."""
    random = np.random.default_rng(seed)
    rows = []
    kinds = [(length, mode) for length in turns for mode in PACED]
    progress = Progress("reuse", unit="", total=len(kinds) * questions)
    async with StepAudioClient(address) as client:
        for n, (length, mode) in enumerate(kinds):
            segments: list[Sequence[Segment]] = []
            positions = []
            for asked in range(questions):
                item = items[(n * questions + asked) % len(items)]  # with enough of them none is asked twice
                before = [items[k] for k in random.permutation(len(items))[:length]]
                whole = in_conversation(item, before)
                spoken = await speak(client, whole, greedy(mode, *options))
                segments.append(spoken.timing.segments)
                positions.append(spoken.prompt_tokens)
                progress.step()
            rows.append((f"{length} turns before", mode, f"{statistics.mean(positions):.0f}", *_shares(segments)))
    progress.close()
    numbered = [f"segment {n + 1}" for n in range(NUMBERED)]
    return markdown_table([("conversation", "mode", "positions", *numbered, "later", "all", "smallest"), *rows])


def _shares(answers: Sequence[Sequence[Segment]]) -> list[str]:
    """By number, then of later ones, of all, and the smallest of all. Formulation's own speech has no prompt."""
    by_number: list[list[float]] = [[] for _ in range(NUMBERED + 1)]
    for segments in answers:
        for n, segment in enumerate(segments):
            if segment.total_blocks:
                by_number[min(n, NUMBERED)].append(segment.reused_blocks / segment.total_blocks)
    every = [share for shares in by_number for share in shares]
    means = [f"{100 * statistics.mean(shares):.0f} %" if shares else "" for shares in (*by_number, every)]
    return [*means, f"{100 * min(every):.0f} %" if every else ""]

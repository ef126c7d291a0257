"""Questions whose voices, speeds, noises and numbers training never had. The same seed gives the same set.

Question n of a task does not depend on how many are drawn, so a larger set holds the smaller one.
"""

from __future__ import annotations

import os
import re
import threading
import typing
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache
from multiprocessing import get_context, parent_process
from typing import TypeVar

import numpy as np

from step_audio.audio import encode_wav
from step_audio.chat_template import NO_THOUGHT
from step_audio_evaluation.items import Budget, Item, Kind, Snr
from step_audio_training.examples import Example, Task, draw_example
from step_audio_training.recordings import draw_conditions, record
from step_audio_training.sentences import DAYS
from step_audio_training.speech import restart

Wanted = TypeVar("Wanted")

TASKS: tuple[Task, ...] = typing.get_args(Task)
SNR_TASKS: tuple[Task, ...] = ("arithmetic", "transcription")
SNRS: tuple[Snr, ...] = ("clean", 30, 20, 15, 10, 5, 0)

# The same recordings, asked about in several ways, so that the ways can be compared question by question.
DRAWN_AS: dict[Task, Task] = {
    "arithmetic_no_think": "arithmetic", "arithmetic_cut_thought": "arithmetic",
    "transcription_no_think": "transcription",
}  # fmt: skip

BUDGETS: tuple[Budget, ...] = (0, 8, 16, 24, 32, 48, 64, 96, "unlimited")

RIVALS: tuple[tuple[str, ...], ...] = (
    ("high", "low"),
    ("fast", "slow"),
    ("rising", "falling", "steady"),
    ("speech", "tone", "noise"),
    ("first", "second"),
    tuple(day.capitalize() for day in DAYS),
)


def held_out(tasks: Sequence[Task], per_task: int, seed: int) -> list[Item]:
    """`per_task` questions of each task, recorded under conditions of all kinds."""
    return _made([(task, n, seed, None) for task in tasks for n in range(per_task)])


def at_noise_levels(levels: Iterable[Snr], per_task: int, seed: int) -> list[Item]:
    """Sums and transcripts of the same recordings at each level of noise."""
    chosen = list(levels)
    return _made([(task, n, seed, level) for task in SNR_TASKS for level in chosen for n in range(per_task)])


def at_budgets(budgets: Iterable[Budget], per_task: int, seed: int) -> list[Item]:
    """The same sums, with so much thought each."""
    chosen = list(budgets)
    sums = held_out(["arithmetic"] if chosen else [], per_task, seed)
    return [
        replace(item, id=item.id.replace("-", f"@{budget}tokens-"), tags=(), budget=budget)
        for budget in chosen
        for item in sums
    ]


@cache
def _speakers() -> ProcessPoolExecutor:
    """Processes that do nothing else: reloading espeak-ng in one that has loaded much else can crash it."""
    return ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), initializer=_end_with_parent)


def _end_with_parent() -> None:
    """Where the command is killed, nobody tells its processes: they would wait for questions for ever."""

    def watch() -> None:
        if parent := parent_process():
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def end_speakers() -> None:
    """End the processes that have spoken the questions; the next ones start others."""
    _speakers().shutdown()
    _speakers.cache_clear()


def speak_apart(make: Callable[[Wanted], Item], wanted: Sequence[Wanted]) -> list[Item]:
    """`make` of each, in those processes."""
    return list(_speakers().map(make, wanted, chunksize=8))


def _made(wanted: Sequence[tuple[Task, int, int, Snr | None]]) -> list[Item]:
    return speak_apart(_item, wanted)


def _item(wanted: tuple[Task, int, int, Snr | None]) -> Item:
    task, n, seed, snr_db = wanted
    drawn_as = DRAWN_AS.get(task, task)
    random = np.random.default_rng([seed, zlib.crc32(drawn_as.encode()), n])
    restart()
    example = draw_example(random, held_out=True, task=drawn_as)
    audio = []
    for recording in example.recordings:
        if snr_db is None:
            conditions = draw_conditions(random, held_out=True)
        else:  # all else is the same at every level
            conditions = draw_conditions(random, held_out=True, snr_db=0)
            conditions = replace(conditions, snr_db=None if snr_db == "clean" else snr_db)
        audio.append(encode_wav(record(recording, conditions, random)))
    prefix, tags = None, example.tags
    if task.endswith("_no_think"):
        prefix = NO_THOUGHT
    elif task == "arithmetic_cut_thought":
        assert example.thought is not None
        share = float(np.random.default_rng([seed, zlib.crc32(task.encode()), n]).random())
        prefix = f"<think>\n{cut(example.thought, share)}\n</think>\n"
        tags = ("less than half of the thought" if share < 0.5 else "more than half of the thought",)
    kind, options = _kind(example)
    level = "" if snr_db is None else f"@{snr_db}" if snr_db == "clean" else f"@{snr_db:g}dB"
    return Item(
        f"{task}{level}-{n:05}", task, tuple(example.messages), tuple(audio), kind, example.expected, options,
        tuple(example.tools or ()), prefix, tags, snr_db,
    )  # fmt: skip


def _kind(example: Example) -> tuple[Kind, tuple[str, ...]]:
    """How the answer is looked at; of a word, among which ones."""
    if example.task == "transcription":
        return "transcript", ()
    if example.task == "tool_call" and "by head" not in example.tags:
        return "tool_call", ()
    if example.expected.isdecimal():
        return "number", ()
    return "word", next(rivals for rivals in RIVALS if example.expected in rivals)


def cut(thought: str, share: float) -> str:
    """The thought up to the end of a step: the last one that ends within `share` of it, or the first.

    >>> cut("I hear: two plus three. 2+3. 2+3=5.", 0.9)
    'I hear: two plus three. 2+3'
    """
    ends = [found.start() for found in re.finditer(r"[.,](?= |$)", thought)]
    return thought[: max([end for end in ends if end <= share * len(thought)], default=ends[0])]

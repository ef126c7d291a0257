"""Questions by voice, channel and kind, of `step_audio_training.questions`. The same seed gives the same set."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Sequence

import numpy as np

from step_audio.audio import encode_wav
from step_audio.chat_template import NO_THOUGHT
from step_audio_evaluation.held_out import speak_apart
from step_audio_evaluation.items import Item, Kind
from step_audio_training.examples import Example
from step_audio_training.questions import SETS, draw_question
from step_audio_training.speech import restart

_CALL = re.compile(r"<tool_call>function\n(.+)\n(.+)</tool_call>")
NOT_UNDERSTOOD = "understand"  # the word by which an answer says that it did not
FALSE_ALARM = "did not understand"


def by_voice(names: Sequence[str], each: int, seed: int) -> list[Item]:
    """`each` questions of each of the sets of these names, whose voices must be installed."""
    return speak_apart(_item, [(name, n, seed) for name in names for n in range(each)])


def is_false_alarm(item: Item, content: str) -> bool | None:
    """Whether an answer says of speech that it was not understood; None where the question is not about speech."""
    if item.task not in SETS or SETS[item.task].task == "strange":
        return None
    return FALSE_ALARM in content


def _item(wanted: tuple[str, int, int]) -> Item:
    name, n, seed = wanted
    random = np.random.default_rng([seed, zlib.crc32(name.encode()), n])
    restart()
    question = draw_question(name, random)
    example, clips = question.example, question.clips
    kind, expected, options = _kind(SETS[name].task, example)
    return Item(
        f"{name}-{n:05}", name, tuple(example.messages), tuple(map(encode_wav, clips)), kind, expected, options,
        tuple(example.tools or ()), NO_THOUGHT if example.thought is None else None, example.tags,
    )  # fmt: skip


def _kind(task: str, example: Example) -> tuple[Kind, str, tuple[str, ...]]:
    """How the answer is looked at, what is right, and among what."""
    if task == "strange":  # what it heard instead is not looked at
        return "word", NOT_UNDERSTOOD, (NOT_UNDERSTOOD,)
    if task.startswith("transcription"):
        return "transcript", example.expected, ()
    if found := _CALL.fullmatch(example.answer):
        return "call", json.dumps({"name": found[1], "arguments": json.loads(found[2])}), ()
    if task in ("facts", "sum_in_json"):
        return "json", example.expected, ()
    if task in ("arithmetic", "word_count", "speakers"):
        return "number", example.expected, ()
    return "text", example.answer, ()

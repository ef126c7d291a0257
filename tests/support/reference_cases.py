"""Prompts, as clients say them and as the model card's format has them, for the independent reference."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from functools import cache

from paths import ROOT
from reference import sine_speech
from step_audio_client import Audio, Sampling, StepAudioClient, user

SAMPLES = ROOT.parent / "shared" / "samples"
MAX_TOKENS = 24
GREEDY = Sampling(max_tokens=MAX_TOKENS, temperature=0)
GENERATION = "<|BOT|>assistant\n<think>\n"


@dataclass
class Case:
    """A conversation, and the prompt string that the model card's format makes of it."""

    name: str
    messages: list[dict]
    prompt: str  # `<audio_patch>` stands for a whole recording
    recordings: list[bytes] = field(default_factory=list)
    continues: bool = False


def human(text: str) -> str:
    return f"<|BOT|>human\n{text}<|EOT|>"


def recordings() -> dict[str, bytes]:
    """Real ones where they are at hand; the repository's own always."""
    found = {"mmsu_test": (ROOT / "examples" / "mmsu_test.wav").read_bytes()}
    for name in ("mmar_test", "spoken_mqa_test", "big_bench_audio_test"):
        path = SAMPLES / f"{name}.wav"
        found[name] = path.read_bytes() if path.is_file() else sine_speech(7 + len(found), seed=len(found))
    return found


@cache
def cases() -> list[Case]:
    audio = recordings()
    made = []
    for name, data in audio.items():
        made.append(Case(f"{name} alone", [user(Audio(data))], human("<audio_patch>") + GENERATION, [data]))
        question = f"What is said in {name}?"
        made.append(
            Case(
                f"{name} after text",
                [user(question, Audio(data))],
                human(f"{question}\n<audio_patch>") + GENERATION,
                [data],
            )
        )
        made.append(
            Case(
                f"{name} before text",
                [user(Audio(data), question)],
                human(f"<audio_patch>{question}") + GENERATION,
                [data],
            )
        )
    first, second, third, _ = audio.values()
    made.append(
        Case(
            "two recordings",
            [user(Audio(first), Audio(second), "Which is louder?")],
            human("<audio_patch><audio_patch>Which is louder?") + GENERATION,
            [first, second],
        )
    )
    made.append(
        Case(
            "three recordings with words between",
            [user("First:", Audio(first), "then:", Audio(third), "and:", Audio(second))],
            human("First:\n<audio_patch>then:\n<audio_patch>and:\n<audio_patch>") + GENERATION,
            [first, third, second],
        )
    )
    long = sine_speech(61.3, seed=9)
    made.append(Case("a minute", [user(Audio(long), "?")], human("<audio_patch>?") + GENERATION, [long]))
    exact = sine_speech(50, seed=10)
    made.append(Case("two clips to the sample", [user(Audio(exact))], human("<audio_patch>") + GENERATION, [exact]))
    for text in ("hello", "你好，今天天气怎么样？", "Résumé: 12 × 7 = ?\n\n  indented", "a" * 500):
        made.append(Case(f"text {text[:8]!r}", [user(text)], human(text) + GENERATION))
    made.append(
        Case(
            "system prompt",
            [{"role": "system", "content": "You are brief."}, user("hello")],
            "<|BOT|>system\nYou are brief.<|EOT|>" + human("hello") + GENERATION,
        )
    )
    turns = [
        {"role": "system", "content": "You listen."},
        user(Audio(first), "Who speaks?"),
        {"role": "assistant", "content": "A woman."},
        user("Are you sure?", Audio(second)),
    ]
    prompt = (
        "<|BOT|>system\nYou listen.<|EOT|>"
        + human("<audio_patch>Who speaks?")
        + "<|BOT|>assistant\nA woman.<|EOT|>"
        + human("Are you sure?\n<audio_patch>")
        + GENERATION
    )
    made.append(Case("several turns", turns, prompt, [first, second]))
    for prefix in ("<think>\n", "<think>\nThe speaker", "<think>\n\n</think>\n"):
        messages = [user(Audio(first), "Go on."), {"role": "assistant", "content": prefix}]
        prompt = human("<audio_patch>Go on.") + "<|BOT|>assistant\n" + prefix
        made.append(Case(f"prefix {prefix!r}", messages, prompt, [first], continues=True))
    return made


async def answer(client: StepAudioClient, case: Case) -> list[int]:
    generation = await client.complete(case.messages, GREEDY, continue_final_message=case.continues)
    return generation.token_ids


async def answers_one_by_one(address: str) -> dict[str, list[int]]:
    async with StepAudioClient(address) as client:
        return {case.name: await answer(client, case) for case in cases()}


async def answers_at_once(address: str, seed: int) -> dict[str, list[int]]:
    order = list(cases())
    random.Random(seed).shuffle(order)
    async with StepAudioClient(address) as client:
        results = await asyncio.gather(*(answer(client, case) for case in order))
    return {case.name: tokens for case, tokens in zip(order, results, strict=True)}

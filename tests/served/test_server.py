"""The served pipeline against an independent reference, token for token, in float32.

Every prompt goes through gRPC, tritonserver, featurizer, encoder, prompt builder and the CPU backend that runs
the converted checkpoint; the reference shares no code with any of them.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from functools import cache

import pytest

from paths import ROOT
from reference import Greedy, sine_speech
from server_settings import settings_for
from step_audio_client import Audio, Sampling, StepAudioClient, user
from step_audio_server.serve import Service

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


@pytest.fixture(scope="module")
def expected(reference) -> dict[str, Greedy]:
    return {case.name: reference.greedy(case.prompt, case.recordings, MAX_TOKENS) for case in cases()}


async def answer(client: StepAudioClient, case: Case) -> list[int]:
    generation = await client.complete(case.messages, GREEDY, continue_final_message=case.continues)
    return generation.token_ids


async def answers_at_once(address: str, seed: int) -> dict[str, list[int]]:
    order = list(cases())
    random.Random(seed).shuffle(order)
    async with StepAudioClient(address) as client:
        results = await asyncio.gather(*(answer(client, case) for case in order))
    return {case.name: tokens for case, tokens in zip(order, results, strict=True)}


@pytest.mark.server  # of which the answers to them are asked
def test_there_are_24_prompts_and_none_is_a_tie(expected):
    assert len(cases()) >= 24
    assert min(greedy.margin for greedy in expected.values()) > 1e-4


def test_one_at_a_time_equals_the_reference(ask, expected):
    async def one_by_one(client):
        return {case.name: await answer(client, case) for case in cases()}

    got = ask(one_by_one)
    assert got == {name: greedy.tokens for name, greedy in expected.items()}


def test_all_at_once_equals_the_reference(service, expected):
    for seed in (1, 2):
        got = asyncio.run(answers_at_once(service.address, seed))
        assert got == {name: greedy.tokens for name, greedy in expected.items()}


@pytest.mark.parametrize(("tp", "reuse"), [(1, False), (2, True), (8, False)])
def test_every_conversion_equals_the_reference(checkpoint, work_dir, expected, tp, reuse):
    """Other ranks, other servers; all prompts at once, KV reuse off and on."""
    settings = settings_for(checkpoint, work_dir / f"tp{tp}", tp=tp, kv_cache_reuse=reuse)
    with Service(settings) as service:
        got = asyncio.run(answers_at_once(service.address, seed=tp))
    assert got == {name: greedy.tokens for name, greedy in expected.items()}


def test_recordings_never_mix(ask, reference):
    """Eight recordings of equal length under the same words, twice each, at once: equal ids but for the audio."""
    clips = [sine_speech(3, seed=20 + i) for i in range(8)]
    prompt = human("<audio_patch>Describe it.") + GENERATION
    expected = [reference.greedy(prompt, [clip], 8).tokens for clip in clips]
    assert len({tuple(tokens) for tokens in expected}) > 1, "the model must tell the recordings apart"

    async def together(client):
        order = clips + clips[::-1]
        greedy = Sampling(max_tokens=8, temperature=0)
        calls = (client.complete([user(Audio(clip), "Describe it.")], greedy) for clip in order)
        return [generation.token_ids for generation in await asyncio.gather(*calls)]

    assert ask(together) == expected + expected[::-1]

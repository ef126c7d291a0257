"""The served pipeline against an independent reference, token for token, in float32.

Every prompt goes through gRPC, tritonserver, featurizer, encoder, prompt builder and the CPU backend that runs
the converted checkpoint; the reference shares no code with any of them.
"""

from __future__ import annotations

import asyncio

import pytest

from reference import Greedy, sine_speech
from reference_cases import GENERATION, MAX_TOKENS, answers_at_once, answers_one_by_one, cases, human
from server_settings import settings_for
from step_audio_client import Audio, Sampling, user
from step_audio_server.serve import Service


@pytest.fixture(scope="module")
def expected(reference) -> dict[str, Greedy]:
    return {case.name: reference.greedy(case.prompt, case.recordings, MAX_TOKENS) for case in cases()}


@pytest.mark.server  # of which the answers to them are asked
def test_there_are_24_prompts_and_none_is_a_tie(expected):
    assert len(cases()) >= 24
    assert min(greedy.margin for greedy in expected.values()) > 1e-4


def test_one_at_a_time_equals_the_reference(service, expected):
    got = asyncio.run(answers_one_by_one(service.address))
    assert got == {name: greedy.tokens for name, greedy in expected.items()}


def test_all_at_once_equals_the_reference(service, expected):
    for seed in (1, 2):
        got = asyncio.run(answers_at_once(service.address, seed))
        assert got == {name: greedy.tokens for name, greedy in expected.items()}


@pytest.mark.parametrize(("tp", "reuse"), [(1, False), (2, True), (8, False)])
def test_every_conversion_equals_the_reference(checkpoint, work_dir, expected, tp, reuse):
    """Other ranks, other servers; all prompts at once, KV reuse off and on."""
    settings = settings_for(checkpoint, work_dir, tp=tp, kv_cache_reuse=reuse)
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

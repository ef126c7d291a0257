"""Recordings' embeddings stay on the real server: what travels is small, and what the server drops is made again."""

from __future__ import annotations

import asyncio

import pytest

from server_settings import settings_for
from step_audio_client import ChatOptions, MindPaced, Sampling, StepAudioClient, wire
from step_audio_evaluation.held_out import held_out
from step_audio_server.assets import embedded_checkpoint
from step_audio_server.serve import Service

OPTIONS = ChatOptions(
    sampling=Sampling(temperature=0), mind_paced=MindPaced("think_first", think_tokens=12, speak_tokens=3)
)


@pytest.fixture(scope="module")
def forgetful(work_dir, listener):
    """Serves what `listener` does, and caches no embeddings."""
    changes = {"max_seq_len": None, "dtype": "float32", "encoder_cache_bytes": 0}
    with Service(settings_for(embedded_checkpoint(), work_dir / "listener", **changes)) as running:
        yield running


@pytest.fixture
def travels(monkeypatch):
    """(model, inputs by name) of each request."""
    seen = []
    request = wire.infer_request

    def recorded(model, request_id, inputs):
        seen.append((model, dict(inputs)))
        return request(model, request_id, inputs)

    monkeypatch.setattr(wire, "infer_request", recorded)
    return seen


def answer(service, messages):
    async def run():
        async with StepAudioClient(service.address) as client:
            deltas = [delta async for delta in client.chat(messages, OPTIONS)]
        return "".join(d.reasoning for d in deltas), "".join(d.content for d in deltas), deltas[-1]

    return asyncio.run(asyncio.wait_for(run(), 120))


@pytest.fixture(scope="module")
def question():
    return held_out(["arithmetic"], 1, seed=12)[0].request()


def test_segments_name_the_recording(listener, question, travels):
    *_, last = answer(listener, question)
    segments = [inputs for model, inputs in travels if model == "step_audio_continue"]
    assert len(segments) == 1 + len(last.speech.segments) > 2
    clips = segments[0]["frames"].size
    for inputs in segments:
        assert inputs["content_hash"].shape == (1, clips) and "mel" not in inputs
        # Ids and hashes of the prompt's positions, and some scalars.
        assert sum(array.nbytes for array in inputs.values()) < 16 * inputs["input_ids"].size + 500
    assert [model for model, inputs in travels if "audio" in inputs] == ["step_audio_prompt"]


def test_what_is_not_cached_is_made_again(listener, forgetful, question, travels):
    expected = answer(listener, question)[:2]
    travels.clear()
    assert answer(forgetful, question)[:2] == expected
    models = [(model, "mel" in inputs) for model, inputs in travels if model != "tokenizer"]
    named, made = models.count(("step_audio_continue", False)), models.count(("step_audio_continue", True))
    assert named == made == models.count(("audio_featurizer", False)) > 2

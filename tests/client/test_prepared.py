"""Generations from a prepared prompt, whose recordings' embeddings are on the server, or no longer."""

from __future__ import annotations

import numpy as np
import pytest

from fake_triton import EOT, message, script, serving
from step_audio.errors import Code, NotCached
from step_audio_client import Audio, RequestError, Sampling, user
from step_audio_client.pipeline import Pipeline
from step_audio_client.prepared import PreparedPrompt, PreparedRequest
from step_audio_client.tokens import TokenRequest

GONE = f"in ensemble 'step_audio_continue', {Code.NOT_CACHED.put_before(str(NotCached()))}"


def request(*recordings: bytes) -> PreparedRequest:
    asked = TokenRequest([user(*map(Audio, recordings), "What?")], Sampling(5))
    hashes = np.arange(7, 7 + len(recordings), dtype=np.uint64)[None]
    prompt = PreparedPrompt(
        asked,
        np.array([[1, 2, 3]], np.int32),
        np.array([[0, 7 if recordings else 0, 0]], np.uint64),
        np.array([[EOT]], np.int32),
        np.array([[[0], [-1]]], np.int32),
        {"frames": np.full(hashes.shape, 8, np.int32), "content_hash": hashes},
    )
    return PreparedRequest(prompt, asked.sampling, (4,))


async def generated(addresses, asked):
    pipeline = Pipeline(addresses)
    try:
        tokens = pipeline.tokens(pipeline.run(), asked, {EOT}, 100, 32)
        return [token async for part in tokens for token in part.token_ids]
    finally:
        await pipeline.close()


def inputs_of(fake):
    return [entry[2] for entry in fake.seen if entry[0] == "generate"]


def turns(*scripts):
    """One after the other, a request each."""
    left = list(scripts)
    return lambda: left.pop(0)()


async def test_recordings_are_named_by_their_hashes():
    async with serving(script(message(5, final=True))) as [(fake, address, _)]:
        assert await generated(address, request(b"1", b"2")) == [5]
    (sent,) = inputs_of(fake)
    assert sent["content_hash"].tolist() == [[7, 8]] and sent["frames"].tolist() == [[8, 8]]
    assert not {"mel", "prompt_embedding_table", "audio", "messages"} & set(sent)


async def test_features_follow_if_the_embeddings_are_gone():
    run = turns(script(message(error=GONE)), script(message(5, final=True)))
    async with serving(run) as [(fake, address, _)]:
        assert await generated(address, request(b"1")) == [5]
    first, second = inputs_of(fake)
    assert "mel" not in first and second["mel"].shape == (1, 1, 128, 8)
    assert {name: first[name].tolist() for name in first} == {name: second[name].tolist() for name in first}


async def test_features_follow_to_another_server():
    """The first is stopping; the second has never heard the recording."""
    stopping = script(message(error="Server is stopping, scheduler for model has stopped accepting new requests"))
    other = turns(script(message(error=GONE)), script(message(5, final=True)))
    async with serving(stopping, other) as [(first, address, _), (second, another, _)]:
        assert await generated([address, another], request(b"1")) == [5]
    assert ["mel" in sent for sent in inputs_of(first) + inputs_of(second)] == [False, False, True]


async def test_whoever_has_no_use_for_features_is_not_asked_for_ever():
    async with serving(script(message(error=GONE))) as [(fake, address, _)]:
        with pytest.raises(RequestError, match="not in the encoder's cache"):
            await generated(address, request(b"1"))
    assert len(inputs_of(fake)) == 2


def test_without_a_recording_the_llm_itself_is_asked():
    assert request().model == "tensorrt_llm" and request(b"1").model == "step_audio_continue"
    assert not {"frames", "content_hash", "prompt_table_extra_ids"} & set(request().inputs())

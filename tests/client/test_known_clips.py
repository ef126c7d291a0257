"""Recordings of which a server knows the beginning: what is sent, to whom, and what if it knows them no longer."""

from __future__ import annotations

import json

import numpy as np

from fake_triton import message, refusal, script, serving
from step_audio.errors import Code
from step_audio_client import Audio, Beginning, ChatOptions, HeardClips, StepAudioClient, Thinking, user

CLIPS = ((2502, 7), (2502, 8))
OPTIONS = ChatOptions(thinking=Thinking("off"))


def asked_about(server: str) -> list[dict]:
    known = Beginning(HeardClips(server, CLIPS), lambda: b"whole", 3)
    return [user(Audio(b"rest", 1, known), "What?", Audio(b"other"))]


async def answered(addresses: str, messages: list[dict]) -> None:
    async with StepAudioClient(addresses) as client:
        async for _ in client.chat(messages, OPTIONS):
            pass


def sent(fake) -> list[tuple[list[dict], list[bytes]]]:
    """Of each request: its parts, and its recordings."""
    inputs = [entry[2] for entry in fake.seen if entry[0] == "generate"]
    return [(json.loads(one["messages"].item())[0]["content"], one["audio"].reshape(-1).tolist()) for one in inputs]


async def test_only_the_rest_is_sent():
    async with serving(script(message(5, final=True))) as [(fake, address, _)]:
        await answered(address, asked_about(address))
    [(parts, audio)] = sent(fake)
    assert parts[0] == {"type": "audio", "channel": 1, "known": [list(clip) for clip in CLIPS], "skip": 3}
    assert parts[2] == {"type": "audio"} and audio == [b"rest", b"other"]


async def test_all_is_sent_where_it_is_known_no_longer():
    runs = [script(refusal(Code.NOT_CACHED)), script(message(5, final=True))]
    async with serving(lambda: runs.pop(0)()) as [(fake, address, _)]:
        await answered(address, asked_about(address))
    [_, (parts, audio)] = sent(fake)
    assert parts[0] == {"type": "audio", "channel": 1} and audio == [b"whole", b"other"]


async def test_the_server_that_knows_it_is_asked():
    async with serving(*[script(message(5, final=True))] * 3) as servers:
        addresses = ",".join(address for _, address, _ in servers)
        async with StepAudioClient(addresses) as client:
            for _, address, _ in servers[::-1] * 2:
                async for _ in client.chat(asked_about(address), OPTIONS):
                    pass
        assert [len(sent(fake)) for fake, _, _ in servers] == [2, 2, 2]


async def test_what_was_heard_ahead_is_told_of_each_recording():
    """Nothing of the answer; the LLM gets the prompt's own ids, and the clips by their hashes."""
    async with serving(script(message(5, final=True))) as [(fake, address, _)], StepAudioClient(address) as client:
        fake.prompt = {
            "input_ids": np.array([[1, 2, 3]], np.int32),
            "prompt_table_extra_ids": np.array([[0, 7, 0]], np.uint64),
            "end_id": np.array([[2]], np.int32),
            "stop_words_list": np.array([[[0], [-1]]], np.int32),
            "frames": np.array([[2502, 100, 30]], np.int32),
            "audio_index": np.array([[0, 0, 1]], np.int32),
            "content_hash": np.array([[7, 2**64 - 1, 9]], np.uint64),
            "audio_report": np.zeros((1, 2, 2), np.float32),
        }
        heard = await client.hear([user(Audio(b"1"), Audio(b"2"))], OPTIONS)
        assert heard == [HeardClips(address, ((2502, 7), (100, 2**64 - 1))), HeardClips(address, ((30, 9),))]
    [inputs] = [entry[2] for entry in fake.seen if entry[0] == "generate"]
    assert inputs["request_output_len"].item() == 1 and inputs["content_hash"].tolist() == [[7, 2**64 - 1, 9]]
    assert not {"audio", "messages"} & set(inputs)

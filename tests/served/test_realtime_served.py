"""Realtime sessions with the small trained model, by OpenAI's own package."""

from __future__ import annotations

import asyncio
import base64
import io
import wave

import numpy as np
import pytest

from realtime_fixture import by_hand, connected, until
from step_audio_evaluation.held_out import held_out
from step_audio_server.commands.cli import main

GREEDY = {"temperature": 0, "max_output_tokens": 300}


@pytest.fixture(scope="module")
def sums() -> list[bytes]:
    """WAV files of 16 kHz: spoken sums."""
    return [bytes(item.audio[0]) for item in held_out(["arithmetic"], 2, seed=11)]


def samples(data: bytes) -> bytes:
    with wave.open(io.BytesIO(data)) as file:
        assert (file.getframerate(), file.getsampwidth(), file.getnchannels()) == (16_000, 2, 1)
        return file.readframes(file.getnframes())


def turn(data: bytes) -> dict:
    audio = {"data": base64.b64encode(data).decode(), "format": "wav"}
    return {"role": "user", "content": [{"type": "input_audio", "input_audio": audio}]}


async def heard(connection, data: bytes) -> None:
    for start in range(0, len(data), 3200):
        await connection.input_audio_buffer.append(audio=base64.b64encode(data[start : start + 3200]).decode())


@pytest.mark.parametrize("thinking", [{"mode": "on"}, {"mode": "off"}])
async def test_greedy_answers_are_those_of_chat_completions(url, openai, sums, thinking):
    """Two turns, the second with the first for its history; in the same mode, token for token."""
    history, expected, more = [], [], {"thinking": thinking}
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        for data in sums:
            history.append(turn(data))
            reply = await client.chat.completions.create(
                model="R1", messages=history, temperature=0, max_tokens=300, extra_body=more
            )
            expected.append(
                (reply.choices[0].message.content, reply.usage.completion_tokens, reply.usage.prompt_tokens)
            )
            history.append({"role": "assistant", "content": reply.choices[0].message.content})
    audio = {"input": {"turn_detection": None, "format": {"type": "audio/pcm", "rate": 16_000}}}
    told = []
    async with connected(url, model="R1") as connection:
        await by_hand(connection, **GREEDY, **more, audio=audio)
        for data in sums:
            await heard(connection, samples(data))
            await connection.input_audio_buffer.commit()
            await connection.response.create()
            response = (await until(connection, "response.done"))[-1].response
            text = response.output[0].content[0].text
            told.append((text, response.usage.output_tokens, response.usage.input_tokens))
    assert told == expected and all(text for text, _, _ in told)


async def test_a_spoken_sum_is_answered_when_it_ends_and_mind_paced(url, sums):
    paced = {"mode": "think_first", "think_tokens": 8, "speak_tokens": 2}
    audio = {"input": {"format": {"type": "audio/pcm", "rate": 16_000}}}
    async with connected(url, model="R1") as connection:
        await connection.session.update(session={"type": "realtime", "audio": audio, "mind_paced_speaking": paced})
        await until(connection, "session.updated")
        await heard(connection, bytes(16_000) + samples(sums[0]) + bytes(32_000))
        events = await until(connection, "response.done")
        assert events[0].type == "input_audio_buffer.speech_started"
        response = events[-1].response
        assert response.status == "completed" and response.output[0].content[0].text
        assert response.mind_paced_speaking["segments"]


async def test_an_answer_that_is_cancelled_frees_its_place(url, sums):
    async with connected(url, model="R1") as connection:
        await by_hand(connection, thinking={"mode": "off"}, ignore_eos=True)
        for _ in range(3):
            await connection.response.create(response={"instructions": "Count.", "input": []})
            await until(connection, "response.output_text.delta")
            await connection.response.cancel()
            assert (await until(connection, "response.done"))[-1].response.status == "cancelled"
            await asyncio.sleep(0)


def test_the_command_plays_a_spoken_sum_and_prints_its_answer(url, tmp_path, capsys):
    (item,) = held_out(["arithmetic"], 1, seed=11)
    (tmp_path / "sum.wav").write_bytes(bytes(item.audio[0]))
    arguments = ["--audio", tmp_path / "sum.wav", "--temperature", 0, "--max-tokens", 300, "--no-captions"]
    assert main(["talk", "--url", url, *map(str, arguments)]) == 0
    out, err = capsys.readouterr()
    assert item.expected in out and "first thought" in err and "first word" in err


async def test_a_long_turn_is_computed_while_it_is_spoken(url):
    """Of its prompt, all blocks of the instructions and of the first clip are found in the LLM's cache."""
    audio = {"input": {"turn_detection": None, "format": {"type": "audio/pcm", "rate": 16_000}}}
    async with connected(url, model="R1") as connection:
        await by_hand(connection, thinking={"mode": "off"}, max_output_tokens=1, audio=audio)
        for seed, patience in enumerate((1, 4, 16)):  # seconds
            noise = np.random.default_rng(seed).normal(0, 1000, 27 * 16_000)
            data = noise.astype("<i2").tobytes()
            await heard(connection, data[: 26 * 32_000])
            await asyncio.sleep(patience)
            await heard(connection, data[26 * 32_000 :])
            await connection.input_audio_buffer.commit()
            turn = (await until(connection, "conversation.item.done"))[-1].item
            await connection.response.create(response={"conversation": "none"})
            response = (await until(connection, "response.done"))[-1].response
            found = response.usage.input_token_details.cached_tokens
            if found >= 300 // 32 * 32:  # of 12.5 tokens a second
                return
            await connection.conversation.item.delete(item_id=turn.id)
        raise AssertionError(f"{found} tokens were found")

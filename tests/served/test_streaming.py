"""Streams, their ends, and the freeing of slots: what a client relies on while tokens are being made."""

from __future__ import annotations

import asyncio
import io
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

from paths import ROOT
from raw_triton import active, call, metrics, prompt, scalar, send
from reference import sine_speech
from step_audio.errors import Code
from step_audio_client import Audio, RequestError, Sampling, user
from step_audio_client.chat import chat
from step_audio_client.errors import request_error
from waiting import SECONDS, until, wait_until

LLM = "tensorrt_llm"
LONG = Sampling(max_tokens=8000, temperature=0)


def test_first_token_before_the_last_is_computed(service, ask):
    """When the first token is here, the engine is still at work on this request."""

    async def first(client):
        stream = client.generate([user("hello")], LONG)
        delta = await anext(stream)
        await until(lambda: active(service) == 1)
        await stream.aclose()
        return delta

    assert 1 <= len(ask(first).token_ids) < 1000
    wait_until(lambda: active(service) == 0)


def test_requests_that_set_no_length_run_side_by_side(service, ask):
    """Twice as many as the KV cache has room for if each became as long as it may."""
    count = 8  # kv_cache_tokens is 4 x max_seq_len
    endless = Sampling(min_tokens=20_000, temperature=0)

    async def begun(client):
        streams = [client.generate([user(f"{number}")], endless) for number in range(count)]
        try:
            first = [await anext(stream) for stream in streams]
            await until(lambda: metrics(service.settings.metrics_port)["request.scheduled"] == count)
            return first
        finally:
            for stream in streams:
                await stream.aclose()

    assert all(delta.finish_reason is None for delta in ask(begun))
    wait_until(lambda: active(service) == 0)


def test_deltas_add_up(ask):
    async def both(client):
        greedy = Sampling(max_tokens=64, temperature=0, logprobs=True)
        deltas = [delta async for delta in client.generate([user("你好 hello")], greedy)]
        whole = await client.complete([user("你好 hello")], greedy)
        tokenizer = await client.tokenizer()
        return deltas, whole, tokenizer.decode(whole.token_ids)

    deltas, whole, decoded = ask(both)
    assert [token for delta in deltas for token in delta.token_ids] == whole.token_ids
    assert "".join(delta.text for delta in deltas) == whole.text == decoded
    assert len(whole.logprobs) == len(whole.token_ids) == whole.usage.completion_tokens == 64
    assert all(value <= 0 for value in whole.logprobs)
    assert whole.finish_reason == "length"
    assert [delta.finish_reason for delta in deltas[:-1]] == [None] * (len(deltas) - 1)


def test_leaving_early_frees_the_slot(service, ask):
    async def leave(client):
        async for _ in client.generate([user(Audio(sine_speech(2, seed=3)), "go on")], LONG):
            break

    ask(leave)
    wait_until(lambda: active(service) == 0)


def test_cancelled_task_frees_the_slot(service, ask):
    async def cancel(client):
        task = asyncio.create_task(client.complete([user("hello")], LONG))
        await until(lambda: active(service) == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    ask(cancel)
    wait_until(lambda: active(service) == 0)


def test_client_deadline_frees_the_slot(service, ask):
    async def late(client):
        with pytest.raises(RequestError, match="longer than the timeout"):
            await client.complete([user("hello")], LONG, timeout=0.5)

    ask(late)
    wait_until(lambda: active(service) == 0)


def test_hanging_up_on_the_llm_itself_frees_the_slot(service):
    """A direct client that just goes away: Triton's own cancellation."""

    async def hang_up():
        task = asyncio.create_task(
            send(service.address, LLM, prompt([5, 6, 7], 8000, streaming=scalar(True, np.bool_)))
        )
        await until(lambda: active(service) == 1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(hang_up())
    wait_until(lambda: active(service) == 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(("pace", "slots"), [("", 1), ("--mode speak-first --speak-tokens 9000", 2)])
def test_chat_is_ended(service, number, pace, slots):
    """The command a person runs: the thought appears, Ctrl-C ends it with status 130, and the server is free."""
    chat = subprocess.Popen(
        [
            sys.executable,
            *f"-m step_audio_server chat --url {service.address} --text hello --temperature 0 {pace}".split(),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert os.read(chat.stderr.fileno(), 100)
    wait_until(lambda: active(service) == slots)
    chat.send_signal(number)
    wait_until(lambda: active(service) == 0)
    _, errors = chat.communicate(timeout=SECONDS)
    assert chat.returncode == 130
    assert errors.rstrip().endswith(b"\nstopped")


@pytest.mark.parametrize("prefix", ["<think>\n", "<think>\n\n</think>\n"])
def test_chat_prints_thought_and_answer(service, checkpoint, ask, capsys, prefix):
    """With the tokenizer from the server and from a folder; the thought and figures on stderr, the answer on stdout."""
    recording = ROOT / "examples" / "mmsu_test.wav"
    greedy = Sampling(max_tokens=12, temperature=0)

    async def expected(client):
        messages = [user(recording, "What?"), {"role": "assistant", "content": prefix}]
        return await client.complete(messages, greedy, continue_final_message=True)

    text = ask(expected).text
    thought, answer = ("", text) if "</think>" in prefix else (text, "")
    for tokenizer in (None, checkpoint):
        out = io.StringIO()
        status = chat(service.address, [recording], ["What?"], greedy, prefix=prefix, tokenizer=tokenizer, out=out)
        assert (status, out.getvalue()) == (0, answer + "\n")
        errors = capsys.readouterr().err
        assert errors.startswith(thought) and re.search(r"prompt tokens, 12 new in .* finish: length", errors)


def test_stop_ends_only_its_own_request(service):
    async def three():
        slow = prompt([5, 6, 7], 3000, streaming=scalar(True, np.bool_))
        tasks = {name: asyncio.create_task(send(service.address, LLM, slow, name)) for name in ("a", "b")}
        await until(lambda: active(service) == 2)
        stop = prompt([1], 1, stop=scalar(True, np.bool_))
        assert [r.outputs for r in await send(service.address, LLM, stop, "a")] == [{}]
        assert [r.outputs for r in await send(service.address, LLM, stop, "of nobody")] == [{}]
        return await asyncio.gather(*tasks.values(), return_exceptions=True)

    stopped, whole = asyncio.run(three())
    assert request_error(str(stopped)).code is Code.CANCELLED
    assert sum(r.outputs["output_ids"].size for r in whole if r.outputs) == 3000
    assert sum(r.final for r in whole) == 1


def test_without_streaming_one_response(service):
    ids = [5, 6, 7]
    only_new = call(service.address, LLM, prompt(ids, 6))
    whole = call(service.address, LLM, prompt(ids, 6, exclude_input_in_output=scalar(False, np.bool_)))
    assert [len(only_new), len(whole)] == [1, 1]
    new = only_new[0].outputs["output_ids"].reshape(-1).tolist()
    assert whole[0].outputs["output_ids"].reshape(-1).tolist() == ids + new
    assert only_new[0].outputs["sequence_length"].item() == len(new) == 6


def test_several_answers_and_a_seed(service):
    drawn = prompt([5, 6, 7], 12, runtime_top_p=scalar(1, np.float32), temperature=scalar(2, np.float32),
                   num_return_sequences=scalar(3, np.int32), seed=scalar(7, np.uint64))  # fmt: skip
    runs = []
    for _ in range(2):
        responses = [r for r in call(service.address, LLM, drawn) if r.outputs]
        runs.append(
            {r.outputs["sequence_index"].item(): r.outputs["output_ids"].reshape(-1).tolist() for r in responses}
        )
    assert runs[0] == runs[1] and sorted(runs[0]) == [0, 1, 2]
    assert len({tuple(tokens) for tokens in runs[0].values()}) == 3


def test_block_reuse_is_reported(service):
    """The second of two equal questions finds the first one's blocks; another recording's does not."""
    from raw_triton import texts

    def question(data: bytes) -> dict:
        return {
            "messages": texts('[{"role": "user", "content": [{"type": "audio"}]}]'),
            "audio": texts(data),
            "request_output_len": scalar(1, np.int32),
            "return_perf_metrics": scalar(True, np.bool_),
            "return_num_input_tokens": scalar(True, np.bool_),
        }

    def ask(data: bytes) -> tuple[int, int]:
        outputs = call(service.address, "step_audio_r1", question(data))[-1].outputs
        return outputs["num_input_tokens"].item(), outputs["kv_cache_reused_blocks"].item()

    one, other = sine_speech(12, seed=41), sine_speech(12, seed=42)
    (positions, first), (_, again), (_, different) = ask(one), ask(one), ask(other)
    assert positions > 150
    assert (first, again, different) == (0, (positions - 1) // 32, 0)


def test_forty_recordings(ask, reference):
    clips = [sine_speech(0.5 + 0.1 * i, seed=100 + i) for i in range(40)]
    prompt_text = f"<|BOT|>human\n{'<audio_patch>' * 40}How many?<|EOT|><|BOT|>assistant\n<think>\n"
    expected = reference.greedy(prompt_text, clips, 4).tokens

    async def forty(client):
        return await client.complete([user(*map(Audio, clips), "How many?")], Sampling(max_tokens=4, temperature=0))

    assert ask(forty).token_ids == expected

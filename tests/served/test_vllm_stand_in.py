"""`step-audio serve --llm vllm` with a stand-in of vLLM: what lies between a client and the socket."""

from __future__ import annotations

import asyncio
import json
import os
import signal

import numpy as np
import pytest

from raw_triton import call, prompt, refusal, scalar
from serve_process import ServeProcess
from server_settings import settings_for
from step_audio.audio import encode_wav
from step_audio_client import Audio, Sampling, StepAudioClient, user
from step_audio_server.processes import arguments
from vllm_stand_in import ENGINE, tokens, write_python
from waiting import SECONDS, wait_until

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def serve(checkpoint, work_dir, tmp_path_factory):
    python = write_python(tmp_path_factory.mktemp("vllm") / "python")
    process = ServeProcess(settings_for(checkpoint, work_dir), "--llm", "vllm", "--llm-python", str(python))
    process.wait_for("ready: ", 400)
    yield process
    process.end()


def llm(serve) -> int:
    """The process id of vLLM's place."""
    found = [pid for pid in serve.family() if any(word.endswith("options.json") for word in arguments(pid))]
    return min(found)


def output_ids(responses) -> list[int]:
    return [token for response in responses for token in response.outputs["output_ids"].reshape(-1).tolist()]


def test_a_prompt_of_ids(serve):
    responses = call(serve.address, "tensorrt_llm", prompt([1, 2, 3], 8))
    ids = np.array([1, 2, 3], np.int32).tobytes()
    assert output_ids(responses) == tokens(ids, b"", 8, 100)


def test_refusals_are_those_of_the_other(serve):
    hot = prompt([1, 2, 3], 8, temperature=scalar(3.0, np.float32))
    assert refusal(serve.address, "tensorrt_llm", hot) == "[UNSUPPORTED temperature] temperature is at most 2 with vLLM"
    assert "[CONTEXT_TOO_LONG" in refusal(serve.address, "tensorrt_llm", prompt([1] * 5000, 8))


def test_recordings_reach_it_and_it_is_started_again(serve):
    """Streams are under way when it is killed: they go on when it is back."""

    async def ask(client: StepAudioClient, seconds: float):
        noise = np.random.default_rng(0).normal(0, 0.1, int(16_000 * seconds)).astype(np.float32)
        message = user("hello", Audio(encode_wav(noise)))
        return await client.complete([message], Sampling(max_tokens=200, temperature=0), timeout=SECONDS)

    async def all_at_once():
        async with StepAudioClient(serve.address) as client:
            asked = [asyncio.create_task(ask(client, seconds)) for seconds in (1, 1.5, 2, 2.5)]
            await asyncio.sleep(0.5)
            os.kill(first, signal.SIGKILL)
            return await asyncio.gather(*asked)

    first = llm(serve)
    before = asyncio.run(all_at_once())
    assert [answer.usage.completion_tokens for answer in before] == [200] * 4
    serve.wait_for("vLLM ended with status -9: starting again")
    wait_until(lambda: llm(serve) != first)
    lines = (serve.settings.run_dir / "deaths.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["model"] == "tensorrt_llm"


def test_an_engine_that_hangs_behind_its_process_is_started_again(serve):
    """Streams are under way: they go on when it is back, and nobody is sent here meanwhile."""

    def engine() -> int:
        (found,) = (pid for pid in serve.family() if arguments(pid)[-1:] == [ENGINE])
        return found

    async def ask(client: StepAudioClient, words: str):
        return await client.complete([user(words)], Sampling(max_tokens=400, temperature=0), timeout=4 * SECONDS)

    async def all_at_once():
        async with StepAudioClient(serve.address) as client:
            asked = [asyncio.create_task(ask(client, words)) for words in ("one", "two", "three")]
            await asyncio.sleep(0.5)
            os.kill(engine(), signal.SIGUSR1)
            while await client.ready():
                assert not all(one.done() for one in asked)
            return await asyncio.gather(*asked)

    wait_until(lambda: serve.get("/ready"))
    first = llm(serve)
    answers = asyncio.run(all_at_once())
    assert [answer.usage.completion_tokens for answer in answers] == [400] * 3
    serve.wait_for("vLLM's engine makes no steps: starting again")
    serve.wait_for("ready: ")
    assert llm(serve) != first and not [line for line in serve.seen if "tritonserver" in line and "again" in line]
    assert "makes no steps" in (serve.settings.run_dir / "deaths.jsonl").read_text().splitlines()[-1]


def test_it_ends_with_the_command(serve):
    pid = llm(serve)
    serve.end()
    wait_until(lambda: not arguments(pid))

"""Codes of a real server's errors: before the text on a stream, and the call's status where there is no stream."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

from raw_triton import prompt, scalar, send, texts
from server_settings import settings_for
from step_audio.errors import Code
from step_audio_client import RequestError, RequestTimeout, Sampling, ServerBusy, StepAudioClient, calls, user, wire
from step_audio_client.errors import call_error, request_error
from step_audio_server.serve import Service
from waiting import wait_until
from worker_processes import worker_of, workers_of

ENSEMBLE, PROMPT, LLM = "step_audio_r1", "step_audio_prompt", "tensorrt_llm"
TEXT = json.dumps([{"role": "user", "content": "hello"}])
OTHER = json.dumps([{"role": "user", "content": "good day"}])
LONG = json.dumps([{"role": "user", "content": "one two " * 8000}])
CLIP = {
    "frames": np.array([[800]], np.int32),
    "content_hash": np.array([[7]], np.uint64),
    "input_lengths": scalar(1, np.int32),
}
GUIDE = {"guided_decoding_guide_type": texts("json_schema"), "guided_decoding_guide": texts('{"type": 5}')}


@pytest.fixture(scope="module")
def server(checkpoint, work_dir):
    """One of its own: with room for two, and a process of it is stopped here in the end."""
    with Service(settings_for(checkpoint, work_dir, max_batch_size=1, max_queue_size=1, max_seq_len=4096)) as service:
        yield service


@pytest.fixture
def address(server):
    return server.address


def streamed(address, model, inputs) -> RequestError:
    try:
        responses = asyncio.run(send(address, model, inputs))
    except calls.StreamError as error:
        return request_error(str(error))
    raise AssertionError(f"answered with {len(responses)} responses")


def called(address, model, inputs) -> tuple[str, RequestError]:
    """gRPC's status, and what the client library makes of it."""

    async def call():
        async with wire.channel(address) as channel:
            stub = wire.Stub(channel)
            await stub.ModelInfer(wire.infer_request(model, "", inputs), timeout=60)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        asyncio.run(call())
    return caught.value.code().name, call_error(caught.value, address, True)


ONE_ANSWER = [
    ("audio_featurizer", {"messages": texts("{")}, Code.INVALID_REQUEST),
    (PROMPT, {"messages": texts("{")}, Code.INVALID_REQUEST),
    (PROMPT, {"messages": texts(LONG)}, Code.CONTEXT_TOO_LONG),
    ("audio_encoder", CLIP, Code.NOT_CACHED),
]


@pytest.mark.parametrize(("model", "inputs", "code"), ONE_ANSWER)
def test_a_step_s_code_is_the_status_of_the_call(address, model, inputs, code):
    """From a step alone, and through an ensemble."""
    status, error = called(address, model, inputs)
    assert (status, error.code) == (code.grpc, code)
    assert "ensemble" not in str(error) and not str(error).startswith("[")


STREAMED = [
    (ENSEMBLE, {"messages": texts("{")}, Code.INVALID_REQUEST),
    (ENSEMBLE, {"messages": texts(LONG)}, Code.CONTEXT_TOO_LONG),
    (ENSEMBLE, {"messages": texts(TEXT), "temperature": scalar(-1, np.float32)}, Code.INVALID_REQUEST),
    (ENSEMBLE, {"messages": texts(TEXT), **GUIDE}, Code.INVALID_GUIDE),
    (LLM, prompt([1] * 5000, 4), Code.CONTEXT_TOO_LONG),
    (LLM, prompt([1], 4, beam_width=scalar(2, np.int32)), Code.UNSUPPORTED),
    ("lease", {"open": scalar(True, np.bool_)}, Code.INVALID_REQUEST),
    # Triton's own words: by the table, and what is not in it.
    ("nobody_s", {}, Code.UNAVAILABLE),
    (ENSEMBLE, {"messages": texts(TEXT), "foo": scalar(1, np.int32)}, Code.INTERNAL),
    (ENSEMBLE, {"messages": texts(TEXT), "temperature": scalar(1, np.int32)}, Code.INTERNAL),
]


@pytest.mark.parametrize(("model", "inputs", "code"), STREAMED)
def test_a_step_s_code_comes_with_the_text_on_a_stream(address, model, inputs, code):
    error = streamed(address, model, inputs)
    assert error.code is code and "ensemble" not in str(error) and not str(error).startswith("[")


def test_a_lease_that_there_is_already(address):
    opens = {"open": scalar(True, np.bool_)}

    async def twice():
        first = asyncio.ensure_future(send(address, "lease", opens, "lease:one"))
        second = asyncio.ensure_future(send(address, "lease", opens, "lease:one"))
        done, left = await asyncio.wait([first, second], return_when=asyncio.FIRST_COMPLETED)
        for task in left:
            task.cancel()
        return str(done.pop().exception())

    assert request_error(asyncio.run(twice())).code is Code.CONFLICT


def test_a_full_queue(address):
    """Some are told at once; the others are answered."""

    async def crowd():
        async with StepAudioClient(address) as client:
            greedy = Sampling(max_tokens=1000, temperature=0)
            answers = [client.complete([user("hello")], greedy) for _ in range(6)]
            return await asyncio.gather(*answers, return_exceptions=True)

    results = asyncio.run(crowd())
    refused = [result for result in results if isinstance(result, Exception)]
    assert refused and all(type(error) is ServerBusy for error in refused), refused
    answered = [tuple(result.token_ids) for result in results if result not in refused]
    assert answered and len(set(answered)) == 1


def test_an_answer_that_takes_too_long(address):
    async def late():
        async with StepAudioClient(address) as client:
            await client.complete([user("hello")], Sampling(min_tokens=4000), timeout=0.5)

    with pytest.raises(RequestTimeout) as caught:
        asyncio.run(late())
    assert caught.value.code is Code.TIMED_OUT


def test_a_request_that_ends_its_worker_twice(server, address):
    """Fails, for whatever it was, and is refused from then on; another is answered. A stopped worker has it at hand."""
    worker = worker_of(server, "prompt_builder")
    os.kill(worker, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(called, address, PROMPT, {"messages": texts(TEXT)})
        while not asked.done():  # a heartbeat that was at hand, too, may be tried before it
            time.sleep(0.3)
            os.kill(worker, signal.SIGKILL)
            wait_until(lambda gone=worker: workers_of(server, "prompt_builder") not in ([], [gone]))
            worker = worker_of(server, "prompt_builder")
            os.kill(worker, signal.SIGSTOP)
        os.kill(worker, signal.SIGCONT)
        status, error = asked.result()
    assert (status, error.code) == (Code.INTERNAL.grpc, Code.INTERNAL)
    status, error = called(address, PROMPT, {"messages": texts(TEXT)})
    assert (status, error.code) == (Code.QUARANTINED.grpc, Code.QUARANTINED)
    assert asyncio.run(send(address, ENSEMBLE, {"messages": texts(OTHER), "request_output_len": scalar(2, np.int32)}))


def test_the_end_of_a_model_s_process(server, address):
    """The last: it takes the server with it."""
    stub = next(pid for pid, model in server.server._stubs.items() if model == "prompt_builder")
    os.kill(stub, signal.SIGKILL)
    status, error = called(address, PROMPT, {"messages": texts(OTHER)})
    assert error.code is Code.SERVER_LOST and "prompt_builder" not in str(error), status

"""Clients in processes of their own, so that they can vanish in the middle of their answers."""

from __future__ import annotations

import contextlib
import subprocess
import sys

TOKENS = 24_000  # of every answer of theirs, which takes as many steps of the engine

# Four answers by the client library, each with its lease; stopped as soon as it is told to, unless it is killed.
LEASING = f"""
import asyncio, sys
from step_audio_client import Sampling, StepAudioClient, user

async def run():
    async with StepAudioClient(sys.argv[1]) as client:
        length = Sampling(max_tokens={TOKENS}, min_tokens={TOKENS})
        asks = [client.generate([user(f"{{n}}")], length) for n in range(4)]
        for each in asks:
            await anext(each)
        print("begun", flush=True)
        await asyncio.gather(*(drain(each) for each in asks))

async def drain(stream):
    async for _ in stream:
        pass

asyncio.run(run())
"""

# NVIDIA's client, which knows nothing of leases. Two answers: of the whole pipeline, which has so many seconds (its
# second argument), and of the LLM asked directly.
RAW = f"""
import queue, sys, uuid
import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput

def tensor(name, values, kind):
    array = np.array([values], kind)
    made = InferInput(name, array.shape, {{"O": "BYTES", "i": "INT32", "f": "FP32", "b": "BOOL"}}[array.dtype.kind])
    made.set_data_from_numpy(array)
    return made

limits = [
    tensor("request_output_len", [{TOKENS}], np.int32),
    tensor("end_id", [-1], np.int32),
    tensor("streaming", [True], bool),
]
came = queue.Queue()
clients = []
for model, inputs in (
    ("step_audio_r1", [
        tensor("messages", [b'[{{"role": "user", "content": "hello"}}]'], object),
        tensor("max_seconds", [float(sys.argv[2])], np.float32),
    ]),
    ("tensorrt_llm", [tensor("input_ids", [1, 2, 3], np.int32), tensor("input_lengths", [3], np.int32)]),
):
    clients.append(client := InferenceServerClient(sys.argv[1]))
    client.start_stream(lambda result, error, model=model: came.put((model, error)))
    client.async_stream_infer(model, [*inputs, *limits], request_id=uuid.uuid4().hex)
seen = set()
while len(seen) < 2:
    model, error = came.get()
    assert error is None, error
    seen.add(model)
print("begun", flush=True)
while True:
    came.get()
"""

# Two streams of a gateway, whose URL is the argument, about the second one.
WEB = f"""
import contextlib, sys, threading
import httpx

def read(number, begun):
    length = {{"max_tokens": {TOKENS}, "ignore_eos": True}}
    message = {{"role": "user", "content": f"story {{number}} about {{sys.argv[2]}}"}}
    body = {{"messages": [message], "stream": True, **length}}
    with (
        contextlib.suppress(httpx.TransportError),  # the gateway may die, too
        httpx.stream("POST", sys.argv[1] + "/v1/chat/completions", json=body, timeout=60) as response,
    ):
        for line in response.iter_lines():
            begun.set()

streams = [threading.Event() for _ in range(2)]
for number, begun in enumerate(streams):
    threading.Thread(target=read, args=(number, begun)).start()
for begun in streams:
    begun.wait()
print("begun", flush=True)
"""


@contextlib.contextmanager
def started(program: str, *arguments: str, within: tuple[str, ...] = ()):
    """Its process. `within`: the command that runs it."""
    command = [*within, sys.executable, "-c", program, *arguments]
    client = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield client
    finally:
        client.kill()
        client.wait()
        client.stdout.close()


def await_beginnings(*clients: subprocess.Popen[str]) -> None:
    """Returns when every answer of theirs has begun."""
    for client in clients:
        assert client.stdout and client.stdout.readline() == "begun\n"


@contextlib.contextmanager
def begun(program: str, *arguments: str, within: tuple[str, ...] = ()):
    """Its process, when every answer of it has begun."""
    with started(program, *arguments, within=within) as client:
        await_beginnings(client)
        yield client

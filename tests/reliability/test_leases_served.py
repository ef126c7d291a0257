"""Clients that vanish: the slot that their answer had is free again, and the LLM works for nobody.

RELIABILITY_ROUNDS, which `make reliability` sets, adds one whose network is taken away.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from raw_triton import active, call, metrics, prompt, refusal, scalar, texts
from server_settings import settings_for
from step_audio.errors import Code
from step_audio_client import Sampling, StepAudioClient, user
from step_audio_client.errors import request_error
from step_audio_server.serve import Service
from waiting import wait_until

CLIENT = """
import asyncio, sys
from step_audio_client import Sampling, StepAudioClient, user

async def run():
    async with StepAudioClient(sys.argv[1]) as client:
        asks = [client.generate([user(f"{n}")], Sampling(max_tokens=24000, min_tokens=24000)) for n in range(4)]
        for each in asks:
            await anext(each)
        print("begun", flush=True)
        await asyncio.gather(*(drain(each) for each in asks))

async def drain(stream):
    async for _ in stream:
        pass

asyncio.run(run())
"""

# NVIDIA's client, which knows nothing of leases. Two answers: of the whole pipeline, and of the LLM asked directly.
RAW = """
import queue, sys, uuid
import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput

def tensor(name, values, kind):
    array = np.array([values], kind)
    made = InferInput(name, array.shape, {"O": "BYTES", "i": "INT32", "f": "FP32", "b": "BOOL"}[array.dtype.kind])
    made.set_data_from_numpy(array)
    return made

limits = [
    tensor("request_output_len", [24000], np.int32), tensor("end_id", [-1], np.int32), tensor("streaming", [True], bool)
]
came = queue.Queue()
clients = []
for model, inputs in (
    ("step_audio_r1", [
        tensor("messages", [b'[{"role": "user", "content": "hello"}]'], object),
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


TOKENS = 24_000  # of every answer here, which takes as many steps of the engine


def steps(service) -> float:
    """Of the engine, since it started."""
    return metrics(service.settings.metrics_port)["general.iteration_counter"]


@contextlib.contextmanager
def ended_early(service, answers: int):
    """What is begun when this is entered, and ended within it, would have gone on."""
    wait_until(lambda: active(service) == answers, "the answers' beginning")
    before = steps(service)
    yield
    wait_until(lambda: active(service) == 0, "a free slot")
    # Pings take up to 20 seconds to find a client out, in which a quick machine takes most of the steps.
    assert steps(service) - before < TOKENS - 1000


@contextlib.contextmanager
def begun(program: str, *arguments: str, within: tuple[str, ...] = ()):
    """Its process, when every answer of it has begun."""
    command = [*within, sys.executable, "-c", program, *arguments]
    client = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert client.stdout.readline() == "begun\n"
        yield client
    finally:
        client.kill()
        client.wait()
        client.stdout.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_client_s_slots_are_free(service, number):
    with begun(CLIENT, service.address) as client, ended_early(service, 4):
        client.send_signal(number)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_client_without_a_lease_has_so_much_time(service, number):
    """tritonserver tells the LLM that is asked directly; behind the pipeline it is the time that ends it."""
    with begun(RAW, service.address, "2") as client, ended_early(service, 2):
        client.send_signal(number)


class Proxy:
    """Passes bytes on between a client and a server until it is told to keep them: a half-open connection."""

    def __init__(self, address: str):
        self.server = address.rpartition(":")
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.passing = threading.Event()
        self.passing.set()
        self.ends = [self.listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                server = socket.create_connection((self.server[0], int(self.server[2])))
                self.ends += [client, server]
                for ends in ((client, server), (server, client)):
                    threading.Thread(target=self._pass, args=ends, daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                self.passing.wait()
                target.sendall(data)

    def close(self) -> None:
        for end in self.ends:
            end.close()


@pytest.mark.parametrize("how", ["half-open", "stopped"])
def test_a_client_that_answers_no_ping(service, how):
    """Neither end of the connection says a word: its machine is off the network, or the process stands still."""
    proxy = Proxy(service.address)
    with begun(CLIENT, proxy.address) as client, ended_early(service, 4):
        if how == "half-open":
            proxy.passing.clear()
        else:
            client.send_signal(signal.SIGSTOP)
    proxy.close()


HERE, THERE = "10.231.77.1", "10.231.77.2"  # the ends of a link


@pytest.fixture
def link():
    """Between this machine and a network namespace, which has its name."""
    if "RELIABILITY_ROUNDS" not in os.environ:
        pytest.skip("starts another server")
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("network namespaces are root's, by ip(8)")
    name = f"sa{os.getpid()}"

    def ip(command: str) -> None:
        subprocess.run(["ip", *command.split()], check=True)

    ip(f"netns add {name}")
    try:
        ip(f"link add {name} type veth peer name far netns {name}")
        ip(f"address add {HERE}/30 dev {name}")
        ip(f"-n {name} address add {THERE}/30 dev far")
        ip(f"link set {name} up")
        ip(f"-n {name} link set far up")
        yield name
    finally:
        ip(f"netns delete {name}")  # and the link with it


def test_a_client_whose_network_is_gone(checkpoint, work_dir, link):
    """Nothing that is sent to it is acknowledged any more."""
    settings = settings_for(checkpoint, work_dir, triton_host="0.0.0.0")
    there, address = ("ip", "netns", "exec", link), f"{HERE}:{settings.grpc_port}"
    with Service(settings) as service, begun(CLIENT, address, within=there), ended_early(service, 4):
        subprocess.run(["ip", "link", "set", link, "down"], check=True)


def test_an_answer_that_nobody_reads_ends_with_its_time(service):
    """The server needs no word of the client for it."""

    def seen_to_its_end() -> None:
        with ended_early(service, 1):
            pass

    async def run() -> None:
        async with StepAudioClient(service.address) as client:
            stream = client.generate([user("x")], Sampling(max_tokens=TOKENS, min_tokens=TOKENS), timeout=3)
            await anext(stream)
            client._pipeline._open.clear()  # it forgets to stop
            await asyncio.to_thread(seen_to_its_end)

    asyncio.run(run())


def hello(**others: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "messages": texts('[{"role": "user", "content": "hello"}]'),
        "request_output_len": scalar(TOKENS, np.int32),
        "end_id": scalar(-1, np.int32),
    } | others


def test_whoever_waits_learns_of_the_end(service):
    started = time.monotonic()
    told = refusal(service.address, "step_audio_r1", hello(max_seconds=scalar(1, np.float32)))
    assert request_error(told).code is Code.CANCELLED
    assert time.monotonic() - started >= 1
    wait_until(lambda: active(service) == 0, "a free slot")


def test_the_time_is_checked(service):
    refused = refusal(service.address, "step_audio_r1", hello(max_seconds=scalar(np.nan, np.float32)))
    assert "seconds must be above 0 and at most 1000000, not nan" in refused


def test_a_lease_that_cannot_be_given_is_nobody_else_s_fault(service):
    for inputs in (
        {"open": scalar(True, np.bool_), "seconds": scalar(-1, np.float32)},
        {"seconds": scalar(1, np.float32)},
    ):
        refusal(service.address, "lease", inputs)
    assert call(service.address, "tensorrt_llm", prompt([1, 2], 3))[-1].final

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
import threading
import time

import numpy as np
import pytest

from raw_triton import active, call, prompt, refusal, scalar, steps, texts
from server_settings import settings_for
from step_audio.errors import Code
from step_audio_client import Sampling, StepAudioClient, user
from step_audio_client.errors import request_error
from step_audio_server.serve import Service
from vanishing import LEASING, RAW, TOKENS, await_beginnings, begun, started
from waiting import wait_until


@contextlib.contextmanager
def ended_early(service, answers: int):
    """What is begun when this is entered, and ended within it, would have gone on. `answers`: that no time ends, which
    on a busy machine may be up."""
    wait_until(lambda: active(service) >= answers, "the answers' beginning")
    before = steps(service)
    yield
    wait_until(lambda: active(service) == 0, "a free slot")
    # Pings take up to 20 seconds to find a client out, in which a quick machine takes most of the steps.
    assert steps(service) - before < TOKENS - 1000


def test_killed_clients_slots_are_free(service):
    """tritonserver tells the model that is asked directly: `lease`, or the LLM. Behind the pipeline, without a lease,
    it is the time that ends an answer."""
    with (
        started(LEASING, service.address) as killed,
        started(LEASING, service.address) as terminated,
    ):
        await_beginnings(killed, terminated)
        with begun(RAW, service.address, "5") as raw, ended_early(service, 9):
            killed.kill()
            terminated.terminate()
            raw.kill()


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


def test_clients_that_answer_no_ping(service):
    """Neither end of a connection says a word: its machine is off the network, or the process stands still."""
    proxy = Proxy(service.address)
    with started(LEASING, proxy.address) as cut_off, started(LEASING, service.address) as stopped:
        await_beginnings(cut_off, stopped)
        with begun(RAW, service.address, "5") as raw, ended_early(service, 9):
            proxy.passing.clear()
            stopped.send_signal(signal.SIGSTOP)
            raw.send_signal(signal.SIGSTOP)
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
    with Service(settings) as service, begun(LEASING, address, within=there), ended_early(service, 4):
        subprocess.run(["ip", "link", "set", link, "down"], check=True)


def test_an_answer_that_nobody_reads_ends_with_its_time(service):
    """The server needs no word of the client for it."""

    def seen_to_its_end() -> None:
        with ended_early(service, 0):
            pass

    async def run() -> None:
        async with StepAudioClient(service.address) as client:
            stream = client.generate([user("x")], Sampling(max_tokens=TOKENS, min_tokens=TOKENS), timeout=6)
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

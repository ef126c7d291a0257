"""A step's worker, seen from its stub: what it answers, when it dies, when it cannot begin."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from step_audio.errors import Code, Deadly, NotServing, Overloaded, StepAudioError
from step_audio.steps import worker_client
from step_audio.steps.tensors import INTERNAL_ERROR, Bfloat16
from step_audio.steps.worker_client import WorkerClient

WORKER = Path(__file__).parents[1] / "support" / "frail_worker.py"
pytestmark = pytest.mark.processes
TIMEOUT = 60  # seconds for an answer, on however busy a machine


class Answers:
    """What came back, by name."""

    def __init__(self, client):
        self.client = client
        self.of = {}
        self._changed = threading.Condition()

    def ask(self, name, word, **tensors):
        def answer(result):
            with self._changed:
                assert name not in self.of, "answered twice"
                self.of[name] = result
                self._changed.notify_all()

        self.client.submit({"word": [word], **tensors}, answer)

    def wait(self, *names):
        with self._changed:
            assert self._changed.wait_for(lambda: set(names) <= self.of.keys(), TIMEOUT), f"only {list(self.of)}"
        return [self.of[name] for name in names]


@pytest.fixture
def answers():
    restarts = []
    client = WorkerClient([sys.executable, str(WORKER), "frail"], restarted=lambda: restarts.append(1))
    client.restarts = restarts
    yield Answers(client)
    client.close()


def descriptors():
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("size", [0, 1, 1000, 300_000])
def test_tensors_come_back_as_they_were(answers, size):
    """Small ones through the socket, large ones through a memory file; every type."""
    mel = np.random.default_rng(0).normal(size=(1, 3, size)).astype(np.float32)
    hashes = np.arange(size, dtype=np.uint64)[None]
    table = Bfloat16(np.arange(size % 60_000, dtype=np.uint16)[None])
    answers.ask("it", b"\x00word", mel=mel, content_hash=hashes, table=table, audio=[b"", b"x" * size])
    (back,) = answers.wait("it")
    np.testing.assert_array_equal(back["mel"], mel)
    np.testing.assert_array_equal(back["content_hash"], hashes)
    np.testing.assert_array_equal(back["table"].bits, table.bits)
    assert back["mel"].dtype == np.float32 and back["content_hash"].dtype == np.uint64
    assert back["audio"] == [b"", b"x" * size] and back["word"] == [b"\x00word"]


def test_inputs_are_copied(answers):
    """Triton takes the memory back when `execute` returns."""
    mel = np.ones((1, 200_000), np.float32)
    answers.ask("it", b"late", mel=mel)
    mel[:] = 0
    assert answers.wait("it")[0]["mel"].min() == 1


def test_one_does_not_wait_for_another(answers):
    answers.ask("late", b"late")
    answers.ask("quick", b"hello")
    answers.wait("quick")
    assert "late" not in answers.of
    answers.wait("late")


def test_a_refusal_keeps_its_kind(answers):
    answers.ask("it", b"refuse")
    (error,) = answers.wait("it")
    assert error.code is Code.INVALID_REQUEST and str(error) == "not that"


def test_a_killed_worker_is_replaced_and_nothing_is_lost(answers):
    names = [f"{n}" for n in range(10)]
    for name in names:
        answers.ask(name, b"late", value=np.array([[int(name)]]))
    os.kill(answers.client._process.pid, signal.SIGKILL)
    answers.ask("later", b"hello")
    back = answers.wait(*names, "later")
    assert [result["value"].item() for result in back[:-1]] == list(range(10))
    assert answers.client.restarts == [1]


def test_the_deadly_request_alone_is_refused(answers):
    """Its neighbours, before it, behind it and at its side, are answered."""
    for n in range(3):
        answers.ask(f"before {n}", b"late")
    answers.ask("deadly", b"die", value=np.zeros((1, 100_000)))
    for n in range(3):
        answers.ask(f"behind {n}", b"late")
    results = answers.wait("deadly", *(f"{where} {n}" for where in ("before", "behind") for n in range(3)))
    assert isinstance(results[0], StepAudioError) and str(results[0]) == INTERNAL_ERROR
    assert not any(isinstance(result, Exception) for result in results[1:])
    with pytest.raises(Deadly, match="not tried again"):
        answers.ask("deadly again", b"die", value=np.zeros((1, 100_000)))
    answers.ask("another", b"die", value=np.ones((1, 100_000)))  # not the same
    answers.ask("fine", b"hello", value=np.zeros((1, 100_000)))
    assert isinstance(answers.wait("another")[0], StepAudioError)
    assert not isinstance(answers.wait("fine")[0], Exception)


def test_a_worker_that_cannot_begin():
    """The log has why; callers get no names of files."""
    client = WorkerClient([sys.executable, str(WORKER), "broken"])
    answers = Answers(client)
    try:
        answers.ask("it", b"hello")
        (error,) = answers.wait("it")
        assert error.code is Code.UNAVAILABLE and "onnx" not in str(error)
        with pytest.raises(NotServing, match="could not be started"):
            answers.ask("again", b"hello")
    finally:
        client.close()


def test_waiting_requests_are_bounded(answers, monkeypatch):
    monkeypatch.setattr(worker_client, "MAX_PENDING", 2)
    answers.ask("a", b"late")
    answers.ask("b", b"late")
    with pytest.raises(Overloaded, match="2 requests are waiting already"):
        answers.ask("c", b"late")
    answers.wait("a", "b")
    answers.ask("d", b"hello")
    answers.wait("d")


def test_their_bytes_are_bounded(answers, monkeypatch):
    monkeypatch.setattr(worker_client, "MAX_PENDING_BYTES", 500_000)
    large = {"large": np.zeros(400_000, np.uint8)}
    answers.ask("a", b"late", large=np.zeros(600_000, np.uint8))  # alone it may have more
    with pytest.raises(Overloaded, match="1 requests are waiting already, 0 MiB"):
        answers.ask("b", b"late", **large)
    answers.wait("a")
    answers.ask("c", b"late", **large)
    answers.ask("d", b"hello")
    answers.wait("c", "d")


def test_nothing_stays_open(answers):
    """Neither memory files of answered requests nor sockets of dead workers."""
    answers.ask("warm", b"hello")
    answers.wait("warm")
    before = descriptors()
    for n in range(20):
        answers.ask(f"large {n}", b"hello", mel=np.zeros((1, 100_000)))
    answers.ask("deadly", b"die")
    answers.wait(*(f"large {n}" for n in range(20)), "deadly")
    answers.ask("last", b"hello")
    answers.wait("last")
    answers.of.clear()
    assert descriptors() <= before + 1  # the mapping of the last answer may still be held


def test_closing_ends_a_worker_that_hangs():
    client = WorkerClient([sys.executable, str(WORKER), "frail"])
    Answers(client).ask("it", b"hang")
    time.sleep(0.5)
    client.close()
    assert client._process.returncode is not None

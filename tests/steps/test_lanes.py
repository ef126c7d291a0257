"""Lanes: each request has its own end, whatever becomes of the others."""

import queue
import threading
import time
import weakref

import numpy as np
import pytest

from step_audio.steps import lanes
from step_audio.steps.lanes import AHEAD, BatchLane, Lane
from waiting import SECONDS, wait_until


def answers(lane, *requests):
    """By request; one whose name is "mute" cannot be answered with outputs."""
    found = queue.SimpleQueue()

    def reply_to(name):
        def reply(result):
            if name == "mute" and not isinstance(result, Exception):
                raise MemoryError
            found.put((name, result))

        return reply

    for name in requests:
        lane.put({"name": [name.encode()]}, reply_to(name))
    return dict(found.get(timeout=SECONDS) for _ in requests)


def work(inputs):
    (name,) = inputs["name"]
    if name == b"bad":
        raise ZeroDivisionError
    return {"name": [name]}


def batches(batch):
    if any(inputs["name"] == [b"bad"] for inputs in batch):
        raise ZeroDivisionError
    return [KeyError("own") if inputs["name"] == [b"own"] else inputs for inputs in batch]


@pytest.mark.parametrize("lane", [Lane(work), BatchLane(batches, 8)])
def test_a_fault_is_its_request_s_alone(lane):
    for _ in range(3):  # the thread goes on
        found = answers(lane, "good", "bad", "mute", "other")
        assert [type(found[name]) for name in ("bad", "mute")] == [ZeroDivisionError, MemoryError]
        assert found["good"] == {"name": [b"good"]} and found["other"] == {"name": [b"other"]}


def test_an_error_in_a_batch_is_not_tried_again():
    seen = []

    def counted(batch):
        seen.extend(inputs["name"] for inputs in batch)
        return batches(batch)

    found = answers(BatchLane(counted, 8), "good", "own", "other")
    assert isinstance(found["own"], KeyError) and found["good"] == {"name": [b"good"]} and len(seen) == 3


def test_it_rests_when_it_has_had_no_work_for_a_while(monkeypatch):
    """Once, in the thread that works; and goes on afterwards, whatever became of it."""
    monkeypatch.setattr(lanes, "IDLE", 0.05)
    threads = []

    def rest():
        threads.append(threading.current_thread().name)
        raise MemoryError

    lane = BatchLane(lambda batch: threads.append(threading.current_thread().name) or batches(batch), 8, rest)
    wait_until(lambda: len(threads) == 1, "a rest")
    time.sleep(0.3)
    assert answers(lane, "good")["good"] == {"name": [b"good"]}
    wait_until(lambda: len(threads) == 3, "another rest")
    assert threads == ["batches"] * 3


@pytest.mark.parametrize("lane", [Lane(lambda inputs: {}), BatchLane(lambda batch: [{} for _ in batch], 4)])
def test_what_was_sent_is_let_go_with_its_answer(lane):
    """And not when the next request comes."""
    recording = np.zeros(9)
    left = weakref.ref(recording)
    lane.put({"mel": recording}, lambda result: None)
    del recording
    wait_until(lambda: left() is None, "letting go")


def test_the_cheapest_first_but_nobody_is_overtaken_for_ever():
    begin, order = threading.Event(), []

    def work(inputs):
        begin.wait(30)
        order.append(inputs["name"])
        return inputs

    lane = Lane(work)
    lane.put({"name": "first"}, lambda result: None)
    wait_until(lambda: lane._queue.empty(), "the first to be begun")
    for name, cost in [("large", 10 * AHEAD), ("middle", 4 * AHEAD), *((f"small {i}", 1) for i in range(20))]:
        lane.put({"name": name}, lambda result: None, cost)
    begin.set()
    wait_until(lambda: len(order) == 23, "all")
    assert order[:2] == ["first", "small 0"] and order.index("middle") < order.index("large") == 10

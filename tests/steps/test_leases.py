"""Leases: who is gone, whose time is up, and whose answer is complete."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from step_audio.errors import Code, StepAudioError
from step_audio.steps import leases
from step_audio.steps.leases import Leases
from waiting import wait_until


class Holder:
    """`ends`: None for an end, else the error's text or what is passed on."""

    def __init__(self, gone=False):
        self.gone, self.ends, self.codes, self.looked = gone, [], [], threading.Event()

    def is_gone(self):
        self.looked.set()
        if self.ends:
            raise RuntimeError("it has been answered")
        return self.gone

    def end(self, answer):
        if isinstance(answer, Exception):
            self.ends.append(str(answer))
            self.codes.append(answer.code)
        else:
            self.ends += [None if name == "ended" else {name: value.tolist()} for name, value in answer.items()]


def ask(held, request_id, holder, **inputs):
    """As the model does."""
    try:
        held.handle(request_id, inputs, holder)
    except StepAudioError as error:
        holder.end(error)


def lease(held, request_id, opens, seconds, holder):
    inputs = {} if seconds is None else {"seconds": np.array([[seconds]], np.float32)}
    ask(held, request_id, holder, open=np.array([[opens]]), **inputs)


def go_by(held, request_id, seconds=None):
    """An answer on its way to the LLM."""
    inputs = {} if seconds is None else {"seconds": np.array([[seconds]], np.float32)}
    ask(held, request_id, holder := Holder(), input_lengths=np.array([[7]], np.int32), **inputs)
    (end,) = holder.ends
    return end


PASSED = {"input_lengths": [[7]]}


@pytest.fixture
def stopped():
    return []


@pytest.fixture
def held(stopped, monkeypatch):
    monkeypatch.setattr(leases, "PERIOD", 0.01)
    monkeypatch.setattr(leases, "AGAIN", 0.05)
    made = Leases(stopped.append)
    yield made
    made.close()


def test_an_answer_whose_client_is_gone_is_stopped_twice(held, stopped):
    """For the first stop may have come before the LLM had the request."""
    stays, goes = Holder(), Holder()
    lease(held, "lease:stays", True, None, stays)
    lease(held, "lease:goes", True, None, goes)
    goes.gone = True
    wait_until(lambda: stopped == ["goes", "goes"])
    assert goes.ends == [None] and stays.ends == []


def test_a_complete_answer_is_not_stopped(held, stopped):
    holder, closer = Holder(), Holder()
    lease(held, "lease:a", True, None, holder)
    holder.looked.wait()
    lease(held, "lease:a", False, None, closer)
    assert holder.ends == closer.ends == [None]
    lease(held, "lease:a", False, None, again := Holder())  # or there never was one
    assert again.ends == [None] and stopped == []


def test_an_answer_that_its_client_leaves_goes_no_further(held):
    lease(held, "lease:a", True, None, holder := Holder())
    true, false = np.array([[True]]), np.array([[False]])
    ask(held, "lease:a", Holder(), open=false, stop=true)
    assert holder.ends == [None] and go_by(held, "a") == "the lease of this answer has ended"
    ask(held, "lease:b", Holder(), open=false, stop=true)  # or there never was one
    assert go_by(held, "b") == PASSED


def test_an_answer_whose_time_is_up_is_stopped(held, stopped):
    lease(held, "lease:a", True, 0.05, holder := Holder())
    wait_until(lambda: stopped and holder.ends == [None])
    assert set(stopped) == {"a"}


@pytest.mark.parametrize(
    ("request_id", "seconds", "error"),
    [
        ("a", None, "the request's id must be lease: and the id of the answer"),
        ("lease:", None, "the request's id must be lease: and the id of the answer"),
        ("lease:a", 0.0, "seconds must be above 0 and at most 1000000, not 0"),
        ("lease:a", float("nan"), "seconds must be above 0 and at most 1000000, not nan"),
        ("lease:a", float("inf"), "seconds must be above 0 and at most 1000000, not inf"),
        ("lease:a", -1.0, "seconds must be above 0 and at most 1000000, not -1"),
        ("lease:taken", None, "there is a lease for this id already"),
        ("lease:" + 300 * "a", None, "the request's id has 306 characters, at most 256 are accepted"),
    ],
)
def test_what_is_refused(held, request_id, seconds, error):
    lease(held, "lease:taken", True, None, taken := Holder())
    lease(held, request_id, True, seconds, holder := Holder())
    assert holder.ends == [error] and taken.ends == []


@pytest.mark.parametrize(
    ("inputs", "error"),
    [
        ({}, "missing required input 'input_lengths'"),
        ({"open": np.ones((2, 1), np.bool_)}, "open: a batch of 2, send one request at a time"),
        ({"open": np.ones((0, 1), np.bool_)}, "open: a batch of 0, send one request at a time"),
        ({"open": np.ones((1, 3), np.bool_)}, "open: 3 values, send one"),
        ({"open": np.ones((1, 1), np.bool_), "seconds": np.ones((1, 0), np.float32)}, "seconds: 0 values, send one"),
    ],
)
def test_shapes_that_are_refused(held, inputs, error):
    ask(held, "lease:a", holder := Holder(), **inputs)
    assert holder.ends == [error]


def test_no_more_than_so_many(held, monkeypatch):
    monkeypatch.setattr(leases, "MAX_LEASES", 2)
    holders = [Holder() for _ in range(3)]
    for number, holder in enumerate(holders):
        lease(held, f"lease:{number}", True, None, holder)
    assert [holder.ends for holder in holders] == [[], [], ["2 leases are open already"]]


def test_a_stop_that_fails_does_not_end_the_watch(monkeypatch):
    monkeypatch.setattr(leases, "PERIOD", 0.01)
    tried = []

    def fail(answer):
        tried.append(answer)
        raise RuntimeError("the LLM is gone")

    held = Leases(fail)
    for name in "ab":
        lease(held, f"lease:{name}", True, None, Holder(gone=True))
        wait_until(lambda name=name: name in tried)
    held.close()


def test_what_expires_is_counted_by_its_reason(monkeypatch):
    monkeypatch.setattr(leases, "PERIOD", 0.01)
    expired = []
    held = Leases(lambda answer: None, expired=expired.append)
    lease(held, "lease:stays", True, None, Holder())
    lease(held, "lease:goes", True, 1e6, Holder(gone=True))
    lease(held, "lease:late", True, 1e-6, Holder())
    wait_until(lambda: sorted(expired) == ["gone", "time"])
    lease(held, "lease:stays", False, None, Holder())
    held.close()
    assert len(expired) == 2


def test_the_end_answers_all(stopped):
    held = Leases(stopped.append)
    lease(held, "lease:a", True, None, holder := Holder())
    held.close()
    assert holder.ends == [None] and stopped == []


def test_a_holder_is_not_asked_while_it_is_answered(held):
    """In Triton that is a crash of the server."""

    class Slow(Holder):
        def is_gone(self):
            self.looked.set()
            go.wait()
            answered.append(bool(self.ends))
            return False

    go, answered = threading.Event(), []
    lease(held, "lease:a", True, None, holder := Slow())
    holder.looked.wait()
    closing = threading.Thread(target=lease, args=(held, "lease:a", False, None, Holder()))
    closing.start()
    closing.join(0.2)
    go.set()
    closing.join()
    wait_until(lambda: answered)
    assert holder.ends == [None] and not any(answered)


@pytest.fixture
def bounded(stopped, monkeypatch):
    monkeypatch.setattr(leases, "PERIOD", 0.01)
    made = Leases(stopped.append, unleased_seconds=0.1)
    yield made
    made.close()


def test_an_answer_without_a_lease_has_so_much_time(bounded, stopped):
    assert go_by(bounded, "a") == go_by(bounded, "b", 1e5) == PASSED
    wait_until(lambda: stopped == ["a", "b"])


def test_an_answer_with_a_lease_has_the_lease_s(bounded, stopped):
    lease(bounded, "lease:before", True, None, Holder())
    assert go_by(bounded, "before") == PASSED
    assert go_by(bounded, "after") == go_by(bounded, "complete") == go_by(bounded, "none") == PASSED
    lease(bounded, "lease:after", True, None, Holder())
    lease(bounded, "lease:complete", False, None, Holder())
    wait_until(lambda: "none" in stopped)
    assert stopped == ["none"]


def test_it_may_ask_for_less(held, stopped):
    assert go_by(held, "a", 0.05) == go_by(held, "b") == PASSED  # without a bound no id is needed, too
    assert go_by(held, "") == PASSED
    wait_until(lambda: stopped)
    assert stopped == ["a"]


def test_of_several_with_one_id_the_last_one_counts(bounded, stopped):
    """For a stop ends them all."""
    go_by(bounded, "same", 0.01)
    lease(bounded, "lease:same", False, None, Holder())
    go_by(bounded, "same")
    go_by(bounded, "same", 0.01)
    go_by(bounded, "first", 0.05)
    wait_until(lambda: len(stopped) == 2)
    assert stopped == ["first", "same"]


def test_an_answer_whose_client_is_gone_does_not_get_to_the_llm(held, stopped):
    lease(held, "lease:a", True, None, Holder(gone=True))
    wait_until(lambda: stopped)
    assert go_by(held, "a") == "the lease of this answer has ended"
    lease(held, "lease:a", True, None, Holder())
    assert go_by(held, "a") == PASSED


def test_answers_that_may_not_pass(bounded, monkeypatch):
    assert go_by(bounded, "") == "the request needs an id, by which its answer can be ended"
    monkeypatch.setattr(leases, "MAX_UNLEASED", 0)
    assert go_by(bounded, "b") == "0 answers without a lease are there already"


def test_what_has_ended_is_forgotten(held, stopped, monkeypatch):
    monkeypatch.setattr(leases, "ENDED_FOR", 0.0)
    lease(held, "lease:a", True, None, Holder(gone=True))
    wait_until(lambda: stopped)
    wait_until(lambda: go_by(held, "a") == PASSED)


def test_codes(held, monkeypatch, stopped):
    """What is wrong with the request, what is there already, what is too much, and what is over."""
    monkeypatch.setattr(leases, "MAX_LEASES", 1)
    holders = [Holder() for _ in range(4)]
    for holder, request_id in zip(holders, ("a", "lease:a", "lease:a", "lease:b"), strict=True):
        lease(held, request_id, True, None, holder)
        monkeypatch.setattr(leases, "MAX_LEASES", 2 if request_id == "lease:a" and holder is holders[1] else 1)
    holders[1].gone = True
    wait_until(lambda: stopped)
    ask(held, "a", over := Holder(), input_lengths=np.array([[7]], np.int32))
    codes = [code for holder in (*holders, over) for code in holder.codes]
    assert codes == [Code.INVALID_REQUEST, Code.CONFLICT, Code.QUEUE_FULL, Code.CANCELLED]


def test_what_is_said_of_recordings_is_kept_for_one_question(held, monkeypatch):
    monkeypatch.setattr(leases, "MAX_REPORTS", 2)

    def report(request_id):
        ask(held, request_id, holder := Holder(), report=np.array([[True]]))
        (end,) = holder.ends
        return end["audio_report"]

    def passes(request_id, *lost):
        seen = np.array([[lost, [0] * len(lost)]], np.float32)
        ask(held, request_id, holder := Holder(), input_lengths=np.array([[7]], np.int32), audio_report=seen)
        assert holder.ends == [PASSED]

    passes("one", 0, 1.5)
    passes("nothing", 0, 0)
    passes("text")
    assert report("lease:nothing") == report("lease:text") == report("lease:nobody") == [[[], []]]
    assert report("lease:one") == [[[0, 1.5], [0, 0]]] and report("lease:one") == [[[], []]]
    for name in ("first", "second", "third"):
        passes(name, 1)
    assert [len(report(f"lease:{name}")[0][0]) for name in ("first", "second", "third")] == [0, 1, 1]

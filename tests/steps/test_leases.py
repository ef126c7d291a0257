"""Leases: who is gone, whose time is up, and whose answer is complete."""

from __future__ import annotations

import threading

import pytest

from step_audio.steps import leases
from step_audio.steps.leases import Leases
from waiting import wait_until


class Holder:
    def __init__(self, gone=False):
        self.gone, self.ends, self.looked = gone, [], threading.Event()

    def is_gone(self):
        self.looked.set()
        if self.ends:
            raise RuntimeError("it has been answered")
        return self.gone

    def end(self, error=None):
        self.ends.append(error)


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
    held.handle("lease:stays", True, None, stays)
    held.handle("lease:goes", True, None, goes)
    goes.gone = True
    wait_until(lambda: stopped == ["goes", "goes"])
    assert goes.ends == [None] and stays.ends == []


def test_a_complete_answer_is_not_stopped(held, stopped):
    holder, closer = Holder(), Holder()
    held.handle("lease:a", True, None, holder)
    holder.looked.wait()
    held.handle("lease:a", False, None, closer)
    assert holder.ends == closer.ends == [None]
    held.handle("lease:a", False, None, again := Holder())  # or there never was one
    assert again.ends == [None] and stopped == []


def test_an_answer_whose_time_is_up_is_stopped(held, stopped):
    held.handle("lease:a", True, 0.05, holder := Holder())
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
        ("lease:taken", None, "there is a lease for this id already"),
    ],
)
def test_what_is_refused(held, request_id, seconds, error):
    held.handle("lease:taken", True, None, taken := Holder())
    held.handle(request_id, True, seconds, holder := Holder())
    assert holder.ends == [error] and taken.ends == []


def test_no_more_than_so_many(held, monkeypatch):
    monkeypatch.setattr(leases, "MAX_LEASES", 2)
    holders = [Holder() for _ in range(3)]
    for number, holder in enumerate(holders):
        held.handle(f"lease:{number}", True, None, holder)
    assert [holder.ends for holder in holders] == [[], [], ["2 leases are open already"]]


def test_a_stop_that_fails_does_not_end_the_watch(monkeypatch):
    monkeypatch.setattr(leases, "PERIOD", 0.01)
    tried = []

    def fail(answer):
        tried.append(answer)
        raise RuntimeError("the LLM is gone")

    held = Leases(fail)
    for name in "ab":
        held.handle(f"lease:{name}", True, None, Holder(gone=True))
        wait_until(lambda name=name: name in tried)
    held.close()


def test_what_expires_is_counted_by_its_reason(monkeypatch):
    monkeypatch.setattr(leases, "PERIOD", 0.01)
    expired = []
    held = Leases(lambda answer: None, expired.append)
    held.handle("lease:stays", True, None, Holder())
    held.handle("lease:goes", True, 1e6, Holder(gone=True))
    held.handle("lease:late", True, 1e-6, Holder())
    wait_until(lambda: sorted(expired) == ["gone", "time"])
    held.handle("lease:stays", False, None, Holder())
    held.close()
    assert len(expired) == 2


def test_the_end_answers_all(stopped):
    held = Leases(stopped.append)
    held.handle("lease:a", True, None, holder := Holder())
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
    held.handle("lease:a", True, None, holder := Slow())
    holder.looked.wait()
    closing = threading.Thread(target=held.handle, args=("lease:a", False, None, Holder()))
    closing.start()
    closing.join(0.2)
    go.set()
    closing.join()
    wait_until(lambda: answered)
    assert holder.ends == [None] and not any(answered)

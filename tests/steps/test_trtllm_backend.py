"""The backend between Triton and the engine: requests taken, stopped, refused; a process that ends with its engine."""

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from step_audio.errors import InvalidRequest, Overloaded, StepAudioError
from step_audio.steps.tensors import INTERNAL_ERROR
from step_audio.steps.trtllm import backend as trtllm_backend
from step_audio.steps.trtllm.backend import TrtllmBackend
from trtllm_fixture import Client, output
from waiting import wait_until

# The backend


class FakeEngine:
    """Accepts requests and leaves the tokens to the test; `refuse` says which ids it does not take."""

    refuse: Exception | None = None
    accepts = 10**9
    alive = True

    def __init__(self, options):
        self.options = options
        self.requests: dict[str, SimpleNamespace] = {}
        self.cancelled: list[str] = []

    def submit(self, request) -> None:
        if len(self.requests) >= self.accepts:
            raise self.refuse
        self.requests[request.request_id] = request

    def cancel(self, request_id: str) -> bool:
        if request_id in self.cancelled or request_id not in self.requests:
            return False
        self.cancelled.append(request_id)
        self.requests[request_id].on_output(output(finished="cancelled", final=True))
        return True

    def shutdown(self) -> None:
        self.over = True


@pytest.fixture
def make_backend(tmp_path, monkeypatch):
    monkeypatch.setattr(trtllm_backend, "Engine", FakeEngine)
    (tmp_path / "config.json").write_text('{"pretrained_config": {"dtype": "float32"}}')
    made = []

    def make(**parameters) -> TrtllmBackend:
        values = {"gpt_model_path": str(tmp_path), "cancellation_check_period_ms": "10", "max_queue_size": "3"}
        made.append(TrtllmBackend(values | parameters))
        return made[-1]

    yield make
    for backend in made:
        backend.shutdown()


@pytest.fixture
def backend(make_backend):
    return make_backend()


def ask(backend, name: str = "a", rows: int = 1, cancelled=lambda: False, **tensors) -> tuple[Client, list]:
    """The client, and the engine's requests of its rows."""
    client, before = Client(), set(backend.engine.requests)
    inputs = {
        "input_ids": np.ones((rows, 2), np.int32),
        "input_lengths": np.full(rows, 2, np.int32),
        "request_output_len": np.full(rows, 4, np.int32),
        "streaming": np.ones(rows, np.bool_),
    }
    backend.submit(name, inputs | tensors, {"output_ids", "sequence_length"}, client, cancelled)
    return client, [request for key, request in backend.engine.requests.items() if key not in before]


def test_parameters(make_backend):
    options = make_backend(
        max_tokens_in_paged_kv_cache="640", enable_kv_cache_reuse="false", enable_chunked_context="true",
        batch_scheduler_policy="max_utilization", normalize_log_probs="0",
    ).engine.options  # fmt: skip
    assert (options.max_tokens_in_paged_kv_cache, options.max_queue_size) == (640, 3)
    assert (options.enable_kv_cache_reuse, options.enable_chunked_context) == (False, True)
    assert (options.batch_scheduler_policy, options.normalize_log_probs) == ("max_utilization", False)
    assert make_backend().engine.options.max_tokens_in_paged_kv_cache is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("enable_kv_cache_reuse", "maybe"),
        ("cancellation_check_period_ms", "soon"),
        ("max_tokens_in_paged_kv_cache", "lots"),
        ("batch_scheduler_policy", "fair"),
    ],
)
def test_a_parameter_that_makes_no_sense(make_backend, name, value):
    with pytest.raises(StepAudioError, match=name):
        make_backend(**{name: value})


def test_a_request_through_the_backend(backend):
    client, (request,) = ask(backend)
    for token in (7, 8):
        request.on_output(output(token))
    request.on_output(output(finished="stop", final=True))
    assert client.wait().tokens() == [7, 8]
    wait_until(lambda: not backend._in_flight)


def test_stop_ends_its_own_requests_only(backend):
    stop = {"stop": np.array([True])}
    (mine, _), (twin, _), (other, others), (anonymous, nameless) = (
        ask(backend, "a", rows=2), ask(backend, "a"), ask(backend, "b"), ask(backend, "")
    )  # fmt: skip
    stopper, _ = ask(backend, "a", **stop)
    assert stopper.wait().responses == [({}, None, True)]
    assert mine.wait().errors == twin.wait().errors == ["the answer was stopped"]
    assert ask(backend, "unknown", **stop)[0].wait().responses == [({}, None, True)]
    assert ask(backend, "", **stop)[0].wait().errors == ["stop needs the id of the request to stop"]
    assert not other.responses and not anonymous.responses
    others[0].on_output(output(5, finished="length", final=True))
    nameless[0].on_output(output(6, finished="length", final=True))
    assert (other.wait().tokens(), anonymous.wait().tokens()) == ([5], [6])


def test_a_refused_row_ends_its_neighbours_of_the_same_request_only(backend):
    bystander, (kept,) = ask(backend, "b")
    backend.engine.accepts, backend.engine.refuse = 3, InvalidRequest("the third row is wrong")
    client, rows = ask(backend, "a", rows=3)
    assert client.wait().errors == ["the third row is wrong"]
    assert len(rows) == 2
    wait_until(lambda: sorted(backend.engine.cancelled) == sorted(row.request_id for row in rows))
    assert not bystander.responses
    kept.on_output(output(5, finished="length", final=True))
    assert bystander.wait().tokens() == [5]


def test_triton_s_cancellation(backend):
    hung_up = threading.Event()
    client, _ = ask(backend, cancelled=hung_up.is_set)
    other, _ = ask(backend, "b", cancelled=lambda: 1 / 0)  # a sender that was closed raises
    time.sleep(0.05)
    assert not client.responses
    hung_up.set()
    assert client.wait().tokens() == [] and client.errors == ["the answer was stopped"]
    assert not other.responses


@pytest.mark.parametrize(
    ("tensors", "text"),
    [
        ({"beam_width": np.array([4], np.int32)}, "input 'beam_width' is supported only as 1 by the CPU backend"),
        ({"temperature": np.array(["hot"], object)}, INTERNAL_ERROR),  # a fault of ours is not told in detail
    ],
)
def test_a_request_that_is_refused(backend, tensors, text):
    client, requests = ask(backend, **tensors)
    assert client.wait().errors == [text] and [final for _, _, final in client.responses] == [True]
    assert not requests and not backend._in_flight


def test_the_process_ends_with_its_engine(backend, monkeypatch):
    """Its supervisor starts a new one; alive, it would refuse for ever."""
    ended = []
    monkeypatch.setattr(trtllm_backend.os, "_exit", ended.append)
    backend.engine.alive = False
    wait_until(lambda: ended)
    assert ended[0] == 1
    backend.engine.alive = True


@pytest.mark.parametrize("missing", ["output_ids", "sequence_length"])
def test_both_outputs_must_be_requested(backend, missing):
    client = Client()
    backend.submit("a", {}, {"output_ids", "sequence_length"} - {missing}, client, lambda: False)
    assert client.wait().errors == [f"output '{missing}' must be requested"]


def test_a_row_that_fails_at_once_leaves_no_other_behind(backend):
    """The first row breaks while the second is on its way into the engine."""
    engine, submit = backend.engine, backend.engine.submit

    def submit_and_break(request):
        submit(request)
        if len(engine.requests) == 1:
            request.on_output(output(error=InvalidRequest("it broke"), final=True))
            wait_until(lambda: not backend._in_flight)

    engine.submit = submit_and_break
    client, rows = ask(backend, rows=2)
    assert client.wait().errors == ["it broke"]
    assert rows[1].request_id in engine.cancelled


def test_an_engine_that_is_full(backend):
    backend.engine.accepts, backend.engine.refuse = 0, Overloaded("3 requests are waiting already")
    client, _ = ask(backend)
    assert client.wait().errors == ["3 requests are waiting already"]


def test_requests_and_bytes_at_hand_are_bounded(backend, monkeypatch):
    monkeypatch.setattr(trtllm_backend, "MAX_PENDING", 2)
    monkeypatch.setattr(trtllm_backend, "MAX_PENDING_BYTES", 50_000)
    big = {"prompt_embedding_table": np.ones((1, 200, 64), np.float32)}
    first, (row,) = ask(backend, **big)  # one alone may have more
    assert ask(backend, "b", **big)[0].wait().errors == ["1 requests are waiting already, 0 MiB"]
    row.on_output(output(5, finished="length", final=True))
    first.wait()
    wait_until(lambda: not backend._in_flight)
    assert not any(ask(backend, name)[0].responses for name in "cd")
    assert ask(backend, "e")[0].wait().errors == ["2 requests are waiting already, 0 MiB"]

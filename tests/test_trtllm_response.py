"""What reaches the client: every token once and in order, one final response, whatever happens on the way."""

import random
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

from step_audio.engine.request import SequenceOutput, SequenceStats
from step_audio.errors import InvalidRequest, StepAudioError
from step_audio.steps.triton_io import INTERNAL_ERROR
from step_audio.steps.trtllm import backend as trtllm_backend
from step_audio.steps.trtllm.backend import TrtllmBackend
from step_audio.steps.trtllm.request import ResponseOptions
from step_audio.steps.trtllm.response import ResponseStream, SenderPool


def options(**given: bool) -> ResponseOptions:
    names = ("streaming", "exclude_input", "log_probs", "perf_metrics", "num_input_tokens", "num_output_tokens")
    defaults = dict.fromkeys(names, False) | {"streaming": True, "several_answers": True}
    return ResponseOptions(**(defaults | given))


def index(tensors: dict, name: str) -> int:
    """Left out where there is only one."""
    return tensors[name].item() if name in tensors else 0


class Client:
    """Takes what is sent; `slow` seconds a response, or a function that draws them."""

    def __init__(self, slow: float | Callable[[], float] = 0, fails: bool = False):
        self.responses: list[tuple[dict | None, str | None, bool]] = []
        self.done = threading.Event()
        self.slow, self.fails = slow, fails

    def __call__(self, tensors, error, final) -> None:
        time.sleep(self.slow() if callable(self.slow) else self.slow)
        self.responses.append((tensors, error, final))
        if final:
            self.done.set()
        if self.fails:
            raise RuntimeError("the client is gone")

    def wait(self) -> "Client":
        assert self.done.wait(5), "no final response"
        time.sleep(0.02)  # for what must not follow
        assert all(any(response) for response in self.responses), "Triton refuses a response of nothing"
        assert all(tensors is not None for tensors, error, _ in self.responses if not error)
        assert [final for *_, final in self.responses] == [False] * (len(self.responses) - 1) + [True]
        return self

    def tokens(self, row: int = 0, sequence: int = 0) -> list[int]:
        return [
            token
            for tensors, *_ in self.responses
            if tensors and (index(tensors, "batch_index"), index(tensors, "sequence_index")) == (row, sequence)
            for token in tensors["output_ids"].reshape(-1).tolist()
        ]

    @property
    def errors(self) -> list[str]:
        return [error for _, error, _ in self.responses if error]


def output(*tokens: int, sequence: int = 0, finished=None, final: bool = False, **others) -> SequenceOutput:
    values = {"log_probs": [], "cum_log_prob": 0.0} | others
    return SequenceOutput("id", sequence, list(tokens), finished=finished, final=final, **values)


@pytest.fixture
def pool():
    pool = SenderPool()
    yield pool
    pool.shutdown()


def stream(pool, client, prompts=((1, 2, 3),), **given) -> ResponseStream:
    made = ResponseStream(options(**given), client, pool, on_final=lambda: None)
    made.expect([np.array(prompt, np.int32) for prompt in prompts])
    return made


# A stream


def test_every_token_once_and_in_order(pool):
    client = Client()
    responses = stream(pool, client)
    for token in range(500):
        responses.put(0, output(token))
    responses.put(0, output(finished="stop", final=True))
    assert client.wait().tokens() == list(range(500))
    for tensors, *_ in client.responses:
        assert tensors["output_ids"].shape == (1, 1, tensors["sequence_length"].item())


def test_order_survives_uneven_sends(pool):
    """Two threads must never send for one stream: the slower would come second with what was first."""
    client = Client(slow=lambda: random.uniform(0, 0.004))
    responses = stream(pool, client)
    for token in range(150):
        responses.put(0, output(token))
        time.sleep(0.0005)
    responses.put(0, output(finished="stop", final=True))
    assert client.wait().tokens() == list(range(150))


def test_a_slow_client_gets_fewer_and_larger_responses(pool):
    taking = threading.Event()
    client = Client(slow=lambda: 0 * taking.wait(10))
    responses = stream(pool, client)
    for token in range(300):
        responses.put(0, output(token))  # the engine does not wait for a client that takes nothing
    assert not client.responses
    taking.set()
    responses.put(0, output(300, finished="length", final=True))
    assert client.wait().tokens() == list(range(301))
    assert len(client.responses) < 10


def test_several_rows_and_sequences_keep_their_own_order(pool):
    client = Client(slow=0.001)
    responses = stream(pool, client, prompts=[(1,), (2,)])
    expected = {}
    for row in (0, 1):
        for sequence in (0, 1, 2):
            expected[row, sequence] = [100 * row + 10 * sequence + n for n in range(8)]
    for n in range(8):
        for (row, sequence), tokens in expected.items():
            last = n == 7
            end = {"finished": "length", "final": sequence == 2} if last else {}
            responses.put(row, output(tokens[n], sequence=sequence, **end))
    client.wait()
    assert {key: client.tokens(*key) for key in expected} == expected


def test_many_streams_at_once_from_several_threads(pool):
    clients = [Client() for _ in range(40)]
    streams = [stream(pool, client) for client in clients]

    def work(mine):
        for token in range(50):
            for responses in mine:
                responses.put(0, output(token))
        for responses in mine:
            responses.put(0, output(finished="stop", final=True))

    threads = [threading.Thread(target=work, args=(streams[start::4],)) for start in range(4)]
    for thread in threads:
        thread.start()
    assert all(client.wait().tokens() == list(range(50)) for client in clients)


@pytest.mark.parametrize("exclude", [True, False])
def test_without_streaming_one_response_a_sequence(pool, exclude):
    client = Client()
    responses = stream(pool, client, streaming=False, exclude_input=exclude, num_output_tokens=True)
    for token in (7, 8):
        for sequence in (0, 1):
            responses.put(0, output(token + sequence, sequence=sequence))
    responses.put(0, output(finished="stop", sequence=1))
    responses.put(0, output(9, finished="length", final=True))
    client.wait()
    prompt = [] if exclude else [1, 2, 3]
    assert len(client.responses) == 2
    assert (client.tokens(sequence=0), client.tokens(sequence=1)) == ([*prompt, 7, 8, 9], [*prompt, 8, 9])
    counts = [tensors["num_output_tokens"].item() for tensors, *_ in client.responses]
    assert counts == [len(prompt) + 2, len(prompt) + 3]
    lengths = [tensors["sequence_length"].item() for tensors, *_ in client.responses]
    assert lengths == [len(prompt) + 2, len(prompt) + 3]


def test_only_what_was_asked_for(pool):
    stats = SequenceStats(3, 2, 10, 20, 30, 1, 2, 3, 4)

    def last(**given) -> dict:
        client = Client()
        responses = stream(pool, client, **given)
        responses.put(0, output(5, log_probs=[-0.5], cum_log_prob=-0.5))
        responses.put(0, output(6, log_probs=[-1.0], cum_log_prob=-1.5, finished="length", final=True, stats=stats))
        for row in range(1, len(responses.prompts)):
            responses.put(row, output(finished="cancelled", final=True))
        return client.wait().responses[-1][0]

    assert set(last()) == {"output_ids", "sequence_length", "sequence_index"}
    assert set(last(several_answers=False)) == {"output_ids", "sequence_length"}
    assert set(last(prompts=[(1,), (2,)])) == {"output_ids", "sequence_length", "sequence_index", "batch_index"}
    full = last(log_probs=True, perf_metrics=True, num_input_tokens=True, num_output_tokens=True)
    assert full["output_log_probs"].tolist() == [[[-0.5, -1.0]]], "of the whole answer, each time"
    assert full["cum_log_probs"].tolist() == [[-1.5]]
    assert full["num_input_tokens"].item() == 3
    assert full["num_output_tokens"].item() == full["sequence_length"].item()
    names = ("kv_cache_reused_blocks", "kv_cache_alloc_new_blocks", "kv_cache_alloc_total_blocks")
    assert [full[name].item() for name in names] == [10, 20, 30]
    times = ("arrival_time_ns", "first_scheduled_time_ns", "first_token_time_ns", "last_token_time_ns")
    assert [full[name].item() for name in times] == [1, 2, 3, 4]
    assert all(array.dtype == np.int64 for name, array in full.items() if name.endswith("_ns"))


@pytest.mark.parametrize("streaming", [True, False])
def test_an_error_ends_all_rows(pool, streaming):
    client = Client()
    responses = stream(pool, client, prompts=[(1,), (2,)], streaming=streaming)
    responses.put(0, output(5))
    responses.put(1, output(error=StepAudioError("it broke"), final=True))
    responses.put(0, output(6, finished="length", final=True))
    client.wait()
    assert client.errors == ["it broke"]
    assert client.tokens() in ([5], [])


def test_a_client_that_is_gone_harms_nobody(pool):
    gone, there = Client(fails=True), Client()
    finals = []
    lost = ResponseStream(options(), gone, pool, on_final=lambda: finals.append(1))
    lost.expect([np.array([1], np.int32)])
    other = stream(pool, there)
    for token in range(20):
        lost.put(0, output(token))
        other.put(0, output(token))
    lost.put(0, output(finished="stop", final=True))
    other.put(0, output(finished="stop", final=True))
    assert there.wait().tokens() == list(range(20))
    assert gone.wait() and finals == [1]


@pytest.mark.parametrize("streaming", [True, False])
def test_cancelled(pool, streaming):
    """What was streamed is kept; what waited for its end is not, as on a GPU."""
    client = Client()
    responses = stream(pool, client, streaming=streaming, exclude_input=True)
    responses.put(0, output(5, sequence=1))
    responses.put(0, output(finished="cancelled", sequence=0))
    responses.put(0, output(finished="cancelled", sequence=1))
    responses.put(0, output(finished="cancelled", sequence=2, final=True))
    client.wait()
    assert not client.errors
    assert client.tokens(sequence=1) == ([5] if streaming else [])
    assert client.tokens() == client.tokens(sequence=2) == []


def test_shutdown_sends_what_waits():
    pool, client = SenderPool(), Client(slow=0.01)
    responses = stream(pool, client)
    for token in range(5):
        responses.put(0, output(token))
    responses.put(0, output(finished="stop", final=True))
    pool.shutdown()
    assert client.wait().tokens() == list(range(5))


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


def wait_for(condition) -> None:
    for _ in range(500):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen")


def test_parameters(make_backend):
    options = make_backend(
        max_tokens_in_paged_kv_cache="640", enable_kv_cache_reuse="false", enable_chunked_context="true",
        batch_scheduler_policy="max_utilization", normalize_log_probs="0",
    ).engine.options  # fmt: skip
    assert (options.max_tokens_in_paged_kv_cache, options.max_queue_size, options.precision) == (640, 3, "f32")
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
        ("gpt_model_path", "/nowhere"),
    ],
)
def test_a_parameter_that_makes_no_sense(make_backend, name, value):
    with pytest.raises(StepAudioError, match="nowhere" if name == "gpt_model_path" else name):
        make_backend(**{name: value})


def test_a_request_through_the_backend(backend):
    client, (request,) = ask(backend)
    for token in (7, 8):
        request.on_output(output(token))
    request.on_output(output(finished="stop", final=True))
    assert client.wait().tokens() == [7, 8]
    wait_for(lambda: not backend._in_flight)


def test_stop_ends_its_own_requests_only(backend):
    stop = {"stop": np.array([True])}
    (mine, _), (twin, _), (other, others), (anonymous, nameless) = (
        ask(backend, "a", rows=2), ask(backend, "a"), ask(backend, "b"), ask(backend, "")
    )  # fmt: skip
    stopper, _ = ask(backend, "a", **stop)
    assert stopper.wait().responses == [({}, None, True)]
    assert mine.wait() and twin.wait() and not mine.errors
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
    wait_for(lambda: sorted(backend.engine.cancelled) == sorted(row.request_id for row in rows))
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
    assert client.wait().tokens() == [] and not client.errors
    assert not other.responses


@pytest.mark.parametrize(
    ("tensors", "text"),
    [
        ({"beam_width": np.array([4], np.int32)}, "input 'beam_width' is supported only as 1 by the CPU backend"),
        ({"request_output_len": np.zeros((1, 0), np.int32)}, INTERNAL_ERROR),  # a fault of ours is not told in detail
    ],
)
def test_a_request_that_is_refused(backend, tensors, text):
    client, requests = ask(backend, **tensors)
    assert client.wait().responses == [(None, text, True)]
    assert not requests and not backend._in_flight


def test_the_process_ends_with_its_engine(backend, monkeypatch):
    """Its supervisor starts a new one; alive, it would refuse for ever."""
    ended = []
    monkeypatch.setattr(trtllm_backend.os, "_exit", ended.append)
    backend.engine.alive = False
    wait_for(lambda: ended)
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
            request.on_output(output(error=StepAudioError("it broke"), final=True))
            wait_for(lambda: not backend._in_flight)

    engine.submit = submit_and_break
    client, rows = ask(backend, rows=2)
    assert client.wait().errors == ["it broke"]
    assert rows[1].request_id in engine.cancelled


def test_tokens_before_an_error_are_sent(pool):
    client = Client(slow=0.02)
    responses = stream(pool, client)
    for token in range(5):
        responses.put(0, output(token))
    responses.put(0, output(error=StepAudioError("it broke"), final=True))
    assert client.wait().tokens() == list(range(5)) and client.errors == ["it broke"]


def test_an_engine_that_is_full(backend):
    backend.engine.accepts, backend.engine.refuse = 0, StepAudioError("3 requests are waiting already")
    client, _ = ask(backend)
    assert client.wait().errors == ["3 requests are waiting already"]

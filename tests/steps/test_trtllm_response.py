"""What reaches the client: every token once and in order, one final response, whatever happens on the way."""

import random
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from step_audio.engine.request import SequenceStats
from step_audio.errors import InvalidRequest
from step_audio.steps.trtllm import response
from step_audio.steps.trtllm.response import ResponseStream, SenderPool
from trtllm_fixture import Client, options, output


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


def test_tokens_wait_for_their_turn_but_first_tokens_and_ends_do_not(monkeypatch):
    """Three milliseconds after the last response for each stream; one thread, and a clock that stands still."""
    now = 100.0
    monkeypatch.setattr(response, "time", SimpleNamespace(monotonic=lambda: now))
    pool = SenderPool(threads=1)
    one, two, three = clients = [Client() for _ in range(3)]
    streams = [stream(pool, client) for client in clients]
    pool.count_streams(7)
    try:
        for responses in streams:
            responses.put(0, output(1))
        for client in clients:
            client.wait_for(1)
        for token in (2, 3):
            streams[0].put(0, output(token))  # due at 100.03
        streams[1].put(0, output(2, finished="stop", final=True))
        assert two.wait().tokens() == [1, 2]
        now = 100.029
        streams[2].put(0, output(2, finished="stop", final=True))
        assert three.wait().tokens() == [1, 2]
        assert one.tokens() == [1]
        now = 100.031
        one.wait_for(2)
        assert one.tokens() == [1, 2, 3] and len(one.responses) == 2
    finally:
        pool.shutdown()


@pytest.mark.parametrize(("streams", "seconds"), [(1, 0.01), (3, 0.01), (8, 0.024), (64, 0.1)])
def test_who_is_alone_waits_little_and_nobody_waits_long(pool, streams, seconds):
    pool.count_streams(streams)
    assert pool.spacing() == pytest.approx(seconds)


def test_tokens_that_come_while_a_response_is_sent_wait_for_their_turn(monkeypatch):
    """However long sending takes, it is not begun again at once; by a clock that stands still, until the end."""
    monkeypatch.setattr(response, "time", SimpleNamespace(monotonic=lambda: 100.0))
    pool = SenderPool(threads=2)
    client = Client(slow=0.002)
    responses = stream(pool, client)
    for token in range(100):
        responses.put(0, output(token))
        time.sleep(0.0003)
    responses.put(0, output(finished="stop", final=True))
    assert client.wait().tokens() == list(range(100))
    pool.shutdown()
    assert len(client.responses) <= 2


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
            responses.put(row, output(finished="stop", final=True))
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


def test_the_likeliest_tokens_of_each_place(pool):
    """Of a response's own tokens, padded where there are fewer."""
    client = Client()
    responses = stream(pool, client, streaming=False)
    responses.put(0, output(5, top_log_probs=[[(5, -0.25), (9, -2.0)]]))
    responses.put(0, output(6, top_log_probs=[[(6, 0.0)]]))
    responses.put(0, output(finished="stop", final=True))
    ((told, *_),) = client.wait().responses
    assert told["top_log_prob_ids"].tolist() == [[[[5, 9], [6, -1]]]]
    assert told["top_log_probs"].tolist() == [[[[-0.25, -2.0], [0.0, -np.inf]]]]


def test_the_use_of_the_cache_comes_with_the_first_token(pool):
    """Who leaves in the middle has been told, too."""
    client = Client()
    responses = stream(pool, client, perf_metrics=True)
    early = SequenceStats(3, 1, 10, 20, 30, 1, 2, 3, 3)
    responses.put(0, output(5, stats=early))
    responses.put(0, output(6))
    responses.put(0, output(7, finished="length", final=True, stats=replace(early, num_output_tokens=3)))
    told = [tensors for tensors, _, _ in client.wait().responses]
    assert told[0]["kv_cache_reused_blocks"].item() == told[-1]["kv_cache_reused_blocks"].item() == 10


@pytest.mark.parametrize("streaming", [True, False])
def test_an_error_ends_all_rows(pool, streaming):
    client = Client()
    responses = stream(pool, client, prompts=[(1,), (2,)], streaming=streaming)
    responses.put(0, output(5))
    responses.put(1, output(error=InvalidRequest("it broke"), final=True))
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
    """What was streamed is kept; what waited for its end is not. Never an end like any other."""
    client = Client()
    responses = stream(pool, client, streaming=streaming, exclude_input=True)
    responses.put(0, output(5, sequence=1))
    responses.put(0, output(finished="cancelled", sequence=0))
    responses.put(0, output(finished="cancelled", sequence=1))
    responses.put(0, output(finished="cancelled", sequence=2, final=True))
    assert client.wait().errors == ["the answer was stopped"]
    assert [final for _, _, final in client.responses].count(True) == 1
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


def test_tokens_before_an_error_are_sent(pool):
    client = Client(slow=0.02)
    responses = stream(pool, client)
    for token in range(5):
        responses.put(0, output(token))
    responses.put(0, output(error=InvalidRequest("it broke"), final=True))
    assert client.wait().tokens() == list(range(5)) and client.errors == ["it broke"]

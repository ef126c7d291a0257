"""Answers that begin on one server and end on another: what the next one is asked, and what the caller sees."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from types import SimpleNamespace

import pytest

from fake_triton import TOKENIZER, for_ever, message, refusal, script, serving
from step_audio.errors import Code
from step_audio_client import (
    Counts,
    Guide,
    RequestError,
    RequestTimeout,
    Sampling,
    ServerBusy,
    StepAudioClient,
    Unavailable,
    failover,
    quarantine,
    user,
)
from step_audio_client.errors import AnswerLost, Quarantined
from step_audio_client.failover import Failover
from step_audio_client.quarantine import SECONDS
from step_audio_client.tokens import TokenRequest
from waiting import until

QUESTION = [user("x")]
GREEDY = Sampling(max_tokens=10, temperature=0)
DEAD = message(error="in ensemble 'step_audio_r1', Stub process 'tensorrt_llm_0_0' is not healthy.")
STOPPING = message(error="in ensemble 'step_audio_r1', Server is stopping, scheduler for model has stopped")
BUSY = message(error="in ensemble 'step_audio_r1', [request id: 1] Exceeds maximum queue size")
STOP_ID = next(iter(TOKENIZER.special.stop_ids))


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(failover, "PAUSES", (0.02,))


async def made(runs, request: TokenRequest, timeout=None, patience=5.0, counts: Counts | None = None):
    """(ids, last tokens, the servers' fakes) of `request`, which begins on the first of the servers that do `runs`."""
    async with serving(*runs) as servers:
        async with StepAudioClient([address for _, address, _ in servers], TOKENIZER, patience=patience) as client:
            await client.serving_info()
            pipeline = client._pipeline
            pipeline.counts = counts or pipeline.counts
            run = pipeline.run(timeout=timeout)
            run.route = list(pipeline._servers.all)
            ids = []
            async for tokens in client._tokens(run, request):
                ids += tokens.token_ids
        return ids, tokens, [fake for fake, _, _ in servers]


async def test_what_was_cached_is_what_the_first_server_found():
    """The next one begins its prompt with that of the first, and with the answer's own tokens."""
    runs = script(message(5, reused=1), DEAD), script(message(6, reused=2), message(STOP_ID, final=True))
    assert (await made(runs, TokenRequest(QUESTION, GREEDY)))[1].cached_tokens == 4
    early = script(DEAD), script(message(6, reused=2), message(STOP_ID, final=True))
    assert (await made(early, TokenRequest(QUESTION, GREEDY)))[1].cached_tokens == 8


def asked(fake) -> list[dict]:
    return [entry[2] for entry in fake.seen if entry[0] == "generate"]


def ids_behind(inputs) -> list[int]:
    return inputs["suffix_ids"].reshape(-1).tolist() if "suffix_ids" in inputs else []


UNLOADED = message(error="Request for unknown model: 'step_audio_r1' has no available versions")


@pytest.mark.parametrize("fault", [DEAD, STOPPING, UNLOADED, BUSY, None])
async def test_the_next_server_goes_on_behind_the_ids_that_have_come(fault):
    """However the first one went: a model died, it was stopped, its queue is full, the connection broke."""
    first = script(message(5, 6, prompt=10), *([fault] if fault else []))
    second = script(message(7, prompt=12), message(8, prompt=12, final=True))
    ids, last, (_, other) = await made([first, second], TokenRequest(QUESTION, GREEDY))
    assert (ids, last.finish_reason, last.prompt_tokens) == ([5, 6, 7, 8], "stop", 10)
    (inputs,) = asked(other)
    assert ids_behind(inputs) == [5, 6] and inputs["request_output_len"].item() == 8
    assert asked(other)[0]["messages"] == asked(other)[0]["messages"]


async def test_a_fault_of_the_request_is_not_continued():
    first = script(message(5), refusal(Code.INVALID_REQUEST, "it broke"))
    with pytest.raises(RequestError, match=r"^it broke$"):
        await made([first, script(message(6, final=True))], TokenRequest(QUESTION, GREEDY))


async def test_what_was_drawn_is_drawn_on_from_another_seed():
    sampling = Sampling(max_tokens=10, min_tokens=3, temperature=0.7, seed=2**64 - 1)
    first, second = script(message(5, 6), DEAD), script(message(7, final=True))
    _, _, (one, two) = await made([first, second], TokenRequest(QUESTION, sampling))
    assert (asked(one)[0]["seed"].item(), asked(two)[0]["seed"].item()) == (2**64 - 1, 1)
    assert (asked(one)[0]["min_tokens"].item(), asked(two)[0]["min_tokens"].item()) == (3, 1)


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(10, temperature=0.7, presence_penalty=1.0)])
async def test_a_guided_answer_is_made_again_and_what_has_come_left_out(sampling):
    request_ = TokenRequest(QUESTION, sampling, guide=Guide("regex", "[a-z]+"))
    first = script(message(5), message(6, 7), DEAD)
    second = script(message(5, 6), message(7, 8), message(9, final=True))
    ids, last, (one, two) = await made([first, second], request_)
    assert (ids, last.finish_reason) == ([5, 6, 7, 8, 9], "stop")
    assert ids_behind(asked(two)[0]) == []
    assert asked(one)[0].get("seed") == asked(two)[0].get("seed")


@pytest.mark.parametrize("again", [[message(5, 8)], [message(5, final=True)], [message(7, final=True)]])
async def test_an_answer_that_does_not_come_again_is_lost(again):
    request = TokenRequest(QUESTION, GREEDY, guide=Guide("regex", "[a-z]+"))
    with pytest.raises(AnswerLost, match="could not be continued"):
        await made([script(message(5, 6), DEAD), script(*again)], request)


@pytest.mark.parametrize(("ids", "reason"), [([5] * 10, "length"), ([5, STOP_ID], "stop")])
async def test_nothing_is_asked_for_where_all_had_come(ids, reason):
    found, last, (_, other) = await made([script(message(*ids), DEAD), script()], TokenRequest(QUESTION, GREEDY))
    assert (found, last.finish_reason, asked(other)) == (ids, reason, [])


async def test_a_server_that_was_there_is_waited_for(monkeypatch):
    """Begun on it or not; one that never was there is not."""
    runs = [script(message(5, 6), then=for_ever), script(message(7, final=True))]
    tried, after = Counter(), Failover.after

    async def counted(failover, error):
        tried[failover] += 1
        await after(failover, error)

    monkeypatch.setattr(Failover, "after", counted)
    async with serving(runs[0]) as [(_, address, server)]:
        client = StepAudioClient(address, TOKENIZER)
        stream = client._tokens(client._pipeline.run(), TokenRequest(QUESTION, GREEDY))
        assert (await anext(stream)).token_ids == [5, 6]
        await server.stop(0)
        rest = asyncio.create_task(collect(stream))
        await until(lambda: tried, "the end of the first server")
        unbegun = asyncio.create_task(client.complete(QUESTION, GREEDY))
        await until(lambda: len(tried) == 2 and min(tried.values()) >= 2, "a second attempt of both")
        assert not rest.done() and not unbegun.done()
        async with serving(runs[1], addresses=[address]) as [(back, _, _)], client:
            assert await rest == [7] and (await unbegun).token_ids == [7]
            assert sorted(map(ids_behind, asked(back))) == [[], [5, 6]]
    async with StepAudioClient(address, TOKENIZER) as client:
        with pytest.raises(Unavailable, match="no server answers"):
            await client.complete(QUESTION, GREEDY)


async def collect(stream) -> list[int]:
    return [token async for tokens in stream for token in tokens.token_ids]


async def test_one_clear_error_at_the_deadline():
    """The caller's, or that of the client's patience."""
    for timeout, patience, kind in ((0.2, 60.0, RequestTimeout), (None, 0.2, Unavailable)):
        with pytest.raises(kind) as caught:
            await made([script(STOPPING)], TokenRequest(QUESTION, GREEDY), timeout, patience)
        assert type(caught.value) is kind


async def test_a_full_queue_ends_what_was_not_begun():
    with pytest.raises(ServerBusy):
        await made([script(BUSY), script(BUSY)], TokenRequest(QUESTION, GREEDY))


async def test_a_request_present_at_two_deaths_is_refused(monkeypatch):
    """Whoever sends it, until it is forgotten; an answer in between clears it."""
    now = [time.monotonic()]  # beside which the pipeline says when it asked
    monkeypatch.setattr(quarantine, "time", SimpleNamespace(monotonic=lambda: now[0]))
    broken_off = []
    runs = [broken_off, broken_off, [message(5, final=True)]]

    async def deadly():
        for each in runs.pop(0):
            yield each

    async with serving(deadly) as [(fake, address, _)], StepAudioClient(address, TOKENIZER) as client:
        for _ in range(2):
            with pytest.raises(Quarantined, match="has failed twice"):
                await client.complete(QUESTION, GREEDY)
        assert len(asked(fake)) == 2
        now[0] += SECONDS
        assert (await client.complete(QUESTION, GREEDY)).token_ids == [5]
        runs += [[DEAD], [message(5, final=True)]] * 3
        for _ in range(3):
            assert (await client.complete(QUESTION, GREEDY)).token_ids == [5]


async def test_one_death_is_counted_once_however_often_a_request_was_there():
    """Several clients of a gateway may ask the same, and that is no reason to refuse it."""
    there = 0
    dead = asyncio.Event()

    async def dying():
        nonlocal there
        there += 1
        if there > 3:
            yield message(5, final=True)
            return
        if there == 3:
            dead.set()
        await dead.wait()

    async with serving(dying) as [(_, address, _)], StepAudioClient(address, TOKENIZER) as client:
        answers = await asyncio.gather(*(client.complete(QUESTION, GREEDY) for _ in range(3)))
        assert [answer.token_ids for answer in answers] == [[5]] * 3
        assert client._pipeline.counts.servers_lost == 3


async def test_one_death_is_counted_once_however_often_the_server_tells_of_it():
    """Until it is started anew; and then as another one."""
    runs = [[DEAD], [DEAD], [DEAD], [], [message(5, final=True)]]

    async def dying():
        for each in runs.pop(0):
            yield each

    async with serving(dying) as [(fake, address, _)], StepAudioClient(address, TOKENIZER) as client:
        assert (await client.complete(QUESTION, GREEDY)).token_ids == [5]
        assert len(asked(fake)) == 5 and client._pipeline.counts.servers_lost == 1
        runs += [[DEAD], [], []]
        with pytest.raises(Quarantined):
            await client.complete(QUESTION, GREEDY)


async def test_who_comes_while_a_dead_server_tells_of_it_is_not_held_to_have_been_there():
    """The same is asked by another: it saw no death, and one that comes later is the first."""
    answer = [DEAD]

    async def dying():
        for each in answer:
            yield each

    async with serving(dying) as [(_, address, _)], StepAudioClient(address, TOKENIZER) as client:
        there = asyncio.create_task(client.complete(QUESTION, GREEDY))
        await until(lambda: client._pipeline.counts.servers_lost, "its death")
        others = [asyncio.create_task(client.complete(QUESTION, GREEDY)) for _ in range(3)]
        await until(lambda: all(run.generations > 1 for run in client._pipeline._runs), "second attempts of all")
        answer[:] = [message(5, final=True)]
        answers = await asyncio.gather(there, *others)
        assert [each.token_ids for each in answers] == [[5]] * 4 and client._pipeline.counts.servers_lost == 1


async def counted(*runs, guide: Guide | None = None) -> Counts:
    counts = Counts()
    with contextlib.suppress(Unavailable):
        await made(list(runs), TokenRequest(QUESTION, GREEDY, guide=guide), patience=0.1, counts=counts)
    return counts


async def test_what_happened_is_counted():
    ending = script(message(7, final=True))
    regex = Guide("regex", "[a-z]+")
    assert await counted(ending) == Counts()
    assert await counted(script(BUSY), ending) == Counts(moved=1)
    assert await counted(script(DEAD), ending) == Counts(servers_lost=1, moved=1)
    assert await counted(script(message(5), DEAD), ending) == Counts(servers_lost=1, continued=1)
    again = script(message(5), message(7, final=True))
    assert await counted(script(message(5), DEAD), again, guide=regex) == Counts(servers_lost=1, replayed=1)
    other = await counted(script(message(5), DEAD), ending, guide=regex)
    assert other == Counts(servers_lost=1, replayed=1, answers_lost=1)
    twice = await counted(script(DEAD), script(DEAD), ending)
    assert twice == Counts(servers_lost=2, moved=2, quarantined=1)

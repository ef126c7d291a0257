"""Several servers behind one client: turns, failover before the first token, and stops that find their server."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from fake_triton import EOT, TOKENIZER, for_ever, message, refusal, script, serving
from step_audio.errors import Code
from step_audio_client import (
    Audio,
    ChatOptions,
    RequestError,
    RequestTimeout,
    ServerBusy,
    StepAudioClient,
    Thinking,
    Unavailable,
    servers,
    user,
)
from step_audio_client.servers import Server
from step_audio_server.launch.ports import free_ports
from waiting import until

QUESTION = [user("x")]
BUSY = message(error="in ensemble 'step_audio_r1', [request id: 1] Exceeds maximum queue size")
BROKEN = message(error="in ensemble 'step_audio_r1', Stub process 'tensorrt_llm_0_0' is not healthy.")


def answered(fake) -> list[str]:
    return [entry[1] for entry in fake.seen if entry[0] == "generate"]


def client_of(*addresses: str) -> StepAudioClient:
    return StepAudioClient(addresses, TOKENIZER)


def dead() -> str:
    (port,) = free_ports(1)
    return f"127.0.0.1:{port}"


@pytest.mark.parametrize("join", [",".join, ", ".join, list])
async def test_turns(join):
    done = script(message(5, final=True))
    async with serving(done, done, done) as servers:
        async with StepAudioClient(join([address for _, address, _ in servers]), TOKENIZER) as client:
            assert await client.ready() is False  # the fake has no such method, and none of them is dead for it
            for _ in range(2):  # a connection that stands is preferred: at first only one does
                await asyncio.gather(*(client.complete(QUESTION) for _ in range(3)))
            await until(lambda: all(server.rank() == 0 for server in client._pipeline._servers.all))
            for fake, _, _ in servers:
                fake.seen.clear()
            for _ in range(6):
                await client.complete(QUESTION)
        assert [len(answered(fake)) for fake, _, _ in servers] == [2, 2, 2]


async def test_a_server_away_is_expected_back_for_as_long_as_one_is_waited_for():
    """What a door counts: one that has never been reached is not expected, one that comes back is again."""
    done = script(message(5, final=True))
    async with serving(done, done) as servers, client_of(*(address for _, address, _ in servers), dead()) as client:
        several = client._pipeline._servers
        await until(lambda: client.expected == 2 and [one.rank() for one in several.all] == [0, 0, 2])
        _, address, server = servers[0]
        await server.stop(None)
        await until(lambda: several.expected(-1) == 1)
        await until(lambda: several.expected(3600) == 2)  # three, while the dead one is tried
        async with serving(done, addresses=[address]):
            await until(lambda: several.expected(-1) == 2)


def test_an_address_is_needed():
    with pytest.raises(ValueError, match="needs the address"):
        StepAudioClient(" , ")


@pytest.mark.parametrize("fault", [BUSY, BROKEN, None])
async def test_what_was_not_begun_goes_to_the_next(fault):
    """A full queue, a dead model process, no server at all."""
    async with serving(script(fault or message()), script(message(5, final=True))) as servers:
        (_, address, _), (second, other, _) = servers
        async with client_of(address if fault else dead(), other) as client:
            for _ in range(4):
                assert (await client.complete(QUESTION)).token_ids == [5]
            if fault is None:  # after that it is not even tried, while it is out of reach
                assert [client._pipeline._servers.route()[0].address for _ in range(4)] == [other] * 4
        assert len(answered(second)) == 4
        assert not [entry for entry in second.seen if entry[0] == "stop"]


async def test_faults_of_the_request_are_not_retried():
    bad = script(refusal(Code.INVALID_REQUEST, "messages is empty"))
    async with serving(bad, bad) as servers:
        async with client_of(*(address for _, address, _ in servers)) as client:
            with pytest.raises(RequestError, match=r"^messages is empty$"):
                await client.complete(QUESTION)
        assert sum(len(answered(fake)) for fake, _, _ in servers) == 1


async def test_no_server_helps():
    async with client_of(dead(), dead()) as client:
        assert not await client.ready()
        with pytest.raises(Unavailable, match="none of the servers answers"):
            await client.complete(QUESTION)
    async with serving(script(BUSY)) as [(_, address, _)], client_of(dead(), address) as client:
        with pytest.raises(ServerBusy, match="queue is full"):
            await client.complete(QUESTION)


async def test_a_server_that_comes_back_gets_its_turn():
    """gRPC itself tries the connection again."""
    done = script(message(5, final=True))
    async with serving(done) as [(stays, address, _)]:
        async with serving(done) as [(_, other, _)]:
            client = client_of(other, address)
            await client.complete(QUESTION)
        await client.complete(QUESTION)
        await client.complete(QUESTION)
        assert len(answered(stays)) >= 2
        async with serving(done, addresses=[other]) as [(again, _, _)], client:
            await until(lambda: all(server.rank() == 0 for server in client._pipeline._servers.all))
            for _ in range(4):
                await client.complete(QUESTION)
        assert len(answered(again)) == 2


async def test_a_client_does_not_inherit_what_another_has_met():
    """One that is made when the server is there is answered, though another has found none at once before."""
    address, done = dead(), script(message(5), message(EOT, final=True))
    async with client_of(address) as early:
        for _ in range(3):
            with pytest.raises(Unavailable):
                await early.complete(QUESTION)
        async with serving(done, addresses=[address]), client_of(address) as late:
            assert (await late.complete(QUESTION)).token_ids == [5, EOT]


@pytest.mark.parametrize("which", [0, 1])
async def test_a_stop_reaches_the_server_that_works(which):
    """And no other; by leaving, and by the answer's id."""
    slow = script(message(5), then=for_ever)
    async with serving(slow, slow) as servers:
        async with client_of(*(address for _, address, _ in servers)) as client:
            await client.serving_info()
            await until(lambda: all(server.rank() == 0 for server in client._pipeline._servers.all))
            client._pipeline._servers._turn = which
            stream = client.chat(QUESTION, request_id="mine")
            await anext(stream)
            await client.stop("mine")
            await stream.aclose()
        stops = [[entry for entry in fake.seen if entry[0] == "stop"] for fake, _, _ in servers]
        assert {*stops[which]} == {("stop", "mine", True)} and stops[1 - which] == []


async def test_the_id_of_somebody_else_is_stopped_everywhere():
    async with serving(script(), script()) as servers:
        async with client_of(*(address for _, address, _ in servers)) as client:
            await client.stop("theirs")
        assert [fake.seen[0] for fake, _, _ in servers] == [("stop", "theirs", True)] * 2


async def test_both_parts_of_an_answer_are_made_on_one_server():
    """Each under an id of its own: the stop that ends the first must not end the second."""
    endless = script(*(message(5) for _ in range(9)), then=for_ever)

    async with serving(endless, endless) as servers:
        async with client_of(*(address for _, address, _ in servers)) as client:
            stream = client.chat(QUESTION, ChatOptions(thinking=Thinking(budget=3)), request_id="mine")
            await until_answer(stream)
        (busy,) = [fake for fake, _, _ in servers if answered(fake)]
        assert answered(busy) == ["mine", "mine/2"]
        assert {e[1] for e in busy.seen if e[0] == "stop"} == {"mine", "mine/2"}  # one that is in vain is sent again


async def until_answer(stream) -> None:
    async for delta in stream:
        if delta.content:
            return


@pytest.mark.long
async def test_one_deadline_for_all_parts():
    """The second is given what the first has left of it."""

    async def endless():
        await asyncio.sleep(0.5)
        async for part in script(*(message(5) for _ in range(9)), then=for_ever)():
            yield part

    async with serving(endless) as [(fake, address, _)], client_of(address) as client:
        with pytest.raises(RequestTimeout, match="longer than the timeout"):
            async for _ in client.chat(QUESTION, ChatOptions(thinking=Thinking(budget=3), timeout=3)):
                pass
        assert len(answered(fake)) == 2
        first, second = fake.time_left
        assert second < first - 0.4 and first < 3.5


async def test_audio_tokens():
    """All positions but those of the text; the marks around each recording belong to it. Nothing is sent for it."""
    turns = ("human\n", "x\n", "assistant\n<think>\n")
    text = sum(len(TOKENIZER.encode(part)) for part in turns) + 3  # <|BOT|>, <|EOT|>, <|BOT|>
    async with serving(script(message(5, final=True, prompt=50))) as [(fake, address, _)], client_of(address) as client:
        (delta,) = [d async for d in client.chat([user(Audio(b"1"), "x", Audio(b"2"))])]
        (silent,) = [d async for d in client.chat(QUESTION)]
    assert (delta.usage.prompt_tokens, delta.usage.audio_tokens) == (50, 50 - text)
    assert silent.usage.audio_tokens == 0
    assert {e[1] for e in fake.seen if e[0] == "asked"} <= {"tokenizer_json", "serving_info"}


async def test_cached_tokens():
    """Of the prompt, as the first response tells, whoever ends the answer; never all of it."""
    for reused, cached in ((0, 0), (2, 8), (3, 9)):  # blocks of 4 for a prompt of 10; a GPU's last one may be in part
        parts = message(5, reused=reused), message(*TOKENIZER.encode("x"), EOT, final=True)
        async with serving(script(*parts)) as [(_, address, _)], client_of(address) as client:
            for options in (ChatOptions(), ChatOptions(stop=("x",), stop_in_thought=True)):
                *_, last = [d async for d in client.chat(QUESTION, options)]
                assert last.usage.cached_tokens == cached


async def test_a_death_is_one_for_all_that_meet_it(monkeypatch):
    now = 100.0
    monkeypatch.setattr(servers, "time", SimpleNamespace(monotonic=lambda: now))
    server = Server("127.0.0.1:1", None)

    def lost(begun: float, at: float, stands: bool = False):
        nonlocal now
        now = at
        return server.lost(begun, stands)

    first = lost(1, 100, stands=True)
    assert first and lost(2, 101, stands=True) == lost(3, 102, stands=True) == first, "they were in hand then"
    assert [lost(101, 103, stands=True), lost(103, 104), lost(103.5, 105)] == [None] * 3, "asked of a dead server"
    assert lost(99, 106) == first
    second = lost(107, 108)
    assert second not in (None, first) and lost(107.5, 109) == second
    assert lost(110, 111, stands=True) not in (None, second)
    server.renewed(110.5)  # it was asked before
    assert lost(112, 113, stands=True) is None
    server.renewed(112)
    assert lost(114, 115) is not None

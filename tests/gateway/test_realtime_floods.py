"""Sessions that are sent more than they keep: what is gone from a conversation, or went with it, holds no memory."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from itertools import pairwise

import pytest

from gateway_fixture import USAGE, FakeClient
from realtime_fixture import pcm
from session_fixture import Talk, message, talking
from step_audio_client import ChatDelta

pytestmark = pytest.mark.long

AUDIO = pcm(4.0)
HEARD = {"type": "input_audio", "audio": AUDIO}
SIZE = 192_000  # bytes of it, and the least that could stay of a round
APPEND, COMMIT, CLEAR = (f"input_audio_buffer.{what}" for what in ("append", "commit", "clear"))
WRONG = '{"type": "input_audio_buffer.append", "audio": "' + "%" * SIZE + '"}'
GARBAGE = ["", "[", "{}", '{"type": 5}', WRONG, "x" * SIZE]
BUFFER = {"session_buffer_seconds": 11.0}


@pytest.fixture
def stays() -> Iterator:
    """How many more bytes are held after a round of something than before it, the least of some rounds: what grows does
    so in each, while what is taken once, or by others in this process, is in few. Not what is in folders of modules,
    which Python reads again whenever one has changed."""

    def held() -> int:
        gc.collect()
        taken = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(False, "<frozen importlib*")])
        return sum(trace.size for trace in taken.traces)

    async def least(one_round: Callable[[], Awaitable[object]]) -> int:
        await one_round()  # what is made once is there
        tracemalloc.start()
        sizes = [held()]
        for _ in range(4):
            await one_round()
            sizes.append(held())
        return min(after - before for before, after in pairwise(sizes))

    yield least
    tracemalloc.stop()


async def flood(talk: Talk) -> str:
    """Of appends, until the buffer takes no more; the last code."""
    for _ in range(3):
        told = await talk.send(APPEND, audio=AUDIO)
    return told[-1]["error"]["code"] if told else ""


async def one_round(talk: Talk) -> None:
    """Everything that a client may send much of, and what becomes of it."""
    assert await flood(talk) == "input_audio_buffer_full"
    await talk.send(CLEAR)
    await flood(talk)
    told = await talk.send(COMMIT)
    heard = next(event["item_id"] for event in told if event["type"] == "input_audio_buffer.committed")
    given = await talk.send("conversation.item.create", **message("user", HEARD))
    await talk.send("response.create")
    answer = (await talk.answered())["output"][0]["id"]
    await talk.send("response.create", response={"conversation": "none", "input": [message("user", HEARD)["item"]]})
    await talk.answered()
    for item in (heard, given[-1]["item"]["id"], answer):
        assert (await talk.send("conversation.item.delete", item_id=item))[-1]["type"] == "conversation.item.deleted"
    for text in GARBAGE:
        assert (await talk.say(text))[-1]["type"] == "error"
    talk.told.clear()
    talk.fake.asked.clear()
    talk.fake.ahead.clear()


async def test_a_session_holds_no_more_for_what_it_was_sent(stays):
    async with talking(**BUFFER) as talk:
        assert await stays(lambda: one_round(talk)) < SIZE / 2
        assert talk.admission.bytes.taken == 0


async def test_silence_is_not_kept(stays):
    silence = "AAAA" * 32_000  # two seconds, 96,000 bytes
    async with talking(by_hand=False, **BUFFER) as talk:

        async def one_round() -> None:
            assert await talk.send(APPEND, audio=silence) == []

        assert await stays(one_round) < 48_000


async def test_sessions_that_end_in_the_midst_of_all_leave_nothing(stays):
    async def one_round() -> None:
        deltas = [ChatDelta(content="Well", raw="Well"), 60.0, ChatDelta(finish_reason="stop", usage=USAGE)]
        async with talking(FakeClient(lambda messages, options: deltas), **BUFFER) as talk:
            await talk.send("conversation.item.create", **message("user", HEARD))
            await talk.send("response.create")
            await flood(talk)
            await talk.send("response.cancel")

    assert await stays(one_round) < SIZE / 2

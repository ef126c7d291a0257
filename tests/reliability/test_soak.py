"""The short form of `soak.py`: each kind of its traffic, several at once, comes to the end that it should."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from pathlib import Path

import pytest

from front_door_fixture import door

sys.path.append(str(Path(__file__).parent))
from soak import Traffic

EACH = 2  # all at once take fewer places than there are
ENDS = dict.fromkeys(("text", "audio", "mind_paced", "tools", "schema", "several"), ("200",)) | {
    "stream": ("200 whole",),
    "error": ("400",),
    "hang_up": ("left",),
    "grpc": ("ok",),
    "grpc_left": ("left", "ended"),
}

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def url(listener):
    yield from door(listener.address)


def test_every_kind_of_traffic(listener, url):
    async def run() -> Counter[tuple[str, str]]:
        traffic = Traffic(url, listener.address, 0)
        names = [name for name in traffic.kinds for _ in range(EACH)]
        outcomes = await asyncio.gather(*(traffic.kinds[name]() for name in names))
        await traffic.http.aclose()
        await traffic.client.close()
        return Counter(zip(names, outcomes, strict=True))

    outcomes = asyncio.run(run())
    assert {name for name, _ in outcomes} == {*ENDS}
    assert all(outcome in ENDS[name] for name, outcome in outcomes), outcomes
    assert listener.server.fault() is None

"""Requests that servers have died with, so that one that kills servers does not kill them all."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from step_audio.arrays import AnyArray
from step_audio_client.errors import Quarantined
from step_audio_client.servers import Death

MAX_DEATHS = 2  # of servers, with the same request in hand
SECONDS = 600.0  # that a death is held against a request
KEPT = 4096  # requests that deaths are known of

CONTENT = ("messages", "audio", "tools", "input_ids", "guided_decoding_guide")  # what of the inputs can be deadly


@dataclass(frozen=True)
class _Deaths:
    """With one request in hand."""

    count: int = 0
    last: Death | None = None
    noticed: float = 0.0  # when the last one was


class Quarantine:
    """By content: the same request with another id, or of another client, is the same. Requests are their inputs."""

    def __init__(self) -> None:
        self._deaths: OrderedDict[bytes, _Deaths] = OrderedDict()  # by digest

    async def check(self, inputs: Mapping[str, AnyArray]) -> None:
        """Raises Quarantined."""
        if not self._deaths:  # as nearly always: a recording takes time to read
            return
        deaths = self._deaths.get(await _digest(inputs), _Deaths())
        if deaths.count >= MAX_DEATHS and time.monotonic() - deaths.noticed < SECONDS:
            raise Quarantined("the server has failed twice with this request in hand, and it is not tried again")

    async def died(self, inputs: Mapping[str, AnyArray], death: Death) -> None:
        """Asked twice at once, a request sees one death twice."""
        now = time.monotonic()
        digest = await _digest(inputs)
        before = self._deaths.get(digest, _Deaths())
        if death == before.last:
            return
        count = before.count + 1 if now - before.noticed < SECONDS else 1
        self._deaths.pop(digest, None)
        self._deaths[digest] = _Deaths(count, death, now)
        if len(self._deaths) > KEPT:
            self._deaths.popitem(last=False)

    async def survived(self, inputs: Mapping[str, AnyArray]) -> None:
        """It has been answered: it was not the reason."""
        if self._deaths:
            self._deaths.pop(await _digest(inputs), None)


async def _digest(inputs: Mapping[str, AnyArray]) -> bytes:
    """By a thread: a long recording's takes time."""
    return await asyncio.to_thread(_digested, inputs)


def _digested(inputs: Mapping[str, AnyArray]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for name in CONTENT:
        if name in inputs:
            array = inputs[name]
            parts = array.reshape(-1).tolist() if array.dtype == object else [array.tobytes()]
            for part in parts:
                digest.update(f"{name} {len(part)} ".encode())
                digest.update(part)
    return digest.digest()

"""A realtime session in this process, without a socket: events in, events out."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from gateway_fixture import LIMITS, FakeClient
from realtime_events import check_event
from step_audio_gateway.admission import Admission, HeldSession
from step_audio_gateway.core import Gateway
from step_audio_gateway.realtime.desk import Desk
from step_audio_gateway.realtime.session import Session, default_config
from step_audio_gateway.settings import GatewaySettings
from waiting import SECONDS

BY_HAND = {"type": "session.update", "session": {"audio": {"input": {"turn_detection": None}}}}
Event = dict[str, Any]


def message(role: str, *content: Any, **more: Any) -> Event:
    """Of conversation.item.create."""
    return {"item": {"type": "message", "role": role, "content": [*content], **more}}


def session(path: str, value: Any) -> Event:
    """Of session.update; `path`: with dots."""
    for key in reversed(path.split(".")):
        value = {key: value}
    return {"session": value}


class Talk:
    """One client's. Every event that comes is as OpenAI's package has it."""

    def __init__(self, fake: FakeClient, voice: Any = None, **settings: Any):
        chosen = GatewaySettings.create(**settings)
        gateway = Gateway(chosen, fake)  # type: ignore[arg-type]
        self.fake = fake
        self.admission = Admission(chosen, fake, 0, gateway.metrics)  # type: ignore[arg-type]
        self.told: list[Event] = []
        desk = Desk(gateway, self.admission, 0, "tiny", LIMITS, self._tell, voice)
        self.session = Session(desk, default_config(voice is not None), HeldSession(self.admission, 0), self._room)

    def _tell(self, event: Event) -> None:
        check_event(json.loads(json.dumps(event)))
        self.told.append(event)

    async def _room(self) -> None:
        await asyncio.sleep(0)

    async def say(self, message: str) -> list[Event]:
        """What a message is answered with at once."""
        before = len(self.told)
        await asyncio.wait_for(self.session.handle(message), SECONDS)
        return self.told[before:]

    async def send(self, type: str, **event: Any) -> list[Event]:
        return await self.say(json.dumps({"type": type, **event}))

    async def written(self, text: str) -> None:
        part = {"type": "input_text", "text": text}
        await self.send("conversation.item.create", item={"type": "message", "role": "user", "content": [part]})

    async def error(self, type: str, **event: Any) -> dict[str, Any]:
        """Of an event that is answered with an error; of an answer under way more may come meanwhile."""
        told = await self.send(type, **event)
        (error,) = [one["error"] for one in told if one["type"] == "error"]
        return dict(error)

    async def begun(self, **response: Any) -> Event:
        """A response, as it is created."""
        told = await self.send("response.create", response=response)
        (created,) = [event["response"] for event in told if event["type"] == "response.created"]
        return dict(created)

    async def answered(self) -> Event:
        """The latest response, when all have ended."""
        await asyncio.wait_for(self.session.finish(), SECONDS)
        done: Event = next(event["response"] for event in reversed(self.told) if event["type"] == "response.done")
        return done


@contextlib.asynccontextmanager
async def talking(
    fake: FakeClient | None = None, voice: Any = None, by_hand: bool = True, **settings: Any
) -> AsyncIterator[Talk]:
    """`by_hand`: turns. Nothing of it is left behind."""
    talk = Talk(fake or FakeClient(), voice, **settings)
    try:
        if by_hand:
            assert (await talk.say(json.dumps(BY_HAND)))[0]["type"] == "session.updated"
        yield talk
    finally:
        await asyncio.wait_for(talk.session.close(), SECONDS)
    bounds = talk.admission
    assert (bounds.places.taken, bounds.bytes.taken, bounds.sessions.taken) == (0, 0, 0)
    assert talk.fake.begun == talk.fake.closed
    begun = [event["response"]["id"] for event in talk.told if event["type"] == "response.created"]
    ended = [event["response"]["id"] for event in talk.told if event["type"] == "response.done"]
    assert sorted(begun) == sorted(ended)
    for event in talk.told:
        assert event["type"] != "error" or event["error"]["code"] not in (None, "internal_error"), event
        if event["type"] == "response.done" and event["response"]["status"] == "failed":
            assert event["response"]["status_details"]["error"]["code"] != "internal_error", event

"""The answers of a session: one at a time that belongs to the conversation, and others beside it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence

from step_audio.errors import Code
from step_audio_client import ChatDelta, ChatOptions, RequestError
from step_audio_gateway.options import answers_at_once, chat_options, check_mind_paced
from step_audio_gateway.realtime.conversation import latest, messages_of, within
from step_audio_gateway.realtime.desk import Desk
from step_audio_gateway.realtime.faults import TOLD, Fault
from step_audio_gateway.realtime.items import ConversationItem
from step_audio_gateway.realtime.response import Cancelled, Event, SpokenResponse
from step_audio_gateway.realtime.session_config import SessionConfig, renamed
from step_audio_gateway.schemas import ChatRequest
from step_audio_gateway.speech.speaker import PieceSpeaker

log = logging.getLogger("step_audio_gateway")

MOST_BESIDE = 8  # answers at once that belong to no conversation


class Answering:
    """`room` waits while the client reads too slowly; `freed` is told where recordings are no longer held."""

    def __init__(self, desk: Desk, room: Callable[[], Awaitable[None]], freed: Callable[[], None]):
        self._desk = desk
        self._room = room
        self._freed = freed
        self._tasks: dict[SpokenResponse, asyncio.Task[None]] = {}  # with those that are being ended
        self.latest: SpokenResponse | None = None  # the conversation's, under way or ended
        self.usage: list[int] = [0, 0]  # tokens of prompts and of answers, all together

    @property
    def active(self) -> SpokenResponse | None:
        """The conversation's."""
        return next((one for one in self._tasks if one.in_conversation and not one.ended), None)

    @property
    def busy(self) -> bool:
        return any(not one.ended for one in self._tasks)

    @property
    def bytes(self) -> int:
        """Of the recordings that only an answer under way has."""
        return sum(one.own_bytes for one in self._tasks)

    def check(self, in_conversation: bool) -> None:
        """Whether another may begin. Raises Fault."""
        if in_conversation and (active := self.active):
            raise Fault(
                "conversation_already_has_active_response",
                f"Conversation already has an active response in progress: {active.id}. Wait until the response is "
                "finished before creating a new one.",
            )
        if not in_conversation and sum(not one.in_conversation for one in self._tasks) >= MOST_BESIDE:
            raise Fault("too_many_responses", f"at most {MOST_BESIDE} responses with conversation none at once")

    def begin(
        self,
        response: SpokenResponse,
        config: SessionConfig,
        items: Sequence[ConversationItem],
        ending: Sequence[asyncio.Task[None]],
    ) -> None:
        """`items`: what it answers, as it is now. `ending`: it begins when these have ended."""
        before = [*self._tasks.values(), *ending]
        if response.in_conversation:
            self.latest = response
        self._desk.emit(response.created())
        task = asyncio.create_task(self._run(response, config, items, before))
        self._tasks[response] = task
        task.add_done_callback(lambda _: self._ended(response))

    def _ended(self, response: SpokenResponse) -> None:
        del self._tasks[response]
        if response.own_bytes:
            self._freed()

    def cancel(self, response: SpokenResponse, reason: Cancelled) -> None:
        """The client is told at once; its place is free when the server has stopped."""
        self._tell(response.cancel(reason))
        _end(self._tasks[response])

    def find(self, response_id: str | None) -> SpokenResponse:
        """None: the conversation's. Raises Fault."""
        for one in self._tasks:
            if not one.ended and (one.in_conversation if response_id is None else one.id == response_id):
                return one
        raise Fault("response_cancel_not_active", "Cancellation failed: no active response found")

    async def close(self) -> None:
        """Returns when all places are free."""
        for response, task in self._tasks.items():
            if not response.ended:
                _end(task)
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def finish(self) -> None:
        """Returns when all have come to their own ends."""
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _run(
        self,
        response: SpokenResponse,
        config: SessionConfig,
        items: Sequence[ConversationItem],
        before: Sequence[asyncio.Task[None]],
    ) -> None:
        ending = [task for task in before if task.cancelling()]
        if ending:  # what they hold may be all there is
            await asyncio.wait(ending)
        try:
            chat = config.as_chat("response")
            options = await self._options(chat)
            await self._answer(response, config, items, options, answers_at_once(chat))
        except TOLD as error:
            self._fail(response, Fault.of(error))
        except Exception as error:
            log.exception("fault", extra={"fields": {"response": response.id}})
            self._fail(response, Fault.of(error))

    async def _options(self, chat: ChatRequest) -> ChatOptions:
        gateway = self._desk.gateway
        tokenizer, timeout = await gateway.client.tokenizer(), gateway.settings.request_timeout
        (options,) = chat_options(chat, tokenizer, False, True, gateway.defaults, timeout)
        check_mind_paced(chat, options, separate=True)
        return options

    async def _answer(
        self,
        response: SpokenResponse,
        config: SessionConfig,
        items: Sequence[ConversationItem],
        options: ChatOptions,
        places: int,
    ) -> None:
        """With what is latest of the conversation, where all of it is too much for the model, and that is allowed."""
        share = config.retention
        kept = list(items) if share is None else within(items, self._desk.limits)
        while True:
            messages = messages_of(kept, config.instructions)
            if not messages:
                raise Fault("conversation_empty", "there is nothing to answer: no item, and no instructions")
            try:
                return await self._give(response, config, messages, options, places)
            except RequestError as error:
                if error.code is not Code.CONTEXT_TOO_LONG or share is None or response.items:
                    raise
                if not (less := latest(kept, share)):
                    raise
                kept = less

    async def _give(
        self,
        response: SpokenResponse,
        config: SessionConfig,
        messages: list[dict[str, object]],
        options: ChatOptions,
        places: int,
    ) -> None:
        """In writing, or aloud."""
        voice, output = self._desk.voice, config.audio.output
        if not response.aloud:
            return self._tell(response.read(await self._stream(response, messages, options, places, None)))
        assert voice is not None
        format = output.format.format("audio.output.format")

        def told(text: str, audio: bytes, whole: bool) -> None:
            if audio and not response.ended:
                self._first(response, "audio")
            self._tell(response.voice(text, audio, whole))

        async with PieceSpeaker(voice, format, output.voice, output.speed, told) as speaker:
            last = await self._stream(response, messages, options, places, speaker)
            await speaker.end()
            self._tell(response.read(last))

    async def _stream(
        self,
        response: SpokenResponse,
        messages: list[dict[str, object]],
        options: ChatOptions,
        places: int,
        speaker: PieceSpeaker | None,
    ) -> ChatDelta:
        """All but the last delta, which is returned: the place is free before all has been said."""
        desk, last = self._desk, ChatDelta()
        async with desk.answer(messages, options, places) as deltas:
            async for _, delta in deltas:
                if delta.raw:
                    self._first(response, "token")
                if delta.content:
                    self._first(response, "word")
                if speaker is not None and delta.content:
                    speaker.say(delta.content)
                if delta.usage:
                    self.usage[0] += delta.usage.prompt_tokens
                    self.usage[1] += delta.usage.completion_tokens
                if delta.finish_reason:
                    last = delta
                    continue
                if speaker is not None and delta.tool_calls:
                    await speaker.flush()
                self._tell(response.read(delta))
                await self._room()
        return last

    def _first(self, response: SpokenResponse, what: str) -> None:
        if what not in response.reached:
            response.reached.add(what)
            self._desk.gateway.metrics.turn_firsts[what].observe(time.monotonic() - response.begun)

    def _tell(self, events: Iterable[Event]) -> None:
        for event in events:
            self._desk.emit(event)

    def _fail(self, response: SpokenResponse, fault: Fault) -> None:
        self._tell(response.fail(renamed(fault)))


def _end(task: asyncio.Task[None]) -> None:
    """Once: what it does in its end, telling the server to stop, must not be cut short."""
    if not task.cancelling():
        task.cancel()

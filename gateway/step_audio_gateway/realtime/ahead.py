"""Work done ahead while somebody speaks: what is known of the coming prompt is asked about already, for one token, so
that the servers' caches hold the instructions, the history and the clips that were said when the answer begins."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Sequence
from contextlib import aclosing

from step_audio.clips import CLIP_SECONDS
from step_audio_gateway.options import chat_options
from step_audio_gateway.realtime.conversation import messages_of, within
from step_audio_gateway.realtime.desk import Desk
from step_audio_gateway.realtime.faults import TOLD
from step_audio_gateway.realtime.formats import SpokenAudio
from step_audio_gateway.realtime.input_buffer import InputBuffer
from step_audio_gateway.realtime.items import ConversationItem, Part
from step_audio_gateway.realtime.session_config import SessionConfig

log = logging.getLogger("step_audio_gateway")

MARGIN = 100  # ms behind a clip that resampling may look at: with them its samples are those of the whole turn


class Ahead:
    """Of one session, for one turn at a time."""

    def __init__(self, desk: Desk):
        self._desk = desk
        self._tasks: set[asyncio.Task[None]] = set()  # of which all but one are being ended
        self._clips = -1  # of this turn, that were asked about; none yet: what is before it neither

    def follow(self, buffer: InputBuffer, config: SessionConfig, items: Sequence[ConversationItem]) -> None:
        """The turn that is in `buffer`, behind `items`, has grown."""
        clips = int((buffer.seconds - MARGIN / 1000) // CLIP_SECONDS)
        if clips > self._clips:
            self.ask(buffer.first(clips * 1000 * CLIP_SECONDS + MARGIN), config, items)
            self._clips = clips

    def ask(self, recording: SpokenAudio, config: SessionConfig, items: Sequence[ConversationItem]) -> None:
        """About a turn that may be over with this, in the place of what was asked before."""
        clips, before = self._clips, self.stop()
        turn = ConversationItem("message", parts=[Part("input_audio", recording=recording)])
        task = asyncio.create_task(self._ask(config, [*items, turn], before))
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        self._clips = clips

    def stop(self) -> list[asyncio.Task[None]]:
        """The turn is over, or was none. What is under way, and ends soon."""
        self._clips = -1
        for task in self._tasks:
            if not task.cancelling():  # once: its own end must not be cut short
                task.cancel()
        return list(self._tasks)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("fault", exc_info=error)

    async def _ask(
        self, config: SessionConfig, items: Sequence[ConversationItem], before: Sequence[asyncio.Task[None]]
    ) -> None:
        if before:
            await asyncio.wait(before)
        gateway = self._desk.gateway
        with contextlib.suppress(*TOLD):  # the answer will say what is wrong
            tokenizer, timeout = await gateway.client.tokenizer(), gateway.settings.request_timeout
            (options,) = chat_options(config.as_chat(), tokenizer, False, True, gateway.defaults, timeout)
            sampling = dataclasses.replace(options.sampling, max_tokens=1)
            options = dataclasses.replace(options, sampling=sampling, mind_paced=None, guide=None)
            messages = messages_of(within(items, self._desk.limits), config.instructions)
            async with self._desk.spare_place() as free:
                if free:
                    async with aclosing(gateway.client.chat(messages, options)) as deltas:
                        async for _ in deltas:
                            pass

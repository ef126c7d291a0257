"""Work done ahead while somebody speaks: what is known of the coming prompt is asked about already, for one token, so
that the servers' caches hold the instructions, the history and the clips that were said when the answer begins. What a
server has heard is not sent again."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Sequence

from step_audio.clips import CLIP_SECONDS
from step_audio_client import HeardClips
from step_audio_gateway.options import chat_options
from step_audio_gateway.realtime.beginnings import MARGIN, heard_of
from step_audio_gateway.realtime.conversation import messages_of, recorded, within
from step_audio_gateway.realtime.desk import Desk
from step_audio_gateway.realtime.faults import TOLD
from step_audio_gateway.realtime.formats import SpokenAudio
from step_audio_gateway.realtime.input_buffer import InputBuffer
from step_audio_gateway.realtime.items import ConversationItem, Part
from step_audio_gateway.realtime.session_config import SessionConfig

log = logging.getLogger("step_audio_gateway")


class Ahead:
    """Of one session, for one turn at a time."""

    def __init__(self, desk: Desk):
        self._desk = desk
        self._tasks: set[asyncio.Task[None]] = set()  # of which all but one are being ended
        self._clips = -1  # of this turn, that were asked about; none yet: what is before it neither
        self._turn: Part | None = None  # as far as a server has heard it

    def follow(self, buffer: InputBuffer, config: SessionConfig, items: Sequence[ConversationItem]) -> None:
        """The turn that is in `buffer`, behind `items`, has grown."""
        clips = int((buffer.seconds - MARGIN / 1000) // CLIP_SECONDS)
        if clips > self._clips:
            self.ask(buffer.first(clips * 1000 * CLIP_SECONDS + MARGIN), config, items)
            self._clips = clips

    def ask(self, recording: SpokenAudio, config: SessionConfig, items: Sequence[ConversationItem]) -> None:
        """About a turn that may be over with this, in the place of what was asked before."""
        part = Part("input_audio", recording=recording, heard=self.heard(recording))
        clips, turn, before = self._clips, self._turn, self.stop()
        asked = [*items, ConversationItem("message", parts=[part])]
        task = asyncio.create_task(self._ask(config, asked, part, before))
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        self._clips, self._turn = clips, turn

    def heard(self, recording: SpokenAudio) -> HeardClips | None:
        """By a server, of this turn, which `recording` has all of."""
        if (turn := self._turn) is None or turn.recording is None or turn.heard is None:
            return None
        return heard_of(recording, turn.recording, turn.heard)

    def stop(self) -> list[asyncio.Task[None]]:
        """The turn is over, or was none. What is under way, and ends soon."""
        self._clips, self._turn = -1, None
        for task in self._tasks:
            if not task.cancelling():  # once: its own end must not be cut short
                task.cancel()
        return list(self._tasks)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("fault", exc_info=error)

    async def _ask(
        self,
        config: SessionConfig,
        items: Sequence[ConversationItem],
        turn: Part,
        before: Sequence[asyncio.Task[None]],
    ) -> None:
        if before:
            await asyncio.wait(before)
        gateway = self._desk.gateway
        with contextlib.suppress(*TOLD):  # the answer will say what is wrong
            tokenizer, timeout = await gateway.client.tokenizer(), gateway.settings.request_timeout
            (options,) = chat_options(config.as_chat(), tokenizer, False, True, gateway.defaults, timeout)
            adapter = await gateway.adapter(self._desk.model)
            options = dataclasses.replace(options, adapter=adapter, mind_paced=None, guide=None)
            kept = within(items, self._desk.limits)
            async with self._desk.spare_place() as free:
                if free:
                    heard = await gateway.client.hear(messages_of(kept, config.instructions), options)
                    for part, clips in zip(recorded(kept), heard, strict=True):
                        part.heard = clips
                    self._turn = turn

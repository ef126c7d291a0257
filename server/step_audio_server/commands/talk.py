"""`step-audio talk`: a spoken conversation, out of recordings in real time, or by microphone and loudspeaker."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx
import numpy as np

from step_audio.audio import decode_audio, wav_of
from step_audio.clips import SAMPLE_RATE
from step_audio.errors import StepAudioError
from step_audio.serving_info import no_adapter
from step_audio_client import (
    AudioDelta,
    RealtimeError,
    RealtimeEvent,
    RealtimeSession,
    ResponseDone,
    SessionError,
    SpeechStarted,
    SpeechStopped,
    Transcript,
    TurnTimes,
)
from step_audio_client.interrupts import cancel_on_signals, stopped
from step_audio_client.realtime import OUTPUT_RATE
from step_audio_server.commands.talk_devices import BLOCK, Loudspeaker, microphone
from step_audio_server.commands.talk_playback import PlaybackClock
from step_audio_server.commands.talk_show import Show

BLOCK_BYTES = 2 * round(BLOCK * SAMPLE_RATE)
NOTHING = 5.0  # seconds of silence behind a recording, after which no turn is expected of it any more


class GatewayAddress(NamedTuple):
    """The gateway. `model` None: the served one, or an adapter of it."""

    url: str
    key: str | None
    model: str | None
    adapter: str | None


class Recorded(NamedTuple):
    """`pcm16` at 16 kHz."""

    name: str
    pcm16: bytes


def talk(
    where: GatewayAddress,
    settings: dict[str, Any],
    show: Show,
    recordings: Sequence[str],
    whole: bool,
    save: Path | None,
) -> int:
    """`settings`: of the session. `recordings`: files, none for the microphone; `whole`: each is one turn.

    Returns the exit status: 1 after an answer that could not be given. Raises StepAudioError.
    """
    return asyncio.run(_talk(where, settings, show, [_read(path) for path in recordings], whole, save))


def _read(path: str) -> Recorded:
    samples = decode_audio(Path(path).read_bytes(), name=path)
    return Recorded(path, np.round(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())


async def _talk(
    where: GatewayAddress,
    settings: dict[str, Any],
    show: Show,
    recordings: Sequence[Recorded],
    whole: bool,
    save: Path | None,
) -> int:
    task = cancel_on_signals()
    playback = PlaybackClock()
    try:
        if where.adapter is not None:
            await _look_for_adapter(where, where.adapter)
        async with RealtimeSession.connect(where.url, where.key, where.adapter or where.model) as session:
            await session.update(**settings)
            if save and not session.aloud:
                raise StepAudioError("this server answers in writing only: there is nothing to save")
            if session.aloud and not recordings:
                playback = Loudspeaker()
            conversation = Talk(session, show, playback)
            async with playback:
                await conversation.run(conversation.play(recordings, whole) if recordings else conversation.listen())
    except RealtimeError as error:
        raise StepAudioError(str(error)) from None
    except asyncio.CancelledError:
        return stopped(task)
    finally:
        if save and playback.heard:
            save.write_bytes(wav_of(bytes(playback.heard), OUTPUT_RATE))
    return int(conversation.failed)


async def _look_for_adapter(where: GatewayAddress, name: str) -> None:
    """Beforehand: a session takes its name as the model's, and would take the model's own, too.

    Raises StepAudioError where it is not served. A gateway that does not answer is told of by the session.
    """
    parts = urlsplit(where.url if "://" in where.url else f"http://{where.url}")
    scheme = {"ws": "http", "wss": "https"}.get(parts.scheme, parts.scheme)
    address = f"{scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/v1')}/v1/models"
    headers = {"Authorization": f"Bearer {where.key}"} if where.key else {}
    try:
        async with httpx.AsyncClient(headers=headers, verify=ssl.create_default_context()) as client:
            answer = await client.get(address)
        served = [model["id"] for model in answer.raise_for_status().json()["data"] if model.get("parent")]
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, LookupError, TypeError, AttributeError):
        return
    if name not in served:
        raise StepAudioError(no_adapter(name, served))


class Talk:
    """One session, shown while it goes on."""

    def __init__(self, session: RealtimeSession, show: Show, playback: PlaybackClock):
        self.failed = False  # whether an answer could not be given
        self._session, self._show, self._playback = session, show, playback
        self._captions = bool(session.config["audio"]["input"]["transcription"])
        self._times = TurnTimes()
        self._turns = 0
        self._speaking = False
        self._awaited = 0  # answers and captions that are still to come

    async def run(self, speech: Coroutine[Any, Any, None]) -> None:
        """Until `speech`, which sends audio, has ended."""
        both = [asyncio.create_task(speech), asyncio.create_task(self._follow())]
        try:
            done, _ = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)

    async def listen(self) -> None:
        """To the microphone, for ever."""
        if not self._session.finds_turns:
            raise StepAudioError("this server finds no turns in speech: give recordings, by --audio FILE")
        async with microphone() as blocks:
            self._show.line("listening: speak, and interrupt when you like; Ctrl-C ends")
            while True:
                await self._session.append(await blocks.get())

    async def play(self, recordings: Sequence[Recorded], whole: bool) -> None:
        """One after the other, each when the one before has been answered, and the answer been played."""
        by_hand = whole or not self._session.finds_turns
        clock = _Clock()
        for recording in recordings:
            before = self._turns
            for start in range(0, len(recording.pcm16), BLOCK_BYTES):
                await clock.tick()
                await self._session.append(recording.pcm16[start : start + BLOCK_BYTES])
            if by_hand:
                await self._session.commit()
                await self._session.respond()
                self._turn(TurnTimes(speech_ended=time.monotonic()))
            ended = time.monotonic()
            while not self._settled(before):
                await clock.tick()
                if not by_hand:
                    await self._session.append(bytes(BLOCK_BYTES))
                if self._turns == before and not self._speaking and time.monotonic() > ended + NOTHING:
                    raise StepAudioError(f"no speech was found in {recording.name}: with --whole it is a turn")

    def _settled(self, turns: int) -> bool:
        """Whether there was a turn since there were so many, and all has come of it."""
        return self._turns > turns and not self._speaking and self._awaited <= 0 and not self._playback.left

    async def _follow(self) -> None:
        async for event in self._session:
            await self._take(event)
        raise StepAudioError("the server has ended the session")

    async def _take(self, event: RealtimeEvent) -> None:
        match event:
            case SpeechStarted():
                self._speaking = True
                if heard := self._playback.cut():
                    await self._session.truncate(*heard)
            case SpeechStopped():
                self._speaking = False
                self._turn(TurnTimes())
            case AudioDelta():
                self._playback.play(event.item_id, event.data)
            case Transcript():
                self._awaited -= 1
            case ResponseDone():
                self._awaited -= 1
                self.failed |= event.status == "failed"
            case SessionError():
                raise StepAudioError(event.message)
        self._times.push(event)
        self._show.push(event, self._times)

    def _turn(self, times: TurnTimes) -> None:
        self._turns += 1
        self._awaited += 1 + self._captions
        self._times = times


class _Clock:
    """Of blocks that are BLOCK seconds long."""

    def __init__(self) -> None:
        self._next = time.monotonic()

    async def tick(self) -> None:
        """Returns when the next block has been recorded."""
        self._next += BLOCK
        await asyncio.sleep(self._next - time.monotonic())

"""An answer said aloud while it is made: sentence by sentence, and what there is where the model pauses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

from step_audio_gateway.realtime.formats import Encoder, SampleFormat
from step_audio_gateway.speech.pieces import first_piece, words_so_far
from step_audio_gateway.speech.voice import RATE, SAMPLE_BYTES, SpeechVoice

PAUSE = 0.3  # seconds without more text, after which what is there is said


class PieceSpeaker:
    """`told`: gets each piece's text with its first audio, the audio in `format`, and whether the piece is whole."""

    def __init__(
        self,
        voice: SpeechVoice,
        format: SampleFormat,
        name: str | None,
        speed: float,
        told: Callable[[str, bytes, bool], None],
    ):
        self._voice, self._name, self._speed = voice, name, speed
        self._told = told
        self._encoder = Encoder(RATE, format)
        self._text = ""  # that is not being said yet
        self._ended = False
        self._more = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def say(self, text: str) -> None:
        """Raises ApiError where something before it could not be said."""
        if self._task.done():
            self._task.result()
        self._text += text
        self._more.set()

    async def flush(self) -> None:
        """Returns when all so far has been said. Raises ApiError."""
        await self.end()
        self._ended = False
        self._task = asyncio.create_task(self._run())

    async def end(self) -> None:
        """Returns when all has been said. Raises ApiError."""
        self._ended = True
        self._more.set()
        await self._task

    async def _run(self) -> None:
        while True:
            piece = first_piece(self._text, self._ended) or await self._pause()
            self._text = self._text[len(piece) :]
            if piece.strip():
                await self._say(piece)
            elif piece:
                self._told(piece, b"", True)
            elif self._ended and not self._text:
                return

    async def _pause(self) -> str:
        """Waits for more text; where none comes, the words that are there."""
        if self._ended:
            return ""
        self._more.clear()
        try:
            async with asyncio.timeout(PAUSE if self._text else None):
                await self._more.wait()
        except TimeoutError:
            return words_so_far(self._text)
        return ""

    async def _say(self, piece: str) -> None:
        text, rest = piece, b""
        async for data in self._voice.speak(piece.strip(), self._name, self._speed):
            data = rest + data
            whole = len(data) // SAMPLE_BYTES * SAMPLE_BYTES
            rest = data[whole:]
            if encoded := self._encoder.encode(data[:whole]):
                self._told(text, encoded, False)
                text = ""
        self._told(text, self._encoder.encode(b"", last=True), True)

"""The built-in voice: hibari, English, on one core of a CPU, in a process of its own.

Its own, because what reads words is Python, which would hold up everybody's events.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import socket
import subprocess
import sys
from collections.abc import AsyncIterator

from step_audio.errors import SettingsError
from step_audio.extras import install_for
from step_audio_gateway.errors import refused
from step_audio_gateway.settings import BUILT_IN
from step_audio_gateway.speech.pieces import sentences
from step_audio_gateway.speech.synthesizer import FAILED
from step_audio_gateway.speech.voice import failed

NAME = "heart"
_PROGRAM = "step_audio_gateway.speech.synthesizer"
# Clients send one of these without being told to.
OPENAI = (
    "alloy", "ash", "ballad", "cedar", "coral", "echo", "fable", "marin", "nova", "onyx", "sage", "shimmer", "verse",
)  # fmt: skip


class BuiltInVoice:
    """Says one sentence at a time, whoever's it is. Raises SettingsError where it is not installed."""

    def __init__(self) -> None:
        if missing := [name for name in ("hibari", "onnxruntime") if importlib.util.find_spec(name) is None]:
            raise SettingsError(f"--speech {BUILT_IN} needs {missing[0]}: {install_for(missing[0])}")
        self._turn = asyncio.Lock()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._start()  # at once: it takes half a second

    def _start(self) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen([sys.executable, "-m", _PROGRAM], stdin=theirs.fileno())

    def close(self) -> None:
        """Ends the process."""
        if self._streams is None:
            self._socket.close()
        else:
            self._streams[1].close()
            self._streams = None
        self._process.kill()
        self._process.wait()

    def check(self, name: str | None) -> None:
        if name is not None and name not in (NAME, *OPENAI):
            raise refused(f"voice: {NAME} is the only one here, for which OpenAI's names stand, too", "voice")

    async def speak(self, text: str, name: str | None, speed: float) -> AsyncIterator[bytes]:
        self.check(name)
        for sentence in sentences(text):
            # Who leaves lets the sentence come to its end: half an answer would be taken for the next one's.
            yield await asyncio.shield(self._say(sentence, speed))

    async def _say(self, text: str, speed: float) -> bytes:
        """Raises ApiError."""
        async with self._turn:
            for _ in range(2):  # a process that has died is started again, once
                try:
                    return await self._ask(text, speed)
                except (OSError, asyncio.IncompleteReadError):
                    self.close()
                    self._start()
            raise failed()

    async def _ask(self, text: str, speed: float) -> bytes:
        if self._streams is None:
            self._streams = await asyncio.open_unix_connection(sock=self._socket)
        reader, writer = self._streams
        writer.write(json.dumps({"text": text, "speed": speed}).encode() + b"\n")
        await writer.drain()
        length = int.from_bytes(await reader.readexactly(4))
        if length == FAILED:
            raise failed()
        return await reader.readexactly(length)

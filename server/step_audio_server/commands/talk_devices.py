"""Microphone and loudspeaker, by the package sounddevice."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from types import ModuleType
from typing import Any, Self

from step_audio.clips import SAMPLE_RATE
from step_audio.errors import StepAudioError
from step_audio_client.realtime import OUTPUT_RATE
from step_audio_server.commands.talk_playback import PlaybackClock

BLOCK = 0.02  # seconds
_OTHERWISE = "or play a recording: --audio FILE"


def load() -> ModuleType:
    """`sounddevice`. Raises StepAudioError, ModuleNotFoundError."""
    try:
        import sounddevice
    except OSError:  # the package is there, the library that it calls is not
        raise StepAudioError(f"PortAudio is missing: apt-get install libportaudio2, {_OTHERWISE}") from None
    module: ModuleType = sounddevice
    return module


@contextlib.asynccontextmanager
async def microphone() -> AsyncIterator[asyncio.Queue[bytes]]:
    """Blocks of PCM16 at 16 kHz, as they are recorded. Raises StepAudioError, ModuleNotFoundError."""
    blocks: asyncio.Queue[bytes] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def recorded(data: Any, *_: object) -> None:
        loop.call_soon_threadsafe(blocks.put_nowait, bytes(data))

    device = _open("microphone", "RawInputStream", SAMPLE_RATE, recorded)
    with device:
        yield blocks


class Loudspeaker(PlaybackClock):
    """What is left is what the device has not taken yet. Raises StepAudioError, ModuleNotFoundError when opened."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting = bytearray()
        self._lock = threading.Lock()
        self._device = _open("loudspeaker", "RawOutputStream", OUTPUT_RATE, self._fill)

    async def __aenter__(self) -> Self:
        self._device.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._device.close()

    @property
    def left(self) -> float:
        with self._lock:
            return len(self._waiting) / (2 * OUTPUT_RATE)

    def play(self, item_id: str, data: bytes) -> None:
        super().play(item_id, data)
        with self._lock:
            self._waiting += data

    def cut(self) -> tuple[str, float] | None:
        heard = super().cut()
        with self._lock:
            self._waiting.clear()
        return heard

    def _fill(self, out: Any, *_: object) -> None:
        """By the device's thread."""
        with self._lock:
            piece = self._waiting[: len(out)]
            del self._waiting[: len(out)]
        out[:] = piece.ljust(len(out), b"\0")


def _open(what: str, kind: str, rate: int, callback: Any) -> Any:
    module = load()
    try:
        return getattr(module, kind)(
            samplerate=rate, blocksize=round(BLOCK * rate), channels=1, dtype="int16", callback=callback
        )
    except module.PortAudioError as error:
        raise StepAudioError(f"no {what} could be opened ({error.args[0]}); {_OTHERWISE}") from None

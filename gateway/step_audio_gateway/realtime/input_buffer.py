"""Audio that has come and belongs to no turn yet."""

from __future__ import annotations

from step_audio_gateway.realtime.faults import Fault
from step_audio_gateway.realtime.formats import SampleFormat, SpokenAudio

SHORTEST = 100  # ms of a turn


class InputBuffer:
    """Its positions are milliseconds of all audio that ever came. Holds `most_seconds` at most."""

    def __init__(self, format: SampleFormat, most_seconds: float):
        self.format = format
        self.most_seconds = most_seconds
        self._data = bytearray()
        self._dropped = 0.0  # ms before the first sample that is still here

    def __len__(self) -> int:
        """Bytes."""
        return len(self._data)

    @property
    def seconds(self) -> float:
        return self.format.seconds(len(self._data))

    @property
    def end(self) -> float:
        """ms"""
        return self._dropped + 1000 * self.seconds

    @property
    def room(self) -> int:
        """Bytes that it still takes."""
        return self.format.size(1000 * self.most_seconds) - len(self._data)

    def append(self, data: bytes) -> None:
        """Whole samples. Raises Fault where there is no room; nothing of them is taken then."""
        if len(data) > self.room:
            said = f"the input audio buffer would hold more than {self.most_seconds:g} s: commit or clear it"
            raise Fault("input_audio_buffer_full", said, "audio")
        self._data += data

    def drop_before(self, position: float) -> None:
        """What is older than `position` (ms) goes."""
        size = min(len(self._data), self.format.size(max(0.0, position - self._dropped)))
        self._dropped += 1000 * self.format.seconds(size)
        del self._data[:size]

    def take(self, end: float | None = None) -> SpokenAudio:
        """All of it, or up to `end` (ms), and that is no longer here. Raises Fault where it is too short for a turn."""
        size = len(self._data) if end is None else min(len(self._data), self.format.size(end - self._dropped))
        if (milliseconds := 1000 * self.format.seconds(size)) < SHORTEST:
            raise Fault(
                "input_audio_buffer_commit_empty",
                f"Error committing input audio buffer: buffer too small. Expected at least {SHORTEST}ms of audio, "
                f"but buffer only has {milliseconds:.2f}ms of audio.",
            )
        recording = SpokenAudio(self.format, bytes(self._data[:size]))
        self._dropped += milliseconds
        del self._data[:size]
        return recording

    def first(self, milliseconds: float) -> SpokenAudio:
        """So much of what is here, or all of it. It stays."""
        return SpokenAudio(self.format, bytes(self._data[: self.format.size(milliseconds)]))

    def until(self, end: float) -> SpokenAudio:
        """What is here up to `end` (ms), as `take` will give it. It stays."""
        return self.first(end - self._dropped)

    def clear(self) -> None:
        self.drop_before(self.end)

    def change(self, format: SampleFormat) -> None:
        """What is here has another format, and goes."""
        if format != self.format:
            self.clear()
            self.format = format

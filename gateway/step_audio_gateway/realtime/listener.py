"""Follows a stream of audio, and tells where turns begin and end."""

from __future__ import annotations

from collections.abc import Iterator

from step_audio_gateway.realtime.formats import SampleFormat
from step_audio_gateway.realtime.session_config import ServerVad
from step_audio_gateway.realtime.turn_detection import FRAME_MS, LEAST_SPEECH, Frames, Turn, TurnDetector
from step_audio_gateway.realtime.voice_activity import VoiceActivity


class TurnListener:
    """`begin`: ms of all audio before what it is given. Needs what `voice_activity.missing` names."""

    def __init__(self, how: ServerVad, format: SampleFormat, begin: float):
        self._format = format
        self._padding = how.prefix_padding_ms
        self._frames = Frames(format)
        self._activity = VoiceActivity()
        self._detector = TurnDetector(how.threshold, how.silence_duration_ms, begin)

    @property
    def speaking(self) -> bool:
        return self._detector.speaking

    @property
    def earliest(self) -> float:
        """ms: what is before it belongs to no turn any more."""
        return self._detector.position - LEAST_SPEECH * FRAME_MS - self._padding

    def push(self, data: bytes) -> Iterator[Turn]:
        """What has come next, whole samples."""
        for frame in self._frames.push(self._format.samples(data)):
            turn = self._detector.push(self._activity.probability(frame))
            if turn is not None:
                yield turn

"""Nobody has spoken for so long after an answer: in ms of the audio that came since it was played to its end."""

from __future__ import annotations

from step_audio_gateway.realtime.response import SpokenResponse


class IdleTimeout:
    """Of one session, while it listens in the same way. `since`: ms of all audio from which on nobody has spoken; None
    while somebody speaks, or nothing has been answered."""

    def __init__(self, milliseconds: float):
        self.since: float | None = None
        self._milliseconds = milliseconds
        self._answer: SpokenResponse | None = None  # which it has begun behind

    def over(self, answer: SpokenResponse | None, speaking: bool, position: float) -> bool:
        """At `position`, ms of all audio. `answer`: the latest of the conversation."""
        if answer is None or not answer.ended:
            self.since = None
        elif answer is not self._answer:
            self._answer, self.since = answer, position + answer.left_to_play
        if speaking:
            self.since = None
        return self.since is not None and position - self.since >= self._milliseconds

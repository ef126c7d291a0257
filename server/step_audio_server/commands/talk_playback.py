"""What is heard of answers aloud, and when: by a loudspeaker, or as if there were one."""

from __future__ import annotations

import time
from typing import Self

from step_audio_client.realtime import OUTPUT_RATE

_SECOND = 2 * OUTPUT_RATE  # bytes


class PlaybackClock:
    """A clock in the place of a loudspeaker. `heard`: PCM16 at OUTPUT_RATE, of all answers."""

    def __init__(self) -> None:
        self.heard = bytearray()
        self._item_id = ""  # of the answer that plays, or has played last
        self._begin = 0  # of it, in `heard`
        self._end = 0.0  # when all will have been played

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    @property
    def left(self) -> float:
        """Seconds that are still to be played."""
        return max(0.0, self._end - time.monotonic())

    def play(self, item_id: str, data: bytes) -> None:
        """Behind what plays."""
        if item_id != self._item_id:
            self._item_id, self._begin = item_id, len(self.heard)
        self._end = max(self._end, time.monotonic()) + len(data) / _SECOND
        self.heard += data

    def cut(self) -> tuple[str, float] | None:
        """Play no more; of which answer how many milliseconds were heard. None: nothing was playing."""
        if not (left := self.left):
            return None
        self._end = 0.0
        unheard = 2 * round(left * OUTPUT_RATE)
        end = max(self._begin, len(self.heard) - unheard)
        del self.heard[end:]
        return self._item_id, 1000 * (end - self._begin) / _SECOND

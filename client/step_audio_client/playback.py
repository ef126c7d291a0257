"""When what is spoken will have been heard: the clock that spoken segments are made against."""

from __future__ import annotations


class Playback:
    """Speech that is played from its first token on, at `rate` tokens a second, without a pause while there is some.

    Times are seconds of any one clock.
    """

    def __init__(self, rate: float):
        self.rate = rate
        self.end: float | None = None  # when all that is there will have been heard; None before the first token
        self.underruns = 0  # times at which there was nothing to play
        self.silence = 0.0  # seconds of these

    def add(self, tokens: int, now: float) -> None:
        """`tokens` have arrived."""
        if not tokens:
            return
        if self.end is None:
            self.end = now
        elif now > self.end:
            self.underruns += 1
            self.silence += now - self.end
            self.end = now
        self.end += tokens / self.rate

"""When the next segment of a mind-paced answer is due, and how much of the thought it is spoken out of.

Without a speech rate both follow from counts of tokens: segment n is due out of the thought's first n x think_tokens
(n + 1 in think_first), however many more there are when it can begin, and the rest when the thought is over. So
neither the messages that the tokens come in nor the time at which they come decide what is spoken.

With a speech rate this holds for the first segment. A later one is due by the clock of the playback, out of the
thought that there is by then, so what it is spoken out of may differ from run to run.

`max_tokens` is counted in the same order: the thought up to where a segment is due, the segment, more of the thought.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from step_audio_client.chat_types import MindPaced, Segment, SpeechTiming
from step_audio_client.playback import Playback

FIRST_LEAD = 0.3  # seconds that the second segment is begun before it is due; later ones go by those before
MARGIN = 0.05  # seconds on top

# open: goes on. closed: by its marker. ended: the model ended its turn within it. cut: there is no room for more.
ThoughtState = Literal["open", "closed", "ended", "cut"]


@dataclass(frozen=True)
class Due:
    """A segment that is to be begun. `thought_tokens`: it is spoken out of; `last`: there is no more thought."""

    thought_tokens: int
    last: bool


class Pacing:
    """Told of every token of both brains, one by one. Times are seconds since the question was asked.

    `thought`: how it stands. `segments`: those begun. `max_tokens`: of thought and answer together.
    """

    def __init__(self, pace: MindPaced, max_tokens: int | None = None):
        self.thought: ThoughtState = "ended" if pace.mode == "no_think" else "open"
        self.segments: list[Segment] = []
        assert pace.think_tokens and pace.speak_tokens
        self._mode, self._max_tokens = pace.mode, max_tokens
        self._think_tokens, self._speak_tokens = pace.think_tokens, pace.speak_tokens
        self._thought_tokens = 0
        self._open_tokens = 0  # of these, all but the one that closed it
        self._thought_ended: float | None = None
        self._playback = Playback(pace.speech_rate) if pace.speech_rate else None
        self._lead = FIRST_LEAD
        self._cut_if_full()

    def add_thought_token(self) -> None:
        """One more, of a thought that is open and stays so."""
        self._thought_tokens += 1
        self._open_tokens += 1
        self._cut_if_full()

    def close_thought(self, now: float) -> None:
        """With one more token, which completes the end marker."""
        self._thought_tokens += 1
        self.thought, self._thought_ended = "closed", now

    def end_thought(self, reason: Literal["stop", "length"], now: float) -> None:
        """Without a marker."""
        if reason == "length":
            self.thought = "cut"
        elif self.thought == "open":
            self.thought, self._thought_ended = "ended", now

    @property
    def one_brain(self) -> bool:
        """Whether no segment has become due so far: a thought that is closed now is followed by all of the answer."""
        return not self.segments and not self._due_by_count()

    def due(self, now: float) -> Due | None:
        """The segment that is to be begun, where nobody speaks. None of a thought that is cut: nothing more fits."""
        n = len(self.segments)
        if n < self._due_by_count():
            return Due((n + (self._mode == "think_first")) * self._think_tokens, last=False)
        if self.thought in ("closed", "ended"):
            return Due(self._thought_tokens, last=True)
        due = self._due_by_clock()
        return Due(self._thought_tokens, last=False) if due is not None and now >= due else None

    def wait(self, now: float) -> float | None:
        """Seconds until a segment becomes due by the clock, whatever the brains say; nobody speaks."""
        due = self._due_by_clock()
        return None if due is None else max(0.0, due - now)

    def begin(self, thought_tokens: int, now: float) -> Segment:
        """A segment, spoken out of so much of the thought."""
        segment = Segment(now, thought_tokens)
        self.segments.append(segment)
        self._cut_if_full()
        return segment

    def add_spoken_token(self, segment: Segment, heard: bool, now: float) -> None:
        """One more of the answer. `heard`: it is no stop token."""
        segment.last = now
        if segment.first is None:
            segment.first = now
            # The slowest so far; the first guess is none of them.
            self._lead = max(now - segment.begun, self._lead if len(self.segments) > 1 else 0)
        segment.spoken_tokens += heard
        if heard and self._playback:
            self._playback.add(1, now)

    def timing(self) -> SpeechTiming:
        segments, playback = self.segments, self._playback
        return SpeechTiming(
            first_spoken=segments[0].first if segments else None,
            thought_before=segments[0].thought_tokens if segments else self._thought_tokens,
            thought_tokens=self._thought_tokens,
            thought_ended=self._thought_ended,
            underruns=playback.underruns if playback else 0,
            silence=playback.silence if playback else 0.0,
            segments=tuple(segments),
        )

    def _due_by_count(self) -> int:
        """How many segments have become due because of the thought's length alone."""
        if self._mode in ("think_before_speak", "no_think"):
            return 0
        count = self._open_tokens // self._think_tokens + (self._mode == "speak_first")
        return min(count, 1) if self._playback else count

    def _due_by_clock(self) -> float | None:
        """When the next segment is to be begun, to be there when the last one has been heard."""
        if self.thought != "open" or not self._playback or self._playback.end is None:
            return None
        return self._playback.end - self._lead - MARGIN

    def _cut_if_full(self) -> None:
        """Every segment that is due, or was, has its `speak_tokens`: none falls short of them but with the answer."""
        if self._max_tokens is None or self.thought != "open":
            return
        speech = self._speak_tokens * max(len(self.segments), self._due_by_count())
        if self._thought_tokens + speech >= self._max_tokens:
            self.thought = "cut"

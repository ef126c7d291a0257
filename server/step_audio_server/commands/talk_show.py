"""What a conversation looks like in a terminal."""

from __future__ import annotations

from typing import TextIO

from step_audio_client import (
    CallRequested,
    RealtimeEvent,
    ReasoningDelta,
    ResponseDone,
    SpeechStarted,
    TextDelta,
    Transcript,
    TurnTimes,
)
from step_audio_client.columns import DIM, PLAIN


class Show:
    """Answers on `out`, and nothing else; what was heard, the thought and figures on `aside`.

    `thought`: whether it is shown, dim where `aside` is a terminal.
    """

    def __init__(self, out: TextIO, aside: TextIO, thought: bool):
        self._out, self._aside, self._thought = out, aside, thought
        self._dim, self._plain = (DIM, PLAIN) if aside.isatty() else ("", "")
        self._open: TextIO | None = None  # where a line is not ended yet
        self._waiting: list[str] = []  # lines, until it is
        self._answer = False  # whether one is under way

    def push(self, event: RealtimeEvent, times: TurnTimes) -> None:
        match event:
            case SpeechStarted():
                self.line("…")
            case Transcript():
                self.line(f"heard: {event.text}" if event.text is not None else "heard: it could not be written down")
            case ReasoningDelta() if self._thought:
                self._write(self._aside, f"{self._dim}{event.text}{self._plain}")
            case TextDelta():
                self._answer = True
                self._write(self._out, event.text)
            case CallRequested():
                self.line(f"calls {event.name} {event.arguments}")
            case ResponseDone():
                self._end()
                self.line(_end(event) + figures(times, event))

    def line(self, text: str) -> None:
        """Beside the answers, and within none."""
        self._waiting.append(text)
        if self._open is None:
            self._catch_up()

    def _write(self, stream: TextIO, text: str) -> None:
        if self._open not in (None, stream):
            # Only on a screen do both share a line; what stands on `out` is the answer alone.
            print(file=self._aside)
            self._catch_up()
        print(text, end="", file=stream, flush=True)
        self._open = stream

    def _end(self) -> None:
        """Of what is written."""
        if self._answer:
            self._write(self._out, "\n")
        elif self._open is not None:
            print(file=self._aside, flush=True)
        self._open, self._answer = None, False
        self._catch_up()

    def _catch_up(self) -> None:
        for text in self._waiting:
            print(text, file=self._aside, flush=True)
        self._waiting.clear()


def _end(done: ResponseDone) -> str:
    match done.status:
        case "completed":
            return ""
        case "failed":
            return f"no answer: {done.error}; "
    reasons = {"turn_detected": "interrupted", "max_output_tokens": "cut off at the token limit"}
    return f"{reasons.get(done.reason or '', done.status)}; "


def figures(times: TurnTimes, done: ResponseDone) -> str:
    """Of one turn, in a line."""
    begin = times.speech_ended or times.turn_ended
    told = []
    for name, at in (
        ("turn over", times.turn_ended),
        ("first thought", times.first_thought),
        ("first word", times.first_text),
        ("first audio", times.first_audio),
        ("all", times.ended),
    ):
        if begin is not None and at is not None:
            told.append(f"{name} {at - begin:.2f} s")
    line = f"after the end of speech: {', '.join(told)}" if told else ""
    if done.usage:
        line += f"; {done.usage['input_tokens']} prompt tokens, {done.usage['output_tokens']} new"
    return line

"""What a realtime session tells: events of OpenAI's protocol, as far as a conversation needs them."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class SpeechStarted:
    """Somebody has begun to speak; an answer under way has been cancelled, where the session interrupts.

    `milliseconds`: of all audio that was sent.
    """

    item_id: str
    milliseconds: float


@dataclass(frozen=True)
class SpeechStopped:
    """A turn is over. `milliseconds`: of all audio that was sent; the speech itself ended a silence before.

    `speech_ended`: when the end of the speech was sent, in seconds of `time.monotonic`, as far as is remembered.
    """

    item_id: str
    milliseconds: float
    speech_ended: float | None = None


@dataclass(frozen=True)
class Transcript:
    """What was said in a turn, in words, where the session has `transcription`; it comes beside the answer.

    `text` None: it could not be written down.
    """

    item_id: str
    text: str | None


@dataclass(frozen=True)
class ResponseCreated:
    """An answer begins."""

    response_id: str


@dataclass(frozen=True)
class ReasoningDelta:
    """More of the thought, where the session's `include` has "reasoning"."""

    text: str


@dataclass(frozen=True)
class TextDelta:
    """More of the answer: what is written, or what is being said."""

    item_id: str
    text: str


@dataclass(frozen=True)
class AudioDelta:
    """More of the answer, aloud. `data`: in the session's output format, by default PCM16 at 24 kHz."""

    item_id: str
    data: bytes


@dataclass(frozen=True)
class CallRequested:
    """The model calls one of the session's tools. `arguments`: JSON."""

    call_id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class ResponseDone:
    """An answer has ended. `status`: "completed", "cancelled", "failed" or "incomplete"; `reason`: of a cancelled or an
    incomplete one; `error`: of a failed one, for people. `usage`: OpenAI's counts of tokens, where there are any."""

    response_id: str
    status: str
    reason: str | None = None
    error: str | None = None
    usage: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SessionError:
    """What the server did not do, and why; the session goes on. `code`: OpenAI's."""

    code: str | None
    message: str


RealtimeEvent = (
    SpeechStarted
    | SpeechStopped
    | Transcript
    | ResponseCreated
    | ReasoningDelta
    | TextDelta
    | AudioDelta
    | CallRequested
    | ResponseDone
    | SessionError
)


@dataclass
class TurnTimes:
    """When what of a turn was there, in seconds of `time.monotonic`: `push` gets its events as they come.

    `turn_ended`: when the server said so.
    """

    speech_ended: float | None = None
    turn_ended: float | None = None
    first_thought: float | None = None
    first_text: float | None = None
    first_audio: float | None = None
    ended: float | None = None

    def push(self, event: RealtimeEvent) -> None:
        now = time.monotonic()
        match event:
            case SpeechStopped():
                self.speech_ended, self.turn_ended = event.speech_ended, now
            case ReasoningDelta():
                self.first_thought = self.first_thought or now
            case TextDelta():
                self.first_text = self.first_text or now
            case AudioDelta():
                self.first_audio = self.first_audio or now
            case ResponseDone():
                self.ended = now


def read_event(event: Mapping[str, Any]) -> RealtimeEvent | None:
    """None for others."""
    match event["type"]:
        case "input_audio_buffer.speech_started":
            return SpeechStarted(event["item_id"], event["audio_start_ms"])
        case "input_audio_buffer.speech_stopped":
            return SpeechStopped(event["item_id"], event["audio_end_ms"])
        case "conversation.item.input_audio_transcription.completed":
            return Transcript(event["item_id"], event["transcript"])
        case "conversation.item.input_audio_transcription.failed":
            return Transcript(event["item_id"], None)
        case "response.created":
            return ResponseCreated(event["response"]["id"])
        case "response.reasoning_text.delta":
            return ReasoningDelta(event["delta"])
        case "response.output_text.delta" | "response.output_audio_transcript.delta":
            return TextDelta(event["item_id"], event["delta"])
        case "response.output_audio.delta":
            return AudioDelta(event["item_id"], base64.b64decode(event["delta"]))
        case "response.function_call_arguments.done":
            return CallRequested(event["call_id"], event["name"], event["arguments"])
        case "response.done":
            return _done(event["response"])
        case "error":
            return SessionError(event["error"].get("code"), event["error"]["message"])
    return None


def _done(response: Mapping[str, Any]) -> ResponseDone:
    details = response.get("status_details") or {}
    error = (details.get("error") or {}).get("message")
    usage = response.get("usage") or {}
    return ResponseDone(response["id"], response["status"], details.get("reason"), error, usage)

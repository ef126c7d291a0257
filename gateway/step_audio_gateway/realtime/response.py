"""One response: deltas of the client library to OpenAI's events, in OpenAI's order."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from typing import Any, Literal

from step_audio_client import AudioReport, ChatDelta, ChatUsage, ToolCall
from step_audio_gateway.realtime.conversation import Dialogue
from step_audio_gateway.realtime.faults import Fault
from step_audio_gateway.realtime.items import ConversationItem, Part, PartKind, new_id
from step_audio_gateway.realtime.session_config import SessionConfig
from step_audio_gateway.response_object import ItemStatus
from step_audio_gateway.responses import AudioWarning, MindPacedSpeech

Event = dict[str, Any]
Cancelled = Literal["client_cancelled", "turn_detected"]


def event(kind: str, **values: Any) -> Event:
    """A server event with an id of its own."""
    return {"type": kind, "event_id": new_id("event"), **values}


class SpokenResponse:
    """Items are opened, grow and are closed; the thought is one beside the others, and only told where it was asked
    for. `conversation`: whose part the answer becomes; None: of none. `own_bytes`: of recordings that only it has."""

    def __init__(
        self,
        config: SessionConfig,
        conversation: Dialogue | None,
        metadata: dict[str, str] | None,
        own_bytes: int = 0,
    ):
        self.id = new_id("resp")
        self.own_bytes = own_bytes
        self.begun = time.monotonic()
        self.reached: set[str] = set()  # of the parts of its latency that are counted
        self.items: list[ConversationItem] = []
        self._places: dict[str, int] = {}
        self.usage: ChatUsage | None = None
        self._config = config
        self._conversation = conversation
        self._metadata = metadata
        self._output = config.audio.output.format.format("audio.output.format")
        self._thought: ConversationItem | None = None
        self._said: ConversationItem | None = None
        self._sound = 0.0  # ms of all that was said aloud
        self._sound_begun = 0.0
        self._with_thought = "reasoning" in (config.include or ())
        self._audio: tuple[AudioReport, ...] = ()
        self._paced: MindPacedSpeech | None = None
        self._status: dict[str, Any] = {"status": "in_progress", "status_details": None}

    @property
    def aloud(self) -> bool:
        """What is said comes by `voice`: `read` leaves it out."""
        return self._config.output_modalities == ["audio"]

    @property
    def in_conversation(self) -> bool:
        return self._conversation is not None

    @property
    def ended(self) -> bool:
        return bool(self._status["status"] != "in_progress")

    @property
    def left_to_play(self) -> float:
        """ms of what was said aloud, where it was played from its first sound on."""
        return max(0.0, self._sound - 1000 * (time.monotonic() - self._sound_begun))

    def created(self) -> Event:
        return event("response.created", response=self.public())

    def public(self) -> dict[str, Any]:
        config = self._config
        told: dict[str, Any] = {
            "id": self.id,
            "object": "realtime.response",
            **self._status,
            "output": [item.public() for item in self.items],
            "conversation_id": self._conversation and self._conversation.id,
            "output_modalities": config.output_modalities,
            "max_output_tokens": config.max_output_tokens,
            "audio": {"output": config.audio.output.model_dump(include={"format", "voice"})},
            "usage": self.usage and usage_of(self.usage),
            "metadata": self._metadata,
        }
        if self._audio:
            told["audio_warnings"] = [AudioWarning.of(report).model_dump() for report in self._audio]
        if self._paced is not None:
            told["mind_paced_speaking"] = self._paced.model_dump()
        return told

    def read(self, delta: ChatDelta) -> Iterator[Event]:
        """What the client is told of it. Raises Fault where the conversation is full."""
        if delta.reasoning and self._with_thought:
            if self._thought is None:
                self._thought = ConversationItem("reasoning", status="in_progress")
                yield from self._added(self._thought)
            self._thought.text += delta.reasoning
            yield event("response.reasoning_text.delta", **self._place(self._thought), delta=delta.reasoning)
        if delta.content and not self.aloud:
            if self._config.mind_paced_speaking is None:
                yield from self._close_thought()
            yield from self._say(delta.content)
        for call in delta.tool_calls:
            yield from self._close_thought()
            yield from self._close("completed")
            yield from self._call(call)
        if delta.finish_reason:
            self.usage, self._audio = delta.usage, delta.audio
            self._paced = MindPacedSpeech.of(delta.speech) if delta.speech else None
            if delta.finish_reason == "length":
                yield from self._end("incomplete", "incomplete", {"reason": "max_output_tokens"})
            else:
                yield from self._end("completed", "completed", {})

    def cancel(self, reason: Cancelled) -> Iterator[Event]:
        """What was said stays said. Nothing where it has ended."""
        if not self.ended:
            yield from self._end("incomplete", "cancelled", {"reason": reason})

    def fail(self, fault: Fault) -> Iterator[Event]:
        """Nothing where it has ended."""
        if not self.ended:
            error = {"type": fault.kind, "code": fault.code, "message": str(fault)}
            yield from self._end("incomplete", "failed", {"error": error})

    def voice(self, text: str, audio: bytes, whole: bool) -> Iterator[Event]:
        """More of what is said aloud, as `Part.voiced` takes it; audio in the session's output format. Nothing where
        it has ended: a voice goes on until the server has stopped."""
        if self.ended:
            return
        if self._said is None:
            yield from self._begin("output_audio", {"type": "audio", "transcript": ""})
        item = self._said
        assert item is not None
        if audio and not self._sound:
            self._sound_begun = time.monotonic()
        milliseconds = 1000 * self._output.seconds(len(audio))
        self._sound += milliseconds
        item.parts[0].voiced(text, milliseconds, whole)
        if text:
            yield event("response.output_audio_transcript.delta", **self._place(item), delta=text)
        if audio:
            yield event("response.output_audio.delta", **self._place(item), delta=base64.b64encode(audio).decode())

    def _say(self, text: str) -> Iterator[Event]:
        if self._said is None:
            yield from self._begin("output_text", {"type": "text", "text": ""})
        item = self._said
        assert item is not None
        item.parts[0].text += text
        yield event("response.output_text.delta", **self._place(item), delta=text)

    def _begin(self, kind: PartKind, part: dict[str, Any]) -> Iterator[Event]:
        self._said = item = ConversationItem("message", status="in_progress", role="assistant")
        yield from self._added(item)
        item.parts.append(Part(kind))
        yield event("response.content_part.added", **self._place(item), part=part)

    def _call(self, call: ToolCall) -> Iterator[Event]:
        item = ConversationItem("function_call", status="in_progress", call_id=call.id, name=call.name)
        yield from self._added(item)
        item.text, item.status = call.arguments, "completed"
        place = self._item_place(item) | {"item_id": item.id, "call_id": call.id}
        yield event("response.function_call_arguments.delta", **place, delta=call.arguments)
        yield event("response.function_call_arguments.done", **place, name=call.name, arguments=call.arguments)
        yield from self._done(item)

    def _end(self, items: ItemStatus, status: str, details: dict[str, Any]) -> Iterator[Event]:
        yield from self._close_thought()
        yield from self._close(items)
        about = {"type": status, **details} if details else None
        self._status = {"status": status, "status_details": about}
        yield event("response.done", response=self.public())

    def _close_thought(self) -> Iterator[Event]:
        if (item := self._thought) is not None and item.status == "in_progress":
            item.status = "completed"
            yield event("response.reasoning_text.done", **self._place(item), text=item.text)
            yield from self._done(item)

    def _close(self, status: ItemStatus) -> Iterator[Event]:
        if (item := self._said) is None:
            return
        self._said, item.status, text = None, status, item.parts[0].text
        if self.aloud:
            yield event("response.output_audio.done", **self._place(item))
            yield event("response.output_audio_transcript.done", **self._place(item), transcript=text)
            part = {"type": "audio", "transcript": text}
        else:
            yield event("response.output_text.done", **self._place(item), text=text)
            part = {"type": "text", "text": text}
        yield event("response.content_part.done", **self._place(item), part=part)
        yield from self._done(item)

    def _added(self, item: ConversationItem) -> Iterator[Event]:
        conversation = self._conversation if item.type != "reasoning" else None
        before = conversation.add(item) if conversation else None
        self._places[item.id] = len(self.items)
        self.items.append(item)
        yield event("response.output_item.added", **self._item_place(item), item=item.public())
        if conversation:
            yield event("conversation.item.added", previous_item_id=before, item=item.public())

    def _done(self, item: ConversationItem) -> Iterator[Event]:
        if self._conversation and item in self._conversation.items:  # the client may have deleted it meanwhile
            before = self._conversation.before(item)
            yield event("conversation.item.done", previous_item_id=before, item=item.public())
        yield event("response.output_item.done", **self._item_place(item), item=item.public())

    def _item_place(self, item: ConversationItem) -> dict[str, Any]:
        return {"response_id": self.id, "output_index": self._places[item.id]}

    def _place(self, item: ConversationItem) -> dict[str, Any]:
        return self._item_place(item) | {"item_id": item.id, "content_index": 0}


def usage_of(usage: ChatUsage) -> dict[str, Any]:
    """Under this route's names. What is cached is not told apart: the LLM's blocks hold both."""
    heard, thought = usage.audio_tokens, usage.reasoning_tokens
    return {
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "input_tokens": usage.prompt_tokens,
        "output_tokens": usage.completion_tokens,
        "input_token_details": {
            "text_tokens": usage.prompt_tokens - heard,
            "audio_tokens": heard,
            "cached_tokens": usage.cached_tokens,
        },
        "output_token_details": {
            "text_tokens": usage.completion_tokens,
            "audio_tokens": 0,
            "reasoning_tokens": thought,
        },
    }

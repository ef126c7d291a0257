"""Deltas of the client library to a response, whole or with the events of a streamed one."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, Literal

from step_audio_client import ChatDelta, RequestError, TokenLogprob, ToolCall
from step_audio_gateway.chunks import Deltas, Item
from step_audio_gateway.errors import from_client
from step_audio_gateway.response_object import (
    CallOutput,
    Failure,
    Incomplete,
    ItemStatus,
    MessageOutput,
    OutputItem,
    OutputText,
    ReasoningOutput,
    ReasoningText,
    ResponseObject,
    ResponseUsage,
)
from step_audio_gateway.responses import AudioWarning, Logprob

Event = tuple[str, str]  # its type, and its JSON
_TEXT = {"reasoning": "reasoning_text", "message": "output_text"}  # of an item's kind, what its text is called


class ResponseWriter:
    """One response on its way: items are opened, grow and are closed one after the other. `about`: without output."""

    def __init__(self, about: ResponseObject):
        self._response = about
        self._events: list[Event] | None = None  # that are not sent yet; None: nobody gets them, and none are made
        self._sequence = 0
        self._open: ReasoningOutput | MessageOutput | None = None
        self._logprobs: list[Logprob] = []  # that no event has told yet

    async def whole(self, deltas: Deltas) -> ResponseObject:
        """Read all deltas. Raises RequestError."""
        async with contextlib.aclosing(deltas):
            async for _, delta in deltas:
                self._read(delta)
        return self._response

    async def events(self, deltas: AsyncIterator[Item]) -> AsyncGenerator[Event]:
        """A fault in the middle is an event, too, the last one."""
        self._events = []
        for kind in ("created", "in_progress"):
            self._tell(f"response.{kind}", self._whole_so_far)
        try:
            async for _, delta in deltas:
                self._read(delta)
                for event in self._told():
                    yield event
        except RequestError as error:
            told = from_client(error)
            self._close("incomplete")
            self._response.status = "failed"
            self._response.error = Failure.of(told)
        self._tell(f"response.{self._response.status}", self._whole_so_far)
        for event in self._told():
            yield event

    def _read(self, delta: ChatDelta) -> None:
        if delta.reasoning:
            self._grow("reasoning", delta.reasoning)
        self._add_logprobs(delta.logprobs)
        if delta.content:
            self._grow("message", delta.content)
        for call in delta.tool_calls:
            self._call(call)
        if delta.finish_reason:
            cut = delta.finish_reason == "length"
            self._close("incomplete" if cut else "completed")
            self._response.status = "incomplete" if cut else "completed"
            self._response.incomplete_details = Incomplete(reason="max_output_tokens") if cut else None
            self._response.usage = ResponseUsage.of(delta.usage) if delta.usage else None
            self._response.audio_warnings = [AudioWarning.of(report) for report in delta.audio] or None

    def _add_logprobs(self, tokens: tuple[TokenLogprob, ...]) -> None:
        self._logprobs += [Logprob.of(token) for token in tokens if not token.reasoning]

    def _grow(self, kind: str, text: str) -> None:
        if self._open is None or self._open.type != kind:
            self._close("completed")
            self._begin(kind)
        item = self._open
        assert item
        item.content[0].text += text
        logprobs: list[Logprob] | None = None
        if isinstance(item, MessageOutput):
            logprobs, self._logprobs = self._logprobs, []
            item.content[0].logprobs += logprobs
        self._tell(
            f"response.{_TEXT[kind]}.delta",
            lambda: (
                self._place(item.id)
                | {"delta": text}
                | ({} if logprobs is None else {"logprobs": [one.model_dump() for one in logprobs]})
            ),
        )

    def _begin(self, kind: str) -> None:
        item = (
            ReasoningOutput(id=f"rs_{uuid.uuid4().hex}", status="in_progress")
            if kind == "reasoning"
            else MessageOutput(id=f"msg_{uuid.uuid4().hex}", status="in_progress")
        )
        self._open = item
        self._response.output.append(item)
        self._tell_item("added", item)
        if isinstance(item, ReasoningOutput):
            item.content.append(ReasoningText(text=""))
        else:
            item.content.append(OutputText(text=""))
        self._tell("response.content_part.added", lambda: self._place(item.id) | {"part": item.content[0].model_dump()})

    def _close(self, status: ItemStatus) -> None:
        if (item := self._open) is None:
            return
        if isinstance(item, MessageOutput):
            item.content[0].logprobs += self._logprobs
            self._logprobs = []
        item.status = status
        part = item.content[0]
        self._tell(
            f"response.{_TEXT[item.type]}.done",
            lambda: self._place(item.id) | part.model_dump(include={"text", "logprobs"}),
        )
        self._tell("response.content_part.done", lambda: self._place(item.id) | {"part": part.model_dump()})
        self._tell_item("done", item)
        self._open = None

    def _call(self, call: ToolCall) -> None:
        self._close("completed")
        self._logprobs = []  # its own
        id_ = f"fc_{uuid.uuid4().hex}"
        item = CallOutput(id=id_, call_id=call.id, name=call.name, arguments="", status="in_progress")
        self._response.output.append(item)
        self._tell_item("added", item)
        item.arguments, item.status = call.arguments, "completed"
        place = {"item_id": id_, "output_index": self._index}
        self._tell("response.function_call_arguments.delta", lambda: place | {"delta": call.arguments})
        self._tell(
            "response.function_call_arguments.done", lambda: place | {"name": call.name, "arguments": call.arguments}
        )
        self._tell_item("done", item)

    @property
    def _index(self) -> int:
        return len(self._response.output) - 1

    def _place(self, item_id: str) -> dict[str, Any]:
        return {"item_id": item_id, "output_index": self._index, "content_index": 0}

    def _whole_so_far(self) -> dict[str, Any]:
        without = None if self._response.audio_warnings else {"audio_warnings"}
        return {"response": self._response.model_dump(exclude=without)}

    def _tell_item(self, what: Literal["added", "done"], item: OutputItem) -> None:
        self._tell(f"response.output_item.{what}", lambda: {"output_index": self._index, "item": item.model_dump()})

    def _tell(self, kind: str, values: Callable[[], dict[str, Any]]) -> None:
        """An event, as things are now."""
        if self._events is not None:
            data = {"type": kind, "sequence_number": self._sequence, **values()}
            self._events.append((kind, json.dumps(data)))
            self._sequence += 1

    def _told(self) -> list[Event]:
        told, self._events = self._events or [], []
        return told

"""Deltas of the client library to the events of a streamed response, and to the whole one, which is made by them."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any

from step_audio_client import ChatDelta, RequestError, TokenLogprob, ToolCall
from step_audio_gateway.completions import Deltas, Item
from step_audio_gateway.errors import from_client
from step_audio_gateway.response_object import (
    CallOutput,
    Failure,
    Incomplete,
    ItemStatus,
    MessageOutput,
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
        self._sequence = 0
        self._open: ReasoningOutput | MessageOutput | None = None
        self._logprobs: list[Logprob] = []  # that no event has told yet

    async def whole(self, deltas: Deltas) -> ResponseObject:
        """Read all deltas. Raises RequestError."""
        async with contextlib.aclosing(deltas):
            async for _, delta in deltas:
                for _ in self._read(delta):
                    pass
        return self._response

    async def events(self, deltas: AsyncIterator[Item]) -> AsyncGenerator[Event]:
        """A fault in the middle is an event, too, the last one."""
        for kind in ("created", "in_progress"):
            yield self._event(f"response.{kind}", response=_dump(self._response))
        try:
            async for _, delta in deltas:
                for event in self._read(delta):
                    yield event
        except RequestError as error:
            told = from_client(error)
            for event in self._close("incomplete"):
                yield event
            self._response.status = "failed"
            self._response.error = Failure(code=told.code or "server_error", message=told.detail)
        yield self._event(f"response.{self._response.status}", response=_dump(self._response))

    def _read(self, delta: ChatDelta) -> Iterator[Event]:
        if delta.reasoning:
            yield from self._grow("reasoning", delta.reasoning)
        self._add_logprobs(delta.logprobs)
        if delta.content:
            yield from self._grow("message", delta.content)
        for call in delta.tool_calls:
            yield from self._call(call)
        if delta.finish_reason:
            cut = delta.finish_reason == "length"
            yield from self._close("incomplete" if cut else "completed")
            self._response.status = "incomplete" if cut else "completed"
            self._response.incomplete_details = Incomplete(reason="max_output_tokens") if cut else None
            self._response.usage = ResponseUsage.of(delta.usage) if delta.usage else None
            self._response.audio_warnings = [AudioWarning.of(report) for report in delta.audio] or None

    def _add_logprobs(self, tokens: tuple[TokenLogprob, ...]) -> None:
        self._logprobs += [Logprob.of(token) for token in tokens if not token.reasoning]

    def _grow(self, kind: str, text: str) -> Iterator[Event]:
        if self._open is None or self._open.type != kind:
            yield from self._close("completed")
            yield from self._begin(kind)
        item = self._open
        assert item
        item.content[0].text += text
        logprobs = {}
        if isinstance(item, MessageOutput):
            logprobs = {"logprobs": [one.model_dump() for one in self._logprobs]}
            item.content[0].logprobs += self._logprobs
            self._logprobs = []
        yield self._event(f"response.{_TEXT[kind]}.delta", **self._place(item.id), delta=text, **logprobs)

    def _begin(self, kind: str) -> Iterator[Event]:
        item = (
            ReasoningOutput(id=f"rs_{uuid.uuid4().hex}", status="in_progress")
            if kind == "reasoning"
            else MessageOutput(id=f"msg_{uuid.uuid4().hex}", status="in_progress")
        )
        self._open = item
        self._response.output.append(item)
        yield self._event("response.output_item.added", output_index=self._index, item=item.model_dump())
        if isinstance(item, ReasoningOutput):
            item.content.append(ReasoningText(text=""))
        else:
            item.content.append(OutputText(text=""))
        part = item.content[0].model_dump()
        yield self._event("response.content_part.added", **self._place(item.id), part=part)

    def _close(self, status: ItemStatus) -> Iterator[Event]:
        if (item := self._open) is None:
            return
        if isinstance(item, MessageOutput):
            item.content[0].logprobs += self._logprobs
        self._logprobs = []
        item.status = status
        part = item.content[0].model_dump()
        place, text = self._place(item.id), {key: part[key] for key in ("text", "logprobs") if key in part}
        yield self._event(f"response.{_TEXT[item.type]}.done", **place, **text)
        yield self._event("response.content_part.done", **place, part=part)
        yield self._event("response.output_item.done", output_index=self._index, item=item.model_dump())
        self._open = None

    def _call(self, call: ToolCall) -> Iterator[Event]:
        yield from self._close("completed")
        id_ = f"fc_{uuid.uuid4().hex}"
        item = CallOutput(id=id_, call_id=call.id, name=call.name, arguments="", status="in_progress")
        self._response.output.append(item)
        place = {"item_id": id_, "output_index": self._index}
        yield self._event("response.output_item.added", output_index=self._index, item=item.model_dump())
        item.arguments, item.status = call.arguments, "completed"
        yield self._event("response.function_call_arguments.delta", **place, delta=call.arguments)
        yield self._event("response.function_call_arguments.done", **place, name=call.name, arguments=call.arguments)
        yield self._event("response.output_item.done", output_index=self._index, item=item.model_dump())

    @property
    def _index(self) -> int:
        return len(self._response.output) - 1

    def _place(self, item_id: str) -> dict[str, Any]:
        return {"item_id": item_id, "output_index": self._index, "content_index": 0}

    def _event(self, kind: str, **values: Any) -> Event:
        number, self._sequence = self._sequence, self._sequence + 1
        return kind, json.dumps({"type": kind, "sequence_number": number, **values})


def _dump(response: ResponseObject) -> dict[str, Any]:
    return response.model_dump(exclude=None if response.audio_warnings else {"audio_warnings"})

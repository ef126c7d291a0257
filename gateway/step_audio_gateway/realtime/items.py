"""Items of a conversation: as clients send them, as they are kept, and as events tell of them."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag

from step_audio.conversation import MAX_ITEMS
from step_audio_client import HeardClips
from step_audio_gateway.messages import kind_of
from step_audio_gateway.nulls import Lenient
from step_audio_gateway.realtime.beginnings import audio_of
from step_audio_gateway.realtime.faults import Fault
from step_audio_gateway.realtime.formats import SampleFormat, SpokenAudio, decode
from step_audio_gateway.realtime.heard import SaidPiece, heard
from step_audio_gateway.response_object import ItemStatus

Role = Literal["user", "assistant", "system"]
PartKind = Literal["input_text", "input_audio", "output_text", "output_audio"]
_PARTS: dict[str, tuple[str, ...]] = {
    "user": ("input_text", "input_audio"),
    "system": ("input_text",),
    "assistant": ("output_text", "output_audio"),
}
_OLDER = {"text": "output_text"}  # what the beta called it


class GivenPart(Lenient):
    """A part of a message, as clients send it."""

    model_config = ConfigDict(extra="allow")  # what replies hold besides may be sent back

    type: str
    text: str | None = None
    audio: str | None = Field(None, description="base64, in the session's input format")
    transcript: str | None = None


class _Given(Lenient):
    model_config = ConfigDict(extra="allow")

    id: str | None = Field(None, min_length=1, max_length=64)


class GivenMessage(_Given):
    """A turn."""

    type: Literal["message"]
    role: Role
    content: list[GivenPart] = Field(max_length=MAX_ITEMS, fail_fast=True)


class GivenCall(_Given):
    """A call that the model made."""

    type: Literal["function_call"]
    name: str = Field(min_length=1)
    call_id: str | None = None
    arguments: str = "{}"


class GivenOutput(_Given):
    """What a call brought."""

    type: Literal["function_call_output"]
    call_id: str
    output: str


class ItemReference(_Given):
    """An item of the conversation, by its id; in a response's `input` only."""

    type: Literal["item_reference"]
    id: str


def _tag(value: Any) -> str:
    return f"<{kind_of(value)}>"


GivenItem = Annotated[
    Annotated[GivenMessage, Tag("<message>")]
    | Annotated[GivenCall, Tag("<function_call>")]
    | Annotated[GivenOutput, Tag("<function_call_output>")]
    | Annotated[ItemReference, Tag("<item_reference>")],
    Discriminator(
        _tag,
        custom_error_type="item_type",
        custom_error_message="an item has one of these types: message, function_call, function_call_output",
    ),
]


def new_id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex[:24]}"


@dataclass
class Part:
    """Of a message. `text`: what is written, or what was said, as far as it is known. `pieces`: of what is said aloud.
    `is_cut`: what comes of it is not heard any more."""

    kind: PartKind
    text: str = ""
    recording: SpokenAudio | None = None
    pieces: list[SaidPiece] = field(default_factory=list)
    is_cut: bool = False
    heard: HeardClips | None = None  # by a server, of `recording`

    def voiced(self, text: str, milliseconds: float, whole: bool) -> None:
        """More of it: `text`, a piece, begins where the audio does. `whole`: the piece has no more audio."""
        if self.is_cut:
            return
        if text or not self.pieces:
            self.pieces.append(SaidPiece(text))
            self.text += text
        self.pieces[-1].milliseconds += milliseconds
        self.pieces[-1].whole = whole

    def cut(self, milliseconds: float) -> None:
        """What was not heard after so long is forgotten, from the word on that was being said."""
        self.text = self.text[: heard(self.pieces, milliseconds)].rstrip()
        self.is_cut = True

    def public(self, whole: bool = False) -> dict[str, Any]:
        """`whole`: with its audio."""
        if self.kind in ("input_text", "output_text"):
            return {"type": self.kind, "text": self.text}
        told: dict[str, Any] = {"type": self.kind, "transcript": self.text or None}
        if whole and self.recording is not None:
            told["audio"] = self.recording.base64()
        return told

    def chat(self) -> dict[str, Any]:
        """As the client library takes it."""
        if self.recording is not None:
            return {"type": "audio", "audio": audio_of(self.recording, self.heard)}
        return {"type": "text", "text": self.text}


@dataclass(eq=False)
class ConversationItem:
    """One of a conversation. `call_id` and `name` are a call's, `text` its arguments, or what it brought; a thought
    (`reasoning`) is never in the conversation: the model is not shown it again."""

    type: Literal["message", "function_call", "function_call_output", "reasoning"]
    id: str = field(default_factory=lambda: new_id("item"))
    status: ItemStatus = "completed"
    role: Role = "user"
    parts: list[Part] = field(default_factory=list)
    call_id: str = ""
    name: str = ""
    text: str = ""

    @property
    def recordings(self) -> list[SpokenAudio]:
        return [part.recording for part in self.parts if part.recording is not None]

    @cached_property
    def bytes(self) -> int:
        """Of what a client made it of, recordings and texts: what it grows by is the model's, and counted in tokens."""
        texts = (self.call_id, self.name, self.text, *(part.text for part in self.parts))
        return sum(len(recording.data) for recording in self.recordings) + sum(len(text.encode()) for text in texts)

    def public(self, whole: bool = False) -> dict[str, Any]:
        told = {"id": self.id, "object": "realtime.item", "type": self.type, "status": self.status}
        match self.type:
            case "message":
                return told | {"role": self.role, "content": [part.public(whole) for part in self.parts]}
            case "function_call":
                return told | {"call_id": self.call_id, "name": self.name, "arguments": self.text}
            case "function_call_output":
                return told | {"call_id": self.call_id, "output": self.text}
            case "reasoning":
                return told | {"summary": [], "content": [{"type": "reasoning_text", "text": self.text}]}

    @classmethod
    def of(
        cls, given: GivenMessage | GivenCall | GivenOutput, format: SampleFormat, param: str = "item"
    ) -> ConversationItem:
        """`param`: what the event calls it. Raises Fault."""
        about: dict[str, Any] = {} if given.id is None else {"id": given.id}
        match given:
            case GivenCall():
                call_id = given.call_id or new_id("call")
                return cls("function_call", **about, call_id=call_id, name=given.name, text=given.arguments)
            case GivenOutput():
                return cls("function_call_output", **about, call_id=given.call_id, text=given.output)
        parts = [_part(part, given.role, format, f"{param}.content[{i}]") for i, part in enumerate(given.content)]
        return cls("message", **about, role=given.role, parts=parts)


def _part(given: GivenPart, role: Role, format: SampleFormat, param: str) -> Part:
    kind = _OLDER.get(given.type, given.type)
    if kind not in _PARTS[role]:
        said = f"a part of a message of the {role}'s has one of these types: {', '.join(_PARTS[role])}"
        raise Fault("invalid_value", f"{param}.type: {said}", f"{param}.type")
    if kind == "output_audio":  # of an earlier answer: its audio would tell the model nothing
        return Part("output_text", given.transcript or "")
    if kind != "input_audio":
        if given.text is None:
            raise Fault("missing_required_parameter", f"{param}.text is missing", f"{param}.text")
        return Part("input_text" if kind == "input_text" else "output_text", given.text)
    if not given.audio:
        raise Fault("missing_required_parameter", f"{param}.audio is missing", f"{param}.audio")
    recording = SpokenAudio(format, decode(given.audio, format, f"{param}.audio"))
    return Part("input_audio", given.transcript or "", recording)

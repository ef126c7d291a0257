"""What a client sends: one JSON object a message."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import ConfigDict, Field, NonNegativeInt, ValidationError
from pydantic_core import from_json

from step_audio.conversation import MAX_ITEMS
from step_audio_gateway.nulls import Lenient
from step_audio_gateway.realtime.faults import Fault
from step_audio_gateway.realtime.items import GivenItem

Metadata = dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]]


_OF_SESSIONS = ("type", "model", "tracing")
_MOST_OF_AN_ID = 512  # characters; a longer one is not told again either
_LONGEST = 2**31 - 1  # ms, 24 days: what does not fit into a double could not be counted with


class _Event(Lenient):
    event_id: str | None = Field(None, max_length=_MOST_OF_AN_ID)


class SessionUpdate(_Event):
    """`session`: what is to change."""

    type: Literal["session.update"]
    session: dict[str, Any]


class Append(_Event):
    """`audio`: base64 in the session's input format."""

    type: Literal["input_audio_buffer.append"]
    audio: str


class Commit(_Event):
    """What is in the buffer becomes a turn."""

    type: Literal["input_audio_buffer.commit"]


class Clear(_Event):
    """What is in the buffer is dropped."""

    type: Literal["input_audio_buffer.clear"]


class ClearOutput(_Event):
    """The client plays no more: of WebRTC, where the server would; nothing follows from it."""

    type: Literal["output_audio_buffer.clear"]


class ItemCreate(_Event):
    """`previous_item_id`: that of the item to stand behind, or "root" for the beginning; null: the end."""

    type: Literal["conversation.item.create"]
    previous_item_id: str | None = None
    item: GivenItem


class ItemRetrieve(_Event):
    """An item is told with its audio."""

    type: Literal["conversation.item.retrieve"]
    item_id: str


class ItemDelete(_Event):
    """An item is forgotten."""

    type: Literal["conversation.item.delete"]
    item_id: str


class ItemTruncate(_Event):
    """What was not heard of an answer is forgotten."""

    type: Literal["conversation.item.truncate"]
    item_id: str
    content_index: NonNegativeInt
    audio_end_ms: int = Field(ge=0, le=_LONGEST)


class ResponseParams(Lenient):
    """Of one response; other keys are those of a session."""

    model_config = ConfigDict(extra="allow")

    conversation: Literal["auto", "none"] = "auto"
    metadata: Annotated[Metadata, Field(max_length=16)] | None = None
    input: list[GivenItem] | None = Field(default=None, max_length=MAX_ITEMS, fail_fast=True)

    @property
    def change(self) -> dict[str, Any]:
        """Of the session's, for this response. Raises Fault."""
        change = self.model_extra or {}
        audio = change.get("audio")
        wrong = [name for name in _OF_SESSIONS if name in change]
        if isinstance(audio, dict) and "input" in audio:
            wrong.append("audio.input")
        if wrong:
            said = f"response.{wrong[0]} is not of one response: see session.update"
            raise Fault("unknown_parameter", said, f"response.{wrong[0]}")
        return change


class ResponseCreate(_Event):
    """The model is to answer."""

    type: Literal["response.create"]
    response: ResponseParams = Field(default_factory=ResponseParams)


class ResponseCancel(_Event):
    """The answer under way is to end."""

    type: Literal["response.cancel"]
    response_id: str | None = None


ClientEvent = (
    SessionUpdate
    | Append
    | Commit
    | Clear
    | ClearOutput
    | ItemCreate
    | ItemRetrieve
    | ItemDelete
    | ItemTruncate
    | ResponseCreate
    | ResponseCancel
)
_KINDS: tuple[type[ClientEvent], ...] = get_args(ClientEvent)
_BY_TYPE = {get_args(kind.model_fields["type"].annotation)[0]: kind for kind in _KINDS}


class Unreadable(Fault):
    """A message that is no event. `event_id`: the client's, where there was one."""

    def __init__(self, fault: Fault, event_id: str | None = None):
        super().__init__(fault.code, str(fault), fault.param, fault.kind)
        self.event_id = event_id


def read(text: str) -> ClientEvent:
    """Raises Unreadable."""
    try:
        value = from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise Unreadable(Fault("invalid_json", f"the message is not valid JSON: {error}")) from None
    if not isinstance(value, dict):
        raise Unreadable(Fault("invalid_json", "a message is a JSON object"))
    given = value.get("event_id")
    event_id = given if isinstance(given, str) and len(given) <= _MOST_OF_AN_ID else None
    kind = value.get("type")
    if kind is None:
        raise Unreadable(Fault("missing_required_parameter", "Missing required parameter: 'type'.", "type"), event_id)
    if not isinstance(kind, str) or kind not in _BY_TYPE:
        said = f"Invalid value: {kind!r:.80}. Supported values are: {', '.join(_BY_TYPE)}."
        raise Unreadable(Fault("invalid_value", said, "type"), event_id)
    try:
        return _BY_TYPE[kind].model_validate(value)
    except ValidationError as error:
        raise Unreadable(Fault.of_validation(error, value), event_id) from None

"""What /v1/responses takes as `input`: items, as clients send them and as its replies hold them, to messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import Discriminator, Field, Tag, model_validator

from step_audio.conversation import Role
from step_audio_gateway.messages import (
    AudioPart,
    AudioUrlPart,
    Channel,
    InputAudioPart,
    RefusalPart,
    TextPart,
    content_tag,
    kind_of,
    part_tag,
)
from step_audio_gateway.nulls import Lenient


class InputFilePart(Lenient):
    """A recording, as a file."""

    type: Literal["input_file"]
    file_data: str | None = Field(None, description="its bytes in base64, bare or as a data: URL")
    file_url: str | None = Field(None, description="https: where the server allows the host")
    filename: str | None = None
    channel: Channel = None

    @model_validator(mode="after")
    def _is_here(self) -> InputFilePart:
        if (self.file_data is None) == (self.file_url is None):
            raise ValueError("send file_data or file_url: no files are kept")
        return self

    def as_chat(self) -> dict[str, Any]:
        return {"type": "audio", "audio": self.file_data or self.file_url, "channel": self.channel}


Part = Annotated[
    Annotated[TextPart, Tag("<text>")]
    | Annotated[RefusalPart, Tag("<refusal>")]
    | Annotated[InputAudioPart, Tag("<input_audio>")]
    | Annotated[InputFilePart, Tag("<input_file>")]
    | Annotated[AudioUrlPart, Tag("<audio_url>")]
    | Annotated[AudioPart, Tag("<audio>")],
    Discriminator(
        part_tag,
        custom_error_type="part_type",
        custom_error_message="a part has one of these types: input_text, output_text, refusal, input_audio, "
        "input_file, audio_url, audio",
    ),
]
Parts = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[list[Part], Tag("<parts>")],
    Discriminator(content_tag),
]


class MessageItem(Lenient):
    """A turn: a caller's, or the model's of an earlier reply."""

    type: Literal["message"] = "message"
    role: Role
    content: Parts

    def as_chat(self) -> dict[str, Any]:
        return {"role": self.role, "content": _content(self.content)}


class CallItem(Lenient):
    """A call that the model made in an earlier reply."""

    type: Literal["function_call"]
    call_id: str
    name: str = Field(min_length=1)
    arguments: str = "{}"

    def as_call(self) -> dict[str, Any]:
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.call_id, "type": "function", "function": function}


class CustomCallItem(Lenient):
    """A call of a tool of OpenAI's kind `custom`, which the model sees as one of a function."""

    type: Literal["custom_tool_call"]
    call_id: str
    name: str = Field(min_length=1)
    input: str = ""

    def as_call(self) -> dict[str, Any]:
        return {"id": self.call_id, "type": "custom", "custom": {"name": self.name, "input": self.input}}


class CallOutputItem(Lenient):
    """What a call brought."""

    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: str
    output: Parts

    def as_chat(self) -> dict[str, Any]:
        return {"role": "tool", "tool_call_id": self.call_id, "content": _content(self.output)}


class ReasoningItem(Lenient):
    """A thought of an earlier reply. It is ignored: the model is not shown its past thoughts."""

    type: Literal["reasoning"]


BuiltIn = Literal[
    "web_search_call", "file_search_call", "code_interpreter_call", "image_generation_call", "mcp_list_tools"
]


class BuiltInCallItem(Lenient):
    """What a tool did that OpenAI runs itself, in an earlier reply of theirs. It is ignored: what came of it is in the
    message behind it."""

    type: BuiltIn


def _item_tag(value: Any) -> str:
    kind = kind_of(value) or "message"
    if kind in get_args(BuiltIn):
        return "<built_in>"
    return f"<{'function_call_output' if kind == 'custom_tool_call_output' else kind}>"


Item = Annotated[
    Annotated[MessageItem, Tag("<message>")]
    | Annotated[CallItem, Tag("<function_call>")]
    | Annotated[CustomCallItem, Tag("<custom_tool_call>")]
    | Annotated[CallOutputItem, Tag("<function_call_output>")]
    | Annotated[ReasoningItem, Tag("<reasoning>")]
    | Annotated[BuiltInCallItem, Tag("<built_in>")],
    Discriminator(
        _item_tag,
        custom_error_type="item_type",
        custom_error_message="an item has one of these types: message, function_call, function_call_output, "
        "custom_tool_call, custom_tool_call_output, reasoning, or is a call of OpenAI's own tools; nothing is "
        "kept that could be referred to",
    ),
]


def chat_messages(items: str | Sequence[Item], instructions: str | None) -> list[dict[str, Any]]:
    """As /v1/chat/completions takes them: calls belong to the assistant's turn that they stand behind."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": instructions}] if instructions else []
    if isinstance(items, str):
        return [*messages, {"role": "user", "content": items}]
    for item in items:
        match item:
            case CallItem() | CustomCallItem():
                if not messages or messages[-1]["role"] != "assistant":
                    messages.append({"role": "assistant"})
                messages[-1].setdefault("tool_calls", []).append(item.as_call())
            case MessageItem() | CallOutputItem():
                messages.append(item.as_chat())
    return messages


def _content(parts: str | list[Part]) -> Any:
    if isinstance(parts, str) or not parts:
        return parts or ""
    return [part.as_chat() if isinstance(part, InputFilePart) else part.model_dump(exclude_none=True) for part in parts]

"""Messages as clients send them: OpenAI's, the model card's and vLLM's forms of their parts."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from step_audio.containers import ADVICE
from step_audio.conversation import MAX_CHANNELS, Role
from step_audio_gateway.nulls import Lenient

HEARD = "the one to be heard, from 0 on (default: the mean of all)"
Channel = Annotated[int | None, Field(ge=0, lt=MAX_CHANNELS, description=HEARD)]


class TextPart(Lenient):
    """A piece of text."""

    type: Literal["text", "input_text", "output_text"]
    text: str


class RefusalPart(Lenient):
    """What a model said instead of an answer, in OpenAI's form; to this one it is text as any other."""

    type: Literal["refusal"]
    refusal: str

    @property
    def text(self) -> str:
        """As of a TextPart."""
        return self.refusal


class InputAudio(Lenient):
    """A recording."""

    data: str = Field(description=f"a file's bytes in base64, bare or as a data: URL: {ADVICE}, and more")
    format: str | None = Field(None, description="not needed: the bytes tell")
    channel: Channel = None


class InputAudioPart(Lenient):
    """A recording, in OpenAI's form."""

    type: Literal["input_audio"]
    input_audio: InputAudio


class File(Lenient):
    """A recording, as a file."""

    file_data: str = Field(description="its bytes in base64, bare or as a data: URL")
    filename: str | None = None
    file_id: None = Field(None, description="is refused: no files are kept")
    channel: Channel = None

    @field_validator("file_id", mode="before")
    @classmethod
    def _none_is_kept(cls, value: Any) -> None:
        if value is not None:
            raise ValueError("no files are kept: send file_data")

    @model_validator(mode="before")
    @classmethod
    def _id_is_told_first(cls, value: Any) -> Any:
        """Not that file_data is missing, too."""
        return {"file_data": "", **value} if isinstance(value, dict) and value.get("file_id") is not None else value


class FilePart(Lenient):
    """A recording, as OpenAI's form has files."""

    type: Literal["file"]
    file: File


class AudioUrl(Lenient):
    """Where a recording is."""

    url: str = Field(description="data: URL, or https: where the server allows the host")
    channel: Channel = None


class AudioUrlPart(Lenient):
    """A recording, in vLLM's form."""

    type: Literal["audio_url"]
    audio_url: AudioUrl


class AudioPart(Lenient):
    """A recording, in the form of StepFun's model card."""

    type: Literal["audio"]
    audio: str = Field(description="base64, data: URL, or https: where the server allows the host")
    channel: Channel = None


_TEXTS = ("text", "input_text", "output_text")


def kind_of(value: Any) -> Any:
    """The `type` of what is not validated yet, or is."""
    return value.get("type") if isinstance(value, dict) else getattr(value, "type", None)


def part_tag(value: Any) -> str:
    kind = kind_of(value)
    return "<text>" if kind in _TEXTS else f"<{kind}>"


def content_tag(value: Any) -> str:
    return "<parts>" if isinstance(value, list) else "<text>"


# The tags stand in the places of validation errors, and must not look like the caller's keys.
Part = Annotated[
    Annotated[TextPart, Tag("<text>")]
    | Annotated[RefusalPart, Tag("<refusal>")]
    | Annotated[InputAudioPart, Tag("<input_audio>")]
    | Annotated[FilePart, Tag("<file>")]
    | Annotated[AudioUrlPart, Tag("<audio_url>")]
    | Annotated[AudioPart, Tag("<audio>")],
    Discriminator(
        part_tag,
        custom_error_type="part_type",
        custom_error_message="a part has one of these types: text, input_audio, file, audio_url, audio",
    ),
]
Content = Annotated[
    Annotated[str | None, Tag("<text>")] | Annotated[list[Part], Field(min_length=1), Tag("<parts>")],
    Discriminator(content_tag),
]


class FunctionCall(Lenient):
    """The function that was called; `arguments` is JSON, as text or as an object."""

    name: str = Field(min_length=1)
    arguments: str | dict[str, Any] = "{}"


class CustomCall(Lenient):
    """A tool of OpenAI's kind `custom` that was called, with a text."""

    name: str = Field(min_length=1)
    input: str = ""


class MessageToolCall(Lenient):
    """A call that the model made in an earlier turn."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class MessageCustomCall(Lenient):
    """A call of a tool of OpenAI's kind `custom`, which the model sees as one of a function."""

    id: str | None = None
    type: Literal["custom"]
    custom: CustomCall

    def as_function(self) -> MessageToolCall:
        """Its text is the argument `input`."""
        arguments: dict[str, Any] = {"input": self.custom.input}
        return MessageToolCall(id=self.id, function=FunctionCall(name=self.custom.name, arguments=arguments))


def _call_tag(value: Any) -> str:
    return "<custom>" if kind_of(value) == "custom" else "<function>"


MessageCall = Annotated[
    Annotated[MessageToolCall, Tag("<function>")] | Annotated[MessageCustomCall, Tag("<custom>")],
    Discriminator(_call_tag),
]


class SaidAloud(Lenient):
    """What the assistant said aloud, as its reply had it."""

    transcript: str | None = None


class ChatMessage(Lenient):
    """One turn. Other keys are ignored, `reasoning_content` of earlier turns too: the model is not shown its past
    thoughts. Whatever a reply of the server's or of OpenAI's holds may be sent back as it is."""

    role: Role
    content: Content = None
    name: str | None = None
    tool_calls: list[MessageCall] | None = None
    tool_call_id: str | None = None
    function_call: FunctionCall | None = Field(None, description="a call as OpenAI had it before `tool_calls`")
    refusal: str | None = Field(None, description="what the assistant said instead of content")
    audio: SaidAloud | None = Field(None, description="what the assistant said aloud; none is kept")
    eot: bool | None = Field(None, description="of a last assistant message: false continues it, true ends it")

    @model_validator(mode="before")
    @classmethod
    def _no_parts_are_no_content(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("role") == "assistant" and value.get("content") == []:
            return {key: item for key, item in value.items() if key != "content"}
        return value

    @model_validator(mode="after")
    def _nothing_is_kept(self) -> Self:
        if self.audio is not None and self.content is None and self.audio.transcript is None:
            raise ValueError("no audio is kept: send its transcript along")
        return self

    @property
    def calls(self) -> list[MessageToolCall]:
        """All of them as calls of functions."""
        calls = [call.as_function() if isinstance(call, MessageCustomCall) else call for call in self.tool_calls or ()]
        return [*calls, MessageToolCall(function=self.function_call)] if self.function_call else calls

    @property
    def said(self) -> str | list[Part] | None:
        """The content, or what stands for it."""
        if self.content is not None:
            return self.content
        return self.audio.transcript if self.audio else self.refusal

    @property
    def open(self) -> bool:
        """Whether it is an assistant's turn that can go on."""
        return self.role == "assistant" and self.said is not None and not self.calls

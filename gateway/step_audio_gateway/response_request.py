"""A request to /v1/responses, to one of /v1/chat/completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from step_audio.sampling_parameters import INT32
from step_audio_gateway.controls import Effort
from step_audio_gateway.errors import refused
from step_audio_gateway.nulls import Closed, Lenient
from step_audio_gateway.published import REFUSED_RESPONSES, check_published
from step_audio_gateway.response_items import Item, chat_messages
from step_audio_gateway.schemas import ChatRequest, JsonObjectFormat, TextFormat

# For errors: as the caller calls them.
NAMES = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "logprobs": "include",
}
INCLUDED = ("message.output_text.logprobs", "reasoning.encrypted_content")


class ResponseFunction(BaseModel):
    """A function that the model may call; `parameters` is a JSON schema of its arguments."""

    model_config = ConfigDict(extra="allow")

    type: Literal["function"]
    name: str = Field(min_length=1)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedChoice(Lenient):
    """Demands a call of one function."""

    type: Literal["function"]
    name: str


class SchemaFormat(Lenient):
    """An answer that follows a JSON schema."""

    type: Literal["json_schema"]
    name: str | None = None
    description: str | None = None
    strict: bool | None = None
    schema_: dict[str, Any] = Field(alias="schema")


class TextOptions(Closed):
    """The form of the answer."""

    format: Annotated[TextFormat | JsonObjectFormat | SchemaFormat, Field(discriminator="type")] | None = None
    verbosity: Literal["medium"] | None = Field(None, description="say in a message how long the answer is to be")


class Reasoning(Closed):
    """The model's thought before the answer."""

    effort: Effort | None = Field(None, description="as reasoning_effort of /v1/chat/completions")
    summary: str | None = Field(None, description="is ignored: the thought itself comes")
    generate_summary: str | None = Field(None, description="is ignored: the thought itself comes")


class ResponseStreamOptions(Lenient):
    """What a stream brings beside the answer: nothing."""

    include_obfuscation: bool | None = Field(None, description="is ignored: events have no filling")


def _input_tag(value: Any) -> str:
    return "<items>" if isinstance(value, list) else "<text>"


class ResponseRequest(Lenient):
    """Nothing is kept between requests: send the whole conversation. Sampling parameters, `stop` and its like, and the
    words for thinking are those of /v1/chat/completions. Unknown keys are ignored; what is known and cannot be
    honoured is refused by its name."""

    model_config = ConfigDict(extra="allow")

    model: str | None = Field(None, description="a name of /v1/models; may be left out")
    input: Annotated[
        Annotated[str, Tag("<text>")] | Annotated[list[Item], Field(min_length=1), Tag("<items>")],
        Discriminator(_input_tag),
    ]
    instructions: str | None = Field(None, description="a first message of the system's")
    stream: bool | None = False
    stream_options: ResponseStreamOptions | None = None
    max_output_tokens: int | None = Field(None, ge=1, le=INT32, description="the thought included")
    tools: list[ResponseFunction] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedChoice | None = None
    parallel_tool_calls: bool | None = Field(True, description="false: the answer ends with its first call")
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    include: list[str] | None = Field(
        None,
        fail_fast=True,
        description="message.output_text.logprobs; reasoning.encrypted_content is ignored: thoughts come as text, and "
        "need not be sent back",
    )
    metadata: dict[str, Any] | None = Field(None, description="comes back as it is")

    @property
    def logprobs(self) -> bool:
        return INCLUDED[0] in (self.include or ())

    def as_chat(self) -> ChatRequest:
        """Raises ApiError, RequestValidationError."""
        check_published(self.model_extra, REFUSED_RESPONSES)
        extra = {name: value for name, value in (self.model_extra or {}).items() if name not in REFUSED_RESPONSES}
        for name in self.include or ():
            if name not in INCLUDED:
                raise refused(f"include: there is no {name} in replies", "include", "unsupported_parameter")
        messages = chat_messages(self.input, self.instructions)
        if not messages:
            raise refused("input: there is nothing to answer", "input")
        ours: dict[str, Any] = {
            "model": self.model,
            "messages": messages,
            "stream": self.stream,
            "max_tokens": self.max_output_tokens,
            "tools": [as_chat_tool(tool) for tool in self.tools] if self.tools else None,
            "tool_choice": _choice(self.tool_choice),
            "parallel_tool_calls": self.parallel_tool_calls,
            "response_format": _format(self.text),
            "logprobs": self.logprobs,
            "separate_reasoning": True,
        }
        if self.reasoning is not None:
            ours["reasoning_effort"] = self.reasoning.effort
        values = extra | {name: value for name, value in ours.items() if value is not None}
        if messages[-1]["role"] == "assistant" and "continue_final_message" not in extra:
            values.setdefault("add_generation_prompt", True)
        try:
            return ChatRequest.model_validate(values)
        except ValidationError as error:
            faults = [{**fault, "loc": ("body", *fault["loc"])} for fault in error.errors()]
            raise RequestValidationError(faults, body=values) from None


def as_chat_tool(tool: ResponseFunction) -> dict[str, Any]:
    return {"type": "function", "function": tool.model_dump(exclude={"type"}, exclude_none=True)}


def _choice(choice: str | NamedChoice | None) -> Any:
    return {"type": "function", "function": {"name": choice.name}} if isinstance(choice, NamedChoice) else choice


def _format(text: TextOptions | None) -> dict[str, Any] | None:
    if text is None or text.format is None:
        return None
    said = text.format.model_dump(exclude_none=True, by_alias=True)
    return said if "schema" not in said else {"type": said.pop("type"), "json_schema": said}

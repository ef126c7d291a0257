"""What /v1/responses answers: OpenAI's object and its items. All keys are there, null or not."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, Field

from step_audio_client import ChatUsage
from step_audio_gateway.errors import ApiError
from step_audio_gateway.responses import AudioWarning, Logprob

ItemStatus = Literal["in_progress", "completed", "incomplete"]
ResponseStatus = Literal["in_progress", "completed", "incomplete", "failed"]


class ReasoningText(BaseModel):
    """The thought, or what there is of it."""

    type: Literal["reasoning_text"] = "reasoning_text"
    text: str


class ReasoningOutput(BaseModel):
    """The model's thought before the answer."""

    type: Literal["reasoning"] = "reasoning"
    id: str
    summary: list[Any] = Field(default_factory=list)
    content: list[ReasoningText] = Field(default_factory=list)
    status: ItemStatus


class OutputText(BaseModel):
    """The answer, or what there is of it."""

    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[Any] = Field(default_factory=list)
    logprobs: list[Logprob] = Field(default_factory=list)


class MessageOutput(BaseModel):
    """The answer."""

    type: Literal["message"] = "message"
    id: str
    role: Literal["assistant"] = "assistant"
    content: list[OutputText] = Field(default_factory=list)
    status: ItemStatus


class CallOutput(BaseModel):
    """A call that the model makes. Answer it with a function_call_output of the same `call_id`."""

    type: Literal["function_call"] = "function_call"
    id: str
    call_id: str
    name: str
    arguments: str
    status: ItemStatus


OutputItem = ReasoningOutput | MessageOutput | CallOutput


class InputDetails(BaseModel):
    """As PromptDetails; `cache_write_tokens`, which others have a price for, are not counted."""

    audio_tokens: int
    cached_tokens: int
    cache_write_tokens: int = 0


class OutputDetails(BaseModel):
    """Tokens that are thought."""

    reasoning_tokens: int


class ResponseUsage(BaseModel):
    """Tokens, under the names of this route."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int

    @classmethod
    def of(cls, usage: ChatUsage) -> Self:
        return cls(
            input_tokens=usage.prompt_tokens,
            input_tokens_details=InputDetails(audio_tokens=usage.audio_tokens, cached_tokens=usage.cached_tokens),
            output_tokens=usage.completion_tokens,
            output_tokens_details=OutputDetails(reasoning_tokens=usage.reasoning_tokens),
            total_tokens=usage.prompt_tokens + usage.completion_tokens,
        )


class Incomplete(BaseModel):
    """Why an answer is not whole."""

    reason: Literal["max_output_tokens"]


class Failure(BaseModel):
    """Why there is no answer, or only a part of it."""

    code: Literal["server_error", "rate_limit_exceeded", "invalid_prompt"]
    message: str

    @classmethod
    def of(cls, error: ApiError) -> Self:
        """By OpenAI's codes for it, which are not those of errors."""
        if error.status_code == 429:
            return cls(code="rate_limit_exceeded", message=error.detail)
        return cls(code="server_error" if error.status_code >= 500 else "invalid_prompt", message=error.detail)


class ResponseObject(BaseModel):
    """The reply: its items, and what was asked. Nothing of it is kept."""

    id: str
    object: Literal["response"] = "response"
    created_at: float
    status: ResponseStatus
    background: Literal[False] = False
    error: Failure | None = None
    incomplete_details: Incomplete | None = None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, Any]
    model: str
    output: list[OutputItem] = Field(default_factory=list)
    parallel_tool_calls: bool
    previous_response_id: None = None
    reasoning: dict[str, Any]
    store: Literal[False] = False
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_p: float
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None = None
    audio_warnings: list[AudioWarning] | None = None

"""What clients get. Keys that were not set are left out: `null` and absent are not the same to every client."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from step_audio_client import ChatUsage, TokenLogprob, ToolCall

FinishReason = Literal["stop", "length", "tool_calls"]


class PromptDetails(BaseModel):
    audio_tokens: int


class CompletionDetails(BaseModel):
    reasoning_tokens: int


class Usage(BaseModel):
    """The prompt counts once, however many answers it has."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails

    @classmethod
    def of(cls, answers: list[ChatUsage]) -> Usage:
        prompt, completion = answers[0].prompt_tokens, sum(usage.completion_tokens for usage in answers)
        return cls(
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=prompt + completion,
            prompt_tokens_details=PromptDetails(audio_tokens=answers[0].audio_tokens),
            completion_tokens_details=CompletionDetails(
                reasoning_tokens=sum(usage.reasoning_tokens for usage in answers)
            ),
        )


class Logprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[Any] = []

    @classmethod
    def of(cls, token: TokenLogprob) -> Logprob:
        return cls(token=token.token, logprob=token.logprob, bytes=list(token.bytes), top_logprobs=[])


class Logprobs(BaseModel):
    content: list[Logprob]


class CalledFunction(BaseModel):
    name: str
    arguments: str


class ReplyToolCall(BaseModel):
    index: int = 0  # in chunks
    id: str
    type: Literal["function"]
    function: CalledFunction

    @classmethod
    def of(cls, call: ToolCall, chunk: bool) -> ReplyToolCall:
        index = {"index": call.index} if chunk else {}
        function = CalledFunction(name=call.name, arguments=call.arguments)
        return cls(id=call.id, type="function", function=function, **index)


class SpokenContent(BaseModel):
    """What the model says aloud; audio as `<audio_1475><audio_1978>...`."""

    tts_text: str
    tts_audio: str


class ReplyMessage(BaseModel):
    """Of a whole reply, or what a chunk adds to it. `reasoning` is `reasoning_content` again."""

    role: Literal["assistant"] = "assistant"
    content: str | None = None
    reasoning_content: str = ""
    reasoning: str = ""
    tool_calls: list[ReplyToolCall] = []
    tts_content: SpokenContent | None = None


class Choice(BaseModel):
    index: int
    message: ReplyMessage
    logprobs: Logprobs | None
    finish_reason: FinishReason


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class ChunkChoice(BaseModel):
    index: int
    delta: ReplyMessage
    logprobs: Logprobs | None = None
    finish_reason: FinishReason | None


class ChatCompletionChunk(BaseModel):
    """`choices` is empty in the last one, which has the usage if that was asked for."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None


class Model(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    max_model_len: int


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[Model]


class Transcription(BaseModel):
    text: str


class VerboseTranscription(BaseModel):
    """Without segments and words: the model gives no times."""

    task: Literal["transcribe"]
    language: str
    duration: float
    text: str


class Status(BaseModel):
    status: str

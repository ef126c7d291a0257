"""What clients send: OpenAI's request for a chat completion, with vLLM's additions under vLLM's names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, create_model

from step_audio.sampling_parameters import INT32, MAX_TOP_LOGPROBS, Parameter, offered
from step_audio_gateway.controls import (
    MAX_CHOICES,
    ChatTemplateKwargs,
    Effort,
    MindPacedControl,
    ReasoningControl,
    StreamOptions,
    StructuredOutputs,
    ThinkingControl,
)
from step_audio_gateway.messages import ChatMessage
from step_audio_gateway.nulls import Lenient

MAX_ANSWERS = 128
MAX_STOPS = 64
MAX_BAD_WORDS = 256
Word = Annotated[str, Field(min_length=1, max_length=1024)]


class Function(BaseModel):
    """A function that the model may call; `parameters` is a JSON schema of its arguments."""

    model_config = ConfigDict(extra="allow")  # the model is shown what the caller wrote

    name: str = Field(min_length=1)
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(BaseModel):
    """Something the model may use: a function."""

    model_config = ConfigDict(extra="allow")

    type: Literal["function"]
    function: Function


class NamedFunction(Lenient):
    """The function that must be called."""

    name: str


class NamedToolChoice(Lenient):
    """Demands a call of one function."""

    type: Literal["function"]
    function: NamedFunction


class JsonSchema(Lenient):
    """The schema that the answer must follow."""

    name: str | None = None
    description: str | None = None
    strict: bool | None = None
    schema_: dict[str, Any] = Field(alias="schema")


class TextFormat(Lenient):
    """Free text, the default."""

    type: Literal["text"]


class JsonObjectFormat(Lenient):
    """An answer that is a JSON object."""

    type: Literal["json_object"]


class JsonSchemaFormat(Lenient):
    """An answer that follows a JSON schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


def _field(one: Parameter) -> tuple[Any, Any]:
    bounds = {"ge": one.at_least, "gt": one.above, "le": one.at_most}
    given: dict[str, Any] = {key: bound for key, bound in bounds.items() if bound is not None}
    return one.kind | None, Field(one.default, description=one.text, **given)


# Read by the list alone, in options.py: no code names its fields.
if TYPE_CHECKING:
    SamplingFields = Lenient
else:
    SamplingFields = create_model(
        "SamplingFields",
        __base__=Lenient,
        **{name: _field(one) for one in offered("http") for name in (one.name, *one.aliases)},
    )


class AudioOutput(Lenient):
    """How an answer is said aloud. `voice`: a name that the server's voice knows."""

    voice: str | None = None
    format: Literal["wav", "mp3", "aac", "flac", "opus", "pcm16"] = "wav"


class AnswerRequest(SamplingFields):
    """What every route takes whose answers are generated for a JSON body, besides what it asks."""

    model_config = ConfigDict(extra="allow")

    model: str | None = Field(None, description="a name of /v1/models; may be left out")
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: int | None = Field(1, ge=1, le=MAX_ANSWERS)

    stop: Word | Annotated[list[Word], Field(max_length=MAX_STOPS)] | None = Field(
        None, description="ends the answer and is no part of it"
    )
    stop_token_ids: list[NonNegativeInt] | None = Field(None, max_length=MAX_STOPS)
    bad_words: list[Word] | None = Field(
        None,
        max_length=MAX_BAD_WORDS,
        description="never written, in the thought neither",
    )
    ignore_eos: bool | None = Field(
        False, description="the model cannot end its answer, which so has max_tokens: for measurements"
    )
    skip_special_tokens: bool | None = True

    response_format: ResponseFormat | None = Field(None, description="the form of the answer")
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | None = Field(None, description="the same as structured_outputs.json")
    guided_regex: str | None = Field(None, description="the same as structured_outputs.regex")
    guided_choice: list[str] | None = Field(
        None, min_length=1, max_length=MAX_CHOICES, description="the same as structured_outputs.choice"
    )
    guided_grammar: str | None = Field(None, description="the same as structured_outputs.grammar")
    regex: str | None = Field(None, description="the same as structured_outputs.regex")
    ebnf: str | None = Field(None, description="the same as structured_outputs.grammar")


class ChatRequest(AnswerRequest):
    """Unknown keys are ignored. What is known and cannot be honoured is refused by its name."""

    messages: list[ChatMessage] = Field(min_length=1)

    stop: Word | Annotated[list[Word], Field(max_length=MAX_STOPS)] | None = Field(
        None,
        description="ends the answer and is no part of it; the thought ends at one with `</think>` in it, and with "
        "separate_reasoning false at any",
    )

    response_format: ResponseFormat | None = Field(None, description="of the answer; the thought before it is free")
    logprobs: bool | None = Field(False, description="of every generated token, those of the thought included")
    top_logprobs: int | None = Field(
        None,
        ge=0,
        le=MAX_TOP_LOGPROBS,
        description="of the likeliest tokens in each place, too; on GPUs only 0: the chosen token alone is known",
    )

    tools: list[Tool] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedToolChoice | None = None
    parallel_tool_calls: bool | None = Field(True, description="false: the answer ends with its first call")

    modalities: list[Literal["text", "audio"]] | None = Field(
        None, min_length=1, description="with audio, the answer is said aloud, in `audio` of the message"
    )
    audio: AudioOutput | None = Field(None, description="of an answer that is said aloud; streamed, `pcm16`")
    add_generation_prompt: bool | None = Field(
        None, description="open a new turn of the assistant; default: unless the last message is one to continue"
    )
    continue_final_message: bool | None = Field(
        None, description="go on with the last message; default: if it is the assistant's, with text, and not ended"
    )
    thinking: ThinkingControl | None = None
    enable_thinking: bool | None = Field(None, description="the same as thinking.mode")
    thinking_token_budget: int | None = Field(
        None, ge=-1, le=INT32, description="the same as thinking.budget_tokens; -1: no bound"
    )
    reasoning_effort: Effort | None = Field(
        None, description="a budget of thought each, the server's; `none` is the same as thinking.mode off"
    )
    reasoning: ReasoningControl | None = None
    mind_paced_speaking: MindPacedControl | None = None
    chat_template_kwargs: ChatTemplateKwargs | None = None
    separate_reasoning: bool | None = Field(
        None, description="false leaves thought, markers and tool calls in content, as the model wrote them"
    )

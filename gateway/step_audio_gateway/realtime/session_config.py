"""What a session, or one response, is told: OpenAI's fields, and those of /v1/chat/completions beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from step_audio.conversation import MAX_ITEMS
from step_audio_gateway.controls import Effort, MindPacedControl, ThinkingControl
from step_audio_gateway.nulls import Closed, KnownKeys
from step_audio_gateway.realtime.faults import Fault
from step_audio_gateway.realtime.formats import Kind, SampleFormat
from step_audio_gateway.response_request import NamedChoice, ResponseFunction, as_chat_tool
from step_audio_gateway.schemas import ChatRequest, SamplingFields

_OFF = ("turn_detection", "transcription")  # whose null is no default
_NESTED = ("audio", "input", "output")  # objects whose other keys stay when one is set
_MORE = {*SamplingFields.model_fields, "stop", "bad_words", "ignore_eos"} - {"max_tokens", "max_completion_tokens"}
MOST_BYTES = 1 << 20  # of a configuration, as JSON: each session keeps one, and each answer its own
# For errors: as the caller calls them.
NAMES = {"max_tokens": "max_output_tokens", "reasoning_effort": "reasoning.effort"}


def _voice_name(value: Any) -> Any:
    return value["id"] if isinstance(value, dict) and value.keys() == {"id"} else value


class AudioFormat(Closed):
    """PCM16 at 24 or 16 kHz, or G.711, which is at 8 kHz."""

    type: Kind = "audio/pcm"
    rate: Literal[24_000, 16_000, 8_000] = 24_000

    @model_validator(mode="before")
    @classmethod
    def _with_rate(cls, value: Any) -> Any:
        """Clients read it, and some insist on a number."""
        if isinstance(value, dict) and value.get("rate") is None:
            return {**value, "rate": 24_000 if value.get("type", "audio/pcm") == "audio/pcm" else 8_000}
        return value

    def format(self, place: str) -> SampleFormat:
        """Raises Fault."""
        rate = self.rate
        if (rate == 8_000) == (self.type == "audio/pcm"):
            raise Fault("invalid_value", f"{place}.rate: {rate} does not go with {self.type}", f"{place}.rate")
        return SampleFormat(self.type, rate)


class InputTranscription(Closed):
    """What was said, in words, beside the answer; the model that answers writes it down, whichever is named."""

    model: str | None = None
    language: str | None = Field(default=None, max_length=64)
    prompt: str | None = Field(default=None, max_length=4096)


class ServerVad(Closed):
    """The server finds turns. `prefix_padding_ms`: of audio before the speech; `silence_duration_ms`: ends a turn;
    `idle_timeout_ms`: of silence after an answer, which is answered, too."""

    type: Literal["server_vad"] = "server_vad"
    threshold: float = Field(default=0.5, ge=0, le=1)
    prefix_padding_ms: int = Field(default=300, ge=0, le=10_000)
    silence_duration_ms: int = Field(default=500, ge=32, le=10_000)
    idle_timeout_ms: int | None = Field(default=None, ge=5_000, le=30_000)
    create_response: bool = True
    interrupt_response: bool = True


class SemanticVad(Closed):
    """The same with a silence by `eagerness`: what is said tells nothing here of whether somebody has ended."""

    type: Literal["semantic_vad"]
    eagerness: Literal["low", "medium", "high", "auto"] = "auto"
    create_response: bool = True
    interrupt_response: bool = True

    def as_server_vad(self) -> ServerVad:
        silence = {"low": 1500, "medium": 800, "auto": 800, "high": 400}[self.eagerness]
        return ServerVad(
            silence_duration_ms=silence,
            create_response=self.create_response,
            interrupt_response=self.interrupt_response,
        )


class AudioInput(KnownKeys):
    """`turn_detection` None: the client commits turns."""

    format: AudioFormat = AudioFormat()
    noise_reduction: None = None
    transcription: InputTranscription | None = None
    turn_detection: Annotated[ServerVad | SemanticVad, Field(discriminator="type")] | None = None


class SessionAudioOutput(KnownKeys):
    """Of answers that are said aloud. `voice`: a name that the speech server knows; `{"id": ...}` is one, too."""

    format: AudioFormat = AudioFormat()
    voice: Annotated[str | None, BeforeValidator(_voice_name)] = None
    speed: float = Field(default=1.0, ge=0.25, le=1.5)


class AudioConfig(KnownKeys):
    """Both directions."""

    input: AudioInput = AudioInput()
    output: SessionAudioOutput = SessionAudioOutput()


class Tracing(Closed):
    """Of OpenAI's dashboard: taken, for clients send it unasked, and nothing comes of it."""

    workflow_name: str | None = None
    group_id: str | None = None
    metadata: dict[str, Any] | None = None


class Retention(Closed):
    """Where all is too much, so much of the conversation is kept each time, the latest of it."""

    type: Literal["retention_ratio"]
    retention_ratio: float = Field(ge=0, le=1)
    token_limits: None = None


class SessionReasoning(Closed):
    """The model's thought before the answer, in OpenAI's words."""

    effort: Effort | None = None


class SessionConfig(BaseModel):
    """All keys are there in what a client is told, null or not. Further keys: sampling parameters, `stop`,
    `bad_words`, `ignore_eos`."""

    model_config = ConfigDict(extra="allow")

    type: Literal["realtime"] = "realtime"
    model: str | None = None
    instructions: str = ""
    output_modalities: list[Literal["text", "audio"]] = Field(default=["text"], min_length=1, max_length=1)
    audio: AudioConfig = AudioConfig()
    tools: list[ResponseFunction] = Field(default=[], max_length=MAX_ITEMS, fail_fast=True)
    tool_choice: Literal["auto", "none", "required"] | NamedChoice = "auto"
    parallel_tool_calls: bool = True
    max_output_tokens: PositiveInt | Literal["inf"] = "inf"
    truncation: Literal["auto", "disabled"] | Retention = "auto"
    reasoning: SessionReasoning | None = None
    thinking: ThinkingControl | None = None
    mind_paced_speaking: MindPacedControl | None = None
    include: list[Literal["reasoning"]] | None = Field(
        default=None, fail_fast=True, description="reasoning: the thought as events"
    )
    prompt: None = None
    tracing: Literal["auto"] | Tracing | None = None

    @property
    def retention(self) -> float | None:
        """Share of the conversation that is kept where all is too much; None: the answer fails."""
        if isinstance(self.truncation, Retention):
            return self.truncation.retention_ratio
        return 0.5 if self.truncation == "auto" else None

    @property
    def detection(self) -> ServerVad | None:
        given = self.audio.input.turn_detection
        return given.as_server_vad() if isinstance(given, SemanticVad) else given

    def public(self) -> dict[str, Any]:
        """As events hold it, and as `updated` takes it."""
        said = self.model_dump(mode="json", by_alias=True)
        if self.thinking is not None:  # what was not said of it is no wish
            said["thinking"] = self.thinking.model_dump(exclude_unset=True)
        said["tools"] = [tool.model_dump(mode="json", exclude_none=True) for tool in self.tools]
        return said

    def updated(self, change: Mapping[str, Any], place: str, default: SessionConfig | None = None) -> SessionConfig:
        """`place`: what the event calls it; `default`: what null stands for. Raises Fault; this one stays as it is."""
        for name, value in change.items():
            if value is not None and name not in SessionConfig.model_fields and name not in _MORE:
                raise Fault("unknown_parameter", f"Unknown parameter: '{place}.{name}'.", f"{place}.{name}")
        values = _merged(self.public(), change, (default or SessionConfig()).public())
        try:
            new = SessionConfig.model_validate(values)
        except ValidationError as error:
            raise Fault.of_validation(error, values, place) from None
        if len(new.model_dump_json().encode()) > MOST_BYTES:
            raise Fault("invalid_value", f"{place}: all its settings have more than {MOST_BYTES} bytes together", place)
        new.audio.input.format.format(f"{place}.audio.input.format")
        new.audio.output.format.format(f"{place}.audio.output.format")
        new.as_chat(place)
        return new

    def as_chat(self, place: str = "session") -> ChatRequest:
        """How to answer, without what: its messages stand for none. Raises Fault."""
        extra = {name: value for name, value in (self.model_extra or {}).items() if value is not None}
        choice = self.tool_choice
        if isinstance(choice, NamedChoice):
            named = {"type": "function", "function": {"name": choice.name}}
        values = extra | {
            "messages": [{"role": "user", "content": ""}],
            "tools": [as_chat_tool(tool) for tool in self.tools] or None,
            "tool_choice": named if isinstance(choice, NamedChoice) else choice,
            "parallel_tool_calls": self.parallel_tool_calls,
            "max_tokens": None if self.max_output_tokens == "inf" else self.max_output_tokens,
            "reasoning_effort": self.reasoning.effort if self.reasoning else None,
            "thinking": self.thinking and self.thinking.model_dump(exclude_unset=True),
            "mind_paced_speaking": self.mind_paced_speaking and self.mind_paced_speaking.model_dump(),
        }
        try:
            return ChatRequest.model_validate(values)
        except ValidationError as error:
            raise renamed(Fault.of_validation(error, values, place)) from None


def renamed(fault: Fault) -> Fault:
    """In the caller's words."""
    text, param = str(fault), fault.param
    for ours, theirs in NAMES.items():
        text, param = text.replace(ours, theirs), param and param.replace(ours, theirs)
    return Fault(fault.code, text, param, fault.kind)


def _merged(values: dict[str, Any], change: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    """null: the default, and for what can be off, off."""
    merged = dict(values)
    for name, value in change.items():
        if name in _NESTED and isinstance(value, Mapping) and isinstance(values.get(name), dict):
            merged[name] = _merged(values[name], value, default[name])
        elif value is None:
            merged.pop(name, None)
            if name in default and name not in _OFF:
                merged[name] = default[name]
        else:
            merged[name] = value
    return merged

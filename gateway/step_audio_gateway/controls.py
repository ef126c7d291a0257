"""How an answer is to be made: what clients send besides messages and sampling parameters."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from step_audio_client import MindPaced, PaceMode
from step_audio_gateway.nulls import Closed

PACE = MindPaced()
MAX_CHOICES = 1024
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class StreamOptions(Closed):
    """What a stream brings beside the answer."""

    include_usage: bool = Field(False, description="a last chunk with the usage")
    continuous_usage_stats: bool | None = Field(
        False, description="with include_usage: every other chunk has its answer's usage so far"
    )
    include_obfuscation: bool | None = Field(None, description="is ignored: chunks have no filling")


class ThinkingControl(Closed):  # other servers' words for "off" would leave it on
    """The model's thought before the answer."""

    mode: Literal["on", "off"] = Field("on", description="default: the server's --default-thinking")
    type: Literal["enabled", "adaptive", "disabled"] | None = Field(
        None, description="Anthropic's word for it: disabled is off, the others are on"
    )
    budget_tokens: NonNegativeInt | None = Field(
        None, description="tokens of thought after which it is closed and the answer begins; 0: none"
    )


class ReasoningControl(Closed):
    """The model's thought before the answer, in OpenRouter's words."""

    effort: Effort | None = Field(None, description="the same as reasoning_effort")
    max_tokens: NonNegativeInt | None = Field(None, description="the same as thinking.budget_tokens")
    enabled: bool | None = Field(None, description="the same as thinking.mode")
    exclude: bool | None = Field(False, description="true is refused: a thought that is made is shown")


class MindPacedControl(Closed):  # a misspelt number would leave its default in force
    """Speak while the thought goes on (Mind-Paced Speaking): `reasoning_content` and `content` come interleaved."""

    mode: PaceMode = Field(
        PACE.mode,
        description="think_first: speak after the first think_tokens; speak_first: the first speak_tokens without a "
        "thought; think_before_speak, no_think: all of the thought first, or none",
    )
    think_tokens: PositiveInt | None = Field(
        PACE.think_tokens, le=2**31 - 1, description="of thought, per piece of answer; null: as suits the served model"
    )
    speak_tokens: PositiveInt | None = Field(
        PACE.speak_tokens, le=2**31 - 1, description="of the answer, at most, per piece; null: as suits the model"
    )
    speech_rate: float | None = Field(
        PACE.speech_rate,
        ge=0.1,
        le=1000,
        description="tokens a second at which the answer is played; the next piece is there when it is needed. Null: "
        "the thought alone sets the pace",
    )


class ChatTemplateKwargs(Closed):
    """Qwen's, DeepSeek's and vLLM's ways to turn the thought off, or to bound it."""

    enable_thinking: bool | None = Field(None, description="the same as thinking.mode")
    thinking: bool | None = Field(None, description="the same as thinking.mode")
    thinking_budget: NonNegativeInt | None = Field(None, description="the same as thinking.budget_tokens")


class StructuredOutputs(Closed):
    """The form of the answer, under vLLM's names: one of them."""

    json_: dict[str, Any] | str | None = Field(None, alias="json", description="a JSON schema, or its text")
    json_object: bool | None = Field(None, description="true: any JSON object")
    regex: str | None = Field(None, description="a regular expression for all of the answer")
    choice: list[str] | None = Field(None, min_length=1, max_length=MAX_CHOICES, description="one of these texts")
    grammar: str | None = Field(None, description="in xgrammar's EBNF, its first rule `root`")
    disable_any_whitespace: bool | None = Field(None, description="is ignored: JSON has none that nobody needs")

"""What goes into `StepAudioClient.chat` and what comes out of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from step_audio_client.sampling import Sampling
from step_audio_client.tool_calls import ToolCall


@dataclass(frozen=True)
class Thinking:
    """How long the model may think before it answers.

    `budget`: tokens of thought after which the chain is closed with "\\n</think>\\n" and the answer begins; None lets
    the model end it. A shorter thought is not stretched. Only with mode "on".
    """

    mode: Literal["on", "off"] = "on"
    budget: int | None = None


@dataclass(frozen=True)
class Guide:
    """A form that the answer (never the thought) must have, in TensorRT-LLM's own terms.

    `text`: the JSON schema, the regular expression or the EBNF grammar; empty for "json", any JSON object.
    """

    kind: Literal["json", "json_schema", "regex", "ebnf_grammar"]
    text: str = ""


@dataclass(frozen=True)
class ChatOptions:
    """Everything about one answer but the messages."""

    sampling: Sampling = field(default_factory=Sampling)
    tools: tuple[Mapping[str, Any], ...] = ()  # OpenAI's form: {"type": "function", "function": {"name": ...}}
    tool_choice: str = "auto"  # "auto", "none", "required", or the name of one of `tools`
    stop: tuple[str, ...] = ()  # looked for in the answer, not in the thought; not part of the result
    stop_token_ids: tuple[int, ...] = ()  # besides the checkpoint's own, anywhere; no part of the text
    thinking: Thinking = Thinking()
    guide: Guide | None = None
    logprobs: bool = False
    skip_special_tokens: bool = True
    continue_final_message: bool = False
    timeout: float | None = None  # seconds for the whole answer


@dataclass(frozen=True)
class TokenLogprob:
    """One generated token. `bytes` may be a part of a character, whose place in `token` is then U+FFFD."""

    token: str
    bytes: tuple[int, ...]
    logprob: float
    reasoning: bool = False  # of the thought or its end marker


@dataclass(frozen=True)
class ChatUsage:
    """Tokens. `audio_tokens` are among the `prompt_tokens`, `reasoning_tokens` among the `completion_tokens`."""

    prompt_tokens: int
    completion_tokens: int
    audio_tokens: int
    reasoning_tokens: int


@dataclass(frozen=True)
class TtsContent:
    """What the model says aloud: the words, and its audio tokens as `<audio_1475><audio_1978>...`."""

    text: str = ""
    audio: str = ""


@dataclass(frozen=True)
class ChatDelta:
    """What is new. Texts are whole characters, and `reasoning` and `content` hold no marker nor a part of one."""

    reasoning: str = ""
    content: str = ""
    raw: str = ""  # the undivided text: thought, its end marker, answer, calls and speech as the model wrote them
    tool_calls: tuple[ToolCall, ...] = ()
    tts: TtsContent | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    token_ids: tuple[int, ...] = ()
    finish_reason: Literal["stop", "length", "tool_calls"] | None = None  # on the last one
    usage: ChatUsage | None = None  # on the last one

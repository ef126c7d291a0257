"""What goes into `StepAudioClient.chat` and what comes out of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from step_audio_client.audio_report import AudioReport
from step_audio_client.sampling import Sampling
from step_audio_client.tool_calls import ToolCall


@dataclass(frozen=True)
class Thinking:
    """How long the model may think before it answers.

    `budget`: tokens of thought after which the chain is closed with "\\n</think>\\n" and the answer begins; None lets
    the model end it. A shorter thought is not stretched. Only with mode "on".
    """

    mode: Literal["on", "off"] = "on"  # off closes the thought of a message that is continued, too
    budget: int | None = None


PaceMode = Literal["think_first", "speak_first", "think_before_speak", "no_think"]


@dataclass(frozen=True)
class MindPaced:
    """Mind-Paced Speaking: speak while the thought goes on.

    `think_first`: the answer begins out of the first `think_tokens` of the thought. With each further `think_tokens`
    more of it is spoken, `speak_tokens` at most, and when these are spoken and the thought is over, the rest.
    `speak_first`: the same, but the first `speak_tokens` are spoken out of no thought. `think_before_speak`,
    `no_think`: the whole thought first, or none; to compare with.

    `speech_rate`: tokens a second at which the answer is played. Given, what is to follow is begun so early that it is
    there when what was spoken has been heard, with as much of the thought as there is by then: from the second segment
    on the answer hangs on time. None: the thought's length alone sets the pace, and the same tokens make the same
    answer, whenever and however grouped they come.

    `think_tokens` and `speak_tokens` are the served model's own where they are None. Where there are tools, nothing is
    said before the thought is over, as in `think_before_speak`: it decides whether there is to be a call.
    """

    mode: PaceMode = "speak_first"
    think_tokens: int | None = None
    speak_tokens: int | None = None
    speech_rate: float | None = None


@dataclass
class Segment:
    """What was spoken at once. Times are seconds since the question was asked."""

    begun: float
    thought_tokens: int  # that were known
    first: float | None = None  # when the first token came
    last: float | None = None
    spoken_tokens: int = 0
    total_blocks: int = 0  # of the KV cache, taken by prompt and answer; 0 where Formulation went on speaking
    reused_blocks: int = 0  # of these, known already


@dataclass(frozen=True)
class SpeechTiming:
    """How a mind-paced answer went. Times are seconds since the question was asked."""

    first_spoken: float | None  # when the answer's first token came; None where there was none
    thought_before: int  # tokens of thought that it was spoken out of
    thought_tokens: int
    thought_ended: float | None  # None where it did not
    underruns: int  # times at which all that was spoken had been heard; 0 without a speech rate
    silence: float  # seconds of these
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class Guide:
    """A form that the answer (never the thought) must have, in TensorRT-LLM's own terms.

    `text`: the JSON schema, the regular expression or the EBNF grammar; empty for "json", any JSON object. `name`: what
    errors call it.
    """

    kind: Literal["json", "json_schema", "regex", "ebnf_grammar"]
    text: str = ""
    name: str = field(default="guide", compare=False)
    bounded: bool = field(default=False, repr=False, compare=False)  # as the LLM is to get it


@dataclass(frozen=True)
class RawOptions:
    """Everything about the text behind a raw prompt."""

    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()  # no part of the result
    stop_token_ids: tuple[int, ...] = ()  # besides the checkpoint's own, anywhere; no part of the text
    bad_words: tuple[str, ...] = ()  # never written, anywhere: neither so nor with a space before it
    ignore_eos: bool = False  # the model cannot end the answer: max_tokens or a stop string does
    guide: Guide | None = None
    logprobs: bool = False
    skip_special_tokens: bool = True
    adapter: str | None = None  # by its name; None: the model without any
    timeout: float | None = None  # seconds for the whole answer


@dataclass(frozen=True)
class ChatOptions(RawOptions):
    """Everything about one answer but the messages. `stop`: looked for in the answer, one with `</think>` anywhere."""

    tools: tuple[Mapping[str, Any], ...] = ()  # OpenAI's form: {"type": "function", "function": {"name": ...}}
    tool_choice: str = "auto"  # "auto", "none", "required", or the name of one of `tools`
    parallel_tool_calls: bool = True  # False: the answer ends with its first call
    stop_in_thought: bool = False  # all of `stop` are looked for in the thought
    thinking: Thinking = Thinking()
    continue_final_message: bool = False
    mind_paced: MindPaced | None = None


@dataclass(frozen=True)
class TopLogprob:
    """One that might have been drawn. `bytes` may be a part of a character, whose place in `token` is then U+FFFD."""

    token: str
    bytes: tuple[int, ...]
    logprob: float


@dataclass(frozen=True)
class TokenLogprob(TopLogprob):
    """One generated token. `top`: the likeliest in its place, if `sampling.top_logprobs` asked for them."""

    reasoning: bool = False  # of the thought or its end marker
    top: tuple[TopLogprob, ...] = ()


@dataclass(frozen=True)
class ChatUsage:
    """Tokens. Among the `prompt_tokens` are `audio_tokens`, and `cached_tokens`, which the LLM had computed before;
    `reasoning_tokens` are among the `completion_tokens`."""

    prompt_tokens: int
    completion_tokens: int
    audio_tokens: int
    reasoning_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True)
class TtsContent:
    """What the model says aloud: the words, and its audio tokens as `<audio_1475><audio_1978>...`."""

    text: str = ""
    audio: str = ""


@dataclass(frozen=True)
class ChatDelta:
    """What is new. Texts are whole characters, and `reasoning` and `content` hold no part of a marker between them. The
    `content` of a delta is before its calls: what is behind them is in a later one."""

    reasoning: str = ""
    content: str = ""
    raw: str = ""  # the undivided text: thought, its end marker, answer, calls and speech as the model wrote them
    tool_calls: tuple[ToolCall, ...] = ()
    tts: TtsContent | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    token_ids: tuple[int, ...] = ()
    prompt_tokens: int = 0  # as in `usage`, from the first one on
    finish_reason: Literal["stop", "length", "tool_calls"] | None = None  # on the last one
    usage: ChatUsage | None = None  # on the last one
    audio: tuple[AudioReport, ...] = ()  # on the last one
    speech: SpeechTiming | None = None  # on the last one of a mind-paced answer

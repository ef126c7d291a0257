"""What clients get. Keys that were not set are left out: `null` and absent are not the same to every client."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, Field

from step_audio.generation_config import Pace, Suggestions
from step_audio_client import AudioReport, ChatUsage, Segment, SpeechTiming, TokenLogprob, ToolCall

FinishReason = Literal["stop", "length", "tool_calls"]


class PromptDetails(BaseModel):
    """Positions of the prompt that are audio, and those that the LLM had computed for a prompt before: in whole blocks
    of its KV cache, on GPUs the last one counted as whole where it is known in part."""

    audio_tokens: int
    cached_tokens: int


class CompletionDetails(BaseModel):
    """Tokens of the answer that are thought."""

    reasoning_tokens: int


class CompletionUsage(BaseModel):
    """A prompt counts once, however many answers it has. The details come with the whole usage only."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None

    @classmethod
    def of(cls, answers: list[ChatUsage], prompts: int = 1) -> CompletionUsage:
        """Of answers to so many prompts, as many to each, in their order."""
        asked = answers[:: len(answers) // prompts]
        prompt, completion = sum(one.prompt_tokens for one in asked), sum(one.completion_tokens for one in answers)
        return cls(
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=prompt + completion,
            prompt_tokens_details=PromptDetails(
                audio_tokens=sum(one.audio_tokens for one in asked),
                cached_tokens=sum(one.cached_tokens for one in asked),
            ),
            completion_tokens_details=CompletionDetails(reasoning_tokens=sum(one.reasoning_tokens for one in answers)),
        )

    @classmethod
    def so_far(cls, prompt: int, completion: int) -> CompletionUsage:
        """Of one answer on its way."""
        return cls(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


class TopLogprob(BaseModel):
    """A token and its log-probability. `bytes` is its UTF-8, which may end within a character."""

    token: str
    logprob: float
    bytes: list[int]


class Logprob(TopLogprob):
    """Of a generated token; `top_logprobs`: of the likeliest in its place, as many as were asked for."""

    top_logprobs: list[TopLogprob]

    @classmethod
    def of(cls, token: TokenLogprob) -> Logprob:
        top = [TopLogprob(token=one.token, logprob=one.logprob, bytes=list(one.bytes)) for one in token.top]
        return cls(token=token.token, logprob=token.logprob, bytes=list(token.bytes), top_logprobs=top)


class Logprobs(BaseModel):
    """One entry for each generated token."""

    content: list[Logprob]


class CalledFunction(BaseModel):
    """The function that the model calls; `arguments` is JSON."""

    name: str
    arguments: str


class ReplyToolCall(BaseModel):
    """A call that the model makes. Answer it with a message of role `tool` with the same `tool_call_id`."""

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


class ReplyAudio(BaseModel):
    """What was said aloud: `transcript`, and `data`, base64 of the format that was asked for; in chunks what is new of
    both. Nothing is kept, so `expires_at` is when it was said: who goes on sends the transcript back."""

    id: str | None = None
    data: str = ""
    transcript: str = ""
    expires_at: int | None = None


class ReplyMessage(BaseModel):
    """Of a whole reply, or what a chunk adds to it. `reasoning` is `reasoning_content` again."""

    role: Literal["assistant"] = "assistant"
    content: str | None = None
    reasoning_content: str = ""
    reasoning: str = ""
    tool_calls: list[ReplyToolCall] = Field(default_factory=list)  # a plain default is copied deeply for each chunk
    tts_content: SpokenContent | None = None
    audio: ReplyAudio | None = None


class SpokenSegment(BaseModel):
    """A piece of the answer, made out of the first `thought_tokens` of the thought. Blocks are of the KV cache."""

    begun: float
    first: float | None
    last: float | None
    thought_tokens: int
    spoken_tokens: int
    prompt_blocks: int
    reused_blocks: int

    @classmethod
    def of(cls, segment: Segment) -> Self:
        return cls(
            begun=round(segment.begun, 3),
            first=_milliseconds(segment.first),
            last=_milliseconds(segment.last),
            thought_tokens=segment.thought_tokens,
            spoken_tokens=segment.spoken_tokens,
            prompt_blocks=segment.total_blocks,
            reused_blocks=segment.reused_blocks,
        )


class MindPacedSpeech(BaseModel):
    """How a mind-paced answer went; times are seconds since the question came, null for what did not happen."""

    first_spoken_seconds: float | None
    thought_tokens_before: int
    thought_tokens: int
    thought_seconds: float | None
    underruns: int
    silence_seconds: float
    segments: list[SpokenSegment]

    @classmethod
    def of(cls, timing: SpeechTiming) -> Self:
        return cls(
            first_spoken_seconds=_milliseconds(timing.first_spoken),
            thought_tokens_before=timing.thought_before,
            thought_tokens=timing.thought_tokens,
            thought_seconds=_milliseconds(timing.thought_ended),
            underruns=timing.underruns,
            silence_seconds=round(timing.silence, 3),
            segments=[SpokenSegment.of(segment) for segment in timing.segments],
        )


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


class AudioWarning(BaseModel):
    """What was amiss with a recording, the `index`-th of the request, that was answered all the same."""

    index: int
    lost_seconds: float
    text: str

    @classmethod
    def of(cls, report: AudioReport) -> Self:
        return cls(index=report.index, lost_seconds=report.lost_seconds, text=report.text)


class Choice(BaseModel):
    """One of the `n` answers."""

    index: int
    message: ReplyMessage
    logprobs: Logprobs | None
    finish_reason: FinishReason
    mind_paced_speaking: MindPacedSpeech | None = None


class ChatCompletion(BaseModel):
    """The whole reply, when `stream` is off."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: CompletionUsage
    audio_warnings: list[AudioWarning] | None = None


class ChunkChoice(BaseModel):
    """What a chunk adds to one of the `n` answers. `finish_reason` is null until the last one."""

    index: int
    delta: ReplyMessage
    logprobs: Logprobs | None = None
    finish_reason: FinishReason | None
    mind_paced_speaking: MindPacedSpeech | None = None  # with the finish_reason


class ChatCompletionChunk(BaseModel):
    """`choices` is empty in the last one, which has the usage if that was asked for; see StreamOptions for others'."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: CompletionUsage | None = None
    audio_warnings: list[AudioWarning] | None = None  # with a finish_reason


class Model(BaseModel):
    """A served model, or an adapter, whose `parent` it is. `root` is the checkpoint's name, `max_model_len` the
    positions that prompt and answer share, `supported_parameters` are the sampling parameters that the LLM takes,
    `mind_paced_speaking` is in what pieces it thinks and speaks at once where a request does not say, `suggestions` are
    what it can do, for people."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None
    max_model_len: int
    supported_parameters: list[str]
    mind_paced_speaking: Pace
    suggestions: Suggestions


class ModelList(BaseModel):
    """All names that requests may give in `model`."""

    object: Literal["list"]
    data: list[Model]


class TranscriptionInput(BaseModel):
    """Of the question and the recording."""

    text_tokens: int
    audio_tokens: int


class TranscriptionUsage(BaseModel):
    """Tokens, under OpenAI's names for transcriptions."""

    type: Literal["tokens"]
    input_tokens: int
    input_token_details: TranscriptionInput
    output_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, usage: ChatUsage | None) -> Self | None:
        if usage is None:
            return None
        heard = usage.audio_tokens
        return cls(
            type="tokens",
            input_tokens=usage.prompt_tokens,
            input_token_details=TranscriptionInput(text_tokens=usage.prompt_tokens - heard, audio_tokens=heard),
            output_tokens=usage.completion_tokens,
            total_tokens=usage.prompt_tokens + usage.completion_tokens,
        )


class Transcription(BaseModel):
    """What was said, as text; of a translation in English."""

    text: str
    usage: TranscriptionUsage | None
    audio_warnings: list[AudioWarning] | None = None


class VerboseTranscription(BaseModel):
    """Without segments and words: the model gives no times."""

    task: Literal["transcribe", "translate"]
    language: str
    duration: float
    text: str
    usage: TranscriptionUsage | None
    audio_warnings: list[AudioWarning] | None = None


class Status(BaseModel):
    """`ok`, or `unavailable`."""

    status: str


class Version(BaseModel):
    """As vLLM has it."""

    version: str

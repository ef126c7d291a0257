"""Deltas of the client library to OpenAI's completion, whole or in chunks."""

from __future__ import annotations

import base64
import contextlib
import time
from typing import Literal, TypedDict

from step_audio_client import (
    AudioReport,
    ChatDelta,
    ChatUsage,
    SpeechTiming,
    TokenLogprob,
    ToolCall,
    TtsContent,
)
from step_audio_gateway.chunks import Chunks, Deltas
from step_audio_gateway.responses import (
    AudioWarning,
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChunkChoice,
    CompletionUsage,
    FinishReason,
    Logprob,
    Logprobs,
    MindPacedSpeech,
    ReplyAudio,
    ReplyMessage,
    ReplyToolCall,
    SpokenContent,
)
from step_audio_gateway.speech.aloud import SpokenDelta
from step_audio_gateway.speech.files import file_bytes


class _Message(TypedDict, total=False):
    """Of a ReplyMessage what there is: what is not set is not sent."""

    role: Literal["assistant"]
    content: str | None
    reasoning_content: str
    reasoning: str
    tool_calls: list[ReplyToolCall]
    tts_content: SpokenContent
    audio: ReplyAudio


class _Timing(TypedDict, total=False):
    mind_paced_speaking: MindPacedSpeech


class _Logprobs(TypedDict, total=False):
    logprobs: Logprobs


class _Warnings(TypedDict, total=False):
    audio_warnings: list[AudioWarning]


class Completion(Chunks[ChunkChoice]):
    """One reply to /v1/chat/completions: how its texts are laid out.

    `raw`: thought, markers and tool calls stay in `content` as the model wrote them. `audio`: the format in which the
    answer is said aloud, None for one in writing.
    """

    def __init__(self, model: str, raw: bool, logprobs: bool, audio: str | None = None):
        super().__init__("chatcmpl", model)
        self.raw = raw
        self.logprobs = logprobs
        self.audio = audio
        self._speaking = False

    async def whole(self, deltas: Deltas) -> ChatCompletion:
        """Read all deltas. Raises RequestError."""
        answers: dict[int, _Answer] = {}
        async with contextlib.aclosing(deltas):
            async for index, delta in deltas:
                answers.setdefault(index, _Answer()).add(delta)
        ordered = [answer for _, answer in sorted(answers.items())]
        return ChatCompletion(
            id=self.id,
            object="chat.completion",
            created=self.created,
            model=self.model,
            choices=[self._choice(i, answer) for i, answer in enumerate(ordered)],
            usage=self.usage([answer.usage for answer in ordered if answer.usage]),
            **warnings_of(ordered[0].audio),
        )

    def chunk(
        self, choices: list[ChunkChoice], usage: CompletionUsage | None = None, audio: tuple[AudioReport, ...] = ()
    ) -> str:
        chunk = ChatCompletionChunk(
            id=self.id,
            object="chat.completion.chunk",
            created=self.created,
            model=self.model,
            choices=choices,
            **({"usage": usage} if usage else {}),
            **warnings_of(audio),
        )
        return chunk.model_dump_json(exclude_unset=True)

    def _choice(self, index: int, answer: _Answer) -> Choice:
        message: _Message = {"role": "assistant", "content": answer.raw if self.raw else answer.content or None}
        if not self.raw:
            message |= _reasoning(answer.reasoning) | _tool_calls(answer.tool_calls, chunk=False)
        message |= _spoken(answer.tts) | self._aloud(answer)
        return Choice(
            index=index,
            message=ReplyMessage(**message),
            logprobs=_logprobs(answer.logprobs) if self.logprobs else None,
            finish_reason=self._finish_reason(answer.finish_reason) or "stop",
            **_timing(answer.speech),
        )

    def chunk_choice(self, index: int, delta: ChatDelta, first: bool) -> ChunkChoice | None:
        message: _Message = {"role": "assistant", "content": ""} if first else {}
        if text := delta.raw if self.raw else delta.content:
            message["content"] = text
        if not self.raw:
            message |= _reasoning(delta.reasoning) | _tool_calls(delta.tool_calls, chunk=True)
        message |= _spoken(delta.tts) | self._aloud_so_far(delta)
        if not (message or delta.logprobs or delta.finish_reason):
            return None
        logprobs: _Logprobs = {"logprobs": _logprobs(delta.logprobs)} if self.logprobs and delta.logprobs else {}
        return ChunkChoice(
            index=index,
            delta=ReplyMessage(**message),
            finish_reason=self._finish_reason(delta.finish_reason),
            **logprobs,
            **_timing(delta.speech),
        )

    def _aloud(self, answer: _Answer) -> _Message:
        if self.audio is None or not answer.said:
            return {}
        data = base64.b64encode(file_bytes(answer.pcm, self.audio)).decode()
        audio = ReplyAudio(id=self._audio_id, data=data, transcript=answer.said, expires_at=int(time.time()))
        return {"audio": audio}

    def _aloud_so_far(self, delta: ChatDelta) -> _Message:
        """OpenAI's pieces: the id with the first one, the end of its life with the last."""
        if isinstance(delta, SpokenDelta):
            new = {} if self._speaking else {"id": self._audio_id}
            self._speaking = True
            if delta.said:
                new["transcript"] = delta.said
            if delta.pcm:
                new["data"] = base64.b64encode(delta.pcm).decode()
            return {"audio": ReplyAudio.model_validate(new)}
        if delta.finish_reason and self._speaking:
            return {"audio": ReplyAudio(expires_at=int(time.time()))}
        return {}

    @property
    def _audio_id(self) -> str:
        return self.id.replace("chatcmpl-", "audio_")

    def _finish_reason(self, reason: FinishReason | None) -> FinishReason | None:
        return "stop" if self.raw and reason == "tool_calls" else reason


class _Answer:
    """The sum of an answer's deltas."""

    def __init__(self) -> None:
        self.reasoning = self.content = self.raw = ""
        self.tool_calls: tuple[ToolCall, ...] = ()
        self.logprobs: list[TokenLogprob] = []
        self.tts: TtsContent | None = None
        self.finish_reason: FinishReason | None = None
        self.usage: ChatUsage | None = None
        self.speech: SpeechTiming | None = None
        self.audio: tuple[AudioReport, ...] = ()
        self.said, self.pcm = "", bytearray()

    def add(self, delta: ChatDelta) -> None:
        self.reasoning += delta.reasoning
        self.content += delta.content
        self.raw += delta.raw
        self.tool_calls += delta.tool_calls
        self.logprobs += delta.logprobs
        if delta.tts:
            before = self.tts or TtsContent()
            self.tts = TtsContent(before.text + delta.tts.text, before.audio + delta.tts.audio)
        self.finish_reason = delta.finish_reason or self.finish_reason
        self.usage = delta.usage or self.usage
        self.speech = delta.speech or self.speech
        self.audio = delta.audio or self.audio
        if isinstance(delta, SpokenDelta):
            self.said += delta.said
            self.pcm += delta.pcm


def warnings_of(audio: tuple[AudioReport, ...]) -> _Warnings:
    """Absent where there are none."""
    return {"audio_warnings": [AudioWarning.of(report) for report in audio]} if audio else {}


def _reasoning(text: str) -> _Message:
    return {"reasoning_content": text, "reasoning": text} if text else {}


def _tool_calls(calls: tuple[ToolCall, ...], chunk: bool) -> _Message:
    return {"tool_calls": [ReplyToolCall.of(call, chunk) for call in calls]} if calls else {}


def _spoken(tts: TtsContent | None) -> _Message:
    """Absent rather than null: the model card's client calls `tts_content.get`."""
    return {"tts_content": SpokenContent(tts_text=tts.text, tts_audio=tts.audio)} if tts else {}


def _timing(speech: SpeechTiming | None) -> _Timing:
    return {"mind_paced_speaking": MindPacedSpeech.of(speech)} if speech else {}


def _logprobs(tokens: list[TokenLogprob] | tuple[TokenLogprob, ...]) -> Logprobs:
    return Logprobs(content=[Logprob.of(token) for token in tokens])

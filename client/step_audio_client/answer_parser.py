"""Generated tokens to what a caller sees: thought, answer, calls, speech, log-probabilities, counts."""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Collection, Sequence
from typing import Literal, get_args

from step_audio.tokenizer import Tokenizer
from step_audio_client.chat_types import ChatDelta, TokenLogprob, TopLogprob, TtsContent
from step_audio_client.reasoning import BEGIN_MARKERS, END_MARKERS, ReasoningSplitter
from step_audio_client.stop_strings import StopStrings
from step_audio_client.tool_calls import ToolCall, ToolCallParser
from step_audio_client.tts import TtsParser

_Part = Literal["reasoning", "content", "raw", "text", "audio"]  # the last two are speech


class AnswerParser:
    """Fed one token at a time, emptied at any time: what `take` returns joins up the same however often it is called,
    and nothing stands before a call that came behind it.

    The order of work: speech (on ids), decoding, stop strings in everything, thought and answer apart, stop strings
    in the answer, tool calls. A character whose last byte never comes is left out.

    `starts_in_content`: the prompt closed the thought. `tool_names`: the calls to look for; None looks for none.
    `stop`: looked for in the answer; `stop_anywhere`: in the thought, too. `stop_ids`: tokens that are no text.
    `speech`: the prompt ended with `<tts_start>`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        starts_in_content: bool = False,
        tool_names: Collection[str] | None = None,
        stop: Sequence[str] = (),
        stop_anywhere: Sequence[str] = (),
        stop_ids: Collection[int] = (),
        skip_special_tokens: bool = True,
        speech: bool = False,
    ):
        self.completion_tokens = 0
        self.reasoning_tokens = 0  # up to the end marker's last
        self.calls = 0
        self._tokenizer = tokenizer
        self._stop_ids = frozenset(stop_ids)
        self._skip = skip_special_tokens
        self._markers = {tokenizer.added_tokens.get(name) for name in (*BEGIN_MARKERS, *END_MARKERS)}
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._speech = TtsParser(tokenizer, skip_special_tokens) if speech else None
        self._splitter = ReasoningSplitter(starts_in_content or speech)
        self._anywhere = StopStrings(stop_anywhere)
        self._stop = StopStrings(stop)
        self._calls = None if tool_names is None else ToolCallParser(tool_names)
        self._thought: list[str] = []
        self._waiting: deque[tuple[int, int, TokenLogprob]] = deque()  # by their places in the text and in the answer
        self._whole: list[ChatDelta] = []  # each up to the end of a call, with more behind it
        self._clear()

    def _clear(self) -> None:
        self._new: dict[_Part, list[str]] = {part: [] for part in get_args(_Part)}
        self._new_calls: list[ToolCall] = []
        self._logprobs: list[TokenLogprob] = []
        self._ids: list[int] = []

    @property
    def thinking(self) -> bool:
        """The thought is not over."""
        return not self._splitter.ended

    @property
    def thought(self) -> str:
        """The thought as the model wrote it, with what the token that ended it brought along."""
        return "".join(self._thought)

    @property
    def stopped(self) -> bool:
        """A stop string was found: nothing more will come."""
        return self._stop.found is not None or self._anywhere.found is not None

    def add(
        self,
        token: int,
        logprob: float | None = None,
        top: Sequence[tuple[int, float]] = (),
        thought_only: bool = False,
    ) -> None:
        """The next generated token. `top`: the likeliest in its place. `thought_only`: what it brings of the answer is
        left out."""
        if self._new_calls:
            self._whole.append(self._cut())
        self.completion_tokens += 1
        self._ids.append(token)
        if token in self._stop_ids:
            return
        thinking = self.thinking
        self.reasoning_tokens += thinking
        speech = self._speech is not None and not self._speech.ended
        # A marker that is a special token is looked for even where special tokens are left out.
        data = self._tokenizer.token_bytes([token], self._skip and not (thinking and token in self._markers))
        if data and logprob is not None:
            likeliest = tuple(TopLogprob(*self._shown(id_), value) for id_, value in top)
            shown = TokenLogprob(data.decode("utf-8", "replace"), tuple(data), logprob, thinking, likeliest)
            self._waiting.append((self._anywhere.size, self._stop.size, shown))
        if speech:
            self._add_speech(token, data)
        else:
            self._add_text(self._utf8.decode(data), thought_only and thinking)
        self._release_logprobs()

    def insert(self, text: str) -> None:
        """Text that a continued generation has in its prompt, as if the model had written it."""
        self._add_text(text)

    def close_thought(self, text: str) -> None:
        """See that the thought is over and that a line end follows it; `text` ends one that is not over.

        What was held back as a possible part of a marker or a character is dropped.
        """
        self._utf8.reset()
        self._anywhere.flush()
        if self.thinking:
            self._splitter.flush()
            self._add_text(text)
        elif not self.thought.endswith("\n"):
            self._new["raw"].append("\n")

    def flush(self, cut: bool = False) -> None:
        """The end of the reply: what was held back was nothing else than text, or a call that was `cut` short."""
        self._divide(self._anywhere.flush())
        self._new["reasoning"].append(self._splitter.flush()[0])
        self._add_answer(self._stop.flush())
        if self._calls is not None:
            self._take_calls(*self._calls.flush(cut))
        self._release_logprobs()

    def take(self) -> list[ChatDelta]:
        """What is new since the last time; what follows a call is a delta of its own."""
        whole, self._whole = self._whole, []
        return [*whole, self._cut()]

    def _cut(self) -> ChatDelta:
        new = {name: "".join(pieces) for name, pieces in self._new.items()}
        tts = TtsContent(new["text"], new["audio"])
        delta = ChatDelta(
            new["reasoning"],
            new["content"],
            new["raw"],
            tool_calls=tuple(self._new_calls),
            tts=tts if tts.text or tts.audio else None,
            logprobs=tuple(self._logprobs),
            token_ids=tuple(self._ids),
        )
        self._clear()
        return delta

    def _add_speech(self, token: int, data: bytes) -> None:
        assert self._speech is not None
        heard, _ = self._speech.push([token])
        self._new["text"].append(heard.text)
        self._new["audio"].append(heard.audio)
        self._new["raw"].append(data.decode() if token in self._tokenizer.added_ids else heard.text)

    def _add_text(self, text: str, thought_only: bool = False) -> None:
        self._divide(self._anywhere.push(text), thought_only)

    def _divide(self, text: str, thought_only: bool = False) -> None:
        if self.thinking:
            self._thought.append(text)
        reasoning, answer = self._splitter.push(text)
        self._new["reasoning"].append(reasoning)
        # The splitter never holds a part of the answer: in front of it are thought, marker and line ends.
        self._new["raw"].append(text[: len(text) - len(answer)])
        if thought_only:
            self._thought[-1] = self._thought[-1][: len(text) - len(answer)]
        else:
            self._add_answer(self._stop.push(answer))

    def _add_answer(self, text: str) -> None:
        self._new["raw"].append(text)
        if self._calls is not None:
            self._take_calls(*self._calls.push(text))
        else:
            self._new["content"].append(text)

    def _take_calls(self, content: str, calls: list[ToolCall]) -> None:
        self._new["content"].append(content)
        self._new_calls += calls
        self.calls += len(calls)

    def _shown(self, id_: int) -> tuple[str, tuple[int, ...]]:
        data = self._tokenizer.token_bytes([id_])
        return data.decode("utf-8", "replace"), tuple(data)

    def _release_logprobs(self) -> None:
        """Those of tokens with any text let pass; with a stop string go the tokens that lie inside it."""
        while self._waiting:
            written, answered, shown = self._waiting[0]
            if not self._anywhere.has_passed(written) or not (shown.reasoning or self._stop.has_passed(answered)):
                break
            self._logprobs.append(self._waiting.popleft()[-1])

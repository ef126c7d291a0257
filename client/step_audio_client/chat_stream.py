r"""One reply out of one generation or several.

Usually one. The thought is a generation of its own where something has to happen at its end:

    budget        the thought is as long as allowed: it is closed and the answer begins
    guide         the form holds for the answer; an engine applies it from the first token
    tool_choice   a call is wanted: its beginning is put into the model's mouth

The next generation continues the final message `<think>\n{thought}\n</think>\n`. That is text, and is tokenized anew:
the same text may be other tokens than the model had chosen, mostly where thought and marker touch, so a continued
answer is not token for token what one generation would have given. The server's KV cache holds all up to there.

A call that is wanted: `<tool_call>function\n{name}\n` is written for the model, its arguments follow under the guide
of the tool's JSON schema, and the call is closed. Of several tools the model first chooses a name, under a guide too.
So it is one call, of a tool that exists, with arguments that fit.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any, Literal

from step_audio.chat_template import CLOSE_THOUGHT, NO_THOUGHT, OPEN_THOUGHT
from step_audio.tokenizer import Tokenizer
from step_audio_client.answer_parser import AnswerParser
from step_audio_client.audio_report import AudioReport
from step_audio_client.chat_types import ChatDelta, ChatOptions, ChatUsage, Guide
from step_audio_client.errors import InvalidGuide, RequestError
from step_audio_client.generators import inner
from step_audio_client.raw import IN_A_FORM, bad_word_ids
from step_audio_client.raw import check as check_raw
from step_audio_client.reasoning import BEGIN_MARKERS, END_MARKERS, reasoning_ended, thought_of
from step_audio_client.tokens import FinishReason, TokenRequest, Tokens
from step_audio_client.tool_calls import BEGIN_CALL, END_CALL
from step_audio_client.tts import TTS_START

CALL_HEAD = f"{BEGIN_CALL}function\n"

Generate = Callable[[TokenRequest], AsyncGenerator[Tokens]]
Until = Callable[[], bool]
End = FinishReason | Literal["next"]  # how a generation ended; next: another is to follow


@dataclass(frozen=True)
class HeardAudio:
    """Of a prompt's recordings: how many of its tokens are not theirs, and what was amiss with them."""

    text_tokens: int
    reports: tuple[AudioReport, ...] = ()


class ChatStream:
    """`generate` makes tokens; everything about text is done here. Raises RequestError for options that do not fit."""

    def __init__(
        self, generate: Generate, tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], options: ChatOptions
    ):
        self._generate = generate
        self._tokenizer = tokenizer
        self._options = options
        self._schemas = check(options)
        self._turns: list[Mapping[str, Any]] = list(messages)
        self._last: Mapping[str, Any] = {"role": "assistant"}
        self._prefill: str | None = None  # of the assistant's turn
        if options.continue_final_message and messages:
            self._last = self._turns.pop()
            self._prefill = _text(self._last.get("content"))
            if options.thinking.mode == "off":
                self._prefill = _closed(self._prefill)
        elif options.thinking.mode == "off" or options.thinking.budget == 0:
            self._prefill = NO_THOUGHT
        self._call_wanted = options.tool_choice not in ("auto", "none")
        self._in_two = self._call_wanted or options.guide is not None
        stop = () if self._call_wanted else options.stop
        anywhere = tuple(text for text in stop if options.stop_in_thought or any(end in text for end in END_MARKERS))
        self._parser = AnswerParser(
            tokenizer,
            starts_in_content=reasoning_ended(self._prefill or ""),
            tool_names=None if not self._schemas or options.tool_choice == "none" else self._schemas,
            stop=tuple(text for text in stop if text not in anywhere),
            stop_anywhere=anywhere,
            stop_ids={*tokenizer.special.stop_ids, *options.stop_token_ids},
            skip_special_tokens=options.skip_special_tokens,
            speech=(self._prefill or "").endswith(TTS_START),
        )
        self._bad_words = bad_word_ids(options, tokenizer)
        self._prompt_tokens = 0  # of the first generation: what the others have more is the model's own
        self._cached_tokens = 0  # of these
        self._ids: list[int] = []  # of the generation under way
        self._end: End = "next"  # of the last one

    def request(self, guide: Guide | None = None) -> TokenRequest:
        """What is to be generated next."""
        options, used = self._options, self._parser.completion_tokens
        logprobs = options.logprobs or options.sampling.logprobs or bool(options.sampling.top_logprobs)
        sampling = replace(options.sampling, logprobs=logprobs)
        if sampling.max_tokens is not None:
            sampling = replace(sampling, max_tokens=sampling.max_tokens - used)
        if sampling.min_tokens is not None and used:
            sampling = replace(sampling, min_tokens=max(sampling.min_tokens - used, 0))
        turns = self._turns if self._prefill is None else [*self._turns, {**self._last, "content": self._prefill}]
        return TokenRequest(
            turns,
            sampling,
            tools=options.tools if options.tool_choice != "none" else None,
            continue_final_message=self._prefill is not None,
            stop_token_ids=options.stop_token_ids,
            guide=guide,
            bad_words=self._bad_words,
        )

    @inner
    async def deltas(
        self, heard: Callable[[], Coroutine[Any, Any, HeardAudio]] | None = None
    ) -> AsyncGenerator[ChatDelta]:
        """`heard`: tells of the recordings, once a token has come; None where there are none. Raises RequestError."""
        asking: asyncio.Task[HeardAudio] | None = None
        try:
            async with contextlib.aclosing(self._generations()) as deltas:
                begun = False
                async for delta in deltas:
                    if delta != ChatDelta():
                        yield replace(delta, prompt_tokens=self._prompt_tokens)
                    if heard and begun and not asking:  # beside the answer, and behind its first token
                        asking = asyncio.create_task(heard())
                    begun = True
            audio_tokens, reports = 0, HeardAudio(0).reports
            if heard:
                asking = asking or asyncio.create_task(heard())
                told = await asking
                audio_tokens, reports = self._prompt_tokens - told.text_tokens, told.reports
        finally:
            if asking:
                asking.cancel()
                asking.add_done_callback(lambda done: done.cancelled() or done.exception())  # never "not retrieved"
        parser = self._parser
        calls = parser.calls  # that are whole
        parser.flush(cut=self._end == "length" or parser.stopped)
        assert self._end != "next"
        usage = ChatUsage(
            self._prompt_tokens, parser.completion_tokens, audio_tokens, parser.reasoning_tokens, self._cached_tokens
        )
        called = self._end == "stop" and calls
        *whole, last = (replace(delta, prompt_tokens=self._prompt_tokens) for delta in parser.take())
        for delta in whole:
            yield delta
        yield replace(last, usage=usage, audio=reports, finish_reason="tool_calls" if called else self._end)

    @inner
    async def _generations(self) -> AsyncGenerator[ChatDelta]:
        """What each response brings, be it nothing."""
        for guide, until in self._plan():
            request = self.request(guide)
            self._ids, self._end = [], "length"
            if self._prompt_tokens and request.sampling.max_tokens == 0:
                break
            try:
                async with contextlib.aclosing(self._generate(request)) as stream:
                    async for tokens in stream:
                        if not self._prompt_tokens:
                            self._prompt_tokens, self._cached_tokens = tokens.prompt_tokens, tokens.cached_tokens
                        if end := self._read(tokens, until):
                            self._end = end
                            break  # the server's work is ended before the caller gets the rest
                        for delta in self._parser.take():
                            yield delta
            except InvalidGuide as error:  # by the caller's word for it
                asked = self._options.guide
                raise error.by_name(asked.name if asked else "tool_choice") from None
            if self._end == "next":
                for delta in self._parser.take():
                    yield delta

    def _plan(self) -> Iterator[tuple[Guide | None, Until]]:
        """The generations, each with what ends it early; goes on when one has ended, by what that one brought."""
        if self._parser.thinking:
            yield None, self._thought_suffices
            # Where a form is demanded, a reply that ended inside its thought gets an answer all the same.
            if self._end == "length" or (self._end == "stop" and not self._in_two):
                return
            self._prefill = (self._prefill or OPEN_THOUGHT) + thought_of(self._parser.thought) + CLOSE_THOUGHT
            self._parser.close_thought(CLOSE_THOUGHT)
        if self._call_wanted:
            yield from self._plan_call()
        else:
            yield self._options.guide, _never

    def _plan_call(self) -> Iterator[tuple[Guide | None, Until]]:
        choice = self._options.tool_choice
        names = list(self._schemas) if choice == "required" else [choice]
        self._insert(CALL_HEAD)
        if len(names) == 1:
            self._insert(names[0])
        else:
            # TensorRT-LLM's regular expressions know no needless escapes.
            one_of = "|".join(re.escape(name).replace(r"\-", "-") for name in names)
            yield Guide("regex", f"({one_of})"), _never
            if self._end == "length":
                return
            stop_ids = {*self._tokenizer.special.stop_ids, *self._options.stop_token_ids}
            names = [self._tokenizer.decode(token for token in self._ids if token not in stop_ids)]
            if names[0] not in self._schemas:
                raise RequestError(f"tool_choice: the model named no tool, but {names[0]!r}", "tool_choice")
            self._prefill = (self._prefill or "") + names[0]
        self._insert("\n")
        yield Guide("json_schema", self._schemas[names[0]]), _never
        if self._end == "stop":
            self._parser.insert(END_CALL)

    def _insert(self, text: str) -> None:
        """Both into the prompt and into the reply."""
        self._prefill = (self._prefill or "") + text
        self._parser.insert(text)

    def _thought_suffices(self) -> bool:
        if not self._parser.thinking:
            return self._in_two
        budget, most = self._options.thinking.budget, self._options.sampling.max_tokens
        return budget is not None and self._parser.reasoning_tokens >= budget and (most is None or budget < most)

    def _read(self, tokens: Tokens, until: Until) -> End | None:
        """Reads up to the token at which a stop string is complete or `until` holds; the generation's end, if it is."""
        for token, logprob, top in zip_longest(tokens.token_ids, tokens.logprobs, tokens.top_logprobs):
            self._parser.add(token, logprob, top or (), thought_only=self._in_two)
            self._ids.append(token)
            if self._parser.stopped or (self._parser.calls and not self._options.parallel_tool_calls):
                return "stop"
            if until():
                return "next"
        return tokens.finish_reason


def _never() -> bool:
    return False


def check(options: ChatOptions) -> dict[str, str]:
    """The tools' names, each with the JSON schema of its arguments. Raises RequestError for what does not fit."""
    schemas = {}
    for i, tool in enumerate(options.tools):
        function = tool.get("function", tool)
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
            raise RequestError(f"tools[{i}] has no function with a name", f"tools[{i}]")
        schemas[function["name"]] = json.dumps(function.get("parameters") or {"type": "object"}, ensure_ascii=False)
    choice, guide, thinking = options.tool_choice, options.guide, options.thinking
    if choice == "required" and not schemas:
        raise RequestError("tool_choice 'required' needs tools", "tool_choice")
    if choice not in ("auto", "none", "required") and choice not in schemas:
        raise RequestError(f"tool_choice: {choice!r} is none of the tools", "tool_choice")
    if any("\n" in name for name in (schemas if choice == "required" else [choice])):
        raise RequestError("tool_choice: a name of several lines cannot be called", "tool_choice")
    if guide and choice not in ("auto", "none"):
        raise RequestError(f"tool_choice {choice!r} and a guide of the answer contradict each other", "tool_choice")
    if thinking.budget is not None and (thinking.budget < 0 or thinking.mode == "off"):
        raise RequestError("thinking: a budget is a number of tokens from 0, with mode 'on'", "thinking")
    if options.ignore_eos and choice not in ("auto", "none"):
        raise RequestError(IN_A_FORM, "ignore_eos")
    check_raw(options)
    return schemas


def _closed(prefill: str) -> str:
    r"""With its thought closed where it stands.

    >>> _closed("The"), _closed("<think>\n"), _closed("<think>\nWell,\n")
    ('<think>\n\n</think>\nThe', '<think>\n\n</think>\n', '<think>\nWell,\n</think>\n')
    """
    if reasoning_ended(prefill):
        return prefill
    if prefill.strip() in BEGIN_MARKERS:
        return NO_THOUGHT
    if not any(marker in prefill for marker in BEGIN_MARKERS):
        return NO_THOUGHT + prefill
    return thought_of(prefill) + CLOSE_THOUGHT


def _text(content: Any) -> str:
    """Of a message that is to be continued, as the prompt has it. Raises RequestError."""
    parts = content if isinstance(content, (list, tuple)) else [content]
    if any(isinstance(part, Mapping) and part.get("type", "text") != "text" for part in parts):
        raise RequestError("messages: the one to be continued holds more than text", "messages")
    texts = (part.get("value", part.get("text")) if isinstance(part, Mapping) else part for part in parts)
    return "\n".join(text for text in texts if isinstance(text, str))

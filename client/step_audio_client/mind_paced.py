"""Mind-Paced Speaking (arXiv 2510.09592): one brain thinks while another, on the same engine, already speaks.

    Formulation     prompt, then the chain of thought up to `</think>`
    Articulation    prompt + thought so far + `</think>` + what has been said, then some more of the answer

Both are rows of one batch, and what they have in common is in the KV cache once. When the thought is over before
anything was said, Formulation simply goes on into the answer.

`brains.py` says what each is asked, `pacing.py` when. Here they are run. Tokens are handled one by one: the messages
that they come in, and without a speech rate the time at which they come, decide only when a delta is there and how
those of thought and answer interleave. One thing besides hangs on time: how much of the thought there is when the
answer ends before it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, replace
from typing import get_args

from step_audio.serving_info import ServedPace
from step_audio.tokenizer import Tokenizer
from step_audio_client.answer_parser import AnswerParser
from step_audio_client.brains import Brains
from step_audio_client.chat_types import ChatDelta, ChatOptions, ChatUsage, PaceMode, Segment, Thinking
from step_audio_client.errors import RequestError
from step_audio_client.generators import inner
from step_audio_client.pacing import Due, Pacing
from step_audio_client.prepared import PreparedPrompt, PreparedRequest
from step_audio_client.tokens import FinishReason, Tokens

Generate = Callable[[PreparedRequest], AsyncGenerator[Tokens]]


@dataclass(eq=False)
class _Brain:
    """A generation under way."""

    task: asyncio.Task[None] | None = None
    segment: Segment | None = None  # that it speaks
    last: bool = False  # it speaks to the end of the answer


class MindPacedSpeaker:
    """One answer by two brains; `deltas()` may be iterated once.

    `generate` makes tokens. `prompt` ends where the thought begins, `without_thought` where the answer begins behind
    an empty thought, in the form that the model was trained on. `start`: when the question was asked, by
    time.monotonic().
    """

    def __init__(
        self,
        generate: Generate,
        prompt: PreparedPrompt,
        without_thought: PreparedPrompt,
        tokenizer: Tokenizer,
        options: ChatOptions,
        max_seq_len: int,
        start: float,
    ):
        assert options.mind_paced
        self._generate = generate
        self._prompt, self._tokenizer, self._options = prompt, tokenizer, options
        self._start = start
        self._stop_ids = {*tokenizer.special.stop_ids, *options.stop_token_ids}
        self._brains = Brains(prompt, without_thought, tokenizer, options, max_seq_len)
        self._pacing = Pacing(options.mind_paced, options.sampling.max_tokens)
        self._events: asyncio.Queue[tuple[_Brain, Tokens | Exception]] = asyncio.Queue()
        self._working: set[_Brain] = set()
        self._tasks: list[asyncio.Task[None]] = []  # theirs, and of those that are ending
        self._formulation: _Brain | None = None
        self._articulation: _Brain | None = None
        self._thought = self._parser(starts_in_content=False)
        self._answer = self._parser(starts_in_content=True)
        self._thought_ids: list[int] = []  # with the end marker's, if there is one
        self._spoken: list[int] = []
        self._end: FinishReason | None = None
        self._cached_tokens: int | None = None  # of the prompt, as the first tokens tell

    @inner
    async def deltas(self) -> AsyncGenerator[ChatDelta]:
        """Both brains' texts as they come; the last delta has `finish_reason`, `usage` and `speech`.

        Left early or failed, both have ended when this ends. Raises RequestError.
        """
        try:
            if self._pacing.thought == "open":
                self._formulation = self._begin(self._brains.formulation())
            while True:
                self._speak_on()
                if self._end:
                    break
                if (event := await self._next_event()) is None:
                    continue
                brain, tokens = event
                if isinstance(tokens, Exception):
                    raise tokens
                if self._cached_tokens is None:
                    self._cached_tokens = min(tokens.cached_tokens, len(self._prompt))
                if brain is self._formulation:
                    self._on_formulation_tokens(brain, tokens)
                else:
                    self._on_articulation_tokens(brain, tokens)
                for delta in () if self._end else self._take():
                    if delta != ChatDelta():
                        yield replace(delta, prompt_tokens=len(self._prompt))
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        thought, answer = self._thought, self._answer
        if self._pacing.thought != "open":  # else it was held back as what may become the end marker
            thought.flush()
        answer.flush()
        reason = "tool_calls" if self._end == "stop" and (thought.calls or answer.calls) else self._end
        usage = ChatUsage(
            prompt_tokens=len(self._prompt),
            completion_tokens=thought.completion_tokens + answer.completion_tokens,
            audio_tokens=self._prompt.audio_tokens,
            reasoning_tokens=thought.reasoning_tokens,
            cached_tokens=self._cached_tokens or 0,
        )
        *whole, last = (replace(delta, prompt_tokens=len(self._prompt)) for delta in self._take())
        for delta in whole:
            yield delta
        speech = self._pacing.timing()
        yield replace(last, finish_reason=reason, usage=usage, speech=speech, audio=self._prompt.audio)

    # What the brains say

    def _on_formulation_tokens(self, brain: _Brain, tokens: Tokens) -> None:
        for token in tokens.token_ids:
            if brain.segment:
                self._on_own_answer_token(brain.segment, token)
            elif token not in self._stop_ids:
                self._on_thought_token(brain, token)
            if self._end or brain not in self._working:
                return
        if tokens.finish_reason and brain.segment:
            self._end = tokens.finish_reason
        elif tokens.finish_reason:  # without a word
            self._pacing.end_thought(tokens.finish_reason, self._now())
            self._end_brain(brain)

    def _on_thought_token(self, brain: _Brain, token: int) -> None:
        goes_on = self._pacing.one_brain
        self._thought.add(token, thought_only=not goes_on)
        self._thought_ids.append(token)
        if self._thought.thinking:
            self._pacing.add_thought_token()
        else:
            self._pacing.close_thought(self._now())
            if goes_on:
                brain.segment = self._pacing.begin(len(self._thought_ids), self._now())
        if self._pacing.thought == "cut" or (self._pacing.thought == "closed" and not goes_on):
            self._end_brain(brain)  # all that it is for

    def _on_own_answer_token(self, segment: Segment, token: int) -> None:
        if not self._spoken and not self._tokenizer.decode([token]).strip("\n"):
            self._thought.add(token)  # the line end behind the marker
        else:
            self._on_answer_token(segment, token, self._thought)

    def _on_articulation_tokens(self, brain: _Brain, tokens: Tokens) -> None:
        segment = brain.segment
        assert segment
        for token in tokens.token_ids:
            self._on_answer_token(segment, token, self._answer)
            if self._end:
                return
        if tokens.finish_reason:
            segment.total_blocks, segment.reused_blocks = tokens.total_blocks, tokens.reused_blocks
            self._articulation = None
            self._end_brain(brain)
            if tokens.finish_reason == "stop" or brain.last:
                self._end = tokens.finish_reason

    def _on_answer_token(self, segment: Segment, token: int, parser: AnswerParser) -> None:
        heard = token not in self._stop_ids
        parser.add(token)
        if parser.stopped:
            self._end = "stop"
        self._pacing.add_spoken_token(segment, heard, self._now())
        if heard:
            self._spoken.append(token)

    def _take(self) -> list[ChatDelta]:
        """What is new of both."""
        thought, answer = self._thought.take(), self._answer.take()
        if answer == [ChatDelta()]:
            return thought
        (one,), (other, *more) = thought, answer  # calls are made by one brain that goes on into the answer, or alone
        first = replace(
            other,
            reasoning=one.reasoning,
            raw=one.raw + other.raw,
            token_ids=one.token_ids + other.token_ids,
        )
        return [first, *more]

    def _speak_on(self) -> None:
        """Begin the next segment if it is due."""
        formulation_speaks = self._formulation is not None and self._formulation.segment is not None
        if self._end or self._articulation or formulation_speaks:
            return
        if due := self._pacing.due(self._now()):
            self._articulate(due)
        elif self._pacing.thought == "cut":
            self._end = "length"

    def _articulate(self, due: Due) -> None:
        pacing = self._pacing
        thought, closed = self._thought_ids[: due.thought_tokens], due.last and pacing.thought == "closed"
        asked = self._brains.articulation(len(pacing.segments), thought, closed, self._spoken, due.last)
        if asked is None:
            self._end = "length"
            return
        brain = self._articulation = self._begin(asked.request)
        brain.segment, brain.last = pacing.begin(asked.thought_tokens, self._now()), asked.last
        if pacing.thought == "cut" and self._formulation:
            self._end_brain(self._formulation)

    # Tasks and time

    def _begin(self, request: PreparedRequest) -> _Brain:
        brain = _Brain()

        async def listen() -> None:
            try:
                async with contextlib.aclosing(self._generate(request)) as stream:
                    async for tokens in stream:
                        self._events.put_nowait((brain, tokens))
            except Exception as error:
                self._events.put_nowait((brain, error))

        brain.task = asyncio.create_task(listen())
        self._tasks.append(brain.task)
        self._working.add(brain)
        return brain

    def _end_brain(self, brain: _Brain) -> None:
        """What it still says is not heard; the server ends it."""
        self._working.discard(brain)
        assert brain.task
        brain.task.cancel()

    async def _next_event(self) -> tuple[_Brain, Tokens | Exception] | None:
        """None when the next segment is due first, and for what an ended brain had still said."""
        timeout = None if self._articulation else self._pacing.wait(self._now())
        try:
            async with asyncio.timeout(timeout):  # Python 3.11's wait_for loses a cancel that comes with an event
                event = await self._events.get()
        except TimeoutError:
            return None
        return event if event[0] in self._working else None

    def _now(self) -> float:
        return time.monotonic() - self._start

    def _parser(self, starts_in_content: bool) -> AnswerParser:
        options = self._options
        names = [tool.get("function", tool)["name"] for tool in options.tools]
        return AnswerParser(
            self._tokenizer,
            starts_in_content,
            tool_names=names if names and options.tool_choice != "none" else None,
            stop=options.stop,
            stop_ids=self._stop_ids,
            skip_special_tokens=options.skip_special_tokens,
        )


def paced(options: ChatOptions, served: ServedPace) -> ChatOptions:
    """With the pace that the answer is to have."""
    pace = options.mind_paced
    assert pace
    think, speak = pace.think_tokens or served["think_tokens"], pace.speak_tokens or served["speak_tokens"]
    waits = options.tools and options.tool_choice != "none" and pace.mode != "no_think"
    mode: PaceMode = "think_before_speak" if waits else pace.mode
    return replace(options, mind_paced=replace(pace, mode=mode, think_tokens=think, speak_tokens=speak))


def check(options: ChatOptions) -> None:
    """Raises RequestError for what a mind-paced answer cannot be asked for."""
    pace = options.mind_paced
    assert pace
    modes = get_args(PaceMode)
    if pace.mode not in modes:
        said = f"mind_paced_speaking: mode must be one of {', '.join(modes)}, not {pace.mode!r}"
        raise RequestError(said, "mind_paced_speaking.mode")
    for name, value in (("think_tokens", pace.think_tokens), ("speak_tokens", pace.speak_tokens)):
        if value is not None and value < 1:
            said = f"mind_paced_speaking: {name} must be at least 1, not {value}"
            raise RequestError(said, f"mind_paced_speaking.{name}")
    if pace.speech_rate is not None and not 0 < pace.speech_rate < math.inf:
        said = f"mind_paced_speaking: speech_rate must be a number above 0, not {pace.speech_rate:g}"
        raise RequestError(said, "mind_paced_speaking.speech_rate")
    for name in conflicts(options):
        raise RequestError(f"{name} does not go with mind_paced_speaking", name)


def conflicts(options: ChatOptions) -> list[str]:
    """Names of what is asked for and does not go with a mind-paced answer."""
    asked = {
        "thinking": options.thinking != Thinking(),
        "response_format": options.guide is not None,
        "logprobs": options.logprobs or options.sampling.logprobs or bool(options.sampling.top_logprobs),
        "continue_final_message": options.continue_final_message,
        "tool_choice": options.tool_choice not in ("auto", "none"),
        "parallel_tool_calls": not options.parallel_tool_calls,
        "ignore_eos": options.ignore_eos,
        "bad_words": bool(options.bad_words),
        "min_tokens": options.sampling.min_tokens is not None,
    }
    return [name for name, given in asked.items() if given]

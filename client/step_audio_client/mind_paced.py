"""Mind-Paced Speaking (arXiv 2510.09592): one brain thinks while another, on the same engine, already speaks.

    Formulation     prompt, then the chain of thought up to `</think>`
    Articulation    prompt + thought so far + `</think>` + what has been said, then some more of the answer

All in token ids: nothing is tokenized anew. Both are rows of one batch, and what they have in common is in the
KV cache once. When the thought is over before anything was said, Formulation simply goes on into the answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from step_audio.chat_template import CLOSE_THOUGHT
from step_audio.tokenizer import Tokenizer
from step_audio_client.answer_parser import AnswerParser
from step_audio_client.chat_types import ChatDelta, ChatOptions, ChatUsage, PaceMode, Segment, SpeechTiming, Thinking
from step_audio_client.errors import RequestError
from step_audio_client.markers import partial_marker
from step_audio_client.playback import Playback
from step_audio_client.prepared import PreparedPrompt, PreparedRequest
from step_audio_client.reasoning import END_MARKERS
from step_audio_client.sampling import Sampling
from step_audio_client.tokens import Tokens

Generate = Callable[[PreparedRequest], AsyncGenerator[Tokens]]

FIRST_LEAD = 0.3  # seconds that the second segment is begun before it is due; later ones go by those before
MARGIN = 0.05  # seconds on top
MARKER_TOKENS = 8  # in which the beginning of an end marker would lie


@dataclass(eq=False)
class _Brain:
    """A generation under way."""

    task: asyncio.Task[None] | None = None
    segment: Segment | None = None  # that it speaks
    final: bool = False  # it speaks to the end of the answer


@dataclass
class _Thought:
    parser: AnswerParser
    ids: list[int] = field(default_factory=list)  # with the end marker's, if there is one
    over: bool = False
    closed: bool = False  # by a marker of its own
    ended: float | None = None  # when, in seconds


class MindPacedSpeaker:
    """One answer by two brains; `deltas()` may be iterated once.

    `generate` makes tokens. `prompt` ends where the thought begins, `unthought` where the answer begins behind an empty
    thought, in the form that the model was trained on. `start`: when the question was asked, by time.monotonic().
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
        self._prompt, self._without_thought = prompt, without_thought
        self._tokenizer, self._options, self._max_seq_len = tokenizer, options, max_seq_len
        self._start = start
        self._pace = options.mind_paced
        self._close = tokenizer.encode(CLOSE_THOUGHT)
        self._stop_ids = {*tokenizer.special.stop_ids, *options.stop_token_ids}
        self._events: asyncio.Queue[tuple[_Brain, Tokens | Exception]] = asyncio.Queue()
        self._brains: set[_Brain] = set()  # at work
        self._tasks: list[asyncio.Task[None]] = []  # theirs, and of those that are ending
        self._formulation: _Brain | None = None
        self._articulation: _Brain | None = None
        self._thought = _Thought(self._parser(starts_in_content=False))
        self._answer = self._parser(starts_in_content=True)
        self._spoken: list[int] = []
        self._segments: list[Segment] = []
        self._playback = Playback(self._pace.speech_rate) if self._pace.speech_rate else None
        self._lead = FIRST_LEAD
        self._end: Literal["stop", "length"] | None = None

    async def deltas(self) -> AsyncGenerator[ChatDelta]:
        """Both brains' texts as they come; the last delta has `finish_reason`, `usage` and `speech`.

        Left early or failed, both have ended when this ends. Raises RequestError.
        """
        try:
            if self._pace.mode == "no_think":
                self._thought.over = True
            else:
                self._formulation = self._begin(PreparedRequest(self._prompt, self._sampling(0, self._room(0))))
            while True:
                self._speak_on()
                if self._end:
                    break
                if (event := await self._next_event()) is None:
                    continue
                brain, tokens = event
                if isinstance(tokens, Exception):
                    raise tokens
                if brain is self._formulation:
                    self._on_formulation_tokens(brain, tokens)
                else:
                    self._on_articulation_tokens(brain, tokens)
                if not self._end and self._spent():
                    self._end = "length"
                if not self._end and (delta := self._take()) != ChatDelta():
                    yield delta
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        thought, answer = self._thought.parser, self._answer
        if self._thought.over:  # else it was held back as what may become the end marker
            thought.flush()
        answer.flush()
        reason = "tool_calls" if self._end == "stop" and (thought.calls or answer.calls) else self._end
        usage = ChatUsage(
            prompt_tokens=len(self._prompt),
            completion_tokens=thought.completion_tokens + answer.completion_tokens,
            audio_tokens=self._prompt.audio_tokens,
            reasoning_tokens=thought.reasoning_tokens,
        )
        yield replace(self._take(), finish_reason=reason, usage=usage, speech=self._timing())

    # What the brains say

    def _on_formulation_tokens(self, brain: _Brain, tokens: Tokens) -> None:
        thought = self._thought
        for token in tokens.token_ids:
            if self._spent():
                return
            if thought.over and not self._spoken and not self._tokenizer.decode([token]).strip("\n"):
                thought.parser.add(token)  # the line end behind the marker
            elif thought.over:  # it speaks
                self._on_answer_token(brain, token, thought.parser)
            elif token not in self._stop_ids:
                thought.parser.add(token)
                thought.ids.append(token)
                if not thought.parser.thinking:
                    self._end_thought(closed=True)
                    if self._spoken or self._articulation:  # all that it is for; the answer is another's
                        return self._end_brain(brain)
                    self._begin_segment(brain, len(thought.ids), final=True)
            if self._end:
                return
        if tokens.finish_reason and thought.over:
            self._end = tokens.finish_reason
        elif tokens.finish_reason:  # without a word
            self._end_thought(closed=False)
            self._end_brain(brain)

    def _on_articulation_tokens(self, brain: _Brain, tokens: Tokens) -> None:
        assert brain.segment
        for token in tokens.token_ids:
            if self._spent():
                return
            self._on_answer_token(brain, token, self._answer)
            if self._end:
                return
        if tokens.finish_reason:
            brain.segment.total_blocks, brain.segment.reused_blocks = tokens.total_blocks, tokens.reused_blocks
            self._articulation = None
            self._end_brain(brain)
            if tokens.finish_reason == "stop" or brain.final:
                self._end = tokens.finish_reason

    def _on_answer_token(self, brain: _Brain, token: int, parser: AnswerParser) -> None:
        """A token of the answer."""
        segment = brain.segment
        assert segment
        parser.add(token)
        if parser.stopped:
            self._end = "stop"
        segment.last = self._now()
        if segment.first is None:
            segment.first = segment.last
            # The slowest so far; the first guess is none of them.
            self._lead = max(segment.first - segment.begun, self._lead if len(self._segments) > 1 else 0)
        if token not in self._stop_ids:
            segment.spoken_tokens += 1
            self._spoken.append(token)
            if self._playback:
                self._playback.add(1, segment.last)

    def _end_thought(self, closed: bool) -> None:
        self._thought.over, self._thought.closed, self._thought.ended = True, closed, self._now()

    def _take(self) -> ChatDelta:
        """What is new of both."""
        one, other = self._thought.parser.take(), self._answer.take()
        if other == ChatDelta():
            return one
        return replace(
            other,
            reasoning=one.reasoning,
            raw=one.raw + other.raw,
            token_ids=one.token_ids + other.token_ids,
        )

    # When and from what the next segment is spoken

    def _speak_on(self) -> None:
        """Begin the next segment if it is time."""
        thought, pace = self._thought, self._pace
        if self._end or self._articulation or (thought.over and self._formulation in self._brains):  # somebody speaks
            return
        if thought.over:
            self._articulate(len(thought.ids), final=True)
        elif pace.mode == "think_before_speak":
            return
        elif self._waits_for_playback():
            if self._now() >= self._due():
                self._articulate(len(thought.ids))
        else:
            known = (len(self._segments) + (pace.mode == "think_first")) * pace.think_tokens
            if len(thought.ids) >= known:
                self._articulate(known)

    def _waits_for_playback(self) -> bool:
        return bool(self._playback and self._segments and not self._articulation and not self._thought.over)

    def _due(self) -> float:
        """When the next segment is to be begun, to be there when the last one has been heard."""
        assert self._playback and self._playback.end is not None
        return self._playback.end - self._lead - MARGIN

    def _articulate(self, thought_tokens: int, final: bool = False) -> None:
        ids, close = self._thought.ids[:thought_tokens], self._close
        if final and self._thought.closed:
            # The token that ended the marker may or may not have brought the line end along.
            close = [] if self._tokenizer.decode(ids[-1:]).endswith("\n") else self._tokenizer.encode("\n")
        else:
            while ids and partial_marker(self._tokenizer.decode(ids[-MARKER_TOKENS:]), END_MARKERS):
                ids.pop()  # the marker is to be there once
        prompt = self._prompt if ids else self._without_thought
        suffix_ids = [*ids, *close, *self._spoken] if ids else self._spoken
        room = self._room(len(prompt) + len(suffix_ids) - len(self._prompt))
        if room < 1:
            self._end = "length"
            return
        most = room if final else min(room, self._pace.speak_tokens)
        sampling = self._sampling(len(self._segments) + 1, most)
        request = PreparedRequest(prompt, sampling, tuple(suffix_ids), self._options.stop_token_ids)
        self._articulation = self._begin(request)
        self._begin_segment(self._articulation, len(ids), final or most == room)

    def _begin_segment(self, brain: _Brain, thought_tokens: int, final: bool) -> None:
        brain.segment, brain.final = Segment(self._now(), thought_tokens), final
        self._segments.append(brain.segment)

    def _room(self, suffix_ids: int) -> int:
        """How many more tokens there may be, `behind` of them being in the prompt already."""
        most, room = self._options.sampling.max_tokens, self._max_seq_len - len(self._prompt) - suffix_ids
        return room if most is None else min(room, most - len(self._thought.ids) - len(self._spoken))

    def _spent(self) -> bool:
        """Whether both brains together have said all that they may. Each alone is bounded by the server."""
        most, said = self._options.sampling.max_tokens, self._thought.parser.completion_tokens
        return most is not None and said + self._answer.completion_tokens >= most

    def _sampling(self, n: int, most: int) -> Sampling:
        """Of generation n of this answer."""
        sampling = self._options.sampling
        seed = None if sampling.seed is None else (sampling.seed + n) % 2**64
        return replace(sampling, max_tokens=most, seed=seed)

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
        self._brains.add(brain)
        return brain

    def _end_brain(self, brain: _Brain) -> None:
        """What it still says is not heard; the server ends it."""
        self._brains.discard(brain)
        assert brain.task
        brain.task.cancel()

    async def _next_event(self) -> tuple[_Brain, Tokens | Exception] | None:
        """None when the next segment is due first, and for what an ended brain had still said."""
        timeout = max(0.0, self._due() - self._now()) if self._waits_for_playback() else None
        try:
            async with asyncio.timeout(timeout):  # Python 3.11's wait_for loses a cancel that comes with an event
                event = await self._events.get()
        except TimeoutError:
            return None
        return event if event[0] in self._brains else None

    def _now(self) -> float:
        return time.monotonic() - self._start

    # Set-up and summary

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

    def _timing(self) -> SpeechTiming:
        return SpeechTiming(
            first_spoken=self._segments[0].first if self._segments else None,
            thought_before=self._segments[0].thought_tokens if self._segments else len(self._thought.ids),
            thought_tokens=len(self._thought.ids),
            thought_ended=self._thought.ended,
            underruns=self._playback.underruns if self._playback else 0,
            silence=self._playback.silence if self._playback else 0.0,
            segments=tuple(self._segments),
        )


def check(options: ChatOptions) -> None:
    """Raises RequestError for what a mind-paced answer cannot be asked for."""
    pace = options.mind_paced
    assert pace
    modes = get_args(PaceMode)
    if pace.mode not in modes:
        raise RequestError(f"mind_paced_speaking: mode must be one of {', '.join(modes)}, not {pace.mode!r}")
    for name, value in (("think_tokens", pace.think_tokens), ("speak_tokens", pace.speak_tokens)):
        if value < 1:
            raise RequestError(f"mind_paced_speaking: {name} must be at least 1, not {value}")
    if pace.speech_rate is not None and not 0 < pace.speech_rate < math.inf:
        raise RequestError(f"mind_paced_speaking: speech_rate must be a number above 0, not {pace.speech_rate:g}")
    for name in conflicts(options):
        raise RequestError(f"{name} does not go with mind_paced_speaking")


def conflicts(options: ChatOptions) -> list[str]:
    """Names of what is asked for and does not go with a mind-paced answer."""
    asked = {
        "thinking": options.thinking != Thinking(),
        "response_format": options.guide is not None,
        "logprobs": options.logprobs or options.sampling.logprobs,
        "continue_final_message": options.continue_final_message,
        "tool_choice": options.tool_choice not in ("auto", "none"),
        "parallel_tool_calls": not options.parallel_tool_calls,
        "min_tokens": options.sampling.min_tokens is not None,
    }
    return [name for name, given in asked.items() if given]

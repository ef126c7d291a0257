"""A prompt that its caller has laid out, and one generation from it: no messages, no template, and text as it comes."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Self

import numpy as np

from step_audio.arrays import AnyArray, Int32Array
from step_audio.serving_info import LLM, ServingInfo
from step_audio.tokenizer import Tokenizer
from step_audio_client.answer_parser import AnswerParser
from step_audio_client.chat_types import ChatDelta, ChatUsage, Guide, RawOptions
from step_audio_client.errors import ContextTooLong, RequestError
from step_audio_client.generators import inner
from step_audio_client.sampling import Sampling
from step_audio_client.tokens import FinishReason, Tokens, stream_inputs
from step_audio_client.wire import scalar

IN_A_FORM = "ignore_eos: an answer in a given form ends with it"
AUDIO = ("audio_start", "audio_end", "audio_patch")  # of a recording, and around it


@dataclass(frozen=True, eq=False)
class RawPrompt:
    """Token ids, checked: int32 [n]."""

    ids: Int32Array

    @classmethod
    def of(cls, prompt: str | Sequence[int], tokenizer: Tokenizer, info: ServingInfo, name: str = "prompt") -> Self:
        """Names of added tokens in a text are those tokens. Of a text that is surely too long nothing is encoded.

        `name`: what errors call it. Raises RequestError.
        """
        vocab_size, limit = info["vocab_size"], info["max_seq_len"]
        room = f"max_seq_len is {limit}, of which what follows needs one"
        least = tokenizer.least_tokens(prompt) if isinstance(prompt, str) else len(prompt)
        if least >= limit:
            raise ContextTooLong(f"{name}: it has at least {least} tokens and {room}", name)
        ids = np.array(tokenizer.encode_raw(prompt) if isinstance(prompt, str) else prompt, np.int64)
        if not len(ids):
            raise RequestError(f"{name}: it is empty", name)
        if len(ids) >= limit:
            raise ContextTooLong(f"{name}: it has {len(ids)} tokens and {room}", name)
        if (unknown := ids[(ids < 0) | (ids >= vocab_size)]).size:
            raise RequestError(f"{name}: {unknown[0]} is not in the vocabulary", name)
        for id_ in (getattr(tokenizer.special, field) for field in AUDIO):
            if (ids == id_).any():
                said = f"{name}: {tokenizer.decode([id_])} belongs to a recording, and a raw prompt has none"
                raise RequestError(said, name)
        return cls(ids.astype(np.int32))

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, eq=False)
class RawRequest:
    """One generation from a raw prompt, of the model `tensorrt_llm` itself. `stop_ids`: the checkpoint's own."""

    prompt: RawPrompt
    sampling: Sampling
    stop_ids: Sequence[int]
    stop_token_ids: Sequence[int] = ()
    guide: Guide | None = None
    bad_words: Sequence[Sequence[int]] = ()

    model = LLM

    @property
    def has_memory(self) -> bool:
        """Whether the answer can only be made from its beginning."""
        return self.guide is not None

    def inputs(self, done: Sequence[int] = ()) -> dict[str, AnyArray]:
        """`done`: ids of the answer that have come already. Raises RequestError."""
        ids = np.concatenate([self.prompt.ids, np.array(done, np.int32)])[None]
        end_id, *others = self.stop_ids
        inputs = {
            "input_ids": ids,
            "input_lengths": scalar(ids.size, np.int32),
            "end_id": scalar(end_id, np.int32),
        } | self.sampling.behind(len(done)).inputs()
        words = [[token] for token in others]
        return inputs | stream_inputs(self.stop_token_ids, self.bad_words, self.guide, words)


class RawStream:
    """One text behind a raw prompt; `generate` makes tokens. Raises RequestError for options that do not fit."""

    def __init__(
        self,
        generate: Callable[[RawRequest], AsyncGenerator[Tokens]],
        tokenizer: Tokenizer,
        prompt: RawPrompt,
        options: RawOptions,
        max_seq_len: int,
    ):
        check(options)
        self._generate = generate
        most, room = options.sampling.max_tokens, max_seq_len - len(prompt)
        self._request = RawRequest(
            prompt,
            replace(
                options.sampling,
                max_tokens=room if most is None else min(most, room),
                logprobs=options.logprobs or options.sampling.logprobs or bool(options.sampling.top_logprobs),
            ),
            tokenizer.special.stop_ids,
            options.stop_token_ids,
            options.guide,
            bad_word_ids(options, tokenizer),
        )
        self._parser = AnswerParser(
            tokenizer,
            starts_in_content=True,
            stop=options.stop,
            stop_ids={*tokenizer.special.stop_ids, *options.stop_token_ids},
            skip_special_tokens=options.skip_special_tokens,
        )

    @inner
    async def deltas(self) -> AsyncGenerator[ChatDelta]:
        """Text as `content`, and as `raw`. Raises RequestError."""
        parser, end = self._parser, None
        prompt_tokens = cached_tokens = 0
        async with contextlib.aclosing(self._generate(self._request)) as stream:
            async for tokens in stream:
                if not prompt_tokens:
                    prompt_tokens, cached_tokens = tokens.prompt_tokens, tokens.cached_tokens
                if end := self._read(tokens):
                    break  # the server's work is ended before the caller gets the rest
                (delta,) = parser.take()  # nothing is looked at for calls
                if delta != ChatDelta():
                    yield replace(delta, prompt_tokens=prompt_tokens)
        parser.flush()
        usage = ChatUsage(prompt_tokens, parser.completion_tokens, 0, 0, cached_tokens)
        (last,) = parser.take()
        yield replace(last, prompt_tokens=prompt_tokens, finish_reason=end, usage=usage)

    def _read(self, tokens: Tokens) -> FinishReason | None:
        """Up to the token at which a stop string is complete; the generation's end, if it is."""
        for token, logprob, top in zip_longest(tokens.token_ids, tokens.logprobs, tokens.top_logprobs):
            self._parser.add(token, logprob, top or ())
            if self._parser.stopped:
                return "stop"
        return tokens.finish_reason


def check(options: RawOptions) -> None:
    """Raises RequestError for what does not fit."""
    guide = options.guide
    if guide and guide.kind != "json" and not guide.text:
        raise RequestError(f"{guide.name}: {guide.kind} without a text", guide.name)
    if options.ignore_eos and guide:
        raise RequestError(IN_A_FORM, "ignore_eos")
    if not all(options.bad_words):
        raise RequestError("bad_words: an empty string is in every answer", "bad_words")
    if not all(options.stop):
        raise RequestError("stop: an empty string would end every answer", "stop")


def bad_word_ids(options: RawOptions, tokenizer: Tokenizer) -> list[list[int]]:
    """A word is another token where a space stands before it."""
    spelt = [tokenizer.encode(space + word) for word in options.bad_words for space in ("", " ")]
    return [*spelt, *([token] for token in tokenizer.special.stop_ids if options.ignore_eos)]

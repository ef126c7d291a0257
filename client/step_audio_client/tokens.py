"""One generation as the pipeline knows it: messages to input tensors, tokens back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from step_audio.arrays import AnyArray
from step_audio.chat import build_prompt, count_text
from step_audio.chat_template import Template
from step_audio.conversation import Conversation, parse_conversation
from step_audio.errors import StepAudioError
from step_audio.tokenizer import Tokenizer
from step_audio.word_list import pack_word_list
from step_audio_client.chat_types import Guide
from step_audio_client.errors import RequestError, refused
from step_audio_client.messages import recordings, split_audio
from step_audio_client.sampling import Sampling
from step_audio_client.wire import byte_strings, scalar

FinishReason = Literal["stop", "length"]

WHOLE, TEXT = "step_audio_r1", "step_audio_text"  # the pipeline, and what of it is for conversations without recordings


@dataclass(frozen=True)
class Tokens:
    """What is new of one generation."""

    token_ids: list[int]
    logprobs: list[float]  # empty unless asked for
    prompt_tokens: int
    finish_reason: FinishReason | None = None  # on the last one
    # Of the KV cache: blocks that prompt and answer take, how many of these held a known beginning, and how many of the
    # prompt's positions that is. On the last one; where the server says so, before.
    total_blocks: int = 0
    reused_blocks: int = 0
    cached_tokens: int = 0
    # Of each of `token_ids` the likeliest in its place, as id and log-probability; empty unless asked for.
    top_logprobs: Sequence[Sequence[tuple[int, float]]] = ()


def stream_inputs(
    stop_token_ids: Sequence[int] = (),
    bad_words: Sequence[Sequence[int]] = (),
    guide: Guide | None = None,
    stop_words: Sequence[Sequence[int]] = (),
) -> dict[str, AnyArray]:
    """Of every model that generates: tokens as they come, with the prompt's length and the use of the KV cache.

    `stop_words`: besides `stop_token_ids`. Raises RequestError.
    """
    inputs = dict.fromkeys(("streaming", "return_num_input_tokens", "return_perf_metrics"), scalar(True, np.bool_))
    if any(not 0 <= token < 2**31 for token in stop_token_ids):
        raise RequestError(f"stop_token_ids: {list(stop_token_ids)} are not all token ids", "stop_token_ids")
    if words := [*stop_words, *([token] for token in stop_token_ids)]:
        inputs["stop_words_list"] = pack_word_list(words)[None]
    if bad_words:
        inputs["bad_words_list"] = pack_word_list(bad_words)[None]
    return inputs | (guide_inputs(guide) if guide else {})


def guide_inputs(guide: Guide) -> dict[str, AnyArray]:
    inputs = {"guided_decoding_guide_type": byte_strings([guide.kind.encode()])}
    return inputs | ({"guided_decoding_guide": byte_strings([guide.text.encode()])} if guide.text else {})


@dataclass(frozen=True)
class TokenRequest:
    """What one generation is made from. `stop_token_ids` come on top of the checkpoint's own."""

    messages: Sequence[Mapping[str, Any]]
    sampling: Sampling
    tools: Sequence[Mapping[str, Any]] | None = None
    continue_final_message: bool = False
    stop_token_ids: Sequence[int] = ()
    guide: Guide | None = None
    bad_words: Sequence[Sequence[int]] = ()  # whose last token is not drawn behind the others
    whole: bool = False  # recordings are sent from their beginnings, whatever is known of them

    @cached_property
    def model(self) -> str:
        """Without recordings nothing waits where others' are read."""
        return WHOLE if self.audio_count() else TEXT

    @property
    def has_memory(self) -> bool:
        """Whether the answer can only be made from its beginning."""
        return self.guide is not None

    def inputs(self, done: Sequence[int] = ()) -> dict[str, AnyArray]:
        """Of the request's model; `done`: ids of the answer that have come already. Raises RequestError."""
        inputs = self.pipeline_inputs() | self.sampling.behind(len(done)).inputs()
        if done:
            inputs["suffix_ids"] = np.array([done], np.int32)
        return inputs | stream_inputs(self.stop_token_ids, self.bad_words, self.guide)

    def pipeline_inputs(self) -> dict[str, AnyArray]:
        """Those of what comes before the LLM, which the ensembles share."""
        inputs = self.prompt_inputs()
        if audio := split_audio(self.messages, self.whole)[1]:
            inputs["audio"] = byte_strings(audio)
        return inputs

    def prompt_inputs(self) -> dict[str, AnyArray]:
        """Those of the prompt's text, which the models `step_audio_r1` and `prompt_builder` share."""
        inputs = {"messages": byte_strings([split_audio(self.messages, self.whole)[0].encode()])}
        if self.tools:
            inputs["tools"] = byte_strings([json.dumps(list(self.tools), ensure_ascii=False).encode()])
        if self.continue_final_message:
            inputs["continue_final_message"] = scalar(True, np.bool_)
        return inputs

    def prompt_ids(
        self, tokenizer: Tokenizer, vocab_size: int, template: Template, new_turn: bool, limit: int
    ) -> list[int]:
        """The prompt's tokens, of messages without recordings; `limit`: of a prompt that surely has more nothing is
        encoded. Raises RequestError for what a server refuses."""
        proceed = self.continue_final_message
        try:
            prompt = build_prompt(self._conversation(), tokenizer, vocab_size, [], template, new_turn, proceed, limit)
        except StepAudioError as error:
            raise refused(error) from None
        ids: list[int] = prompt.input_ids.tolist()
        return ids

    def text_tokens(self, tokenizer: Tokenizer, vocab_size: int, template: Template) -> int:
        """How many tokens of the prompt are not its recordings'. Raises RequestError for what a server refuses."""
        proceed = self.continue_final_message
        try:
            return count_text(self._conversation(), tokenizer, vocab_size, template, not proceed, proceed)
        except StepAudioError as error:
            raise refused(error) from None

    def _conversation(self) -> Conversation:
        """As a server reads it. Raises StepAudioError."""
        inputs = self.prompt_inputs()
        return parse_conversation(inputs["messages"].item(), inputs["tools"].item() if "tools" in inputs else None)

    def told_whole(self) -> TokenRequest | None:
        """With all of its recordings; None where nothing is left out of them."""
        known = not self.whole and any(one.known for one in recordings(self.messages))
        return replace(self, whole=True) if known else None

    def audio_count(self) -> int:
        return sum(1 for _ in recordings(self.messages))

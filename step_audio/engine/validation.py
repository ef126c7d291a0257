"""Refuse a request before it is queued, with TensorRT-LLM's limits and, where it has one, its text."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from step_audio.arrays import AnyArray, all_finite
from step_audio.engine.request import GenerationRequest
from step_audio.errors import ContextTooLong, InvalidRequest
from step_audio.guides import MAX_GRAMMAR_LENGTH, MAX_GUIDE_LENGTH
from step_audio.sampling_parameters import MAX_TOP_LOGPROBS

MAX_WORDS = 1024  # bad words cost every step of the whole batch
MAX_RETURN_SEQUENCES = 64  # each takes memory from the moment the request is queued


class Bounds(Protocol):
    """Of an `EngineSpec`, what a request is held to."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def max_seq_len(self) -> int: ...
    @property
    def max_num_tokens(self) -> int: ...
    @property
    def max_prompt_vocab_size(self) -> int: ...


def validate(request: GenerationRequest, spec: Bounds, *, reuse: bool, chunked: bool) -> int:
    """Check and normalise `request` in place; returns the number of new tokens it may have.

    `spec.max_seq_len` must be what the KV cache really holds. Raises InvalidRequest.
    """
    ids: AnyArray = np.asarray(request.input_ids)
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise InvalidRequest(f"input_ids must be a list of integers, not {ids.dtype} {list(ids.shape)}", "input_ids")
    if ids.size == 0:
        raise InvalidRequest("input_ids is empty: send at least one token", "input_ids")
    longest = spec.max_seq_len - 1 if chunked else min(spec.max_seq_len - 1, spec.max_num_tokens)
    if ids.size > longest:
        said = f"Prompt length ({ids.size}) exceeds maximum input length ({longest}): shorten the prompt"
        raise ContextTooLong(said, "input_ids")
    if request.max_new_tokens < 1:
        raise InvalidRequest(f"max_new_tokens must be at least 1, not {request.max_new_tokens}", "max_new_tokens")
    if not 1 <= request.num_return_sequences <= MAX_RETURN_SEQUENCES:
        raise InvalidRequest(
            f"num_return_sequences must be between 1 and {MAX_RETURN_SEQUENCES}, not {request.num_return_sequences}",
            "num_return_sequences",
        )
    if not 0 <= request.num_top_log_probs <= MAX_TOP_LOGPROBS:
        raise InvalidRequest(
            f"num_top_log_probs must be between 0 and {MAX_TOP_LOGPROBS}, not {request.num_top_log_probs}",
            "num_top_log_probs",
        )
    _check_prompt_table(request, spec, ids)
    request.input_ids = ids.astype(np.int32, copy=False)
    _check_extra_ids(request, reuse)
    _check_words(request, spec)
    if request.guide is not None:
        request.guide.check(MAX_GRAMMAR_LENGTH if request.guide.kind == "ebnf_grammar" else MAX_GUIDE_LENGTH)
    return min(request.max_new_tokens, spec.max_seq_len - ids.size)


def _check_prompt_table(request: GenerationRequest, spec: Bounds, ids: AnyArray) -> None:
    rows = 0
    if request.prompt_table is not None:
        table = request.prompt_table
        if table.ndim != 2 or table.shape[1] != spec.hidden_size:
            raise InvalidRequest(
                f"the prompt table must be [rows, {spec.hidden_size}] for this model, not {list(table.shape)}",
                "prompt_embedding_table",
            )
        if not all_finite(table):
            raise InvalidRequest("the prompt table holds NaN or infinity", "prompt_embedding_table")
        rows = len(table)
        if rows > spec.max_prompt_vocab_size:
            raise InvalidRequest(
                f"Prompt vocab size {rows} is larger than max prompt vocab size of {spec.max_prompt_vocab_size}. "
                "Max prompt vocab size is computed from max_prompt_embedding_table_size / max_batch_size.",
                "prompt_embedding_table",
            )
    lowest, highest = int(ids.min()), int(ids.max())
    if lowest < 0:
        raise InvalidRequest(f"input_ids has {lowest}: token ids are not negative", "input_ids")
    if highest >= spec.vocab_size + rows:
        known = f"a prompt table of {rows} rows" if rows else "no prompt table"
        said = f"input_ids has {highest}, but the vocabulary is {spec.vocab_size} with {known}"
        raise InvalidRequest(said, "input_ids")


def _check_extra_ids(request: GenerationRequest, reuse: bool) -> None:
    extra = request.extra_ids
    if extra is not None:
        extra = np.asarray(extra)
        # The Triton backend drops them without a word if their number is wrong; the check below then speaks.
        request.extra_ids = extra.astype(np.uint64, copy=False) if extra.shape == request.input_ids.shape else None
    if reuse and request.prompt_table is not None and request.extra_ids is None:
        said = "Input token extra ids must be provided when enabling kv cache reuse with prompt table"
        raise InvalidRequest(said, "prompt_table_extra_ids")


def _check_words(request: GenerationRequest, spec: Bounds) -> None:
    if request.end_id is not None and not -1 <= request.end_id < spec.vocab_size:
        said = f"EndId ({request.end_id}) is not within acceptable range [-1, {spec.vocab_size})"
        raise InvalidRequest(said, "end_id")
    if request.end_id == -1:  # TensorRT-LLM's way of saying that there is none
        request.end_id = None
    for name in ("stop_words", "bad_words"):
        words: list[list[int]] = getattr(request, name)
        if len(words) > MAX_WORDS:
            raise InvalidRequest(f"{name} has {len(words)} words, at most {MAX_WORDS} are allowed", name)
        for word in words:
            if not word or not all(0 <= token < spec.vocab_size for token in word):
                said = f"{name} has {list(word)}: each must be token ids from 0 to {spec.vocab_size - 1}"
                raise InvalidRequest(said, name)

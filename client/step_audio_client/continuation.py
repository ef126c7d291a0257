"""One generation over however many servers it takes: what has come of it, and how the next server goes on.

Most go on behind the ids that have come: they are sent along as part of the prompt, whose KV cache another server has
to compute anew, and the same one after a restart, too. (To the penalties, tokens of prompt and answer are the same.)
A guide begins with the answer: such a one is generated again, and what has come already is left out, if it comes again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TypeAlias

import numpy as np

from step_audio.arrays import AnyArray
from step_audio_client.counts import Counts
from step_audio_client.errors import AnswerLost
from step_audio_client.prepared import PreparedRequest
from step_audio_client.raw import RawRequest
from step_audio_client.tokens import FinishReason, TokenRequest, Tokens
from step_audio_client.wire import Response

AnyRequest: TypeAlias = TokenRequest | PreparedRequest | RawRequest

TOTAL, REUSED = "kv_cache_alloc_total_blocks", "kv_cache_reused_blocks"


class Continuation:
    """`stop_ids`: those that end an answer; `max_seq_len`: the most positions of prompt and answer; `tokens_per_block`:
    positions of a block of the KV cache."""

    def __init__(
        self,
        request: AnyRequest,
        stop_ids: Collection[int],
        max_seq_len: int,
        tokens_per_block: int,
    ):
        # With a seed that is known, what is generated again is the same.
        self._request = replace(request, sampling=request.sampling.with_seed())
        self._stop_ids = stop_ids
        self._limit = request.sampling.max_tokens or max_seq_len
        self._max_seq_len = max_seq_len
        self._tokens_per_block = tokens_per_block
        self._ids: list[int] = []
        self._prompt_tokens = 0
        self._blocks = dict.fromkeys((TOTAL, REUSED), 0)
        self._cached_tokens = 0
        self._again = 0  # of the ids that have come, those that are still to come again

    @property
    def model(self) -> str:
        return self._request.model

    @property
    def begun(self) -> bool:
        """Something of it has come."""
        return bool(self._ids)

    def count_again(self, counts: Counts) -> None:
        """The next server is tried."""
        if not self._ids:
            counts.moved += 1
        elif self._request.has_memory:
            counts.replayed += 1
        else:
            counts.continued += 1

    def tell_all(self) -> bool:
        """The recordings are sent whole from here on; False where they were."""
        whole = self._request.told_whole() if isinstance(self._request, TokenRequest) else None
        self._request = whole or self._request
        return whole is not None

    def inputs(self) -> dict[str, AnyArray]:
        """For the next server. Raises RequestError."""
        self._again = len(self._ids) if self._request.has_memory else 0
        return self._request.inputs(() if self._again else self._ids)

    def stopped(self) -> Tokens:
        """The last tokens, none, of an answer that somebody has stopped."""
        return Tokens([], [], self._prompt_tokens, "stop")

    def ended(self) -> Tokens | None:
        """The last tokens, none, if all had come when the server went; None if some are missing."""
        if not self._ids or not (self._full() or self._ids[-1] in self._stop_ids):
            return None
        return Tokens([], [], self._prompt_tokens, self._reason())

    def add(self, response: Response) -> Tokens:
        """What is new in it. Raises AnswerLost if what is generated again is not the same."""
        outputs = response.outputs
        ids: list[int] = outputs["output_ids"].reshape(-1).tolist() if outputs else []
        if outputs and not self._prompt_tokens:
            self._prompt_tokens = int(outputs["num_input_tokens"].reshape(-1)[0])
        # The engine sends those of the whole answer each time.
        logprobs: list[float] = outputs.get("output_log_probs", np.zeros(0)).reshape(-1).tolist()
        logprobs = logprobs[len(logprobs) - len(ids) :]
        top = _top_logprobs(outputs)
        if self._again:
            begin = len(self._ids) - self._again
            known = ids[: self._again]
            self._again -= len(known)
            if known != self._ids[begin : begin + len(known)] or (response.final and self._again):
                raise AnswerLost("the server went away in the middle of the answer, which could not be continued")
            ids, logprobs, top = ids[len(known) :], logprobs[len(known) :], top[len(known) :]
        for name in self._blocks.keys() & outputs.keys():  # the final response may have none
            self._blocks[name] = int(outputs[name].item())
        if not self._ids:  # what a server that goes on has found of the prompt is not what was asked
            # NVIDIA's counts a block that is known in part as a whole one (TensorRT-LLM 1.2, batch_manager/
            # kvCacheManager.cpp, loadOrAllocateBlocks). The last position is always computed.
            known_tokens = self._blocks[REUSED] * self._tokens_per_block
            self._cached_tokens = max(min(known_tokens, self._prompt_tokens - 1), 0)
        self._ids += ids
        reason = self._reason() if response.final else None
        total, reused = (self._blocks[name] for name in (TOTAL, REUSED))
        return Tokens(ids, logprobs, self._prompt_tokens, reason, total, reused, self._cached_tokens, top)

    def _full(self) -> bool:
        return len(self._ids) >= min(self._limit, self._max_seq_len - self._prompt_tokens)

    def _reason(self) -> FinishReason:
        """The engine does not say it: an answer that used up its room ended by length, unless by its last token; of
        stop words the last token is kept, of end_id it is not."""
        stopped = bool(self._ids) and self._ids[-1] in self._stop_ids
        return "length" if self._full() and not stopped else "stop"


def _top_logprobs(outputs: Mapping[str, AnyArray]) -> list[list[tuple[int, float]]]:
    """Of the tokens of one response; [1, 1, tokens, n] each, -1 where there are fewer."""
    if "top_log_prob_ids" not in outputs:
        return []
    places = zip(outputs["top_log_prob_ids"][0, 0].tolist(), outputs["top_log_probs"][0, 0].tolist(), strict=True)
    return [[(id_, value) for id_, value in zip(*place, strict=True) if id_ >= 0] for place in places]

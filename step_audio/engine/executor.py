"""The seam between scheduling and arithmetic: a ragged batch in, one row of logits per finished position out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from step_audio.arrays import AnyArray, Float32Array, Int32Array
from step_audio.checkpoint import to_float32
from step_audio.engine.trtllm_checkpoint import Weights
from step_audio.lora import Factors


@dataclass(slots=True)
class Batch:
    """One step over S sequences with T positions in all; decoding and prefill chunks may be mixed.

    Sequence s computes positions past_lens[s] .. past_lens[s] + (subsequence_begins[s+1] - subsequence_begins[s]),
    and its keys and values live in the blocks block_indices[block_indices_begins[s]:block_indices_begins[s+1]].
    """

    embeddings: Float32Array  # [T, hidden]
    position_ids: Int32Array  # [T], position within the own sequence
    past_lens: Int32Array  # [S], positions already in the cache
    subsequence_begins: Int32Array  # [S + 1]
    block_indices: Int32Array  # [blocks in use], grouped by sequence
    block_indices_begins: Int32Array  # [S + 1]
    max_context_len: int  # longest past + new of the batch
    logit_indices: Int32Array  # [R], rows of T whose logits are wanted
    adapters: Int32Array | None = None  # [S], place of each sequence's adapter, -1: none; None: no sequence has one


class Executor(Protocol):
    """Owns the weights and a KV cache of `num_blocks` blocks."""

    num_blocks: int

    def forward(self, batch: Batch) -> Float32Array:
        """Compute the batch, writing its keys and values into the cache.

        Returns float32 logits [R, vocab_size], which the caller may overwrite and which are valid until
        the next call. Anything raised is a fault of the runtime, never of the request.
        """
        ...

    def load_adapter(self, place: int, factors: Factors) -> None:
        """From now on `place` is that adapter."""
        ...


class TokenEmbedding:
    """Rows of the embedding matrix, and of a request's prompt table for ids from `vocab_size` on."""

    def __init__(self, weights: Weights):
        self.table = weights.vocab_embedding
        self.vocab_size = len(self.table)

    def __call__(self, ids: Int32Array, prompt_tables: Sequence[tuple[slice, AnyArray]] = ()) -> Float32Array:
        """ids int32 [n] -> float32 [n, hidden].

        prompt_tables: for each stretch of `ids` with ids from vocab_size on, its table [rows, hidden].
        """
        if not prompt_tables:
            return to_float32(self.table[ids])
        rows = to_float32(self.table[np.where(ids < self.vocab_size, ids, 0)])
        for stretch, table in prompt_tables:
            audio = np.flatnonzero(ids[stretch] >= self.vocab_size)
            rows[stretch][audio] = to_float32(table[ids[stretch][audio] - self.vocab_size])
        return rows

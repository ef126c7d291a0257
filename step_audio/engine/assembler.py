"""A step's batch out of what the scheduler has planned."""

from __future__ import annotations

import numpy as np

from step_audio.arrays import AnyArray, Int32Array
from step_audio.engine.executor import Batch, TokenEmbedding
from step_audio.engine.sequence import Chunk, Sequence


class Assembler:
    """Plans to batches; logits are asked for the completing chunks, in the order of the plan."""

    def __init__(self, embed: TokenEmbedding, adapters: bool = False):
        """`adapters`: whether sequences may have any."""
        self._embed = embed
        self._adapted = adapters
        # Of the last decoding step, for the next one's blocks are mostly the same.
        self._blocks: list[list[int]] = []  # each sequence's own list, so that comparing is mostly asking for identity
        self._used: Int32Array = np.empty(0, np.int32)  # how many of each
        self._table = self._begins = self._used

    def __call__(self, plan: list[Chunk]) -> Batch:
        sequences = [chunk.sequence for chunk in plan]
        if all([sequence.decoding for sequence in sequences]):
            return self._decoding(sequences)
        return self._mixed(plan)

    def _decoding(self, sequences: list[Sequence]) -> Batch:
        size, block_size = len(sequences), sequences[0].block_size
        past = np.fromiter([sequence.computed for sequence in sequences], np.int32, size)
        tokens = np.fromiter([sequence.last_token for sequence in sequences], np.int32, size)
        used = past // block_size + 1
        blocks = [sequence.blocks for sequence in sequences]
        if blocks != self._blocks or not np.array_equal(used, self._used):
            each = zip(sequences, used.tolist(), strict=True)
            self._table = np.concatenate([sequence.block_table[:count] for sequence, count in each])
            self._begins = np.concatenate([[0], used.cumsum()], dtype=np.int32)
            self._blocks, self._used = blocks, used
        rows = np.arange(size + 1, dtype=np.int32)
        return Batch(
            embeddings=self._embed(tokens),
            position_ids=past,
            past_lens=past,
            subsequence_begins=rows,
            block_indices=self._table,
            block_indices_begins=self._begins,
            max_context_len=int(past.max()) + 1,
            logit_indices=rows[:-1],
            adapters=self._adapters(sequences),
        )

    def _mixed(self, plan: list[Chunk]) -> Batch:
        size = len(plan)
        past = np.empty(size, np.int32)
        begins = np.zeros(size + 1, np.int32)
        block_begins = np.zeros(size + 1, np.int32)
        ids, tables, last = [], [], []
        prompt_tables: list[tuple[slice, AnyArray]] = []
        longest = total = blocks = 0
        for place, chunk in enumerate(plan):
            sequence = chunk.sequence
            start, end = sequence.computed, sequence.computed + chunk.count
            used = -(-end // sequence.block_size)
            past[place] = start
            ids.append(sequence.tokens[start:end])
            tables.append(sequence.block_table[:used])
            prompt_table = sequence.request.prompt_table
            if start < sequence.table_end and prompt_table is not None:
                prompt_tables.append((slice(total, total + chunk.count), prompt_table))
            total += chunk.count
            blocks += used
            begins[place + 1] = total
            block_begins[place + 1] = blocks
            if chunk.completes:
                last.append(total - 1)
            if end > longest:
                longest = end
        tokens = np.concatenate(ids)
        return Batch(
            embeddings=self._embed(tokens, prompt_tables),
            position_ids=np.arange(total, dtype=np.int32) + np.repeat(past - begins[:-1], np.diff(begins)),
            past_lens=past,
            subsequence_begins=begins,
            block_indices=np.concatenate(tables),
            block_indices_begins=block_begins,
            max_context_len=longest,
            logit_indices=np.array(last, np.int32),
            adapters=self._adapters([chunk.sequence for chunk in plan]),
        )

    def _adapters(self, sequences: list[Sequence]) -> Int32Array | None:
        if not self._adapted:
            return None
        places = np.fromiter([sequence.request.adapter for sequence in sequences], np.int32, len(sequences))
        return places if places.max() >= 0 else None

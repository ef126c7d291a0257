"""Iteration-level scheduling: before every step it is decided anew which positions of which answers it computes.

Decoding comes first, one position each; what is left of the step's budget goes to prompts, the shortest first but
half of it to the oldest, so that neither a running answer nor a short question waits for somebody's long audio,
and the long audio does not wait for ever. The further a long prompt has come, the longer each of its positions takes,
for its attention: beside answers it is computed in parts that make a step at most some times longer than without, and
where the smallest part takes longer still, not in every step.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Literal, TypeGuard, get_args

from step_audio.engine.kv_cache import BlockPool
from step_audio.engine.sequence import Chunk, Sequence

Policy = Literal["guaranteed_no_evict", "max_utilization"]

LONGER = 3.0  # times a step of decoding alone, that one with parts of long prompts takes
LEAST = 1 / 16  # of a step's positions, that a part has: smaller ones cost more than they give
PAUSE = 64  # steps at most: one may have been long by chance


def is_policy(text: str) -> TypeGuard[Policy]:
    return text in get_args(Policy)


class Scheduler:
    """Waiting and running sequences over one BlockPool. Not thread-safe.

    max_batch_size: running sequences; max_num_tokens: positions per step; chunked: whether a prompt may be
    spread over steps. Policy "guaranteed_no_evict" admits a sequence only if its longest possible answer has
    its blocks assured; "max_utilization" admits what fits now and, when blocks run out, sets the youngest back:
    it keeps its tokens, loses its blocks and is computed again.
    """

    def __init__(
        self,
        pool: BlockPool,
        *,
        block_size: int,
        max_batch_size: int,
        max_num_tokens: int,
        chunked: bool,
        policy: Policy,
    ):
        self.pool = pool
        self.block_size = block_size
        self.max_batch_size = max_batch_size
        self.max_num_tokens = max_num_tokens
        self.chunked = chunked
        self.policy = policy
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # in order of admission
        self._reserved = 0  # blocks promised to running sequences and not allocated yet
        self._least = int(max_num_tokens * LEAST)
        self._part = max_num_tokens  # positions of one prompt in a step with decoding
        self._pause = 0  # steps with decoding that are to have no part of a long prompt
        self._decoding = 0.0  # seconds of the last step of decoding alone; 0: none yet

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, wherever it is, and give its blocks back."""
        (self.running if sequence in self.running else self.waiting).remove(sequence)
        self._give_back(sequence)

    def schedule(self) -> list[Chunk]:
        """The next step; decoding sequences first. Empty only if there is nothing to do."""
        plan: list[Chunk] = []
        for sequence in list(self.running):
            if not sequence.decoding or len(plan) == self.max_num_tokens:
                continue
            if sequence in self.running and self._grow(sequence):  # an older one may have set it back
                plan.append(Chunk(sequence, 1))
        budget = self.max_num_tokens - len(plan)
        part = self._part if plan else budget
        self._admit_waiting(budget)
        most = self._least if plan and self._pause and self.chunked else math.inf
        contexts = [sequence for sequence in self.running if not sequence.decoding and sequence.pending <= most]
        oldest, promised = None, 0
        if self.chunked and contexts:
            oldest = contexts[0]
            promised = min(oldest.pending, budget - budget // 2, part)
            contexts.sort(key=lambda sequence: sequence.pending)  # stable: the older first among equals
        for sequence in contexts:
            if sequence is oldest:
                promised = 0
            count = min(sequence.pending, budget - promised)
            if self.chunked:
                count = min(count, part)
            # Unchunked, only a sequence that was set back can exceed a whole step: it must go on nevertheless.
            whole = not self.chunked and sequence.pending <= self.max_num_tokens
            if count == 0 or (whole and count < sequence.pending):
                continue
            plan.append(Chunk(sequence, count))
            budget -= count
        return plan

    def advance(self, plan: list[Chunk], seconds: float) -> None:
        """The step has been computed, in so long: its positions are in the cache and full blocks may be shared."""
        self._learn(plan, seconds)
        for chunk in plan:
            sequence = chunk.sequence
            sequence.computed += chunk.count
            full = sequence.computed // self.block_size
            if self.pool.reuse and full > sequence.cached_blocks:
                keys = sequence.keys(full)
                for block in range(sequence.cached_blocks, full):
                    self.pool.cache(sequence.blocks[block], keys[block])
                sequence.cached_blocks = full

    def _learn(self, plan: list[Chunk], seconds: float) -> None:
        """How large a part of a long prompt may be, and how many steps are to be without one."""
        if not plan or not plan[0].sequence.decoding:
            return
        self._pause = max(0, self._pause - 1)
        largest = max(chunk.count for chunk in plan)
        if largest == 1:
            self._decoding = seconds
        elif self._decoding and largest >= min(self._least, self._part):
            times = seconds / self._decoding
            if self._part == self._least:  # so that steps are, on average, as long as they may be
                self._pause = min(PAUSE, max(0, round((times - LONGER) / (LONGER - 1))))
            factor = min(2.0, max(0.5, LONGER / times))  # slowly: one step may be long by chance
            self._part = min(self.max_num_tokens, max(self._least, int(largest * factor)))

    def _admit_waiting(self, budget: int) -> None:
        if not self.waiting:
            return
        contexts = [sequence for sequence in self.running if not sequence.decoding]
        # Prefix blocks under computation: who needs them next waits for them rather than compute them again.
        computing = {key for sequence in contexts for key in self._prompt_keys(sequence)[sequence.cached_blocks :]}
        later: list[Sequence] = []
        while self.waiting and len(self.running) < self.max_batch_size and len(contexts) < budget:
            sequence = self.waiting.popleft()
            cached = self.pool.acquire(self._prompt_keys(sequence))
            missing = self._prompt_keys(sequence)[len(cached) :]
            if missing and missing[0] in computing:
                self.pool.release(cached)
                later.append(sequence)
            elif self._start(sequence, cached):
                contexts.append(sequence)
                computing.update(missing)
            else:
                self.pool.release(cached)
                later.append(sequence)
                break  # no overtaking: a large request must not starve
        self.waiting.extendleft(reversed(later))

    def _prompt_keys(self, sequence: Sequence) -> list[bytes]:
        """Keys of the blocks that may be taken from the cache: the last position is always computed, for its logits."""
        return sequence.keys((sequence.length - 1) // self.block_size) if self.pool.reuse else []

    def _start(self, sequence: Sequence, cached: list[int]) -> bool:
        needed = self._blocks(sequence.length) - len(cached)
        if self.policy == "guaranteed_no_evict":
            promised = self._blocks(sequence.max_length - 1) - len(cached)  # the last token is never computed
        else:
            promised = needed
        promised = max(promised, needed)
        # Without promises, leave every running sequence room for one more block, or it would soon be set back.
        slack = self._reserved if self.policy == "guaranteed_no_evict" else len(self.running)
        if self.pool.available - slack < promised:
            return False
        if not sequence.generated:
            sequence.reused_blocks = len(cached)
        sequence.computed = len(cached) * self.block_size
        sequence.cached_blocks = len(cached)
        self.pool.reused += len(cached)
        sequence.add_blocks(cached)
        self._allocate(sequence, needed)
        sequence.reserved = promised - needed
        self._reserved += sequence.reserved
        self.running.append(sequence)
        return True

    def _grow(self, sequence: Sequence) -> bool:
        """Make room for the pending position of a decoding sequence; False if it was set back instead."""
        if self._blocks(sequence.length) == len(sequence.blocks):
            return True
        if sequence.reserved:
            sequence.reserved -= 1
            self._reserved -= 1
        while not self.pool.available:
            victim = self.running[-1]
            self._set_back(victim)
            if victim is sequence:
                return False
        self._allocate(sequence, 1)
        return True

    def _set_back(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._give_back(sequence)
        self.waiting.appendleft(sequence)

    def _allocate(self, sequence: Sequence, count: int) -> None:
        sequence.add_blocks([self.pool.allocate() for _ in range(count)])
        sequence.new_blocks += count

    def _give_back(self, sequence: Sequence) -> None:
        self.pool.release(sequence.blocks)
        self._reserved -= sequence.reserved
        sequence.blocks, sequence.reserved, sequence.computed, sequence.cached_blocks = [], 0, 0, 0

    def _blocks(self, positions: int) -> int:
        return -(-positions // self.block_size)

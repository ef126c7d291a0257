"""One answer on its way: its tokens, and the blocks that hold their keys and values."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from step_audio.arrays import AnyArray, Int32Array
from step_audio.engine.guide import TokenGuide
from step_audio.engine.kv_cache import block_key
from step_audio.engine.request import Finished, GenerationRequest, SequenceStats
from step_audio.engine.sampler import TokenSampler


class Sequence:
    """Positions 0 .. computed are in the cache, computed .. length wait to be; at most max_length ever are known.

    A new answer, one that is decoding and one that lost its blocks differ in nothing but these numbers.
    """

    def __init__(
        self,
        request: GenerationRequest,
        index: int,
        max_new_tokens: int,
        block_size: int,
        vocab_size: int,
        *,
        normalize_log_probs: bool = True,
    ):
        self.request = request
        self.index = index
        self.block_size = block_size
        self.prompt_length = len(request.input_ids)
        self.max_length = self.prompt_length + max_new_tokens
        self.vocab_size = vocab_size
        self.normalize_log_probs = normalize_log_probs
        self.length = self.prompt_length
        self.computed = 0
        self.last_token = -1  # generated
        self.guide: TokenGuide | None = None  # if the request has one, made when that is compiled
        self.cum_log_prob = 0.0
        # KV cache
        self.blocks: list[int] = []
        self.block_table = np.empty(-(-self.max_length // block_size), np.int32)  # `blocks`, ready for the batch
        self.reserved = 0  # blocks promised but not allocated yet
        self.cached_blocks = 0  # leading blocks that are known by their key
        self.reused_blocks = 0
        self.new_blocks = 0
        self._keys: list[bytes] = []
        # Times, monotonic nanoseconds
        self.first_scheduled_ns = 0
        self.first_token_ns = 0
        self.last_token_ns = 0

    # What takes memory or time is made when the answer gets its turn: a request may ask for many.

    @cached_property
    def tokens(self) -> Int32Array:
        tokens = np.empty(self.max_length, np.int32)
        tokens[: self.prompt_length] = self.request.input_ids
        return tokens

    @cached_property
    def sampler(self) -> TokenSampler:
        request = self.request
        return TokenSampler(
            request.sampling,
            request.input_ids,
            self.vocab_size,
            index=self.index,
            end_id=request.end_id,
            bad_words=request.bad_words,
            log_probs=request.return_log_probs,
            top_log_probs=request.num_top_log_probs,
            normalize_log_probs=self.normalize_log_probs,
        )

    @cached_property
    def stop_words(self) -> dict[int, list[list[int]]]:
        """By their last token: looked up, not searched, every step."""
        found: dict[int, list[list[int]]] = {}
        for word in self.request.stop_words:
            found.setdefault(word[-1], []).append(word)
        return found

    @cached_property
    def table_end(self) -> int:
        """No prompt table is needed from here on."""
        positions = np.flatnonzero(self.request.input_ids >= self.vocab_size)
        return int(positions[-1]) + 1 if len(positions) else 0

    @property
    def pending(self) -> int:
        return self.length - self.computed

    @property
    def generated(self) -> int:
        return self.length - self.prompt_length

    @property
    def decoding(self) -> bool:
        """One known token short of the next one, and not at the beginning: costs a step next to nothing."""
        return self.length > self.prompt_length and self.pending == 1

    def history(self) -> Int32Array:
        return self.tokens[: self.length]

    def append(self, token: int) -> None:
        self.tokens[self.length] = self.last_token = token
        self.length += 1

    def finish_reason(self) -> Finished | None:
        """After a token was appended: a stop word may begin in the prompt, as on a GPU."""
        for word in self.stop_words.get(self.last_token, ()):
            if len(word) <= self.length and self.history()[-len(word) :].tolist() == word:
                return "stop"
        return "length" if self.length == self.max_length else None

    def stats(self, arrival_ns: int) -> SequenceStats:
        return SequenceStats(
            num_input_tokens=self.prompt_length,
            num_output_tokens=self.generated,
            reused_blocks=self.reused_blocks,
            new_blocks=self.new_blocks,
            total_blocks=self.reused_blocks + self.new_blocks,
            arrival_ns=arrival_ns,
            first_scheduled_ns=self.first_scheduled_ns,
            first_token_ns=self.first_token_ns,
            last_token_ns=self.last_token_ns,
        )

    def keys(self, blocks: int) -> list[bytes]:
        """Keys of the first `blocks` blocks, whose tokens must all be known."""
        size, extra = self.block_size, self.request.extra_ids
        for block in range(len(self._keys), blocks):
            span = slice(block * size, (block + 1) * size)
            # Generated tokens have no extra ids: pad those of the block that straddles the end of the prompt.
            ids = None if extra is None else extra[span]
            if ids is not None and len(ids) < size:
                ids = np.concatenate([ids, np.zeros(size - len(ids), ids.dtype)])
            previous = self._keys[-1] if block else self._root()
            self._keys.append(block_key(previous, self.tokens[span], ids, self._rows(self.tokens[span])))
        return self._keys[:blocks]

    def _root(self) -> bytes:
        """Before the first block: what one adapter has computed is of no use to another, or to none."""
        task = self.request.lora_task_id
        return b"" if task is None else b"LoRA" + task.to_bytes(8, "little")

    def _rows(self, tokens: Int32Array) -> AnyArray | None:
        """Of the prompt table, for those of the tokens that stand for audio."""
        places = tokens[tokens >= self.vocab_size] - self.vocab_size
        table = self.request.prompt_table
        return None if table is None or not len(places) else table[places]

    def add_blocks(self, blocks: list[int]) -> None:
        begin = len(self.blocks)
        self.block_table[begin : begin + len(blocks)] = blocks
        self.blocks.extend(blocks)


@dataclass(slots=True)
class Chunk:
    """`count` pending positions of a sequence, to be computed in this step."""

    sequence: Sequence
    count: int

    @property
    def completes(self) -> bool:
        """The sequence's next token can be drawn after this step."""
        return self.count == self.sequence.pending

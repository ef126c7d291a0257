"""Who owns which block of the KV cache, and which blocks hold a prefix that another prompt begins with.

A full block is known by a key chained over all tokens before it. An audio token's id only says its place
in its request's prompt table, so the key covers the request's extra ids too, which name the clip, and the
rows themselves: a caller who names another clip than he sends must not be found by those who send that one.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from hashlib import blake2b

from step_audio.arrays import AnyArray, Int32Array, UInt64Array


def block_key(
    previous: bytes, token_ids: Int32Array, extra_ids: UInt64Array | None, rows: AnyArray | None = None
) -> bytes:
    """Key of a block of token_ids (int32) and extra_ids (uint64 or None, which equals zeros) after `previous`.

    `rows` [n, hidden]: of the prompt table, in the order of the block's audio tokens; None: it has none.

    Cryptographic: a collision would hand one user the audio of another.
    """
    digest = blake2b(previous, digest_size=16)
    digest.update(token_ids.tobytes())
    if extra_ids is not None and extra_ids.any():
        digest.update(extra_ids.tobytes())
    if rows is not None:
        digest.update(rows.tobytes())
    return digest.digest()


class BlockPool:
    """Reference-counted blocks 0 .. num_blocks - 1.

    A block is free (content worthless), referenced (by one sequence or several that share a prefix), or
    cached: unreferenced but still holding a known prefix, to be evicted when no free block is left, the
    longest unused first. Not thread-safe.
    """

    def __init__(self, num_blocks: int, reuse: bool):
        self.num_blocks = num_blocks
        self.reuse = reuse
        self.allocated = 0  # blocks handed out to be computed, ever
        self.reused = 0  # blocks handed out already computed, ever
        self._free = deque(range(num_blocks))
        self._references = [0] * num_blocks
        self._keys: list[bytes | None] = [None] * num_blocks
        self._by_key: dict[bytes, int] = {}
        self._cached: OrderedDict[int, bytes] = OrderedDict()  # their keys, oldest first

    @property
    def available(self) -> int:
        """Blocks that `allocate` can hand out."""
        return len(self._free) + len(self._cached)

    @property
    def used(self) -> int:
        return self.num_blocks - self.available

    def acquire(self, keys: Iterable[bytes]) -> list[int]:
        """The blocks of the longest known prefix of `keys`, each with one more reference."""
        blocks = []
        for key in keys:
            block = self._by_key.get(key)
            if block is None:
                break
            if self._references[block] == 0:
                del self._cached[block]
            self._references[block] += 1
            blocks.append(block)
        return blocks

    def allocate(self) -> int:
        """A block to be computed, with one reference. IndexError if none is available."""
        if self._free:
            block = self._free.popleft()
        elif self._cached:
            block, key = self._cached.popitem(last=False)
            del self._by_key[key]
            self._keys[block] = None
        else:
            raise IndexError("no KV cache block is available")
        self._references[block] = 1
        self.allocated += 1
        return block

    def cache(self, block: int, key: bytes) -> None:
        """The block is complete: from now on a prompt with this prefix may share it."""
        if self.reuse and key not in self._by_key:
            self._by_key[key] = block
            self._keys[block] = key

    def release(self, blocks: list[int]) -> None:
        """Give back one reference each. The end of a prefix is evicted before its beginning."""
        for block in reversed(blocks):
            self._references[block] -= 1
            if self._references[block] < 0:
                raise AssertionError(f"block {block} released twice")
            if self._references[block] == 0:
                if (key := self._keys[block]) is None:
                    self._free.append(block)
                else:
                    self._cached[block] = key

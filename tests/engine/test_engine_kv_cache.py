import random

import numpy as np
import pytest

from step_audio.engine.kv_cache import BlockPool, block_key

IDS = np.arange(32, dtype=np.int32)


def chain(count, first=0):
    keys = [block_key(b"", IDS + first, None)]
    while len(keys) < count:
        keys.append(block_key(keys[-1], IDS, None))
    return keys


def test_a_key_covers_tokens_clip_and_everything_before():
    clip, other = np.full(32, 7, np.uint64), np.full(32, 8, np.uint64)
    keys = [
        block_key(b"", IDS, None),
        block_key(b"", IDS + 1, None),
        block_key(b"", IDS, clip),
        block_key(b"", IDS, other),
        block_key(block_key(b"", IDS, clip), IDS, None),
        block_key(block_key(b"", IDS, other), IDS, None),
    ]
    assert len(set(keys)) == len(keys)
    assert block_key(b"", IDS, np.zeros(32, np.uint64)) == keys[0]  # text has no clip, said or unsaid


def test_a_published_prefix_is_found_again_and_shared():
    pool, keys = BlockPool(8, reuse=True), chain(3)
    first = [pool.allocate() for _ in keys]
    for block, key in zip(first, keys, strict=True):
        pool.cache(block, key)
    second = pool.acquire([*keys, b"unknown"])
    assert second == first and pool.used == 3
    pool.release(first)
    assert pool.used == 3
    pool.release(second)
    assert pool.used == 0 and pool.available == 8
    assert pool.acquire(keys[1:]) == first[1:]  # keys are chained, so a caller cannot get this by accident


def test_without_reuse_nothing_is_kept():
    pool, keys = BlockPool(4, reuse=False), chain(1)
    pool.cache(pool.allocate(), keys[0])
    assert pool.acquire(keys) == []


def test_eviction_takes_the_longest_unused_and_ends_before_beginnings():
    pool, old, new = BlockPool(4, reuse=True), chain(2), chain(2, first=100)
    for keys in (old, new):
        blocks = [pool.allocate() for _ in keys]
        for block, key in zip(blocks, keys, strict=True):
            pool.cache(block, key)
        pool.release(blocks)
    pool.release(pool.acquire(old))  # used again: now `new` is the older one
    pool.allocate()
    assert len(pool.acquire(new)) == 1 and len(pool.acquire(old)) == 2


def test_an_exhausted_pool_says_so():
    pool = BlockPool(1, reuse=True)
    pool.allocate()
    with pytest.raises(IndexError):
        pool.allocate()


def test_two_copies_of_a_prefix_do_not_disturb_each_other():
    pool, keys = BlockPool(2, reuse=True), chain(1)
    first, second = pool.allocate(), pool.allocate()
    pool.cache(first, keys[0])
    pool.cache(second, keys[0])
    pool.release([second])
    assert pool.allocate() == second  # not cached: the first is
    pool.release([first])
    assert pool.acquire(keys) == [first]


def test_random_use_never_loses_or_doubles_a_block():
    rng, pool = random.Random(0), BlockPool(16, reuse=True)
    held: list[list[int]] = []
    for _ in range(3000):
        if held and (rng.random() < 0.5 or pool.available < 4):
            pool.release(held.pop(rng.randrange(len(held))))
            continue
        keys = chain(rng.randint(1, 4), first=rng.randint(0, 3))
        blocks = pool.acquire(keys)
        while len(blocks) < len(keys) and pool.available:
            blocks.append(pool.allocate())
            pool.cache(blocks[-1], keys[len(blocks) - 1])
        held.append(blocks)
        fresh = {block for blocks in held for block in blocks}
        assert pool.used == len(fresh) and pool.available == 16 - len(fresh)
    for blocks in held:
        pool.release(blocks)
    assert pool.available == 16

"""The engine's KV cache at work: who shares blocks, who must not, and what a small cache does to answers."""

import numpy as np
import pytest

from engine_fixture import HIDDEN, VOCAB, ask, generate, prompt, submit
from engine_runs import idle
from step_audio.errors import InvalidRequest

# --- KV cache ---


def test_clips_with_equal_ids_share_blocks_only_if_they_are_the_same_clip(start):
    engine = start()
    ids = np.concatenate([np.arange(VOCAB, VOCAB + 96), prompt(5)]).astype(np.int32)
    clips = {}
    for name, seed in (("a", 1), ("b", 2)):
        table = np.random.default_rng(seed).standard_normal((96, HIDDEN)).astype(np.float32)
        clips[name] = {"prompt_table": table, "extra_ids": np.where(ids >= VOCAB, seed, 0).astype(np.uint64)}
    first = {name: ask(engine, ids, **fields) for name, fields in clips.items()}
    assert [answer.last.stats.reused_blocks for answer in first.values()] == [0, 0]
    assert first["a"].tokens() != first["b"].tokens()
    for name, fields in clips.items():
        again = ask(engine, ids, **fields)
        assert again.last.stats.reused_blocks == 3 and again.tokens() == first[name].tokens()


def test_a_clip_under_another_s_name_is_not_taken_for_it(start):
    """A caller of the model names the clips of his table himself."""
    engine = start()
    ids = np.concatenate([np.arange(VOCAB, VOCAB + 96), prompt(5)]).astype(np.int32)
    named = np.where(ids >= VOCAB, 7, 0).astype(np.uint64)
    false, true = (np.random.default_rng(seed).standard_normal((96, HIDDEN)).astype(np.float32) for seed in (1, 2))
    alone = ask(start(), ids, prompt_table=true, extra_ids=named)
    ask(engine, ids, prompt_table=false, extra_ids=named)
    answer = ask(engine, ids, prompt_table=true, extra_ids=named)
    assert answer.last.stats.reused_blocks == 0 and answer.tokens() == alone.tokens()


def test_a_follow_up_reuses_the_answer_it_continues(start):
    engine = start()
    first = ask(engine, prompt(40), 60)
    conversation = np.concatenate([prompt(40), first.tokens(), prompt(7)])
    second = ask(engine, conversation)
    assert second.last.stats.reused_blocks == 3  # 99 of 100 positions were computed
    assert second.tokens() == generate(conversation)


def test_a_follow_up_reuses_the_block_where_audio_ends_and_the_answer_begins(start):
    engine = start()
    table = np.random.default_rng(0).standard_normal((40, HIDDEN)).astype(np.float32)
    ids = np.arange(VOCAB, VOCAB + 40, dtype=np.int32)
    clip = np.full(40, 9, np.uint64)
    first = ask(engine, ids, 40, prompt_table=table, extra_ids=clip)
    longer = np.append(ids, first.tokens()).astype(np.int32)
    extra = np.append(clip, np.zeros(40, np.uint64))
    assert ask(engine, longer, prompt_table=table, extra_ids=extra).last.stats.reused_blocks == 2


def test_a_small_cache_evicts_and_stays_right(start):
    engine = start(max_tokens_in_paged_kv_cache=12 * 32)
    assert engine.stats().kv_blocks_max == 12
    for seed in range(12):
        ids = prompt(100, seed % 4)
        assert ask(engine, ids).tokens() == generate(ids)
    assert idle(engine).kv_blocks_allocated > 12


def test_max_utilization_in_a_small_cache_gives_the_same_answers(start):
    engine = start(
        max_tokens_in_paged_kv_cache=14 * 32, batch_scheduler_policy="max_utilization", enable_kv_cache_reuse=False
    )
    lengths = (120, 121, 122, 123, 124)
    answers = [submit(engine, str(n), prompt(n), 40) for n in lengths]
    for n, answer in zip(lengths, answers, strict=True):
        assert answer.wait().tokens() == generate(prompt(n), 40)
    # 5 answers of at most 6 blocks each; more than that were allocated, so some were computed twice
    assert idle(engine).kv_blocks_allocated > 30


def test_a_sequence_cannot_outgrow_the_cache(start):
    engine = start(max_tokens_in_paged_kv_cache=64)
    answer = ask(engine, prompt(60), 100)
    assert len(answer.tokens()) == 4 and answer.last.finished == "length"
    with pytest.raises(InvalidRequest, match=r"Prompt length \(64\) exceeds maximum input length \(63\)"):
        ask(engine, prompt(64))

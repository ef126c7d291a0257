"""The scheduler alone: steps are 'computed' by counting, so thousands of them take no time."""

import random

import numpy as np
import pytest

from step_audio.engine.kv_cache import BlockPool
from step_audio.engine.request import GenerationRequest
from step_audio.engine.scheduler import Scheduler
from step_audio.engine.sequence import Sequence

BLOCK = 32


def make(blocks=64, *, reuse=True, batch=8, tokens=128, chunked=True, policy="guaranteed_no_evict"):
    pool = BlockPool(blocks, reuse)
    return Scheduler(
        pool, block_size=BLOCK, max_batch_size=batch, max_num_tokens=tokens, chunked=chunked, policy=policy
    )


def sequence(length, new=8, seed=0, name="x"):
    ids = np.random.default_rng(seed).integers(0, 1000, length).astype(np.int32)
    return Sequence(GenerationRequest(name, ids, new, print), 0, new, BLOCK, 1000)


def run(scheduler, plan=None, seconds=0.01):
    """Compute a step; every completed position yields a token, and full answers leave. Returns the plan."""
    plan = scheduler.schedule() if plan is None else plan
    completing = [chunk.sequence for chunk in plan if chunk.completes]
    scheduler.advance(plan, seconds)
    for each in completing:
        each.append(each.length % 7)
        if each.length == each.max_length:
            scheduler.remove(each)
    return plan


def counts(plan):
    return [chunk.count for chunk in plan]


def test_decoding_goes_first_and_a_long_prompt_takes_what_is_left():
    scheduler = make()
    first, long = sequence(10), sequence(300, seed=1)
    scheduler.add(first)
    run(scheduler)
    scheduler.add(long)
    assert counts(run(scheduler)) == [1, 127]
    assert counts(run(scheduler)) == [1, 127]
    assert counts(run(scheduler)) == [1, 46]
    assert counts(run(scheduler)) == [1, 1]


def test_short_prompts_overtake_within_the_budget_of_a_long_one():
    scheduler = make()
    long, short = sequence(500, seed=1), sequence(40, seed=2)
    scheduler.add(long)
    run(scheduler)
    scheduler.add(short)
    plan = run(scheduler)
    assert [(chunk.sequence, chunk.count) for chunk in plan] == [(short, 40), (long, 88)]


def test_many_short_prompts_leave_half_the_step_to_the_oldest():
    scheduler = make()
    long = sequence(500, seed=1)
    scheduler.add(long)
    run(scheduler)
    shorts = [sequence(40, seed=seed) for seed in range(2, 6)]
    for short in shorts:
        scheduler.add(short)
    plan = run(scheduler)
    assert [(chunk.sequence, chunk.count) for chunk in plan] == [(shorts[0], 40), (shorts[1], 24), (long, 64)]


def test_beside_answers_a_long_prompt_is_computed_in_parts_that_do_not_hold_them_up():
    """Where each position takes a tenth of a step of decoding, 20 of them make a step three times as long."""
    scheduler = make(blocks=200)
    scheduler.add(sequence(10, new=100))
    run(scheduler)
    run(scheduler)
    scheduler.add(sequence(2000, seed=1))
    parts = []
    for _ in range(30):
        plan = scheduler.schedule()
        parts.append(plan[-1].count)
        run(scheduler, plan, 0.01 + 0.001 * parts[-1])
    assert parts[0] == 127 and max(parts[5:]) <= 30 and min(parts) >= 8
    assert 15 <= sum(parts[10:]) / len(parts[10:]) <= 25
    scheduler.remove(scheduler.running[0])
    assert counts(run(scheduler)) == [128], "nobody waits for it now"


def test_where_the_smallest_part_is_long_not_every_step_has_one():
    """A position takes three steps of decoding, the smallest part 24: steps are three times as long on average."""
    scheduler = make(blocks=200)
    scheduler.add(sequence(10, new=1000))
    run(scheduler)
    run(scheduler)
    scheduler.add(sequence(2000, new=1, seed=1))
    seconds, parts = [], []
    while len(scheduler.running) == 2 or not parts:
        plan = scheduler.schedule()
        parts.append(plan[-1].count if len(plan) > 1 else 0)
        seconds.append(0.01 + 0.03 * parts[-1])
        if len(parts) == 50:
            scheduler.add(sequence(8, new=1, seed=2))
        if len(parts) == 51:
            assert 8 in counts(plan), "a short one waits for no pause"
        run(scheduler, plan, seconds[-1])
    assert max(parts[20:]) == 8
    assert 0.02 < sum(seconds[20:]) / len(seconds[20:]) < 0.04


def test_equal_prompts_are_finished_one_after_the_other():
    scheduler = make()
    everyone = [sequence(100, seed=seed) for seed in range(3)]
    for each in everyone:
        scheduler.add(each)
    assert counts(run(scheduler)) == [100, 28]
    assert counts(run(scheduler)) == [1, 72, 55]


def test_without_chunks_a_prompt_waits_for_a_step_it_fits_in():
    scheduler = make(chunked=False)
    for seed in range(3):
        scheduler.add(sequence(60, seed=seed))
    assert counts(run(scheduler)) == [60, 60]
    assert counts(run(scheduler)) == [1, 1, 60]


def test_no_more_run_than_the_batch_holds_and_in_the_order_they_came():
    scheduler = make(batch=3)
    everyone = [sequence(5, new=2, seed=seed) for seed in range(7)]
    for each in everyone:
        scheduler.add(each)
    order = []
    while scheduler.running or scheduler.waiting:
        plan = run(scheduler)
        assert len(plan) <= 3
        order += [chunk.sequence for chunk in plan if chunk.count > 1]
    assert order == everyone


def test_admission_reserves_the_longest_possible_answer():
    scheduler = make(blocks=8)
    scheduler.add(sequence(33, new=96, seed=1))  # 128 positions are computed: 4 blocks
    scheduler.add(sequence(33, new=64, seed=2))  # 96: 3
    scheduler.add(sequence(33, new=2, seed=3))  # 34: 2, which no longer fit
    run(scheduler)
    assert len(scheduler.running) == 2 and scheduler.pool.used == 4
    while len(scheduler.running) == 2:
        run(scheduler)
        assert len(scheduler.waiting) == 1
    run(scheduler)
    assert not scheduler.waiting


def test_a_large_request_is_not_starved_by_small_ones():
    scheduler = make(blocks=8)
    scheduler.add(sequence(33, new=96, seed=1))  # 4 blocks of 8
    large = sequence(150, new=10, seed=2)  # 5
    scheduler.add(large)
    run(scheduler)
    for seed in range(3, 30):
        scheduler.add(sequence(10, new=3, seed=seed))
        run(scheduler)
        assert scheduler.waiting[0] is large and len(scheduler.running) == 1


def test_max_utilization_leaves_who_runs_a_block_each():
    """Of the last three blocks the third would take two: not all of them could go on."""
    scheduler = make(blocks=7, policy="max_utilization", reuse=False)
    everyone = [sequence(60, new=30, seed=seed) for seed in range(3)]
    for each in everyone:
        scheduler.add(each)
    run(scheduler)
    assert list(scheduler.waiting) == everyone[2:]
    while scheduler.running or scheduler.waiting:
        run(scheduler)
    assert [each.new_blocks for each in everyone] == [3, 3, 3]  # nothing was computed twice


def test_who_was_set_back_comes_before_who_waits():
    scheduler = make(blocks=6, policy="max_utilization", batch=2)
    old, young, new = sequence(60, new=100, seed=1), sequence(60, new=60, seed=2), sequence(10, seed=3)
    for each in (old, young, new):
        scheduler.add(each)
    while young not in scheduler.waiting or not young.generated:
        run(scheduler)
    assert list(scheduler.waiting) == [young, new]


def test_a_prefix_under_computation_is_waited_for_not_computed_twice():
    scheduler = make(tokens=64)
    first, second, other = sequence(100), sequence(100), sequence(20, seed=5)
    for each in (first, second, other):
        scheduler.add(each)
    plan = run(scheduler)
    assert {chunk.sequence for chunk in plan} == {first, other}  # the one behind is not held up
    while second in scheduler.waiting:
        run(scheduler)
    assert second.reused_blocks == 3 and second.new_blocks == 1
    assert first.blocks[:3] == second.blocks[:3] and first.blocks[3] != second.blocks[3]


def test_the_last_position_is_always_computed():
    scheduler = make()
    for _ in range(2):
        each = sequence(64, new=1)
        scheduler.add(each)
        plan = run(scheduler)
    assert counts(plan) == [32] and each.reused_blocks == 1


def test_answers_are_reusable_block_by_block_while_they_grow():
    scheduler = make()
    first = sequence(20, new=50)
    scheduler.add(first)
    while first.length < 66:
        run(scheduler)
    follow_up = sequence(1)
    follow_up = Sequence(
        GenerationRequest("y", np.append(first.history(), 1).astype(np.int32), 4, print), 0, 4, BLOCK, 1000
    )
    scheduler.add(follow_up)
    run(scheduler)
    assert first in scheduler.running and follow_up.reused_blocks == 2


def test_max_utilization_sets_the_youngest_back_and_it_resumes():
    scheduler = make(blocks=6, policy="max_utilization")
    old, young = sequence(60, new=100, seed=1), sequence(60, new=60, seed=2)
    scheduler.add(old)
    scheduler.add(young)
    set_back = False
    while scheduler.running or scheduler.waiting:
        before = [each.length for each in (old, young)]
        run(scheduler)
        assert all(each.length >= length for each, length in zip((old, young), before, strict=True))
        set_back |= young in scheduler.waiting and young.generated > 0
        assert old in scheduler.running or old.length == old.max_length
    assert set_back and young.length == young.max_length


def test_a_set_back_answer_longer_than_a_step_goes_on_without_chunks():
    scheduler = make(blocks=8, chunked=False, policy="max_utilization", reuse=False)
    old, young = sequence(60, new=150, seed=1), sequence(100, new=60, seed=2)
    scheduler.add(old)
    scheduler.add(young)
    for _ in range(400):
        run(scheduler)
    assert young.length == young.max_length and old.length == old.max_length


@pytest.mark.parametrize("policy", ["guaranteed_no_evict", "max_utilization"])
@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("chunked", [True, False])
def test_random_traffic_keeps_the_books(policy, reuse, chunked):
    rng = random.Random(7)
    scheduler = make(blocks=14, reuse=reuse, policy=policy, chunked=chunked, batch=4, tokens=130)
    alive = []
    for step in range(1500):
        if rng.random() < 0.3 and len(alive) < 10:
            length = rng.randint(1, 130)
            each = sequence(length, new=rng.randint(1, 200), seed=rng.randint(0, 2))
            alive.append(each)
            scheduler.add(each)
        if alive and rng.random() < 0.02:
            each = rng.choice(alive)
            scheduler.remove(each)
            alive.remove(each)
        plan = run(scheduler)
        alive = [each for each in alive if each in scheduler.running or each in scheduler.waiting]
        assert not alive or plan, f"nothing computed in step {step}"
        assert sum(counts(plan)) <= 130 and len(scheduler.running) <= 4
        held = {block for each in scheduler.running for block in each.blocks}
        assert scheduler.pool.used == len(held)
        assert scheduler._reserved == sum(each.reserved for each in scheduler.running)
        if policy == "guaranteed_no_evict":
            assert scheduler.pool.available >= scheduler._reserved
            assert not any(each.generated for each in scheduler.waiting)
        for each in scheduler.running:
            assert len(each.blocks) * BLOCK >= each.computed
            assert each.block_table[: len(each.blocks)].tolist() == each.blocks
    for each in alive:
        scheduler.remove(each)
    assert scheduler.pool.used == 0 and scheduler._reserved == 0

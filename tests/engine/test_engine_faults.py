"""Cancelling, faults and the end: who is told what, whose blocks come back, who goes on."""

import random
import threading
import time
from collections import Counter

import numpy as np
import pytest

from engine_fixture import VOCAB, Answer, ask, generate, prompt, submit
from engine_runs import TABLE, SlowExecutor, idle
from step_audio.engine import GenerationRequest, validation
from step_audio.engine.sampler import TokenSampler
from step_audio.errors import InvalidRequest, StepAudioError
from waiting import wait_until

NOTHING_LEFT = "no token can be drawn: the prompt table, the penalties or bad_words leave none"

# --- cancelling, faults, the end ---


def test_cancelling_frees_the_blocks_and_says_so_once(start):
    engine = start()
    engine._executor = slow = SlowExecutor(engine._executor, 0.05)  # 20 s
    answer = submit(engine, "long", prompt(100), 400)
    wait_until(lambda: len(answer.outputs) >= 5)
    assert engine.stats().kv_blocks_used > 0
    assert engine.cancel("long") and answer.wait().last.finished == "cancelled"
    slow.seconds = 0
    assert 5 <= len(answer.tokens()) < 400 and answer.last.stats.num_output_tokens == len(answer.tokens())
    idle(engine)
    assert not engine.cancel("long") and not engine.cancel("never")
    count = len(answer.outputs)
    ask(engine, prompt(3))
    assert len(answer.outputs) == count


def test_a_waiting_request_and_several_answers_can_be_cancelled(start):
    engine = start({"max_batch_size": 2})
    engine._executor = SlowExecutor(engine._executor, 0.05)  # 15 s
    several = submit(engine, "several", prompt(5), 300, num_return_sequences=3)
    waiting = submit(engine, "waiting", prompt(6))
    engine.cancel("waiting")
    assert waiting.wait().last.finished == "cancelled" and waiting.tokens() == []
    assert waiting.last.stats.first_scheduled_ns == 0
    engine.cancel("several")
    several.wait()
    ends = [output for output in several.outputs if output.finished]
    assert [output.finished for output in ends] == ["cancelled"] * 3
    assert [output.final for output in ends] == [False, False, True]
    idle(engine)


def test_a_fault_in_one_request_harms_no_neighbour(start, monkeypatch):
    engine = start()
    forbid = TokenSampler.forbid

    def faulty(self, row, history):
        if self.params.seed == 13 and self.drawn == 3:
            raise ZeroDivisionError
        forbid(self, row, history)

    monkeypatch.setattr(TokenSampler, "forbid", faulty)
    names = [13, 0, 1, 2]
    answers = [submit(engine, str(seed), prompt(40, seed), seed=seed, bad_words=[[0]] * (seed == 13)) for seed in names]
    faulted = answers[0].wait().last
    assert isinstance(faulted.error, StepAudioError) and str(faulted.error) == "internal error" and faulted.final
    assert len(answers[0].tokens()) == 3
    for seed, answer in zip(names[1:], answers[1:], strict=True):
        assert answer.wait().tokens() == generate(prompt(40, seed))
    assert idle(engine).healthy


def test_a_prompt_table_of_no_numbers_ends_its_own_request_only(engine, monkeypatch):
    ids = np.array([1, VOCAB, 2], np.int32)
    extra = np.array([0, 5, 0])
    for value in (np.nan, np.inf):
        with pytest.raises(InvalidRequest, match="the prompt table holds NaN or infinity"):
            submit(engine, "bad", ids, prompt_table=TABLE + value, extra_ids=extra)
    monkeypatch.setattr(validation, "all_finite", lambda values: True)
    for _ in range(3):  # as if they had come about on the way; the blocks are used again
        bad = submit(engine, "bad", np.repeat(ids, 40), prompt_table=TABLE * np.nan, extra_ids=np.repeat(extra, 40))
        good = submit(engine, "good", prompt(40))
        assert str(bad.wait().last.error) == NOTHING_LEFT
        assert good.wait().tokens() == generate(prompt(40))
    used = engine.stats().kv_blocks_max * 32
    for seed in range(used // 400 + 2):  # every block of the cache is written over
        ask(engine, prompt(400, seed), 2)
    assert ask(engine, prompt(40)).tokens() == generate(prompt(40))


def test_penalties_that_leave_no_token_end_their_own_request_only(engine):
    for faulty in (
        {"repetition_penalty": 1e-38},
        {"frequency_penalty": -3e38, "top_k": 5},
        {"presence_penalty": -3e38},
    ):
        bad = submit(engine, "bad", prompt(40, 1), **{"temperature": 0.5, **faulty})
        good = submit(engine, "good", prompt(40))
        last = bad.wait().last
        assert last.error is None or str(last.error) == NOTHING_LEFT
        assert good.wait().tokens() == generate(prompt(40))


def test_a_request_for_many_answers_takes_memory_for_those_at_work(start):
    """With all that a penalty counts."""
    engine = start({"max_batch_size": 2, "max_seq_len": 512})
    engine._executor = SlowExecutor(engine._executor, 0.02)
    answer = submit(engine, "many", prompt(300), 200, num_return_sequences=64, repetition_penalty=1.5)
    wait_until(lambda: len(answer.outputs) >= 5)
    made = [sequence for sequence in engine._active["many"].sequences if "sampler" in vars(sequence)]
    assert len(made) <= 3
    engine.cancel("many")
    answer.wait()


def test_a_listener_that_fails_loses_its_request_only(engine):
    def broken(output):
        raise BrokenPipeError

    engine.submit(GenerationRequest("broken", prompt(30), 100, broken))
    assert ask(engine, prompt(40)).tokens() == generate(prompt(40))
    assert idle(engine).active_requests == 0


def test_a_failing_step_ends_its_requests_and_the_engine_goes_on(start):
    engine = start()
    inner = engine._executor

    class Failing:
        def forward(self, batch):
            raise RuntimeError("no more memory")

    engine._executor = Failing()
    answers = [submit(engine, str(i), prompt(40, i)) for i in range(3)]
    assert [str(answer.wait().last.error) for answer in answers] == ["internal error"] * 3
    assert not idle(engine).healthy
    engine._executor = inner
    assert ask(engine, prompt(40)).tokens() == generate(prompt(40))
    assert engine.stats().healthy


def test_a_fault_of_the_engine_itself_ends_everything_with_an_error(start, monkeypatch):
    engine = start()
    monkeypatch.setattr(engine._scheduler, "schedule", lambda: 1 / 0)
    answer = submit(engine, "x", prompt(3)).wait()
    assert str(answer.last.error) == "internal error" and not engine.stats().healthy
    with pytest.raises(StepAudioError, match="shut down"):
        submit(engine, "y", prompt(3))


def test_shutdown_answers_everyone(start):
    engine = start({"max_batch_size": 2})
    engine._executor = SlowExecutor(engine._executor, 0.01)
    answers = [submit(engine, str(i), prompt(10), 300) for i in range(5)]
    engine.shutdown()
    assert [answer.last.finished for answer in answers] == ["cancelled"] * 5
    assert all(answer.last.final for answer in answers)
    with pytest.raises(StepAudioError, match="shut down"):
        submit(engine, "late", prompt(3))


def test_every_request_has_exactly_one_final_output_and_it_is_the_last(start):
    engine = start({"max_num_tokens": 64}, max_tokens_in_paged_kv_cache=40 * 32)
    rng = random.Random(3)
    answers: dict[str, Answer] = {}

    def client(name):
        mine = random.Random(name)
        for i in range(25):
            key = f"{name}-{i}"
            answers[key] = submit(
                engine,
                key,
                prompt(mine.randint(1, 150), 9),
                mine.randint(1, 40),
                num_return_sequences=mine.choice([1, 1, 2]),
                top_k=mine.choice([0, 20]),
                end_id=mine.randint(0, 99),
            )
            if mine.random() < 0.5:
                time.sleep(mine.random() * 0.01)
                engine.cancel(key if mine.random() < 0.8 else f"{name}-{mine.randint(0, i)}")

    threads = [threading.Thread(target=client, args=(str(rng.random()),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for answer in answers.values():
        answer.wait()
    ends = Counter()
    idle(engine)
    for answer in answers.values():
        assert [output.final for output in answer.outputs].count(True) == 1 and answer.last.final
        per_answer = Counter(output.sequence_index for output in answer.outputs if output.finished)
        assert set(per_answer.values()) == {1}
        ends.update(output.finished for output in answer.outputs if output.finished)
    assert len(answers) == 100 and ends["cancelled"] > 5 and ends["length"] > 20

import random
import threading
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from engine_fixture import (
    HIDDEN,
    VOCAB,
    Answer,
    ask,
    generate,
    hugging_face,
    model,
    options,
    prompt,
    submit,
    write_engine,
)

from step_audio.engine import Engine, EngineOptions, GenerationRequest
from step_audio.engine.executor import TokenEmbedding
from step_audio.engine.sampler import TokenSampler
from step_audio.errors import InvalidRequest, Overloaded, StepAudioError

LENGTHS = (1, 5, 31, 32, 33, 64, 100, 200, 300)


@pytest.fixture
def start():
    engines = []

    def make(spec_changes=None, **changes):
        spec, weights = model()
        engines.append(Engine(options(**changes), (replace(spec, **(spec_changes or {})), weights)))
        return engines[-1]

    yield make
    for engine in engines:
        engine.shutdown()


@pytest.fixture(scope="module")
def engine():
    engine = Engine(options(), model())
    yield engine
    engine.shutdown()


def idle(engine):
    """Every block back, nobody active."""
    deadline = time.monotonic() + 10
    while engine.stats().active_requests or engine.stats().kv_blocks_used:
        assert time.monotonic() < deadline, engine.stats()
        time.sleep(0.005)
    return engine.stats()


class SlowExecutor:
    """Gives a test time to act between steps."""

    def __init__(self, inner, seconds):
        self.inner, self.seconds = inner, seconds

    def forward(self, batch):
        time.sleep(self.seconds)
        return self.inner.forward(batch)


# --- the same tokens as an independent implementation ---


@pytest.mark.parametrize("executor", ["openvino", "torch"])
@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("tokens", [48, 512])
def test_greedy_answers_equal_transformers_at_mixed_lengths(start, executor, reuse, tokens):
    engine = start({"max_num_tokens": tokens}, executor=executor, enable_kv_cache_reuse=reuse)
    answers = [submit(engine, str(n), prompt(n)) for n in LENGTHS]
    for n, answer in zip(LENGTHS, answers, strict=True):
        assert answer.wait().tokens() == generate(prompt(n)), f"prompt of {n}"
    again = {n: ask(engine, prompt(n)) for n in LENGTHS}
    for n, answer in again.items():
        assert answer.tokens() == generate(prompt(n)), f"prompt of {n} again"
        assert answer.last.stats.reused_blocks == ((n - 1) // 32 if reuse else 0)


@pytest.mark.parametrize("tp", [2, 4])
def test_an_engine_directory_of_several_ranks_answers_the_same(tmp_path, tp):
    engine = Engine(EngineOptions(write_engine(tmp_path, tp), threads=2))
    try:
        assert ask(engine, prompt(70)).tokens() == generate(prompt(70))
    finally:
        engine.shutdown()


def test_bfloat16_weights_in_float32_arithmetic_are_exact(tmp_path):
    engine = Engine(EngineOptions(write_engine(tmp_path, dtype=torch.bfloat16), threads=2))
    theirs = hugging_face()
    saved = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    try:
        theirs.load_state_dict({name: tensor.bfloat16().float() for name, tensor in saved.items()})
        assert ask(engine, prompt(71)).tokens() == generate(prompt(71))  # no other test's prompt: answers are cached
    finally:
        theirs.load_state_dict(saved)
        engine.shutdown()


def test_bfloat16_arithmetic_answers(start):
    assert len(ask(start(precision="bf16"), prompt(70)).tokens()) == 16


def test_audio_embeddings_enter_in_place_of_their_ids(engine):
    table = np.random.default_rng(0).standard_normal((40, HIDDEN)).astype(np.float32)
    ids = np.concatenate([prompt(30), np.arange(VOCAB, VOCAB + 40, dtype=np.int32), prompt(9)])
    extra = np.where(ids >= VOCAB, 77, 0).astype(np.uint64)
    rows = TokenEmbedding(model()[1])(np.where(ids < VOCAB, ids, 0))
    rows[30:70] = table
    expected = generate(ids, embeddings=rows)
    for reused in (0, 2):  # the second time from the cache
        answer = ask(engine, ids, prompt_table=table, extra_ids=extra)
        assert answer.tokens() == expected
        assert answer.last.stats.reused_blocks == reused
    assert ask(engine, ids, prompt_table=table * 0.5, extra_ids=extra + 1).tokens() != expected


def test_answers_do_not_depend_on_their_neighbours(start):
    engine = start({"max_num_tokens": 100})
    rng = np.random.default_rng(1)
    prompts = [prompt(int(length), seed=7) for length in rng.integers(1, 250, 24)]
    fields = [
        {},
        {"top_k": 40, "top_p": 0.9, "temperature": 1.2, "seed": 5},
        {"top_p": 0.95, "seed": 6, "repetition_penalty": 1.2},
    ]
    alone = [ask(engine, ids, 24, **fields[i % 3]).tokens() for i, ids in enumerate(prompts)]
    for reuse in (True, False):
        crowd = start({"max_num_tokens": 100}, enable_kv_cache_reuse=reuse)
        answers = [submit(crowd, str(i), ids, 24, **fields[i % 3]) for i, ids in enumerate(prompts)]
        assert [answer.wait().tokens() for answer in answers] == alone
    assert len({tuple(tokens) for tokens in alone}) > 20


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
    answers = [submit(engine, str(n), prompt(n), 100) for n in (60, 61, 62, 63, 64)]
    for n, answer in zip((60, 61, 62, 63, 64), answers, strict=True):
        assert answer.wait().tokens() == generate(prompt(n), 100)
    # 5 answers of 6 blocks each; more than that were allocated, so some were computed twice
    assert idle(engine).kv_blocks_allocated > 30


def test_a_sequence_cannot_outgrow_the_cache(start):
    engine = start(max_tokens_in_paged_kv_cache=64)
    answer = ask(engine, prompt(60), 100)
    assert len(answer.tokens()) == 4 and answer.last.finished == "length"
    with pytest.raises(InvalidRequest, match=r"Prompt length \(64\) exceeds maximum input length \(63\)"):
        ask(engine, prompt(64))


# --- ends ---


def test_end_id_ends_the_answer_and_is_not_part_of_it(engine):
    tokens = ask(engine, prompt(5)).tokens()
    place = next(i for i in range(3, 16) if tokens[i] not in tokens[:i])
    answer = ask(engine, prompt(5), end_id=tokens[place])
    assert answer.tokens() == tokens[:place] and answer.last.finished == "stop"
    assert answer.last.token_ids == [] and answer.last.stats.num_output_tokens == place
    later = ask(engine, prompt(5), end_id=tokens[place], min_tokens=place + 1).tokens()
    assert later[:place] == tokens[:place] and len(later) > place and later[place] != tokens[place]


def test_a_stop_word_ends_the_answer_and_is_part_of_it(engine):
    tokens = ask(engine, prompt(5)).tokens()
    place = next(i for i in range(3, 16) if tokens[i] not in tokens[:i])
    answer = ask(engine, prompt(5), stop_words=[[VOCAB - 1], tokens[place - 2 : place + 1]])
    assert answer.tokens() == tokens[: place + 1] and answer.last.finished == "stop"
    single = ask(engine, prompt(5), stop_words=[[tokens[place]]])
    assert single.tokens() == tokens[: place + 1] and single.last.finished == "stop"


def test_length_is_the_smaller_of_request_and_engine(engine):
    for ids, asked, expected in ((prompt(3), 1, 1), (prompt(3), 7, 7), (prompt(500), 100, 12)):
        answer = ask(engine, ids, asked)
        assert len(answer.tokens()) == expected and answer.last.finished == "length"
        assert answer.tokens() == generate(ids, expected)


def test_bad_words_never_appear(engine):
    tokens = ask(engine, prompt(5)).tokens()
    pair = tokens[4:6]
    without = ask(engine, prompt(5), bad_words=[[tokens[2]], pair]).tokens()
    assert tokens[2] not in without and pair not in [without[i : i + 2] for i in range(15)]


# --- sampling ---


def test_several_answers_draw_with_consecutive_seeds(engine):
    fields = {"top_k": 40, "temperature": 1.5}
    answer = submit(engine, "three", prompt(50), num_return_sequences=3, seed=11, **fields).wait()
    assert [answer.tokens(i) for i in range(3)] == [
        ask(engine, prompt(50), seed=11 + i, **fields).tokens() for i in range(3)
    ]
    finals = [output for output in answer.outputs if output.finished]
    assert len(finals) == 3 and [output.final for output in finals] == [False, False, True]
    assert {output.stats.reused_blocks for output in finals} <= {0, 1}


def test_log_probabilities_equal_transformers(start):
    engine = start(normalize_log_probs=False)
    answer = ask(engine, prompt(20), return_log_probs=True)
    ids = torch.tensor(np.append(prompt(20), answer.tokens()), dtype=torch.long)
    with torch.inference_mode():
        log_probs = torch.log_softmax(hugging_face()(ids[None]).logits[0], -1)
    expected = [log_probs[19 + i, token].item() for i, token in enumerate(answer.tokens())]
    assert answer.log_probs() == pytest.approx(expected, abs=1e-4)
    assert answer.last.cum_log_prob == pytest.approx(sum(expected), abs=1e-3)
    assert ask(engine, prompt(20)).log_probs() == []


def test_normalized_log_probabilities_of_greedy_are_zero(engine):
    answer = ask(engine, prompt(20), return_log_probs=True)
    assert answer.log_probs() == [0.0] * 16 and answer.last.cum_log_prob < 0


# --- refusals ---

TABLE = np.zeros((4, HIDDEN), np.float32)
ZEROS = np.zeros(4, np.uint64)
REFUSED = {
    "input_ids is empty": {"ids": []},
    "input_ids has -1": {"ids": [1, -1]},
    "input_ids has 1001, but the vocabulary is 1001 with no prompt table": {"ids": [1, VOCAB]},
    "input_ids has 1005, but the vocabulary is 1001 with a prompt table of 4 rows": {
        "ids": [1, VOCAB + 4, 2, 2],
        "prompt_table": TABLE,
        "extra_ids": ZEROS,
    },
    r"Prompt length \(512\) exceeds maximum input length \(511\)": {"ids": [1] * 512},
    "max_new_tokens must be at least 1": {"ids": [1], "max_new_tokens": 0},
    "num_return_sequences must be between 1 and 64, not 0": {"ids": [1], "num_return_sequences": 0},
    "Prompt vocab size 101 is larger than max prompt vocab size of 100": {
        "ids": [1],
        "prompt_table": np.zeros((101, HIDDEN), np.float32),
    },
    r"must be \[rows, 64\] for this model, not \[4, 63\]": {"ids": [1], "prompt_table": TABLE[:, 1:]},
    "Input token extra ids must be provided when enabling kv cache reuse with prompt table": {
        "ids": [1, VOCAB],
        "prompt_table": TABLE,
    },
    "Input token extra ids must be provided when": {"ids": [1, VOCAB], "prompt_table": TABLE, "extra_ids": ZEROS[:1]},
    r"EndId \(1001\) is not within acceptable range \[-1, 1001\)": {"ids": [1], "end_id": VOCAB},
    r"stop_words has \[\]": {"ids": [1], "stop_words": [[]]},
    r"bad_words has \[3, 1001\]": {"ids": [1], "bad_words": [[3, VOCAB]]},
    "top_p must be between 0 and 1": {"ids": [1], "top_p": 1.5},
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_request_that_cannot_be_served_is_refused_by_name(engine, message):
    before = engine.stats().total_requests
    fields = dict(REFUSED[message])
    with pytest.raises(InvalidRequest, match=message):
        submit(engine, "refused", fields.pop("ids"), **fields)
    assert engine.stats().total_requests == before


def test_without_reuse_extra_ids_are_not_needed(start):
    engine = start(enable_kv_cache_reuse=False)
    assert len(ask(engine, [1, VOCAB, 2], prompt_table=TABLE).tokens()) == 16


def test_without_chunks_prompts_beyond_a_step_are_refused(start):
    engine = start({"max_num_tokens": 48}, enable_chunked_context=False)
    with pytest.raises(InvalidRequest, match=r"Prompt length \(49\) exceeds maximum input length \(48\)"):
        ask(engine, prompt(49))
    answers = [submit(engine, str(n), prompt(n)) for n in (48, 30, 20)]
    assert [answer.wait().tokens() for answer in answers] == [generate(prompt(n)) for n in (48, 30, 20)]


def test_an_active_id_is_refused_and_free_again_in_its_final_output(engine):
    answer, second = Answer(), Answer()

    def restart(output):
        answer(output)
        if output.final:
            engine.submit(GenerationRequest("same", prompt(3), 4, second))

    engine.submit(GenerationRequest("same", prompt(3), 200, restart))
    with pytest.raises(InvalidRequest, match="request id 'same' is in use"):
        engine.submit(GenerationRequest("same", prompt(3), 4, print))
    assert second.wait().tokens() == answer.tokens()[:4]


def test_a_full_queue_is_said_and_drains(start):
    engine = start({"max_batch_size": 2}, max_queue_size=3)
    engine._executor = SlowExecutor(engine._executor, 0.02)
    answers = [submit(engine, str(i), prompt(4, i), 30) for i in range(2)]
    while not all(answer.outputs for answer in answers):
        time.sleep(0.002)
    answers += [submit(engine, str(i), prompt(4, i), 5) for i in range(2, 5)]
    with pytest.raises(Overloaded, match="3 requests are waiting already"):
        submit(engine, "late", prompt(4))
    stats = engine.stats()
    assert (stats.active_requests, stats.waiting_requests, stats.generation) == (5, 3, 2)
    assert all(answer.wait().last.finished == "length" for answer in answers)
    assert ask(engine, prompt(4)).last.final


# --- cancelling, faults, the end ---


def test_cancelling_frees_the_blocks_and_says_so_once(start):
    engine = start()
    engine._executor = SlowExecutor(engine._executor, 0.005)
    answer = submit(engine, "long", prompt(100), 400)
    while len(answer.outputs) < 5:
        time.sleep(0.002)
    assert engine.stats().kv_blocks_used > 0
    assert engine.cancel("long") and answer.wait().last.finished == "cancelled"
    assert 5 <= len(answer.tokens()) < 400 and answer.last.stats.num_output_tokens == len(answer.tokens())
    idle(engine)
    assert not engine.cancel("long") and not engine.cancel("never")
    count = len(answer.outputs)
    ask(engine, prompt(3))
    assert len(answer.outputs) == count


def test_a_waiting_request_and_several_answers_can_be_cancelled(start):
    engine = start({"max_batch_size": 2})
    engine._executor = SlowExecutor(engine._executor, 0.01)
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
    draw = TokenSampler.draw

    def faulty(self, row, history):
        if self.params.seed == 13 and self.drawn == 3:
            raise ZeroDivisionError
        return draw(self, row, history)

    monkeypatch.setattr(TokenSampler, "draw", faulty)
    names = [13, 0, 1, 2]
    answers = [submit(engine, str(seed), prompt(40, seed), seed=seed) for seed in names]
    faulted = answers[0].wait().last
    assert isinstance(faulted.error, StepAudioError) and str(faulted.error) == "internal error" and faulted.final
    assert len(answers[0].tokens()) == 3
    for seed, answer in zip(names[1:], answers[1:], strict=True):
        assert answer.wait().tokens() == generate(prompt(40, seed))
    assert idle(engine).healthy


def test_a_prompt_table_of_no_numbers_ends_its_own_request_only(engine):
    ids = np.array([1, VOCAB, 2], np.int32)
    bad = submit(engine, "bad", ids, prompt_table=TABLE * np.nan, extra_ids=np.array([0, 5, 0]))
    good = submit(engine, "good", prompt(40))
    assert str(bad.wait().last.error) == "internal error"
    assert good.wait().tokens() == generate(prompt(40))


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


def test_an_idle_engine_sleeps(engine):
    ask(engine, prompt(3))
    idle(engine)
    iterations, before = engine.stats().iteration, time.process_time()
    time.sleep(0.2)
    assert engine.stats().iteration == iterations and time.process_time() - before < 0.1  # CPU, of 0.2
    assert engine.stats().scheduled == 0


def test_times_and_counts_are_told(engine):
    answer = ask(engine, prompt(70), 5)
    stats = answer.last.stats
    assert 0 < stats.arrival_ns <= stats.first_scheduled_ns < stats.first_token_ns < stats.last_token_ns
    assert (stats.num_input_tokens, stats.num_output_tokens) == (70, 5)
    assert stats.total_blocks == stats.reused_blocks + stats.new_blocks == 3
    assert [output.stats for output in answer.outputs[:-1]] == [None] * 4


def test_a_long_prompt_does_not_hold_up_a_running_answer(start):
    engine = start({"max_num_tokens": 32, "max_batch_size": 2})
    running, moments = Answer(), []

    def on_output(output):
        running(output)
        moments.append(time.monotonic_ns())

    engine.submit(GenerationRequest("running", prompt(3), 300, on_output))
    while not running.outputs:
        time.sleep(0.001)
    long = submit(engine, "long", prompt(500), 2)
    long.wait()
    begin, end = long.last.stats.first_scheduled_ns, long.last.stats.first_token_ns
    # The running answer got a token in every one of the 17 steps that the long prompt took.
    assert sum(begin < moment < end for moment in moments) >= 15


def test_many_answers_do_not_push_ahead_of_others(start):
    """A request for ten answers queues with each of them: one for a single answer comes in between."""
    engine = start({"max_batch_size": 2})
    many = submit(engine, "many", prompt(5), 100, num_return_sequences=10)
    submit(engine, "one", prompt(6), 5).wait()
    assert sum(output.finished is not None for output in many.outputs) <= 3
    assert {output.sequence_index for output in many.wait().outputs if output.finished} == set(range(10))


def test_too_many_words(start):
    with pytest.raises(InvalidRequest, match="stop_words has 1025 words, at most 1024"):
        submit(start(), "a", prompt(5), 5, stop_words=[[1]] * 1025)

"""The engine's answers against transformers: lengths, dtypes, ranks, audio; ends, sampling, figures."""

import time
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from engine_fixture import HIDDEN, VOCAB, Answer, ask, generate, hugging_face, model, prompt, submit, write_engine
from engine_runs import idle
from lazy import Lazy
from step_audio.checkpoint import from_float32, to_float32
from step_audio.engine import Engine, EngineOptions, GenerationRequest
from step_audio.engine.executor import TokenEmbedding
from step_audio.engine.options import ExecutorName

torch = Lazy("torch")

LENGTHS = (1, 5, 31, 32, 33, 64, 100, 200, 300)


# --- the same tokens as an independent implementation ---


@pytest.mark.parametrize("executor", get_args(ExecutorName))
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
    engine = Engine(EngineOptions(write_engine(tmp_path, dtype=torch.bfloat16), precision="f32", threads=2))
    theirs = hugging_face()
    saved = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    try:
        theirs.load_state_dict({name: tensor.bfloat16().float() for name, tensor in saved.items()})
        assert ask(engine, prompt(71)).tokens() == generate(prompt(71))  # no other test's prompt: answers are cached
    finally:
        theirs.load_state_dict(saved)
        engine.shutdown()


def test_the_precision_is_that_of_the_weights(tmp_path):
    options = EngineOptions(tmp_path)
    precisions = {"float32": "f32", "bfloat16": "bf16", "float16": "bf16"}
    for dtype, precision in precisions.items():
        assert options.precision_for(replace(model()[0], dtype=dtype)) == precision


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


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_table_of_16_bits_is_its_values(engine, dtype):
    stored = from_float32(np.random.default_rng(1).standard_normal((40, HIDDEN)).astype(np.float32), dtype)
    ids = np.concatenate([prompt(30), np.arange(VOCAB, VOCAB + 40, dtype=np.int32), prompt(9)])
    tables = [stored, to_float32(stored)]
    extras = [np.where(ids >= VOCAB, clip, 0).astype(np.uint64) for clip in (1, 2)]  # nothing is reused
    one, other = (
        ask(engine, ids, prompt_table=table, extra_ids=extra).tokens()
        for table, extra in zip(tables, extras, strict=True)
    )
    assert one == other


def test_answers_do_not_depend_on_their_neighbours(start):
    engine = start({"max_num_tokens": 100})
    rng = np.random.default_rng(1)
    prompts = [prompt(int(length), seed=7) for length in rng.integers(1, 250, 18)]
    fields = [
        {},
        {"top_k": 40, "top_p": 0.9, "temperature": 1.2, "seed": 5},
        {"top_p": 0.95, "seed": 6, "repetition_penalty": 1.2},
    ]
    alone = [ask(engine, ids, 16, **fields[i % 3]).tokens() for i, ids in enumerate(prompts)]
    for reuse in (True, False):
        crowd = start({"max_num_tokens": 100}, enable_kv_cache_reuse=reuse)
        answers = [submit(crowd, str(i), ids, 16, **fields[i % 3]) for i, ids in enumerate(prompts)]
        assert [answer.wait().tokens() for answer in answers] == alone
    assert len({tuple(tokens) for tokens in alone}) > 15


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


def test_an_idle_engine_sleeps(engine):
    ask(engine, prompt(3))
    idle(engine)
    clock = time.pthread_getcpuclockid(engine._thread.ident)
    iterations, before = engine.stats().iteration, time.clock_gettime(clock)
    time.sleep(0.5)
    assert engine.stats().iteration == iterations and time.clock_gettime(clock) - before < 0.01  # CPU of its own
    assert engine.stats().scheduled == 0


def test_times_and_counts_are_told(engine):
    answer = ask(engine, prompt(70), 5)
    stats = answer.last.stats
    assert 0 < stats.arrival_ns <= stats.first_scheduled_ns < stats.first_token_ns < stats.last_token_ns
    assert (stats.num_input_tokens, stats.num_output_tokens) == (70, 5)
    assert stats.total_blocks == stats.reused_blocks + stats.new_blocks == 3
    first, *others = [output.stats for output in answer.outputs[:-1]]
    assert (first.num_output_tokens, first.reused_blocks) == (1, stats.reused_blocks) and others == [None] * 3


def test_a_long_prompt_does_not_hold_up_a_running_answer(start):
    engine = start({"max_num_tokens": 32, "max_batch_size": 2})
    long, moments = Answer(), []

    def on_output(output):
        moments.append(time.monotonic_ns())
        if len(moments) == 1:
            engine.submit(GenerationRequest("long", prompt(500), 2, long))

    engine.submit(GenerationRequest("running", prompt(3), 300, on_output))
    long.wait()
    begin, end = long.last.stats.first_scheduled_ns, long.last.stats.first_token_ns
    # The running answer got a token in every one of the 17 steps that the long prompt took.
    assert sum(begin < moment < end for moment in moments) >= 15


def test_many_answers_do_not_push_ahead_of_others(start):
    """A request for ten answers queues with each of them: one for a single answer comes in between."""
    engine = start({"max_batch_size": 2})
    many, one, finished = Answer(), Answer(), []

    def of_many(output):
        if not many.outputs:
            engine.submit(GenerationRequest("one", prompt(6), 5, of_one))
        many(output)

    def of_one(output):
        finished.append(sum(output.finished is not None for output in many.outputs))
        one(output)

    engine.submit(GenerationRequest("many", prompt(5), 100, of_many, num_return_sequences=10))
    one.wait()
    assert finished[-1] <= 3
    assert {output.sequence_index for output in many.wait().outputs if output.finished} == set(range(10))

"""What the engine refuses, by name, and what it takes again afterwards."""

import numpy as np
import pytest

from engine_fixture import HIDDEN, VOCAB, Answer, ask, generate, prompt, submit
from engine_runs import TABLE, SlowExecutor
from step_audio.engine import GenerationRequest
from step_audio.errors import InvalidRequest, Overloaded
from waiting import wait_until

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
    "num_top_log_probs must be between 0 and 20, not 21": {"ids": [1], "num_top_log_probs": 21},
    "num_top_log_probs must be between 0 and 20, not -1": {"ids": [1], "num_top_log_probs": -1},
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
    engine._executor = slow = SlowExecutor(engine._executor, 0.3)  # 9 s
    answers = [submit(engine, str(i), prompt(4, i), 30) for i in range(2)]
    wait_until(lambda: all(answer.outputs for answer in answers))
    answers += [submit(engine, str(i), prompt(4, i), 5) for i in range(2, 5)]
    with pytest.raises(Overloaded, match="Maximum queue size of 3 has been reached"):
        submit(engine, "late", prompt(4))
    stats = engine.stats()
    assert (stats.active_requests, stats.waiting_requests, stats.generation) == (5, 3, 2)
    slow.seconds = 0
    assert all(answer.wait().last.finished == "length" for answer in answers)
    assert ask(engine, prompt(4)).last.final


def test_too_many_words(start):
    with pytest.raises(InvalidRequest, match="stop_words has 1025 words, at most 1024"):
        submit(start(), "a", prompt(5), 5, stop_words=[[1]] * 1025)

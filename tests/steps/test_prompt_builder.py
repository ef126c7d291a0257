"""The prompt step as anybody may call it: what it is told is checked before it costs anything."""

import json
import queue
import tracemalloc

import numpy as np
import pytest

from model_fixture import runtime
from step_audio.errors import InvalidRequest
from step_audio.steps.prompt_builder import PromptBuilderStep
from tokenizer_fixture import build_json
from waiting import SECONDS

TEXT = [{"role": "user", "content": "hello"}]
AUDIO = [{"role": "user", "content": [{"type": "audio"}]}]


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    file.write_text(build_json(), encoding="utf-8")
    values = {"tokenizer_file": file, "chat_template": "default", "max_seq_len": 4096, "max_prompt_table_rows": 2048}

    def make(**changes) -> PromptBuilderStep:
        return PromptBuilderStep(runtime().model_copy(update=values | changes))

    return make


@pytest.fixture(scope="module")
def step(make):
    return make()


def request(messages=TEXT, frames=(), audio_index=(), content_hash=(), **others):
    return {
        "messages": [json.dumps(messages).encode()],
        "frames": np.array([frames], np.int32),
        "audio_index": np.array([audio_index], np.int32),
        "content_hash": np.array([content_hash], np.uint64),
    } | others


def clips(count: int, frames: int = 8):
    return {"frames": [frames] * count, "audio_index": [0] * count, "content_hash": [1] * count}


def int32(*values: int):
    return np.array([values], np.int32)


def words(*rows: list[int]):
    return np.array([rows], np.int32)


PLACES = "audio_index must name the messages' {} audio parts from 0 on, each, and in their order"
TWO = [{"role": "user", "content": [{"type": "audio"}, {"type": "audio"}]}]
REFUSED = {
    "no frames": (request(AUDIO, **clips(1, 0)), "frames: a clip has at least 3, got 0"),
    "negative frames": (request(AUDIO, **clips(1, -5)), "frames: a clip has at least 3, got -5"),
    "a clip of months": (
        request(AUDIO, **clips(1, 2_147_483_647)),
        "an audio clip has 21474836.47 s, the encoder takes 30.00 s; split the audio into shorter clips",
    ),
    "a million clips": (
        request(AUDIO, **clips(1_000_000)),
        "audio: 1000000 clips, which leaves no room in max_seq_len 4096",
    ),
    "more rows than the table has": (
        request(AUDIO, **clips(6, 3000)),
        "audio: 2250 audio tokens (12.5 a second), the limit of the prompt table is 2048; send less audio",
    ),
    "more positions than there are": (
        request(AUDIO, **clips(1800)),
        "audio: 5400 prompt positions, which leaves no room in max_seq_len 4096",
    ),
    "lengths that differ": (
        request(AUDIO, [8, 8], [0], [1]),
        "frames, audio_index and content_hash differ in their number of clips",
    ),
    "hash 0": (request(AUDIO, [8], [0], [0]), "content_hash: 0 stands for text, a clip's is 1 to 2^64 - 1"),
    "no such audio": (request(AUDIO, [8], [1], [1]), PLACES.format(1)),
    "negative index": (request(AUDIO, [8], [-1], [1]), PLACES.format(1)),
    "audio that is not mentioned": (request(TEXT, [8], [0], [1]), PLACES.format(0)),
    "audio that was not sent": (request(AUDIO), "messages have 1 audio parts, but 0 audios were sent"),
    "audio without a clip": (request(TWO, [8], [0], [1]), PLACES.format(2)),
    "out of order": (request(TWO, [8, 8], [1, 0], [1, 2]), PLACES.format(2)),
    "a long suffix": (
        request(suffix_ids=np.zeros((1, 5_000_000), np.int32)),
        "suffix_ids has 5000000 ids and max_seq_len is 4096",
    ),
    "suffix of no tokens": (request(suffix_ids=int32(5, -1)), "suffix_ids must be token ids from 0 to 999"),
    "stop words' offsets": (
        request(stop_words_list=words([1, 2], [3, -1])),
        "stop_words_list: the offsets in row 1 must increase and stay within 2",
    ),
    "stop words' offsets beside an end_id": (
        request(stop_words_list=words([1, 2], [2, 1]), end_id=int32(1)),
        "stop_words_list: the offsets in row 1 must increase and stay within 2",
    ),
    "stop words without end": (
        request(stop_words_list=np.ones((1, 2, 5_000_000), np.int32)),
        "stop_words_list has 5000000 ids, at most 16384 are accepted",
    ),
    "deep messages": (
        request() | {"messages": [b"[" * 100_000]},
        "messages and tools are nested too deeply",
    ),
    "deep tools": (
        request(tools=[b'[{"a":' + b"[" * 2000 + b"]" * 2000 + b"}]"]),
        "messages and tools are nested too deeply",
    ),
    "two at once": (
        request() | {"messages": [b"[]"] * 2},
        "messages: a batch of 2, send one request at a time",
    ),
    "a guide of no kind": (
        request(guided_decoding_guide=[b"x"]),
        "input 'guided_decoding_guide' needs 'guided_decoding_guide_type' beside it",
    ),
    "a guide of another kind": (
        request(guided_decoding_guide_type=[b"yaml"]),
        "guided_decoding_guide_type must be one of json, json_schema, regex, ebnf_grammar, not 'yaml'",
    ),
    "a guide that is no text": (
        request(guided_decoding_guide_type=[b"regex"], guided_decoding_guide=[b"\xff"]),
        "input 'guided_decoding_guide' is not UTF-8",
    ),
    "a schema that is none": (
        request(guided_decoding_guide_type=[b"json_schema"], guided_decoding_guide=[b'{"type": "nonsense"}']),
        'guided_decoding_guide cannot be used as json_schema: Unsupported type "nonsense"',
    ),
    "no messages": (request() | {"messages": []}, "missing required input 'messages'"),
    "two values": (request(end_id=int32(1, 2)), "end_id: 2 values, send one"),
    "more text than fits": (
        request([{"role": "user", "content": "中" * 300_000}]),
        "the prompt has at least 25005 positions and max_seq_len is 4096; send less audio or text",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused(step, kind):
    inputs, text = REFUSED[kind]
    with pytest.raises(InvalidRequest):  # what it imports for the first time is not the request's
        step._work(inputs)
    tracemalloc.start()
    with pytest.raises(InvalidRequest) as caught:
        step._work(inputs)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert str(caught.value) == text and most < 32 << 20


def test_text_that_cannot_fit_is_not_encoded(make, monkeypatch):
    step = make()
    monkeypatch.setattr(type(step._builder.tokenizer), "encode", None)
    with pytest.raises(InvalidRequest, match="at least"):
        step._work(request([{"role": "user", "content": "a" * 1_000_000}]))


def test_a_clip_without_rows_is_two_marks(make):
    """Under 321 samples by rule "L-2": the prompt has its place, and nothing in it."""
    step = make(length_rule="L-2")
    special = step._builder.tokenizer.special
    (ids,) = step._work(request(AUDIO, [4], [0], [1]))["input_ids"]
    place = ids.tolist().index(special.audio_start)
    assert ids[place + 1] == special.audio_end and (ids < 1000).all()


def test_a_batch_is_refused_and_the_next_request_answered(step):
    """Nothing may be raised by `submit`."""
    answers = queue.SimpleQueue()
    for inputs in (request() | {"messages": [b"[]"] * 2}, request()):
        step.submit(inputs, answers.put)
    refused, answered = answers.get(timeout=SECONDS), answers.get(timeout=SECONDS)
    assert isinstance(refused, InvalidRequest) and "a batch of 2, send one request at a time" in str(refused)
    assert answered["input_lengths"].tolist() == [[answered["input_ids"].size]]

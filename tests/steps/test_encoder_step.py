"""The encoder step and its cache of clips, on an engine that counts what it is asked."""

import threading

import numpy as np
import pytest

from encoder_stand_in import DIM, FirstFeature
from model_fixture import runtime
from step_audio.clips import content_hash
from step_audio.errors import InvalidRequest, NotCached
from step_audio.mel import token_count
from step_audio.steps import lanes
from step_audio.steps.clip_cache import ClipCache
from step_audio.steps.encoder_engine import AudioEncoderStep
from step_audio.steps.tensors import Bfloat16
from waiting import SECONDS

N_MELS = 128
ROW = 2 * DIM  # bytes, in 16 bits


def step(**changes):
    engine = FirstFeature()
    return AudioEncoderStep(runtime().model_copy(update=changes), engine), engine


def mel_of(value, frames):
    return np.full((N_MELS, frames), value, np.float32)


def clips(*values, frames=40, features=True):
    """A request's inputs: clips of one value each."""
    hashes = {value: content_hash(mel_of(value, frames)) for value in {*values}}
    inputs = {
        "frames": np.full((1, len(values)), frames, np.int32),
        "content_hash": np.array([[hashes[value] for value in values]], np.uint64),
        "input_lengths": np.array([[9]], np.int32),
    }
    if features:
        shape = (1, len(values), N_MELS, frames)
        inputs["mel"] = np.array([mel_of(value, frames) for value in values], np.float32).reshape(shape)
    return inputs


def work(encoder, batch):
    """What each request is answered; an error is raised."""
    results = encoder.work(batch)
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


def table(result):
    found = result["prompt_embedding_table"]
    assert result["prompt_vocab_size"].tolist() == [[found.shape[1]]]
    return found


def test_a_clip_is_encoded_once():
    """In whichever request it comes, within one batch and later."""
    encoder, engine = step()
    first, second = work(encoder, [clips(1, 2, 1), clips(2, 3)])
    rows = token_count(40, "L-2")
    assert table(first)[0, ::rows, 0].tolist() == [1, 2, 1] and table(second)[0, ::rows, 0].tolist() == [2, 3]
    assert engine.clips == 3
    (again,) = work(encoder, [clips(3, 1)])
    assert table(again)[0, ::rows, 0].tolist() == [3, 1] and engine.clips == 3


def test_a_hash_stands_for_the_clip():
    encoder, engine = step()
    (sent,) = work(encoder, [clips(1, 2)])
    (named,) = work(encoder, [clips(1, 2, features=False)])
    assert (table(named) == table(sent)).all() and table(named).dtype == np.float16 and engine.clips == 2


def test_features_may_be_of_some_clips_only():
    """Of those that mel_index has the places of; the others are known."""
    encoder, engine = step()
    work(encoder, [clips(1, 2)])
    some = clips(1, 3, 2) | {"mel": clips(3)["mel"], "mel_index": np.array([[1]], np.int32)}
    assert table(work(encoder, [some])[0])[0, :: token_count(40, "L-2"), 0].tolist() == [1, 3, 2] and engine.clips == 3
    with pytest.raises(NotCached):
        work(encoder, [clips(4, 3) | {"mel": clips(3)["mel"], "mel_index": np.array([[1]], np.int32)}])


@pytest.mark.parametrize("index", [[0, 0], [0, 2], [-1, 0], [0]], ids=str)
def test_features_of_no_clip_of_the_request_are_refused(index):
    encoder, _ = step()
    with pytest.raises(InvalidRequest):
        work(encoder, [clips(1, 2) | {"mel_index": np.array([index], np.int32)}])


def test_nobody_puts_a_clip_under_another_s_hash():
    """Anyone may ask the encoder, and say of features that they are a clip which others are about to send."""
    encoder, engine = step()
    false = clips(1) | {"content_hash": clips(2)["content_hash"]}
    assert table(work(encoder, [false])[0])[0, 0, 0] == 1
    with pytest.raises(NotCached):
        work(encoder, [clips(2, features=False)])
    assert table(work(encoder, [clips(2)])[0])[0, 0, 0] == 2
    assert table(work(encoder, [false])[0])[0, 0, 0] == 1 and engine.clips == 2


@pytest.mark.parametrize("asked", [clips(1, 3, features=False), clips(1, frames=24, features=False)])
def test_a_clip_that_is_not_cached_is_asked_for(asked):
    """Unknown, or of another length than the one that is known by that hash."""
    encoder, engine = step()
    work(encoder, [clips(1, 2)])
    unknown, neighbour = encoder.work([asked, clips(4)])
    assert isinstance(unknown, NotCached) and "send mel" in str(unknown)
    assert table(neighbour)[0, 0, 0] == 4 and engine.clips == 3


def test_the_cache_is_bounded():
    """Room for three clips: of four the one that was not asked for the longest is gone; they all count, though."""
    rows = token_count(40, "L-2")
    encoder, _ = step(encoder_cache_bytes=3 * rows * ROW)
    work(encoder, [clips(1, 2, 3)])
    work(encoder, [clips(1, features=False)])
    work(encoder, [clips(4)])
    work(encoder, [clips(1, 3, 4, features=False)])
    with pytest.raises(NotCached):
        work(encoder, [clips(2, features=False)])
    (large,) = work(encoder, [clips(5, 6, 7, 8, 9)])  # more than there is room for
    assert table(large)[0, ::rows, 0].tolist() == [5, 6, 7, 8, 9]


def test_without_a_cache_each_request_is_served_all_the_same():
    encoder, engine = step(encoder_cache_bytes=0)
    for _ in range(2):
        assert table(work(encoder, [clips(1, 1)])[0]).shape == (1, 2 * token_count(40, "L-2"), DIM)
    assert engine.clips == 2
    with pytest.raises(NotCached):
        work(encoder, [clips(1, features=False)])


def test_an_engine_that_keeps_memory_gives_it_back_when_nothing_is_asked(monkeypatch):
    monkeypatch.setattr(lanes, "IDLE", 0.05)
    rested = threading.Event()

    class Keeping(FirstFeature):
        def give_back(self):
            rested.set()

    encoder = AudioEncoderStep(runtime(), Keeping())
    answered = threading.Event()
    encoder.submit(clips(1), lambda _: answered.set())
    assert answered.wait(SECONDS) and rested.wait(SECONDS)


def test_the_cache_s_own_bytes():
    cache = ClipCache(100)
    for value in (1, 2, 1):
        cache.put((value, 8), np.zeros(40, np.uint8))
    cache.put((3, 8), np.zeros(60, np.uint8))
    assert [cache.get((value, 8)) is not None for value in (1, 2, 3)] == [True, False, True]
    cache.put((4, 8), np.zeros(101, np.uint8))
    assert not any(cache.get((value, 8)) is not None for value in (1, 2, 3, 4))


def test_a_table_of_bfloat16_is_its_bits():
    encoder, _ = step(table_dtype="bfloat16")
    found = work(encoder, [clips(1)])[0]["prompt_embedding_table"]
    assert isinstance(found, Bfloat16) and found.bits.dtype == np.uint16 and (found.bits == 0x3F80).all()


CONTRADICT = "frames, content_hash and mel differ in their number of clips"
REFUSED = {
    "one hash more": (clips(1) | {"content_hash": np.array([[1, 2]], np.uint64)}, CONTRADICT),
    "one mel less": (clips(1, 2) | {"mel": np.zeros((1, 1, N_MELS, 40), np.float32)}, CONTRADICT),
    "mel of nothing": (clips() | {"mel": np.zeros((1, 1, N_MELS, 40), np.float32)}, CONTRADICT),
    "frames beyond mel": (clips(1) | {"frames": np.array([[41]], np.int32)}, "frames: a clip has 41, but mel 40"),
    "no frames": (clips(1) | {"frames": np.array([[0]], np.int32)}, "frames: a clip has at least 3, got 0"),
    "negative frames": (clips(1, frames=3) | {"frames": np.array([[-3]], np.int32)},
                        "frames: a clip has at least 3, got -3"),
    "beyond the encoder": (
        clips(1, frames=3001),
        "an audio clip has 30.01 s, the encoder takes 30.00 s; split the audio into shorter clips",
    ),
    "more than the table holds": (
        clips(*[7] * 200, frames=2500, features=False),
        "audio: 62400 audio tokens (12.5 a second), the limit of the prompt table is 4096; send less audio",
    ),
    "a million clips": (
        clips(*[7] * 1_000_000, features=False),
        "audio: 1000000 clips, which leaves no room in max_seq_len 8192",
    ),
    "hash 0": (clips(7) | {"content_hash": np.zeros((1, 1), np.uint64)},
               "content_hash: 0 stands for text, a clip's is 1 to 2^64 - 1"),
    "NaN": (clips(1) | {"mel": np.full((1, 1, N_MELS, 40), np.nan, np.float32)}, "mel holds NaN or infinity"),
    "infinity": (clips(1) | {"mel": np.full((1, 1, N_MELS, 40), -np.inf, np.float32)}, "mel holds NaN or infinity"),
    "too loud": (
        clips(1) | {"mel": np.full((1, 1, N_MELS, 40), 1e30, np.float32)},
        "mel: the encoder's embeddings of it are beyond float16",
    ),
    "a batch": (clips(1) | {"frames": np.full((2, 1), 40, np.int32)},
                "frames: a batch of 2, send one request at a time"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused_alone(kind):
    """Its neighbours are encoded, once, and it leaves nothing in the cache."""
    inputs, text = REFUSED[kind]
    encoder, engine = step()
    good, bad, other = encoder.work([clips(1), inputs, clips(2)]) if kind != "too loud" else encoder.work(
        [clips(3), inputs, clips(2)]
    )  # fmt: skip
    assert isinstance(bad, InvalidRequest) and str(bad) == text
    assert table(good)[0, 0, 0] in (1, 3) and table(other)[0, 0, 0] == 2
    assert engine.clips == 2 + (kind == "too loud")


def test_a_clip_of_no_rows_has_an_empty_share():
    """Under 321 samples by rule "L-2", as the end of a longer recording or alone; its neighbours do not notice."""
    encoder, engine = step()
    short = clips(9, 1, frames=40)
    short["frames"][0, 0] = 4
    ending, alone, good = encoder.work([short, clips(8, frames=3), clips(2)])
    rows = token_count(40, "L-2")
    assert table(ending).shape == (1, rows, DIM) and table(good).shape == (1, rows, DIM)
    assert alone == {} and engine.clips == 2
    assert encoder.work([clips(8, frames=3, features=False)]) == [{}]


def test_without_audio_there_is_no_table():
    encoder, _ = step()
    answers = []
    encoder.submit(clips(features=False), answers.append)
    assert answers == [{}]

"""The featurizer as anybody may call it: what a request's recordings may cost, and clips of every length."""

import json
import queue
import threading

import numpy as np
import pytest

from audio_fixture import wav
from model_fixture import runtime
from odd_recordings import small_and_dear
from step_audio import mel
from step_audio.clips import CLIP_SAMPLES, content_hash
from step_audio.errors import InvalidRequest
from step_audio.steps.clip_limits import most_seconds
from step_audio.steps.featurizer import Featurizer, FeaturizerStep
from step_audio.steps.runtime import Limits
from waiting import SECONDS, wait_until


def featurizer(**changes) -> Featurizer:
    return Featurizer(runtime().model_copy(update={"limits": Limits(max_audio_seconds=10), **changes}))


def messages(count: int) -> bytes:
    return json.dumps([{"role": "user", "content": [{"type": "audio"}] * count}]).encode()


def sound(samples: int, rate: int = 16_000, channels: int = 1) -> bytes:
    return wav(bytes(samples * channels), rate, channels, bits=8)


REFUSED = {
    "many channels": (
        [sound(4 * 192_000, 192_000, 8)],
        "audio[0]: too long to decode at 192000 Hz with 8 channels; send up to 96000 Hz in mono or stereo",
    ),
    "many channels in all": (
        [sound(2 * 96_000, 96_000, 8)] * 2,
        "audio[1]: too long to decode at 96000 Hz with 8 channels; send up to 96000 Hz in mono or stereo",
    ),
    "seconds in all": (
        [sound(6 * 16_000), sound(6 * 16_000)],
        "audio[1]: 6.0 s long, the limit is 4 s: what the recordings before it leave of 10 s",
    ),
    "too loud": (
        [wav(np.full(1000, 1e30, "<f4").tobytes(), bits=32, tag=3)],
        "audio[0]: the samples hold NaN or infinity, or reach 1e+12",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused(kind):
    audio, text = REFUSED[kind]
    with pytest.raises(InvalidRequest) as caught:
        featurizer().featurize(messages(len(audio)), audio)
    assert str(caught.value) == text


def test_a_deep_text_is_refused():
    with pytest.raises(InvalidRequest, match="messages and tools are nested too deeply"):
        featurizer().featurize(b"[" * 100_000, [])


@pytest.mark.parametrize("samples", [1, 320])
def test_a_clip_that_has_no_tokens_by_rule_l_2_is_taken(samples):
    """As a recording, and as what is left behind the last whole clip of one."""
    alone = featurizer(length_rule="L-2").featurize(messages(1), [sound(samples)])
    assert alone.frames.tolist() == [(samples + 479) // 160] and np.isfinite(alone.mel).all()
    limits = Limits(max_audio_seconds=60)
    ending = featurizer(length_rule="L-2", limits=limits).featurize(messages(1), [sound(CLIP_SAMPLES + samples)])
    assert ending.frames.tolist() == [mel.frame_count(CLIP_SAMPLES), (samples + 479) // 160]
    assert ending.audio_index.tolist() == [0, 0]


def test_of_a_recording_whose_clips_are_known_only_the_rest_is_heard():
    """Its clips are those of the whole recording, and features are made of no others."""
    data = np.random.default_rng(0).integers(0, 255, CLIP_SAMPLES + 40_000, np.uint8).tobytes()
    step = featurizer(limits=Limits(max_audio_seconds=60))
    whole = step.featurize(messages(1), [wav(data, 16_000, bits=8)])
    clips = list(zip(whole.frames.tolist(), whole.content_hash.tolist(), strict=True))
    asked = [
        {"type": "audio", "known": clips[:1], "skip": 1000},
        {"type": "audio", "known": clips},
        {"type": "audio"},
    ]
    sent = [wav(data[CLIP_SAMPLES - 1000 :], 16_000, bits=8), b"", sound(16_000)]
    found = step.featurize(json.dumps([{"role": "user", "content": asked}]).encode(), sent)
    assert found.frames.tolist() == [*whole.frames, *whole.frames, mel.frame_count(16_000)]
    assert found.content_hash[:4].tolist() == [*whole.content_hash, *whole.content_hash]
    assert found.audio_index.tolist() == [0, 0, 1, 1, 2] and found.mel_index.tolist() == [1, 4]
    assert len(found.mel) == 2 and (found.mel[0, :, : whole.frames[1]] == whole.mel[1, :, : whole.frames[1]]).all()
    assert found.report.shape == (2, 3)


def test_known_clips_count_among_the_seconds_of_a_request():
    for frames, limit in ((800, 2), (1100, 10)):
        asked = json.dumps([{"role": "user", "content": [{"type": "audio", "known": [[frames, 1]]}]}]).encode()
        with pytest.raises(InvalidRequest, match=f"the limit of {limit} s"):
            featurizer().featurize(asked, [sound(3 * 16_000)])


@pytest.mark.parametrize(
    "part",
    [
        {"known": 7},
        {"known": [[8]]},
        {"known": [[8, 0]]},
        {"known": [[8, 1.5]]},
        {"known": [[-8, 1]]},
        {"skip": -1},
        {"skip": 1},
    ],
    ids=str,
)
def test_what_is_no_known_clip_is_refused(part):
    asked = json.dumps([{"role": "user", "content": [{"type": "audio"} | part]}]).encode()
    with pytest.raises(InvalidRequest, match=r"messages\[0\].content\[0\]"):
        featurizer().featurize(asked, [b""])


def test_a_request_that_is_refused_does_not_end_the_step():
    step, answers = FeaturizerStep(runtime()), queue.SimpleQueue()
    for audio in ([b"no sound"], [sound(16_000)]):
        step.submit({"messages": [messages(1)], "audio": audio}, answers.put)
        found = answers.get(timeout=SECONDS)
        assert isinstance(found, InvalidRequest) == (audio == [b"no sound"])


@pytest.mark.long
def test_a_small_file_that_is_dear_to_decode_lets_others_go_first(monkeypatch):
    """Others are larger, and have come later."""
    begin, order = threading.Event(), []
    featurize = Featurizer.featurize

    def slow(self, asked, audio):
        order.append(audio[0])
        begin.wait(SECONDS)
        return featurize(self, asked, audio)

    monkeypatch.setattr(Featurizer, "featurize", slow)
    step, answers = FeaturizerStep(runtime()), queue.SimpleQueue()
    spoken, threads = [sound(16_000 * seconds) for seconds in (3, 4, 5)], step._audio.threads
    assert len(small_and_dear()) < len(spoken[0])
    for data in (*[sound(100)] * threads, *[small_and_dear()] * 3, *spoken):
        step.submit({"messages": [messages(1)], "audio": [data]}, answers.put)
    wait_until(lambda: step._audio.waiting() == 6 and len(order) == threads, "all to be weighed")
    begin.set()
    found = [answers.get(timeout=SECONDS) for _ in range(threads + 6)]
    assert sum(isinstance(one, InvalidRequest) for one in found) == 3, "those cost more than a request may"
    assert sorted(order[threads : threads + 3]) == sorted(spoken)


def test_a_clip_s_hash_is_that_of_its_features():
    """So the encoder, which has them alone, can check it."""
    audio = [wav(np.random.default_rng(n).normal(0, 300, 16_000 * n).astype("<i2").tobytes()) for n in (1, 2)]
    features = featurizer().featurize(messages(2), audio)
    for clip, frames, digest in zip(features.mel, features.frames, features.content_hash, strict=True):
        assert content_hash(clip[:, :frames]) == digest


def test_what_is_lost_is_reported():
    whole = sound(16_000)
    opposite = wav(np.stack([one := np.arange(-8000, 8000, dtype="<i2"), -one], 1).tobytes(), channels=2)
    features = featurizer().featurize(messages(3), [whole, whole[:-1600], opposite])
    np.testing.assert_allclose(features.report, [[0, 0.1, 0], [0, 0, 1]], atol=1e-3)
    text = featurizer().featurize(json.dumps([{"role": "user", "content": "hello"}]).encode(), [])
    assert text.report.shape == (2, 0)
    with pytest.raises(
        InvalidRequest, match=r"^audio\[1\]: the file is cut off .* only whole recordings are taken here$"
    ):
        strict = Limits(max_audio_seconds=10, strict_audio=True)
        featurizer(limits=strict).featurize(messages(2), [whole, whole[:-1600]])


def test_a_channel_is_chosen_in_the_message():
    left, right = (np.random.default_rng(n).normal(0, 3000, 16_000).astype("<i2") for n in (0, 1))
    both, alone = wav(np.stack([left, right], 1).tobytes(), channels=2), wav(right.tobytes())
    asked = json.dumps([{"role": "user", "content": [{"type": "audio", "channel": 1}]}]).encode()
    expected = featurizer().featurize(messages(1), [alone]).mel
    np.testing.assert_allclose(featurizer().featurize(asked, [both]).mel, expected, atol=1e-4)
    assert np.abs(featurizer().featurize(messages(1), [both]).mel - expected).max() > 0.1
    for wrong in ("1", -1, 64, 1.0, True):
        bad = json.dumps([{"role": "user", "content": [{"type": "audio", "channel": wrong}]}]).encode()
        with pytest.raises(InvalidRequest, match=r"channel must be a whole number from 0 to 63"):
            featurizer().featurize(bad, [both])


@pytest.mark.parametrize("rule", ["L", "L-2"])
def test_no_more_is_decoded_than_the_prompt_has_room_for(rule):
    small = runtime().model_copy(update={"max_prompt_table_rows": 100, "length_rule": rule})
    for samples in range(160, CLIP_SAMPLES + 1, 5777):
        tokens = mel.token_count(mel.frame_count(samples), rule)
        assert most_seconds(1, small.model_copy(update={"max_prompt_table_rows": tokens})) >= samples / 16_000
    limits = Limits(max_audio_seconds=5100)
    with pytest.raises(InvalidRequest, match=r"audio\[0\]: 3600.0 s long, the limit is 8\.\d+ s"):
        featurizer(max_prompt_table_rows=100, limits=limits, length_rule=rule).featurize(
            messages(1), [sound(3600 * 1000, 1000)]
        )

"""The first kinds of training data: what is said is what is labelled, and nothing held out is trained on."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from lazy import Lazy
from step_audio.clips import SAMPLE_RATE
from step_audio_training import recordings, sound
from step_audio_training.arithmetic import Sum, draw_large_sum, draw_sum, in_words, spell_numbers
from step_audio_training.examples import SHARES, draw_example
from step_audio_training.recordings import SOUNDS, DrawnRecording, draw_conditions, draw_recording, record
from step_audio_training.speech import Voice, draw_variant, speak

sounds_when = Lazy("step_audio_training.collation:sounds_when")

TASKS = tuple(SHARES)


# Arithmetic.


def test_steps_lead_to_the_result():
    """Each step is right by Python's own reckoning, and the last one gives the result."""
    random = np.random.default_rng(0)
    for n in range(2000):
        drawn = draw_sum(random, held_out=n % 2 == 0, terms=2 + n % 3 // 2)
        assert drawn.held_out == (n % 2 == 0)
        value = drawn.numbers[0]
        for sign, number in zip(drawn.signs, drawn.numbers[1:], strict=True):
            value = eval(f"{value}{sign}{number}")
        assert drawn.result == value >= 0
        steps = [step.split("=") for step in drawn.steps()]
        assert all(eval(left) == int(right) for left, right in steps)
        assert int(steps[-1][1]) == value


def test_chains_and_words():
    assert Sum((47, 38), "+").steps() == ["47+30=77", "77+8=85"]
    assert Sum((47, 6), "*").steps() == ["40*6=240", "7*6=42", "240+40=280", "280+2=282"]
    assert Sum((85, 20, 7), "--").steps() == ["85-20=65", "65-7=58"]
    assert Sum((5, 3), "-").spoken == "five minus three"
    assert [in_words(n) for n in (0, 13, 30, 99, 100, 412, 999)] == [
        "zero", "thirteen", "thirty", "ninety nine", "one hundred", "four hundred twelve",
        "nine hundred ninety nine",
    ]  # fmt: skip
    assert len({in_words(n) for n in range(1000)}) == 1000
    assert spell_numbers("What is 58 plus 7?") == "what is fifty eight plus seven"


def test_held_out_numbers_ignore_order():
    pairs = [(a, b) for a in range(2, 100) for b in range(2, 100)]
    assert all(Sum((a, b), "+").held_out == Sum((b, a), "*").held_out for a, b in pairs)
    assert 0.1 < np.mean([Sum(pair, "+").held_out for pair in pairs]) < 0.15
    random = np.random.default_rng(0)
    assert all(not draw_large_sum(random, held_out=False).held_out for _ in range(200))


# Sound.


@pytest.mark.parametrize("kind", [*sound.TRAIN_NOISES, *sound.HELD_OUT_NOISES])
def test_noise_has_the_level_that_was_asked_for(kind):
    random = np.random.default_rng(1)
    voice = speak("please bring me ninety nine red apples", Voice()).samples
    voice = voice[np.abs(voice) > 0.02 * np.abs(voice).max()]
    for snr in (0, 20):
        difference = sound.add_noise(voice, kind, snr, random) - voice
        measured = 10 * np.log10(np.mean(voice**2) / np.mean(difference**2))
        assert abs(measured - snr) < 3.5


def test_a_room_adds_a_tail_that_falls():
    click = np.zeros(SAMPLE_RATE, np.float32)
    click[100] = 1
    heard = sound.reverberate(click, 0.4, np.random.default_rng(0))
    energy = [np.sum(heard[start : start + 1600] ** 2) for start in (200, 1800, 3400, 5000)]
    assert heard[100] == pytest.approx(1, abs=0.01)
    assert all(a > 3 * b for a, b in pairwise(energy))


def test_the_fundamental_is_that_of_a_known_tone():
    t = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    for frequency in (70, 110, 180, 250, 350):
        voiced = sum(np.sin(2 * np.pi * k * frequency * t) / k for k in range(1, 10)).astype(np.float32)
        assert sound.fundamental(voiced) == pytest.approx(frequency, rel=0.02)
    assert sound.fundamental(np.random.default_rng(0).standard_normal(SAMPLE_RATE).astype(np.float32)) < 1


def test_a_microphone_has_its_response():
    """A sine comes out louder or softer by what the response says at its octave."""
    t = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    response = (0, 0, -12, 0, 6, 0, 0, 0)
    for frequency, gain in ((250, -12), (500, 0), (1000, 6), (4000, 0)):
        sine = np.sin(2 * np.pi * frequency * t).astype(np.float32)
        heard = sound.respond(sine, response)
        assert len(heard) == len(sine)
        assert 20 * np.log10(heard.std() / sine.std()) == pytest.approx(gain, abs=0.2)
    drawn = sound.draw_response(np.random.default_rng(0))
    assert len(drawn) == len(response) and sum(drawn) == pytest.approx(0)


def test_beeps_can_be_counted():
    random = np.random.default_rng(0)
    for count in range(1, 6):
        samples, times = sound.beeps(count, random)
        loud = np.abs(samples) > 0.01
        silent = np.convolve(loud, np.ones(800), "same") == 0  # 50 ms without a sound
        assert 1 + np.sum(np.diff(silent.astype(int)) == 1) == count == len(times)
        for start, end in times:
            assert loud[int((start + 0.02) * SAMPLE_RATE) : int((end - 0.02) * SAMPLE_RATE)].mean() > 0.9


def test_words_are_where_the_synthesiser_says():
    said = speak("seven seven seven seven", Voice())
    gaps = np.diff(said.words)
    assert len(said.words) == 5 and np.all(gaps > 0.15) and np.ptp(gaps) < 0.2
    assert -0.05 < said.words[0] < said.words[-1] <= len(said.samples) / SAMPLE_RATE + 0.1


def test_labels_follow_the_silence_in_front():
    """A pause of 1.6 s before the recording moves all labels by 20 embeddings."""
    recording = draw_recording(np.random.default_rng(2), kind="beeps")
    early, late = sounds_when(recording, 0.0, 60), sounds_when(recording, 1.6, 80)
    assert early.any() and not late[:20].any() and np.array_equal(late[20:], early)


@pytest.mark.parametrize(
    ("kind", "heard"),
    [
        ("beeps", lambda r: [f"beep {n + 1}" for n in range(r.count)]),
        ("tone", lambda r: [f"{r.glide} tone"]),
        ("noise", lambda r: ["noise"]),
        ("sum", lambda r: [f"voice {r.heights[0]}"]),
    ],
)
def test_sounds_are_labelled(kind, heard):
    random = np.random.default_rng(11)
    for _ in range(5):
        recording = draw_recording(random, kind=kind)
        tokens = int(12.5 * recording.seconds) + 6
        sounds = sounds_when(recording, 0.2, tokens)
        assert [SOUNDS[n] for n in sounds[np.flatnonzero(np.diff(sounds, prepend=0))] if n] == heard(recording)
        assert not sounds[:2].any() and not sounds[-1]


def test_a_second_voice_is_the_same_or_another():
    random = np.random.default_rng(12)
    for _ in range(6):
        recording = draw_recording(random, kind="speakers")
        assert [named for _, _, named in recording.sounds] == [f"voice {height}" for height in recording.heights]
        apart = abs(recording.heights[0] - recording.heights[1])
        assert apart > 4 if recording.count == 2 else apart < 4


def test_speed_is_obeyed_and_unknown_voices_are_an_error():
    slow, fast = (len(speak("one two three", Voice(words_per_minute=rate)).samples) for rate in (90, 250))
    assert slow > 2 * fast
    with pytest.raises(ValueError, match="no voice"):
        speak("one", Voice(variant="nobody"))


def test_drawn_voices_differ():
    random = np.random.default_rng(0)
    drawn = [speak("twenty seven apples", Voice(variant=draw_variant(random))).samples for _ in range(8)]
    heights = [sound.fundamental(samples) for samples in drawn]
    assert min(heights) > 55 and max(heights) > 1.5 * min(heights)
    assert len({len(samples) for samples in drawn}) > 4


def test_every_voice_exists():
    for variant in (*recordings.TRAIN_VARIANTS, *recordings.HELD_OUT_VARIANTS):
        assert sound.fundamental(speak("twenty seven", Voice(variant=variant)).samples) > 50
    for accent in recordings.ACCENTS:
        speak("twenty seven", Voice(accent=accent))


# What is held out.


def test_training_and_evaluation_share_nothing():
    assert not {*recordings.TRAIN_VARIANTS, *recordings.HIGH_VARIANTS} & set(recordings.HELD_OUT_VARIANTS)
    assert not set(sound.TRAIN_NOISES) & set(sound.HELD_OUT_NOISES)
    for rate, ranges in recordings.HELD_OUT_RATES.items():
        trained = {n for low, high in recordings.TRAIN_RATES[rate] for n in range(low, high)}
        assert not trained & {n for low, high in ranges for n in range(low, high)}
    random = np.random.default_rng(3)
    for held_out in (False, True):
        for task in ("arithmetic", "compare", "tool_call"):
            example = draw_example(random, held_out, task)
            assert all(r.sum is None or r.sum.held_out == held_out for r in example.recordings)
        assert draw_conditions(random, held_out).noise in (sound.HELD_OUT_NOISES if held_out else sound.TRAIN_NOISES)


# Examples and batches.


@pytest.mark.parametrize("task", TASKS)
def test_examples_are_consistent(task):
    random = np.random.default_rng(4)
    for _ in range(6):
        example = draw_example(random, task=task)
        places = sum(
            part.get("type") == "audio"
            for message in example.messages
            if isinstance(message["content"], list)
            for part in message["content"]
        )
        assert example.task == task and places == len(example.recordings)
        assert example.expected.lower() in example.answer.lower()
        assert (example.thought is None) == task.endswith("_no_think")
        assert (example.cut is not None) == (task == "arithmetic_cut_thought")


def test_silence_in_front_and_gain():
    random = np.random.default_rng(6)
    conditions = recordings.Conditions("white", None, 0.0, -6.0, 0.5, 0.25)
    clean = DrawnRecording("sentence", np.full(1600, 0.5, np.float32), "one")
    heard = record(clean, conditions, random)
    assert len(heard) == 8000 + 1600 + 4000 and not heard[:8000].any()
    assert heard[8000:9600] == pytest.approx(0.5 * 10 ** (-6 / 20), rel=1e-4)

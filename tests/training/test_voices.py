"""Voices of other synthesizers, where they are installed; telephones and codecs; what is not speech."""

from __future__ import annotations

import numpy as np
import pytest

from step_audio.clips import SAMPLE_RATE
from step_audio_training import human, sound, voices
from step_audio_training.channel import CHANNELS, cut_ends, through
from step_audio_training.scenes import voiced
from step_audio_training.speech import Voice, ipa, speak
from step_audio_training.strange import HELD_OUT_LANGUAGES, PHRASES, draw_strange
from step_audio_training.voices import HELD_OUT_SPEAKERS, TRAIN_SPEAKERS, installed, say, say_foreign


def share_above(samples: np.ndarray, hertz: float) -> float:
    power = np.abs(np.fft.rfft(samples)) ** 2
    return float(power[np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE) > hertz].sum() / power.sum())


@pytest.mark.parametrize("channel", list(CHANNELS))
def test_a_channel_keeps_what_is_said_and_takes_what_it_takes(channel):
    said = speak("six brown boxes and sixty six tickets", Voice()).samples
    heard = through(channel, said, np.random.default_rng(0))
    assert heard.dtype == np.float32 and abs(len(heard) - len(said)) < 0.1 * SAMPLE_RATE
    assert 0.3 < heard.std() / said.std() < 1.5
    lag = np.argmax(np.correlate(np.abs(heard[:16000]), np.abs(said[:12000]), "valid"))
    envelope = [np.convolve(np.abs(x), np.ones(400), "same")[::400][:60] for x in (said, heard[lag:])]
    assert np.corrcoef(*envelope)[0, 1] > 0.8  # as loud when it was loud
    if channel in ("8 kHz", "telephone", "gsm"):
        assert share_above(heard, 4100) < 0.01 < share_above(said, 4100)
    if channel == "telephone":
        assert share_above(heard, 280) > 0.98


def test_ends_are_cut_by_no_more_than_was_said():
    samples = np.ones(SAMPLE_RATE, np.float32)
    for seed in range(5):
        assert 0.87 * SAMPLE_RATE < len(cut_ends(samples, np.random.default_rng(seed))) <= SAMPLE_RATE


@pytest.mark.parametrize("what", ["music", "singing", "another language", "silence", "noise"])
def test_what_is_not_english_has_length_and_level(what):
    for seed in range(3):
        samples = draw_strange(what, np.random.default_rng(seed))
        assert samples.dtype == np.float32 and 0.5 < len(samples) / SAMPLE_RATE < 12
        level = float(np.sqrt(np.mean(samples**2)))
        assert level < 0.001 if what == "silence" else level == pytest.approx(0.1, rel=0.2)


def test_languages_for_evaluation_are_not_learnt(monkeypatch):
    from step_audio_training import strange

    monkeypatch.setattr(strange, "installed", tuple)
    said: list[str] = []
    real = strange.speak
    monkeypatch.setattr(strange, "speak", lambda text, voice, **k: said.append(voice.accent) or real(text, voice, **k))
    for seed in range(30):
        draw_strange("another language", np.random.default_rng(seed))
    assert said and not set(said) & set(HELD_OUT_LANGUAGES) and set(said) <= set(PHRASES)
    said.clear()
    draw_strange("another language", np.random.default_rng(0), held_out=True)
    assert set(said) <= set(HELD_OUT_LANGUAGES)


def test_espeak_writes_its_pronunciation():
    assert ipa("red") == "ɹˈɛd" and ipa("rot", "de") != ipa("rot")


@pytest.mark.parametrize("speaker", [*TRAIN_SPEAKERS, *HELD_OUT_SPEAKERS], ids=lambda s: f"{s.synthesizer}-{s.name}")
def test_a_synthesizer_speaks_as_fast_as_it_is_told(speaker):
    if speaker not in installed((*TRAIN_SPEAKERS, *HELD_OUT_SPEAKERS)):
        pytest.skip(f"{speaker.synthesizer} is not installed")
    slow, fast = (say("please bring me nine red apples", speaker, pace) for pace in (0.7, 1.4))
    assert slow.dtype == np.float32
    assert 1.4 < len(slow) / len(fast) < 3 or not speaker.paced
    assert 60 < sound.fundamental(slow) < 350
    assert len(say_foreign("wo ist bitte der bahnhof", "de", speaker)) > SAMPLE_RATE // 2


def test_a_word_that_cannot_be_said_is_said_by_espeak(monkeypatch):
    def fails(*_):
        raise KeyError("a letter of no alphabet")

    monkeypatch.setitem(voices._SYNTHESIZERS, "flite", fails)
    flite = next(each for each in TRAIN_SPEAKERS if each.synthesizer == "flite")
    with pytest.raises(OSError, match="flite cannot say 'nine'"):
        say("nine", flite)
    samples, source = voiced("nine", np.random.default_rng(0), False, (flite,))
    assert source == "espeak" and len(samples) > 2000


def test_a_human_says_sums_that_are_held_out():
    if not human.available():
        pytest.skip("asterisk-core-sounds-en-g722 is not installed")
    random = np.random.default_rng(0)
    for _ in range(5):
        heard = human.human_sum(random)
        assert heard.sum and heard.sum.held_out and heard.text == heard.sum.spoken
        assert 120 < sound.fundamental(heard.samples) < 300
        assert 0.2 < heard.seconds / len(heard.text.split()) < 1.2

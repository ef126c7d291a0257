"""The training data and recipe: what is said is what is labelled, nothing held out is trained on, training resumes."""

from __future__ import annotations

import json
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch

from step_audio.checkpoint import Checkpoint, expected_tensors
from step_audio.clips import SAMPLE_RATE
from step_audio.config import ModelConfig
from step_audio.errors import ArtefactError
from step_audio.mel import token_count
from step_audio.tokenizer import Tokenizer
from step_audio_training import recordings, sound
from step_audio_training.arithmetic import Sum, draw_large_sum, draw_sum, in_words, spell_numbers
from step_audio_training.batches import IGNORED, WORD_IDS, WORDS, Batches, heard_when
from step_audio_training.command import run
from step_audio_training.examples import SHARES, draw_example
from step_audio_training.recordings import SOUNDS, DrawnRecording, draw_conditions, draw_recording, record
from step_audio_training.sentences import sentence
from step_audio_training.speech import PHONEMES, Voice, draw_variant, speak

TASKS = tuple(SHARES)


@pytest.fixture(scope="module")
def train():
    """The recipe; it brings transformers, which takes seconds."""
    from step_audio_training import train

    return train


@pytest.fixture(scope="module")
def tokenizer_json(train) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "CORPUS_EXAMPLES", 60)
        return train.make_tokenizer(0)


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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


def test_words_and_phonemes_are_where_the_synthesiser_says():
    said = speak("seven seven seven seven", Voice())
    gaps = np.diff(said.words)
    assert len(said.words) == 5 and np.all(gaps > 0.15) and np.ptp(gaps) < 0.2
    assert -0.05 < said.words[0] < said.words[-1] <= len(said.samples) / SAMPLE_RATE + 0.1
    names = [PHONEMES[phoneme] for _, phoneme in said.phonemes]
    assert names[:5] == ["s", "E", "v", "@", "n"] and names.count("v") == 4
    times = [start for start, _ in said.phonemes]
    assert times == sorted(times) and times[0] == pytest.approx(said.words[0], abs=0.05)


def test_labels_follow_the_silence_in_front():
    """A pause of 1.6 s before the recording moves all labels by 20 embeddings and 40 frames."""
    recording = draw_recording(np.random.default_rng(2), kind="sentence")
    early = heard_when(recording, 0.0, 60, 120)
    late = heard_when(recording, 1.6, 80, 160)
    for before, after, shift in zip(early, late, (20, 20, 40), strict=True):
        assert not after[:shift].any() and np.array_equal(after[shift:], before)
    assert [WORDS[n - 1] for n in np.unique(early[0]) if n] == sorted(set(recording.text.split()))


@pytest.mark.parametrize(
    ("kind", "heard"),
    [
        ("beeps", lambda r: [f"beep {n + 1}" for n in range(r.count)]),
        ("tone", lambda r: [f"{r.glide} tone"]),
        ("noise", lambda r: ["noise"]),
        ("sum", lambda r: [f"{r.pitch or 'middle'} voice"]),
    ],
)
def test_sounds_are_labelled(kind, heard):
    random = np.random.default_rng(11)
    for _ in range(5):
        recording = draw_recording(random, kind=kind)
        tokens = int(12.5 * recording.seconds) + 6
        _, sounds, _ = heard_when(recording, 0.2, tokens, 2 * tokens)
        assert [SOUNDS[n] for n in sounds[np.flatnonzero(np.diff(sounds, prepend=0))] if n] == heard(recording)
        assert not sounds[:2].any() and not sounds[-1]


def test_a_second_voice_is_the_same_or_another():
    random = np.random.default_rng(12)
    for _ in range(6):
        recording = draw_recording(random, kind="speakers")
        assert recording.sounds[1][2] == ("same voice" if recording.count == 1 else "other voice")


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
        assert all(word in WORD_IDS for r in example.recordings for word in r.text.split())


def test_every_sentence_is_in_the_word_list():
    random = np.random.default_rng(5)
    assert {word for _ in range(3000) for word in sentence(random).split()} <= set(WORDS)


def test_silence_in_front_and_gain():
    random = np.random.default_rng(6)
    conditions = recordings.Conditions("white", None, 0.0, -6.0, 0.5, 0.25)
    clean = DrawnRecording("sentence", np.full(1600, 0.5, np.float32), "one", ((0.0, 0.1),))
    heard = record(clean, conditions, random)
    assert len(heard) == 8000 + 1600 + 4000 and not heard[:8000].any()
    assert heard[8000:9600] == pytest.approx(0.5 * 10 ** (-6 / 20), rel=1e-4)


def test_batches_hold_what_was_said(tokenizer_json):
    """Labels are the answers, and the audio rows are each example's own clips."""
    tokenizer, vocab = Tokenizer(tokenizer_json), 9000
    for batch in Batches(7, 0, 1, tokenizer_json, vocab)[0]:
        counts = [token_count(int(length)) for length in batch.frames]
        assert [(row != IGNORED).sum().item() for row in batch.words] == counts
        starts = np.cumsum([0, *counts])
        for ids, labels in batch.groups:
            for row, answer in zip(ids, labels, strict=True):
                text = tokenizer.decode([token for token in answer.tolist() if token != IGNORED])
                assert text.endswith("<|EOT|>")
                audio = row[row >= vocab] - vocab
                runs = np.split(audio.numpy(), np.flatnonzero(np.diff(audio.numpy()) != 1) + 1) if len(audio) else []
                for run_ in runs:  # whole clips, from first row to last
                    assert run_[0] in starts and run_[-1] + 1 in starts
                asked = np.flatnonzero(answer.numpy() != IGNORED)
                before = row[1 : asked[0] + 1][row[1 : asked[0] + 1] < vocab]
                assert tokenizer.decode(before.tolist()).endswith(("<think>\n", "</think>\n"))


# The recipe.


def test_training_resumes_and_exports(train, tmp_path, monkeypatch, tokenizer_json, one_thread):
    """Interrupted and resumed it gives the same weights as in one go, and a checkpoint that the product reads.

    On one thread: several may share the work out differently from one run to the next.
    """
    made = Batches(7, 0, 1, tokenizer_json, train.rows(Tokenizer(tokenizer_json).max_id + 1))[0]
    monkeypatch.setattr(train, "make_tokenizer", lambda seed: tokenizer_json)
    monkeypatch.setattr(train, "held_out_batches", lambda *_: made[:1])
    monkeypatch.setattr(train, "training_batches", lambda seed, step, steps, *_: iter(made[step:steps]))
    monkeypatch.setattr(train, "SAVE_EVERY", 2)
    monkeypatch.setattr(train, "WATCH_EVERY", 4)
    recipe = train.Recipe(seed=3, steps=6, alignment_steps=2, warm_up_steps=2)
    said: list[str] = []
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib", None)  # not installed: only the picture is missing in the end
        run(tmp_path / "whole", recipe, 0, "cpu", said.append)
    assert said[-1] == "training.svg is not drawn: pip install -e '.[train]'"

    real = train._step
    count = 0

    def interrupted(*arguments):
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(train, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "halves", recipe, 0, "cpu", print)
    monkeypatch.setattr(train, "_step", real)
    run(tmp_path / "halves", recipe, 0, "cpu", print)

    whole, halves = (Checkpoint(tmp_path / name / "checkpoint") for name in ("whole", "halves"))
    config = ModelConfig.from_directory(tmp_path / "whole" / "checkpoint")
    for name in expected_tensors(config):
        assert np.array_equal(whole.read(name), halves.read(name)), name
    rows = [json.loads(line) for line in (tmp_path / "halves" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert "answer_loss" in rows[-1] and "held_out_token_accuracy" in rows[-1]
    assert (tmp_path / "halves" / "training.svg").read_text().startswith("<?xml")
    with pytest.raises(ArtefactError, match="is there already"):
        run(tmp_path / "whole", recipe, 0, "cpu", print)
    with pytest.raises(ArtefactError, match="other settings"):
        train.train(tmp_path / "whole", train.Recipe(seed=4, steps=6), 0, "cpu")

    # A refinement begins with the weights of the other: at a rate of next to nothing it ends with them, too.
    still = train.Recipe(seed=5, steps=1, alignment_steps=0, learning_rate=1e-12)
    refined, tokenizer = train.train(tmp_path / "refined", still, 0, "cpu", tmp_path / "whole")
    assert tokenizer == tokenizer_json
    with torch.no_grad():
        for name, value in train.train(tmp_path / "whole", recipe, 0, "cpu")[0].named_parameters():
            assert torch.allclose(value, refined.get_parameter(name), atol=1e-9), name
    with pytest.raises(ArtefactError, match="does not exist: give the output of a training"):
        train.train(tmp_path / "none", still, 0, "cpu", tmp_path / "nothing")


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "no state", "no dictionary"])
def test_a_damaged_state_is_named_with_what_to_do(train, tmp_path, damage):
    file = tmp_path / "state.pt"
    torch.save([1] if damage == "no dictionary" else {"model": {}}, file)
    data = {"empty": b"", "text": b"hello", "cut": file.read_bytes()[:-100]}.get(damage, file.read_bytes())
    file.write_bytes(data)
    recipe = train.Recipe(seed=3, steps=6)
    with pytest.raises(ArtefactError, match=r"state\.pt is damaged or .*: delete it to begin anew, or restore it$"):
        train.train(tmp_path, recipe, 0, "cpu")
    with pytest.raises(ArtefactError, match=r"state\.pt is damaged or .*: restore it, or give .* another training$"):
        train.train(tmp_path / "refined", recipe, 0, "cpu", tmp_path)
    assert file.read_bytes() == data

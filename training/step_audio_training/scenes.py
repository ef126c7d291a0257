"""Recordings to learn from: those of `recordings` and more kinds, in the voices of all installed synthesizers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import soxr

from step_audio.arrays import Float32Array
from step_audio.clips import SAMPLE_RATE
from step_audio_training import recordings, sound
from step_audio_training.arithmetic import Sum, draw_large_sum, draw_sum, in_words
from step_audio_training.recordings import DrawnRecording, Kind, Rate
from step_audio_training.requests import SpokenRequest, draw_facts, draw_order, draw_talk
from step_audio_training.sentences import ANIMALS, COLOURS, DEEDS, PLACES, sentence
from step_audio_training.speech import speak
from step_audio_training.strange import Strange, draw_strange
from step_audio_training.texts import dictation
from step_audio_training.voices import Speaker, installed, say

# How many of a hundred recordings are of each kind.
SHARES: dict[Kind, int] = {
    "sum": 20, "large_sum": 6, "follow_up": 3, "sentence": 7, "dictation": 8, "speakers": 9, "beeps": 8, "tone": 6,
    "noise": 4, "order": 7, "facts": 3, "talk": 5, "loud": 5, "phrase": 5, "strange": 4,
}  # fmt: skip
OPENINGS = (
    "", "", "", "what is", "what is", "what's", "how much is", "tell me", "work out", "please compute", "calculate",
    "can you tell me what is", "and what is", "okay what is", "so how much is", "give me", "i want to know what is",
    "add up", "please tell me", "hey how much is",
)  # fmt: skip
PACES: dict[Rate, tuple[float, float]] = {"slow": (0.55, 0.66), "ordinary": (0.85, 1.2), "fast": (1.5, 1.75)}
ESPEAK_SHARE = 0.45
STRANGE: tuple[Strange, ...] = ("music", "singing", "another language", "another language", "silence", "noise")


def draw_scene(
    random: np.random.Generator,
    kind: Kind | None = None,
    held_out: bool = False,
    speakers: tuple[Speaker, ...] | None = None,
) -> DrawnRecording:
    """One recording. `held_out`: of words, numbers and sounds for evaluation; `speakers`: one of these, not any."""
    if kind is None:
        kinds = list(SHARES)
        kind = kinds[random.choice(len(kinds), p=np.array(list(SHARES.values())) / sum(SHARES.values()))]
    match kind:
        case "beeps" | "tone" | "noise":
            return recordings.draw_recording(random, held_out, kind)
        case "speakers":
            return _speakers(random, held_out, speakers)
        case "strange":
            what = STRANGE[random.integers(len(STRANGE))]
            return DrawnRecording("strange", draw_strange(what, random, held_out), told=what)
        case "loud":
            return _loud(random, held_out, speakers)
        case "phrase":
            told = ("question", "statement")[random.integers(2)]
            said = spoken("phrase", _phrase(told, random), random, held_out, speakers)
            return replace(said, told=told)
        case _:
            text, asked, request = words_of(kind, random, held_out)
            return replace(spoken(kind, text, random, held_out, speakers), sum=asked, request=request)


def draw_short_scene(random: np.random.Generator, longest: float, dictated: float = 0.0) -> DrawnRecording:
    """One of less than `longest` seconds, with the probability `dictated` a dictation, else of a kind by its share."""
    while True:
        try:
            drawn = draw_scene(random, "dictation" if dictated and random.random() < dictated else None)
        except (OSError, ValueError):  # a word that a synthesizer cannot say
            continue
        if drawn.seconds < longest:
            return drawn


def draw_unspoken(random: np.random.Generator, kind: Kind, held_out: bool = False) -> DrawnRecording:
    """As `draw_scene`, of a kind that is words, without sound."""
    text, asked, request = words_of(kind, random, held_out)
    return DrawnRecording(kind, np.zeros(0, np.float32), text, sum=asked, request=request)


def words_of(kind: Kind, random: np.random.Generator, held_out: bool) -> tuple[str, Sum | None, SpokenRequest | None]:
    """What is said, and the sum or the request in it."""
    match kind:
        case "sum" | "large_sum":
            asked = draw_practice(random, held_out, kind)
            opening = OPENINGS[random.integers(len(OPENINGS))]
            numbers = asked.spoken
            if random.random() < 0.3:  # as the British say it
                numbers = numbers.replace("hundred ", "hundred and ").replace("and plus", "plus")
                numbers = numbers.replace("and minus", "minus").replace("and times", "times")
            return f"{opening} {numbers}".strip(), asked, None
        case "follow_up":
            number, sign = int(random.integers(2, 20)), "+-"[random.integers(2)]
            ways = {"+": ("and plus", "now add", "plus"), "-": ("and minus", "now take away", "minus")}[sign]
            return f"{ways[random.integers(3)]} {in_words(number)}", Sum((0, number), sign), None
        case "dictation":
            return dictation(random, held_out), None, None
        case "order":
            request = draw_order(random)
        case "facts":
            request = draw_facts(random)
        case "talk":
            request = draw_talk(random)
        case _:
            return sentence(random), None, None
    return request.text, None, request


def draw_practice(random: np.random.Generator, held_out: bool, kind: Kind = "sum") -> Sum:
    """A sum whose every step is for training, if not `held_out`; else two numbers, or three, that are not."""
    while True:
        if kind == "large_sum":
            asked = draw_large_sum(random, held_out)
        else:
            asked = draw_sum(random, held_out, terms=3 if random.random() < 0.3 else 2)
        if held_out or not asked.holds_held_out:
            return asked


def spoken(
    kind: Kind, text: str, random: np.random.Generator, held_out: bool, speakers: tuple[Speaker, ...] | None = None
) -> DrawnRecording:
    """`text` in any voice, at any speed."""
    rates: tuple[Rate, ...] = ("slow", "ordinary", "fast")
    rate = rates[random.choice(3, p=[0.08, 0.84, 0.08])]
    while True:
        samples, source = voiced(text, random, held_out, speakers, rate)
        if pitch := sound.fundamental(samples):
            break
    height = recordings._height(pitch)
    samples = samples / recordings.level(samples)
    heights = (recordings.semitones(pitch),)
    sounds = ((0, len(samples) / SAMPLE_RATE, f"voice {heights[0]}"),)
    return DrawnRecording(
        kind, samples, text, sounds=sounds, pitch=height, heights=heights, rate=rate, source=source
    )  # fmt: skip


def voiced(
    text: str,
    random: np.random.Generator,
    held_out: bool,
    speakers: tuple[Speaker, ...] | None,
    rate: Rate = "ordinary",
    speaker: Speaker | None = None,
) -> tuple[Float32Array, str]:
    """Samples, and whose they are. `speaker`: that one and no other, as it is."""
    known = (speaker,) if speaker else installed() if speakers is None else speakers
    if not known or (speakers is None and not speaker and random.random() < ESPEAK_SHARE):
        voice = recordings.draw_voice(random, held_out, rate)
        return speak(text, voice, count_words=False).samples, "espeak"
    if rate != "ordinary":
        known = tuple(each for each in known if each.paced)
    shares = np.array([each.share for each in known])
    chosen = known[random.choice(len(known), p=shares / shares.sum())]
    pace = float(random.uniform(*PACES[rate]))
    warp = 1.0
    if speakers is None and not speaker:  # taller people and children: formants and pitch move together
        chance = random.random()
        warp = (
            float(random.uniform(1.1, 1.4))
            if chance < 0.25
            else float(random.uniform(0.84, 0.95))
            if chance < 0.4
            else 1
        )
    seed = int(random.integers(2**31))
    try:
        if speakers is None and rate == "ordinary" and len(text.split()) < 9 and random.random() < 0.1:
            samples = _spliced(text.split(), chosen, pace, seed, random)
        else:
            samples = say(text, chosen, pace / warp, seed)
    except OSError:  # a word that this one cannot say
        return speak(text, recordings.draw_voice(random, held_out, rate), count_words=False).samples, "espeak"
    if warp != 1:
        samples = np.asarray(soxr.resample(samples, SAMPLE_RATE * warp, SAMPLE_RATE), np.float32)
    return samples, f"{chosen.synthesizer} {chosen.name}"


def _spliced(words: list[str], speaker: Speaker, pace: float, seed: int, random: np.random.Generator) -> Float32Array:
    """Each word by itself, as announcements are put together."""
    pieces: list[Float32Array] = []
    for word in words:
        pieces += [say(word, speaker, pace, seed), np.zeros(int(random.uniform(0, 0.25) * SAMPLE_RATE), np.float32)]
    return np.concatenate(pieces[:-1])


def _speakers(random: np.random.Generator, held_out: bool, speakers: tuple[Speaker, ...] | None) -> DrawnRecording:
    """One voice twice or two that differ: half of them espeak-ng's, half of any synthesizer's."""
    known = installed() if speakers is None else speakers
    if len(known) < 2 or (speakers is None and random.random() < 0.5):
        return recordings.draw_recording(random, held_out, "speakers")
    count = int(random.integers(1, 3))
    while True:
        first, second = (sentence(random) if random.random() < 0.3 else _few_words(random) for _ in "ab")
        a, b = (known[n] for n in random.choice(len(known), 2, replace=False))
        b = a if count == 1 else b
        try:
            one, two = (
                voiced(text, random, held_out, None, "ordinary", who)[0] for text, who in ((first, a), (second, b))
            )
        except OSError:
            continue
        pitches = sound.fundamental(one), sound.fundamental(two)
        low, high = sorted(pitches)
        if low and (high < 1.25 * low if count == 1 else high > 1.3 * low):
            break
    made = recordings.one_behind_another(f"{first} {second}", one, two, pitches, count, random)
    return replace(made, source=a.synthesizer)


def _few_words(random: np.random.Generator) -> str:
    colour, animal = COLOURS[random.integers(len(COLOURS))], ANIMALS[random.integers(len(ANIMALS))]
    return f"{in_words(int(random.integers(2, 20)))} {colour} {animal}"


def _loud(random: np.random.Generator, held_out: bool, speakers: tuple[Speaker, ...] | None) -> DrawnRecording:
    """Three to five words with pauses, one of them twice as loud or more."""
    words = [COLOURS[n] for n in random.choice(len(COLOURS), int(random.integers(3, 6)), replace=False)]
    known = installed() if speakers is None else speakers
    speaker = known[random.integers(len(known))] if known and random.random() > ESPEAK_SHARE else None
    voice, seed = recordings.draw_voice(random, held_out), int(random.integers(2**31))
    pause = int(random.uniform(0.08, 0.25) * SAMPLE_RATE)
    chosen = int(random.integers(len(words)))
    pieces: list[Float32Array] = []
    sounds: list[tuple[float, float, str]] = []
    at = 0.0
    for n, word in enumerate(words):
        said = say(word, speaker, 1.0, seed) if speaker else speak(word, voice).samples
        said = said / recordings.level(said) * np.float32(1 if n == chosen else random.uniform(0.25, 0.4))
        sounds += [(at, at + len(said) / SAMPLE_RATE, "loud word" if n == chosen else "quiet word")]
        at += (len(said) + pause) / SAMPLE_RATE
        pieces += [said, np.zeros(pause, np.float32)]
    samples = np.concatenate(pieces[:-1])
    source = speaker.synthesizer if speaker else "espeak"
    return DrawnRecording("loud", samples, " ".join(words), sounds=tuple(sounds), told=words[chosen], source=source)


def _phrase(told: str, random: np.random.Generator) -> str:
    """The same words as a question or as a statement."""
    colour, animal, deed, place = (
        words[random.integers(len(words))] for words in (COLOURS, ANIMALS, ("sleeping", "waiting", "singing"), PLACES)
    )
    ways = {
        "question": (
            f"is the {colour} {animal} {deed} in the {place}",
            f"where is the {colour} {animal}",
            f"who saw the {animal} near the {place}",
            f"does the {animal} wait in the {place}",
        ),
        "statement": (
            f"the {colour} {animal} is {deed} in the {place}",
            f"here is the {colour} {animal}",
            f"i saw the {animal} near the {place}",
            f"the {animal} {DEEDS[random.integers(len(DEEDS))]} in the {place}",
        ),
    }[told]
    return ways[random.integers(4)]

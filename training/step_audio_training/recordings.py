"""Recordings to learn from and to be tested on: what is in them is known because it was put there.

Training and evaluation never share a voice, a speed, a kind of noise or the numbers of a sum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from step_audio.arrays import Float32Array
from step_audio.clips import SAMPLE_RATE
from step_audio_training import sound
from step_audio_training.arithmetic import Sum, draw_large_sum, draw_sum, in_words
from step_audio_training.requests import SpokenRequest
from step_audio_training.sentences import COLOURS, THINGS, sentence
from step_audio_training.speech import Voice, draw_variant, speak

ACCENTS = ("en-us", "en", "en-gb-scotland", "en-029", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd")
TRAIN_VARIANTS = (
    "m1", "m2", "m3", "m5", "m6", "m7", "m8", "f1", "f2", "f4", "f5", "klatt", "klatt2", "klatt4",
    "Alex", "Andrea", "Andy", "Annie", "Diogo", "Gene", "Hugo", "Jacky", "Lee", "Marco", "Mario", "Michael", "Mike",
    "adam", "anika", "antonio", "belinda", "benjamin", "boris", "david", "ed", "edward", "iven", "john", "linda",
    "max", "michel", "miguel", "norbert", "pablo", "paul", "pedro", "rob", "robert", "sandro", "travis",
    "victor",
)  # fmt: skip
# Too few of them are high; these are taken for a fifth of the recordings. Half have voices that nobody else has.
HIGH_VARIANTS = (
    "f1", "f2", "f4", "f5", "Andrea", "Annie", "anika", "belinda", "linda", "aunty", "grandma", "Nguyen", "anikaRobot",
)  # fmt: skip
HELD_OUT_VARIANTS = ("m4", "f3", "klatt3", "Alicia", "Henrique", "Reed", "marcelo", "quincy", "shelby", "steph2")

# Words per minute, as [from, to) ranges. What lies between "slow" and "ordinary" is neither slow nor fast.
Rate = Literal["slow", "ordinary", "fast"]
TRAIN_RATES: dict[Rate, tuple[tuple[int, int], ...]] = {
    "slow": ((82, 92), (96, 106)),
    "ordinary": ((140, 155), (160, 178), (183, 195)),
    "fast": ((235, 245), (252, 265)),
}
HELD_OUT_RATES: dict[Rate, tuple[tuple[int, int], ...]] = {
    "slow": ((92, 96),),
    "ordinary": ((155, 160), (178, 183)),
    "fast": ((245, 252),),
}
LOW_PITCH, HIGH_PITCH = 115, 180  # Hz: a voice below the one is low, above the other high
HEIGHT_0 = 55  # Hz: the note A1

Kind = Literal[
    "sum", "large_sum", "follow_up", "sentence", "speakers", "beeps", "tone", "noise",
    "dictation", "order", "facts", "talk", "asked", "loud", "phrase", "strange",
]  # fmt: skip
# How many of a hundred recordings are of each kind; what further kinds there are is in `scenes`.
SHARES: dict[Kind, int] = {
    "sum": 36, "large_sum": 20, "follow_up": 3, "sentence": 17, "speakers": 11, "beeps": 6, "tone": 5, "noise": 2,
}  # fmt: skip

HIGHEST = 40  # semitones above that, of a child that squeals: all heights are less

# What there is to hear besides words: how high each voice is, to the semitone, which beep it is, and which words are
# quieter than another.
SOUNDS = (
    "nothing", *(f"voice {height}" for height in range(HIGHEST)),
    "rising tone", "falling tone", "steady tone", "beep 1", "beep 2", "beep 3", "beep 4", "beep 5", "noise",
    "loud word", "quiet word",
)  # fmt: skip


@dataclass(frozen=True)
class DrawnRecording:
    """`samples`: float32 [n], clean. `text`: what is said. The rest holds what the kind has."""

    kind: Kind
    samples: Float32Array = field(repr=False)
    text: str = ""
    sounds: tuple[tuple[float, float, str], ...] = ()  # from when to when there is which of SOUNDS
    sum: Sum | None = None  # of a follow-up: the sign and the number, behind a first number that it does not say
    pitch: Literal["high", "low", ""] = ""  # "" for a voice between
    heights: tuple[int, ...] = ()  # of each voice: semitones above HEIGHT_0
    rate: Rate = "ordinary"
    count: int = 0  # of beeps, or of speakers
    glide: str = ""  # of a tone: rising, falling, steady
    told: str = ""  # the word that is louder; question or statement; what there is instead of English
    request: SpokenRequest | None = None
    source: str = "espeak"  # whose voice it is

    @property
    def pace(self) -> int:
        """Letters a second, of one voice."""
        start, end, _ = self.sounds[0]
        return round(len(self.text.replace(" ", "")) / (end - start))

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLE_RATE


def draw_recording(random: np.random.Generator, held_out: bool = False, kind: Kind | None = None) -> DrawnRecording:
    """One recording; of a random kind if None is given."""
    if kind is None:
        kinds = list(SHARES)
        kind = kinds[random.choice(len(kinds), p=np.array(list(SHARES.values())) / sum(SHARES.values()))]
    match kind:
        case "speakers":
            return _speakers(random, held_out)
        case "beeps":
            count = int(random.integers(1, 6))
            samples, times = sound.beeps(count, random)
            sounds = tuple((*time, f"beep {n}") for n, time in enumerate(times, 1))
            return DrawnRecording(kind, samples, count=count, sounds=sounds)
        case "tone":
            glide = ("rising", "falling", "steady")[random.integers(3)]
            samples = sound.tone(glide, random)
            return DrawnRecording(
                kind, samples, glide=glide, sounds=((0, len(samples) / SAMPLE_RATE, f"{glide} tone"),)
            )
        case "noise":
            noises = sound.HELD_OUT_NOISES if held_out else sound.TRAIN_NOISES
            n = int(random.uniform(1, 2.5) * SAMPLE_RATE)
            samples = 0.1 * sound.noise(noises[random.integers(len(noises))], n, random)
            return DrawnRecording(kind, samples, sounds=((0, n / SAMPLE_RATE, "noise"),))
        case _:
            text, asked = _words(kind, random, held_out)
            return _spoken(kind, text, random, held_out, asked)


def _words(kind: Kind, random: np.random.Generator, held_out: bool) -> tuple[str, Sum | None]:
    """What is said, and the sum in it."""
    match kind:
        case "sum":
            asked = draw_sum(random, held_out, terms=3 if random.random() < 0.3 else 2)
            return _question(asked, random), asked
        case "large_sum":
            asked = draw_large_sum(random, held_out)
            return _question(asked, random), asked
        case "follow_up":
            number, sign = int(random.integers(2, 20)), "+-"[random.integers(2)]
            words = {"+": ("and plus", "now add"), "-": ("and minus", "now take away")}[sign][random.integers(2)]
            return f"{words} {in_words(number)}", Sum((0, number), sign)
        case _:
            return sentence(random), None


def draw_voice(random: np.random.Generator, held_out: bool, rate: Rate = "ordinary") -> Voice:
    chance = random.random()
    variants = HELD_OUT_VARIANTS if held_out else HIGH_VARIANTS if chance < 0.2 else TRAIN_VARIANTS
    ranges = (HELD_OUT_RATES if held_out else TRAIN_RATES)[rate]
    return Voice(
        accent=ACCENTS[random.integers(len(ACCENTS))],
        variant=draw_variant(random) if chance > 0.5 and not held_out else variants[random.integers(len(variants))],
        words_per_minute=int(random.integers(*ranges[random.integers(len(ranges))])),
        pitch=int(random.integers(10, 91)),
        intonation=int(random.integers(30, 71)),
    )


def _question(asked: Sum, random: np.random.Generator) -> str:
    opening = ("what is", "how much is", "tell me", "work out", "please compute")[random.integers(5)]
    return f"{opening} {asked.spoken}"


def _spoken(
    kind: Kind, text: str, random: np.random.Generator, held_out: bool, sum: Sum | None = None
) -> DrawnRecording:
    rates: tuple[Rate, ...] = ("slow", "ordinary", "fast")
    rate = rates[random.choice(3, p=[0.12, 0.76, 0.12])]
    while True:
        said = speak(text, draw_voice(random, held_out, rate))
        if pitch := sound.fundamental(said.samples):
            break
    height = _height(pitch)
    samples = said.samples / level(said.samples)
    sounds = ((0, len(samples) / SAMPLE_RATE, f"voice {semitones(pitch)}"),)
    return DrawnRecording(kind, samples, text, sounds, sum, height, (semitones(pitch),), rate)


def _height(pitch: float) -> Literal["high", "low", ""]:
    return "low" if pitch < LOW_PITCH else "high" if pitch > HIGH_PITCH else ""


def semitones(pitch: float) -> int:
    """Above HEIGHT_0, of a pitch in Hz, as a recording's heights are told."""
    return min(max(0, round(12 * math.log2(pitch / HEIGHT_0))), HIGHEST - 1)


def level(samples: Float32Array) -> float:
    """What to divide speech by so that its root mean square is 0.1."""
    return 10 * float(np.sqrt(np.mean(samples**2))) + 1e-9


def _speakers(random: np.random.Generator, held_out: bool) -> DrawnRecording:
    """One voice twice, or two that differ clearly, with a pause between."""

    def phrase() -> str:
        things = THINGS[random.integers(len(THINGS))]
        return f"{in_words(int(random.integers(2, 20)))} {COLOURS[random.integers(len(COLOURS))]} {things}"

    first, second = phrase(), phrase()
    count = int(random.integers(1, 3))
    while True:
        voice = draw_voice(random, held_out)
        other = voice if count == 1 else draw_voice(random, held_out)
        one, two = speak(first, voice), speak(second, other)
        pitch, another = (sound.fundamental(said.samples) for said in (one, two))
        low, high = sorted((pitch, another))
        if low and (count == 1 or (voice.variant != other.variant and high > 1.4 * low)):
            break
    return one_behind_another(f"{first} {second}", one.samples, two.samples, (pitch, another), count, random)


def one_behind_another(
    text: str,
    one: Float32Array,
    two: Float32Array,
    pitches: tuple[float, float],
    count: int,
    random: np.random.Generator,
) -> DrawnRecording:
    """`text` as two takes say it, equally loud, a pause between them; `pitches`: each one's, in Hz; `count` voices."""
    pause = np.zeros(int(random.uniform(0.2, 0.5) * SAMPLE_RATE), np.float32)
    samples = np.concatenate([one / level(one), pause, two / level(two)])
    later = (len(one) + len(pause)) / SAMPLE_RATE
    first, second = (semitones(pitch) for pitch in pitches)
    sounds = (
        (0, len(one) / SAMPLE_RATE, f"voice {first}"),
        (later, len(samples) / SAMPLE_RATE, f"voice {second}"),
    )
    return DrawnRecording("speakers", samples, text, sounds, heights=(first, second), count=count)


@dataclass(frozen=True, slots=True)
class Conditions:
    """Where a recording was made. `snr_db` None: no noise. Seconds of silence before and behind it."""

    noise: str
    snr_db: float | None
    reverberation: float  # seconds in which sound falls by 60 dB, 0 for none
    gain_db: float
    before: float
    behind: float
    response: tuple[float, ...] = ()  # the microphone's, as of sound.draw_response; none is a flat one


def draw_conditions(random: np.random.Generator, held_out: bool = False, snr_db: float | None = None) -> Conditions:
    """A microphone in a room: quiet to noisy, near to far. `snr_db` fixes the noise's level.

    Training goes further than what is held out: to more noise, and to microphones with a sound of their own.
    """
    kinds = sound.HELD_OUT_NOISES if held_out else sound.TRAIN_NOISES
    if snr_db is None and random.random() < 0.85:
        snr_db = float(random.uniform(8 if held_out else 4, 40))
    return Conditions(
        noise=kinds[random.integers(len(kinds))],
        snr_db=snr_db,
        reverberation=float(random.uniform(0.1, 0.5)) if random.random() < 0.4 else 0.0,
        gain_db=float(random.uniform(-20, 6)),
        before=float(random.uniform(0.05, 0.4)),
        behind=float(random.uniform(0.1, 0.4)),
        response=sound.draw_response(random) if not held_out and random.random() < 0.7 else (),
    )


def record(recording: DrawnRecording, conditions: Conditions, random: np.random.Generator) -> Float32Array:
    """The recording as a microphone hears it: float32 [n] at 16 kHz within [-1, 1]."""
    ends = (int(conditions.before * SAMPLE_RATE), int(conditions.behind * SAMPLE_RATE))
    samples = np.pad(recording.samples, ends)
    if conditions.reverberation:
        samples = sound.reverberate(samples, conditions.reverberation, random)
    if conditions.snr_db is not None:
        samples = sound.add_noise(samples, conditions.noise, conditions.snr_db, random)
    if conditions.response:
        samples = sound.respond(samples, conditions.response)
    return np.clip(samples * np.float32(10 ** (conditions.gain_db / 20)), -1, 1)

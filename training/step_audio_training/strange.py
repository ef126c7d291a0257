"""What a listener of English cannot understand: music, singing, other languages, silence."""

from __future__ import annotations

from typing import Literal

import numpy as np
import soxr

from step_audio.arrays import Float32Array
from step_audio.clips import SAMPLE_RATE
from step_audio_training import sound
from step_audio_training.sentences import sentence
from step_audio_training.speech import Voice, speak
from step_audio_training.voices import installed, say_foreign

Strange = Literal["music", "singing", "another language", "silence", "noise"]

# By espeak-ng's name of the language. The last two are kept for evaluation.
PHRASES: dict[str, tuple[str, ...]] = {
    "de": ("wo ist bitte der nächste bahnhof", "ich möchte gern ein glas wasser", "das wetter ist heute sehr schön",
           "wir haben gestern lange gearbeitet", "kannst du mir bitte helfen", "meine schwester wohnt in berlin"),
    "fr": ("où se trouve la gare s'il vous plaît", "je voudrais un verre d'eau", "il fait très beau aujourd'hui",
           "nous avons travaillé toute la journée", "pouvez vous m'aider", "ma soeur habite à paris"),
    "es": ("dónde está la estación por favor", "quisiera un vaso de agua", "hoy hace muy buen tiempo",
           "ayer trabajamos hasta muy tarde", "puede usted ayudarme", "mi hermana vive en madrid"),
    "pt": ("onde fica a estação por favor", "eu queria um copo de água", "hoje o tempo está muito bom",
           "ontem trabalhamos até muito tarde", "você pode me ajudar", "a minha irmã mora em lisboa"),
    "nl": ("waar is het station alstublieft", "ik wil graag een glas water", "het weer is vandaag heel mooi",
           "wij hebben gisteren lang gewerkt", "kunt u mij helpen", "mijn zus woont in amsterdam"),
    "sv": ("var ligger stationen", "jag skulle vilja ha ett glas vatten", "vädret är mycket fint idag",
           "vi arbetade länge igår", "kan du hjälpa mig", "min syster bor i stockholm"),
    "fi": ("missä on rautatieasema", "haluaisin lasin vettä", "sää on tänään hyvin kaunis",
           "eilen teimme pitkään töitä", "voitko auttaa minua", "sisareni asuu helsingissä"),
    "tr": ("istasyon nerede acaba", "bir bardak su istiyorum", "bugün hava çok güzel",
           "dün geç saate kadar çalıştık", "bana yardım eder misin", "kız kardeşim ankarada oturuyor"),
    "ru": ("где находится вокзал", "я хотел бы стакан воды", "сегодня очень хорошая погода",
           "вчера мы долго работали", "вы можете мне помочь", "моя сестра живёт в москве"),
    "cs": ("kde je prosím nádraží", "chtěl bych sklenici vody", "dnes je velmi hezké počasí",
           "včera jsme dlouho pracovali", "můžete mi pomoci", "moje sestra bydlí v praze"),
    "it": ("dove si trova la stazione per favore", "vorrei un bicchiere d'acqua", "oggi fa molto bel tempo",
           "ieri abbiamo lavorato fino a tardi", "mi può aiutare", "mia sorella abita a roma"),
    "pl": ("gdzie jest dworzec kolejowy", "poproszę szklankę wody", "dzisiaj jest bardzo ładna pogoda",
           "wczoraj długo pracowaliśmy", "czy może mi pan pomóc", "moja siostra mieszka w warszawie"),
}  # fmt: skip
HELD_OUT_LANGUAGES = ("it", "pl")


def draw_strange(what: Strange, random: np.random.Generator, held_out: bool = False) -> Float32Array:
    """float32 [n] at 16 kHz, with a root mean square of about 0.1; of 1 to 6 seconds."""
    match what:
        case "music":
            return _music(random.uniform(1.5, 5), random)
        case "singing":
            return _singing(random)
        case "another language":
            return _foreign(random, held_out)
        case "silence":
            n = int(random.uniform(0.8, 4) * SAMPLE_RATE)
            return np.asarray(10 ** random.uniform(-5, -3.5) * random.standard_normal(n), np.float32)
        case "noise":
            kinds = sound.HELD_OUT_NOISES if held_out else sound.TRAIN_NOISES
            n = int(random.uniform(1, 4) * SAMPLE_RATE)
            return 0.1 * sound.noise(kinds[random.integers(len(kinds))], n, random)


def _level(samples: Float32Array) -> Float32Array:
    return np.asarray(0.1 * samples / (np.sqrt(np.mean(samples**2)) + 1e-9), np.float32)


def _music(seconds: float, random: np.random.Generator) -> Float32Array:
    """A melody over chords, sometimes with drums: notes of a scale, plucked or held."""
    n = int(seconds * SAMPLE_RATE)
    out = np.zeros(n)
    scale = np.array((0, 2, 4, 5, 7, 9, 11) if random.random() < 0.6 else (0, 2, 3, 5, 7, 8, 10))
    root, beat = random.uniform(100, 220), random.uniform(0.18, 0.6)
    harmonics = random.uniform(0.2, 1, 8) / np.arange(1, 9) ** random.uniform(0.5, 2)
    decay = random.uniform(0.1, 1.5)

    def note(frequency: float, start: float, length: float, strength: float) -> None:
        first, last = int(start * SAMPLE_RATE), min(int((start + length) * SAMPLE_RATE), n)
        if last <= first:
            return
        t = np.arange(last - first) / SAMPLE_RATE
        tone = sum(
            h * np.sin(2 * np.pi * frequency * k * t) for k, h in enumerate(harmonics, 1) if frequency * k < 7500
        )
        out[first:last] += strength * tone * np.exp(-t / decay) * np.minimum(1, np.minimum(t, t[::-1]) / 0.01)

    for number, start in enumerate(np.arange(0, seconds, beat)):
        if random.random() < 0.85:
            step = int(random.integers(7, 15))
            note(root * 2 ** ((scale[step % 7] + 12 * (step // 7)) / 12), start, beat * random.uniform(0.8, 2), 0.5)
        if number % 4 == 0:
            chord = int(random.integers(7))
            for step in (chord, chord + 2, chord + 4):
                note(root * 2 ** ((scale[step % 7] + 12 * (step // 7)) / 12), start, 4 * beat, 0.3)
        if number % 2 and decay < 0.8:
            first = int(start * SAMPLE_RATE)
            hit = random.standard_normal(min(1600, n - first)) * np.exp(-np.arange(min(1600, n - first)) / 300)
            out[first : first + len(hit)] += 0.5 * hit
    return _level(out.astype(np.float32))


def _singing(random: np.random.Generator) -> Float32Array:
    """Words on the notes of a melody, drawn out, often over music."""
    words = sentence(random).split()[: int(random.integers(3, 7))]
    voice = Voice(
        "en-us", ("f2", "m3", "f4", "m1", "f5", "m7")[random.integers(6)], int(random.integers(80, 110)), 50, 0
    )
    root = random.uniform(120, 260)
    pieces = []
    for word in words:
        said = speak(word, voice).samples
        pitch = sound.fundamental(said) or root
        target = root * 2 ** ((0, 2, 4, 5, 7, 9, 12)[random.integers(7)] / 12)
        # Played faster it is higher, and lower slower: on the note, and drawn out.
        pieces.append(soxr.resample(said, SAMPLE_RATE * float(np.clip(target / pitch, 0.55, 1.8)), SAMPLE_RATE))
    sung = _level(np.concatenate(pieces).astype(np.float32))
    if random.random() < 0.7:
        sung = sung + np.float32(random.uniform(0.4, 1.2)) * _music(len(sung) / SAMPLE_RATE + 0.1, random)[: len(sung)]
    return _level(sung)


def _foreign(random: np.random.Generator, held_out: bool) -> Float32Array:
    names = HELD_OUT_LANGUAGES if held_out else tuple(name for name in PHRASES if name not in HELD_OUT_LANGUAGES)
    language = names[random.integers(len(names))]
    phrases = [PHRASES[language][n] for n in random.choice(len(PHRASES[language]), 2, replace=False)]
    text = " ".join(phrases[: 1 + int(random.random() < 0.4)])
    others = () if held_out else installed()
    if others and random.random() < 0.5:
        speaker = others[random.integers(len(others))]
        try:
            return _level(
                say_foreign(text, language, speaker, float(random.uniform(0.9, 1.2)), int(random.integers(2**31)))
            )
        except OSError:  # not every program can read every alphabet
            pass
    variant = ("m1", "m3", "m7", "f1", "f2", "f4", "klatt")[random.integers(7)]
    voice = Voice(language, variant, int(random.integers(130, 190)), int(random.integers(30, 70)))
    return _level(speak(text, voice, count_words=False).samples)

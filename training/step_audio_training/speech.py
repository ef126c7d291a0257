"""Speech from espeak-ng, through the library and the voices that the wheel `espeakng-loader` carries."""

from __future__ import annotations

import _ctypes
import ctypes
import shutil
import tempfile
import unicodedata
from dataclasses import dataclass
from functools import cache
from multiprocessing.util import Finalize
from pathlib import Path

import numpy as np
import soxr

from step_audio.arrays import AnyArray, Float32Array
from step_audio.clips import SAMPLE_RATE

# espeak-ng's speak_lib.h.
_OUTPUT_SYNCHRONOUS = 2
_RATE, _PITCH, _RANGE = 1, 3, 4
_CHARS_UTF8 = 1
_IPA = 0x02

_DRAWN = "drawn"  # the file of the voice that was drawn last
_NO_MORE_EVENTS, _WORD, _END = 0, 1, 5


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("milliseconds", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    ]


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@dataclass(frozen=True, slots=True)
class Voice:
    """How something is said.

    `accent`: an English of espeak-ng ("en-us"); `variant`: one of its voices ("f2"), or the definition of one
    (`draw_variant`); `words_per_minute` 80 to 450;
    `pitch` and `intonation` 0 to 99, 50 being the voice's own.
    """

    accent: str = "en-us"
    variant: str = "m3"
    words_per_minute: int = 160
    pitch: int = 50
    intonation: int = 50


def draw_variant(random: np.random.Generator) -> str:
    """A voice that nobody has: a definition in espeak-ng's own format, for `Voice.variant`.

    The throat's length scales all formants, between a tall man's and a child's; each formant, the breath and the
    roughness vary about it as they do among the voices that espeak-ng brings.
    """
    size = random.uniform(0.82, 1.3)
    pitch = int(np.exp(random.uniform(np.log(62), np.log(225))))
    lines = ["language variant", "name drawn", f"pitch {pitch} {int(pitch * random.uniform(1.15, 1.9))}"]
    for formant in range(9):
        frequency, strength, width = size * random.uniform(0.93, 1.07), random.uniform(70, 160), random.uniform(60, 180)
        if formant > 5:
            strength = random.uniform(0, 110)
        lines.append(f"formant {formant} {int(100 * frequency)} {int(strength)} {int(width)}")
    lines.append(f"flutter {random.integers(0, 16)}")
    lines.append(f"roughness {random.integers(0, 5)}")
    lines.append(f"voicing {random.integers(30, 136)}")
    lines.append(f"consonants {random.integers(50, 121)} {random.integers(20, 121)}")
    if random.random() < 0.3:
        lines.append("breath " + " ".join(str(random.integers(0, 8)) for _ in range(8)))
    if random.random() < 0.3:
        lines.append(f"echo {random.integers(20, 131)} {random.integers(5, 51)}")
    if random.random() < 0.3:
        lines.append(
            f"tone {random.integers(70, 600)} {random.integers(120, 256)} 1200 {random.integers(22, 120)} 3000 40"
        )
    return "\n".join(lines) + "\n"


@cache
def _data() -> Path:
    """The library's data in links, with a folder of voices that more can be written into; gone when the process ends.

    Finalize, for processes that multiprocessing has begun run no other clean-up.
    """
    import espeakng_loader

    folder = tempfile.mkdtemp(prefix="espeak-")
    Finalize(None, shutil.rmtree, (folder, True), exitpriority=0)
    data, brought = Path(folder) / "espeak-ng-data", Path(espeakng_loader.get_data_path())
    (data / "voices" / "!v").mkdir(parents=True)
    for file in (*brought.iterdir(), *(brought / "voices").iterdir(), *(brought / "voices" / "!v").iterdir()):
        target = data / file.relative_to(brought)
        if not target.exists():
            target.symlink_to(file)
    return data


class _Espeak:
    """The library; it has one state for the whole process."""

    def __init__(self) -> None:
        import espeakng_loader

        self.library = ctypes.CDLL(espeakng_loader.get_library_path())
        self.library.espeak_Initialize.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
        data = _data()
        self.voices = data / "voices" / "!v"
        self.rate = self.library.espeak_Initialize(_OUTPUT_SYNCHRONOUS, 1000, bytes(data), 0)
        self.variants = {_DRAWN, *(file.name for file in self.voices.iterdir())}
        if self.rate <= 0:
            raise OSError("espeak-ng cannot be started: its voices were not found")
        self.pieces: list[AnyArray] = []
        self.starts: list[float] = []  # seconds, of the words and of the end
        self.callback = _Callback(self._collect)  # kept, or it would be freed
        self.library.espeak_SetSynthCallback(self.callback)

    def variant(self, name_or_definition: str) -> str:
        if "\n" not in name_or_definition:
            return name_or_definition
        (self.voices / _DRAWN).write_text(name_or_definition)
        return _DRAWN

    def _collect(self, samples: ctypes._Pointer[ctypes.c_short], count: int, events: ctypes._Pointer[_Event]) -> int:
        if samples and count > 0:
            self.pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        n = 0
        while (event := events[n]).type != _NO_MORE_EVENTS:
            if event.type in (_WORD, _END):
                self.starts.append(event.sample / self.rate)
            n += 1
        return 0


@cache
def _espeak() -> _Espeak:
    return _Espeak()


def restart() -> None:
    """Load espeak-ng anew, with known seeds, in less than a millisecond.

    Its voices waver by a state that outlives a sentence, by a seed that it takes from the clock, and by the C
    library's `rand`: the same words would sound otherwise each time. Only in a process that does little else: with
    other libraries loaded, unloading this one has been seen to crash.
    """
    library = _espeak().library
    library.espeak_Terminate()
    _espeak.cache_clear()
    _ctypes.dlclose(library._handle)
    _espeak().library.espeak_ng_SetRandSeed(ctypes.c_long(0))
    ctypes.CDLL(None).srand(0)


@dataclass(frozen=True, slots=True)
class Speech:
    """`samples` float32 [n] at 16 kHz within [-1, 1].

    `words`: where each word begins, and the last one ends, in seconds.
    """

    samples: Float32Array
    words: tuple[float, ...]


def speak(text: str, voice: Voice, count_words: bool = True) -> Speech:
    """Say it, without silence at the ends. `text`: words in lower case, no punctuation.

    `count_words`: whether it must be read as so many words, one for each that is written.

    The same calls in the same order behind a `restart` give the same samples. Not for several threads at once.
    Raises ValueError for a voice that espeak-ng does not have.
    """
    espeak = _espeak()
    variant = espeak.variant(voice.variant)
    name = f"{voice.accent}+{variant}"
    # An unknown variant of a known accent is the accent's own voice to espeak-ng, and no error.
    if variant not in espeak.variants or espeak.library.espeak_SetVoiceByName(name.encode()):
        raise ValueError(f"espeak-ng has no voice {name}")
    for parameter, value in (
        (_RATE, voice.words_per_minute),
        (_PITCH, voice.pitch),
        (_RANGE, voice.intonation),
    ):
        espeak.library.espeak_SetParameter(parameter, value, 0)
    espeak.pieces.clear()
    espeak.starts.clear()
    data = text.encode()
    espeak.library.espeak_Synth(data, len(data) + 1, 0, 1, 0, _CHARS_UTF8, None, None)
    starts = espeak.starts
    if count_words and len(starts) != len(text.split()) + 1:
        raise ValueError(f"espeak-ng reads {text!r} as {len(starts) - 1} words")
    samples = np.concatenate(espeak.pieces).astype(np.float32) / 32768
    samples = soxr.resample(samples, espeak.rate, SAMPLE_RATE)
    first, last = _sounding(samples)
    cut = first / SAMPLE_RATE
    return Speech(
        samples[first:last],
        tuple(start - cut for start in starts),
    )


def ipa(text: str, accent: str = "en-us") -> str:
    """How espeak-ng would pronounce it, in the International Phonetic Alphabet, decomposed."""
    library = _espeak().library
    library.espeak_SetVoiceByName(accent.encode())
    library.espeak_TextToPhonemes.restype = ctypes.c_char_p
    rest = ctypes.c_char_p(text.encode())
    said = []
    while rest.value:
        clause = library.espeak_TextToPhonemes(ctypes.byref(rest), _CHARS_UTF8, _IPA)
        said.append((clause or b"").decode())
    return unicodedata.normalize("NFD", " ".join(said))


def _sounding(samples: Float32Array, level: float = 0.003) -> tuple[int, int]:
    """Where it is louder than `level`, 20 ms more on either side."""
    loud = np.flatnonzero(np.abs(samples) > level)
    if not len(loud):
        return 0, len(samples)
    margin = SAMPLE_RATE // 50
    return max(int(loud[0]) - margin, 0), int(loud[-1]) + margin

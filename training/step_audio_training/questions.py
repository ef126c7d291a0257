"""Questions by voice, by channel and by kind, which training does not have: for examinations and for evaluation."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from step_audio.arrays import Float32Array
from step_audio_training.channel import through
from step_audio_training.examples import Example, Task, draw_example
from step_audio_training.hearing import heard_by
from step_audio_training.human import available, human_sum
from step_audio_training.lessons import make_lesson
from step_audio_training.recordings import DrawnRecording, Kind, draw_conditions, record
from step_audio_training.scenes import draw_practice, draw_scene, spoken
from step_audio_training.voices import HELD_OUT_SPEAKERS, installed


@dataclass
class ExamQuestion:
    """`clips`: the samples of the example's recordings, as they are heard."""

    example: Example
    clips: list[Float32Array]


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """A task about recordings of a kind. `voice`: espeak (those kept from training), pico or human; `channel`: one of
    `channel.CHANNELS`, "any" of them or none. `bare`: a sum without words around it."""

    task: str
    kind: Kind
    voice: str
    channel: str = ""
    bare: bool = False


SETS = {
    "sums-espeak": QuestionSet("arithmetic", "sum", "espeak"),
    "sums-espeak-8khz": QuestionSet("arithmetic", "sum", "espeak", "8 kHz"),
    "sums-espeak-telephone": QuestionSet("arithmetic", "sum", "espeak", "telephone"),
    "sums-espeak-gsm": QuestionSet("arithmetic", "sum", "espeak", "gsm"),
    "sums-espeak-opus": QuestionSet("arithmetic", "sum", "espeak", "opus"),
    "sums-espeak-mp3": QuestionSet("arithmetic", "sum", "espeak", "mp3"),
    "sums-pico": QuestionSet("arithmetic", "sum", "pico"),
    "sums-pico-8khz": QuestionSet("arithmetic", "sum", "pico", "8 kHz"),
    "sums-human": QuestionSet("arithmetic", "sum", "human"),
    "sums-human-8khz": QuestionSet("arithmetic", "sum", "human", "8 kHz"),
    "bare-sums-espeak": QuestionSet("arithmetic", "sum", "espeak", bare=True),
    "bare-sums-pico": QuestionSet("arithmetic", "sum", "pico", bare=True),
    "dictation-espeak": QuestionSet("transcription_no_think", "dictation", "espeak", "any"),
    "dictation-pico": QuestionSet("transcription_no_think", "dictation", "pico", "any"),
    "orders-pico": QuestionSet("order", "order", "pico", "any"),
    "facts-pico": QuestionSet("facts", "facts", "pico", "any"),
    "sums-in-json-pico": QuestionSet("sum_in_json", "sum", "pico", "any"),
    "talk-pico": QuestionSet("talk", "talk", "pico", "any"),
    "word-count-pico": QuestionSet("word_count", "sentence", "pico", "any"),
    "loud-pico": QuestionSet("loud", "loud", "pico", "any"),
    "phrases-pico": QuestionSet("phrase", "phrase", "pico", "any"),
    "speakers-pico": QuestionSet("speakers", "speakers", "pico", "any"),
    "not-understood": QuestionSet("strange", "strange", "espeak", "any"),
}


def sets_that_can_be_made() -> tuple[str, ...]:
    """The names of SETS whose voices are installed here."""
    there = {"espeak": True, "pico": installed(HELD_OUT_SPEAKERS) == HELD_OUT_SPEAKERS, "human": available()}
    return tuple(name for name, wanted in SETS.items() if there[wanted.voice])


def draw_question(name: str, random: np.random.Generator) -> ExamQuestion:
    """One of the set of this name; its voices must be there."""
    wanted = SETS[name]
    while True:
        heard = _heard(wanted, random)
        if example := make_lesson(wanted.task, [heard], random, held_out=True):
            return ExamQuestion(example, [_recorded(each, wanted.channel, random) for each in example.recordings])


def draw_known(task: Task, random: np.random.Generator) -> ExamQuestion:
    """One of the first tasks, about espeak-ng's voices."""
    example = draw_example(random, True, task)
    return ExamQuestion(example, [_recorded(each, "", random) for each in example.recordings])


def _heard(wanted: QuestionSet, random: np.random.Generator) -> DrawnRecording:
    if wanted.voice == "human":
        return human_sum(random)
    speakers = HELD_OUT_SPEAKERS if wanted.voice == "pico" else ()
    if wanted.bare:
        asked = draw_practice(random, held_out=True)
        return replace(spoken("sum", asked.spoken, random, True, speakers), sum=asked)
    return draw_scene(random, wanted.kind, True, speakers)


def _recorded(recording: DrawnRecording, channel: str, random: np.random.Generator) -> Float32Array:
    if channel == "any":
        return heard_by(recording, random, held_out=True)[0]
    samples = record(recording, draw_conditions(random, held_out=True), random)
    return through(channel, samples, random) if channel else samples

"""Questions by voice and channel: complete, the seed's, scored by what they ask for."""

from __future__ import annotations

import json

import pytest

from step_audio_client.messages import split_audio
from step_audio_evaluation.answers import EvaluatedAnswer
from step_audio_evaluation.report import Graded, make_report
from step_audio_evaluation.scoring import Score, score
from step_audio_evaluation.tables import sentences
from step_audio_evaluation.voices import by_voice
from step_audio_training.questions import SETS, sets_that_can_be_made

MADE = sets_that_can_be_made()


@pytest.fixture(scope="module")
def items():
    return by_voice(MADE, 2, 5)


def text_of(item, content: str) -> str:
    return content if item.prefix else f"I hear something.\n</think>\n{content}"


@pytest.mark.processes
def test_sets_are_the_seed_s_and_a_larger_one_holds_the_smaller(items):
    names = ("sums-espeak-gsm", "not-understood")
    small = by_voice(names, 1, 5)
    assert [one.task for one in small] == list(names) and all(one in items for one in small)
    assert by_voice(names, 1, 6) != small and len({one.id for one in items}) == len(items) == 2 * len(MADE)


@pytest.mark.processes
def test_what_is_right_scores_and_what_is_wrong_does_not(items):
    assert {one.kind for one in items} >= {"number", "transcript", "word"}
    for one in items:
        _, audio = split_audio(one.request())
        assert audio == list(one.audio) and len(audio) >= 1
        right = {
            "call": lambda one=one: call_text(one.expected),
            "word": lambda: "I did not understand that. I hear music.",
            "number": lambda one=one: f"It is {one.expected}.",
        }.get(one.kind, lambda one=one: one.expected)()
        for content, good in ((right, True), ("12345678 apples", False), ("", False)):
            assert score(one, one.parse(text_of(one, content))).correct == good, (one.id, content)


def call_text(expected: str) -> str:
    call = json.loads(expected)
    return f"<tool_call>function\n{call['name']}\n{json.dumps(call['arguments'], indent=1)}</tool_call>"


@pytest.mark.processes
def test_false_alarms_are_counted_on_speech_alone(items):
    said = "I did not understand that. I hear noise."
    graded = [
        Graded(one, EvaluatedAnswer(id=one.id, expected=one.expected, text=text_of(one, said)), Score(False))
        for one in items
    ]
    speech = sum(SETS[one.task].task != "strange" for one in items)
    report = make_report(graded, {"model": "m", "seed": 0, "sampling": {}}, "2026-01-01")
    assert report.false_alarms == (speech, speech) and speech == len(items) - 2
    assert f"{speech} of {speech} answers (100.0 %)" in sentences(report)[0]
    other = make_report(graded[-1:], {"model": "m", "seed": 0, "sampling": {}}, "2026-01-01")
    assert other.false_alarms is None and not sentences(other)

"""What is asked beyond the first tasks: answers follow from what is said, tools and JSON fit what is asked for."""

from __future__ import annotations

import json
import re
from collections import Counter

import numpy as np
import pytest

from lazy import Lazy
from step_audio.clips import SAMPLE_RATE
from step_audio_training import reading, voices
from step_audio_training.arithmetic import Sum
from step_audio_training.examples import typed
from step_audio_training.lessons import ABOUT_ONE, ALOUD, SHARES, asked_aloud, make_lesson
from step_audio_training.requests import NO_TOOL, SKILLS
from step_audio_training.scenes import SHARES as KINDS
from step_audio_training.scenes import draw_practice, draw_scene, draw_unspoken
from step_audio_training.texts import held_out, plain, sentences

batches = Lazy("step_audio_training.batches")
collation = Lazy("step_audio_training.collation")


@pytest.fixture(autouse=True)
def only_espeak(monkeypatch):
    """Whatever is installed here."""
    monkeypatch.setattr(voices, "_is_there", lambda speaker: False)
    voices.installed.cache_clear()
    yield
    voices.installed.cache_clear()


def lessons(task: str, kind: str, n: int, held_out: bool = False):
    random = np.random.default_rng(1)
    made = []
    while len(made) < n:
        if example := make_lesson(task, [draw_scene(random, kind, held_out)], random, held_out):
            made.append(example)
    return made


def test_no_step_of_a_sum_to_learn_from_is_for_evaluation():
    random = np.random.default_rng(0)
    for kind in ("sum", "large_sum"):
        for _ in range(300):
            asked = draw_practice(random, False, kind)
            value = asked.numbers[0]
            for sign, number in zip(asked.signs, asked.numbers[1:], strict=True):
                step = Sum((value, number), sign)
                assert not step.held_out
                value = step.result
    assert any(draw_practice(random, True).holds_held_out for _ in range(20))


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_of_recording_can_be_asked_about(kind):
    random = np.random.default_rng(2)
    recording = draw_scene(random, kind)
    assert len(recording.samples) > 4000 and np.abs(recording.samples).max() < 4
    assert set(recording.text) <= set(collation.LETTERS)
    if kind == "follow_up":  # only behind another
        heard = [draw_scene(random, "sum"), recording]
        assert any(make_lesson("second_turn", heard, random) for _ in range(20))
    else:
        made = [example for task in ABOUT_ONE if (example := make_lesson(task, [recording], random))]
        assert made
        for example in made:
            assert example.recordings[0] is recording
            assert example.expected.lower() in (example.answer + str(example.tags) + str(recording.told)).lower()


def test_which_word_is_louder_is_labelled_where_it_is_said():
    random = np.random.default_rng(6)
    for _ in range(5):
        recording = draw_scene(random, "loud")
        words, levels = recording.text.split(), []
        for start, end, _ in recording.sounds:
            levels.append(np.abs(recording.samples[int(start * SAMPLE_RATE) : int(end * SAMPLE_RATE)]).max())
        assert [words[n] for n, sound in enumerate(recording.sounds) if sound[2] == "loud word"] == [recording.told]
        assert words[int(np.argmax(levels))] == recording.told and len(levels) == len(words)


def test_what_a_tool_says_is_repeated_in_whatever_words_it_comes():
    made = lessons("tool_result", "large_sum", 60) + lessons("tool_result", "order", 30)
    untrue, offered = 0, []
    for example in made:
        asked = example.recordings[0].sum
        call, result = example.messages[-2]["tool_calls"][0]["function"], example.messages[-1]["content"]
        assert example.expected in result and example.answer.endswith(f" is {example.expected}.")
        assert f" says {example.expected}." in example.thought
        (tool,) = [t["function"] for t in example.tools if t["function"]["name"] == call["name"]]
        assert set(json.loads(call["arguments"])) == set(tool["parameters"]["properties"])
        untrue += bool(asked) and example.expected != str(asked.result)
        offered.append(tool)
    assert 5 < untrue < 40
    assert len({tuple(tool) for tool in offered}) > 4, "their keys are in other orders"
    assert any(tool["parameters"].get("additionalProperties") is False for tool in offered)


def test_orders_call_a_tool_that_is_there_with_what_was_said():
    called = 0
    for example in lessons("order", "order", 40):
        assert example.tools
        offered = {tool["function"]["name"]: tool["function"]["parameters"] for tool in example.tools}
        assert f" I have {', '.join(offered)}. " in example.thought, "what may be called stands there to choose from"
        if example.answer == NO_TOOL:
            request = example.recordings[0].request
            assert request and request.skill and not offered.keys() & set(request.skill.names)
            continue
        name, arguments = re.fullmatch(r"<tool_call>function\n(.+)\n(.+)</tool_call>", example.answer).groups()
        given, wanted = json.loads(arguments), offered[name]["properties"]
        assert given.keys() == wanted.keys()
        for key, value in given.items():
            assert wanted[key]["type"] == ("integer" if isinstance(value, int) else "string")
            if isinstance(value, str):
                assert value in example.recordings[0].text
        called += 1
    assert called > 20


def test_the_guises_of_tools_for_evaluation_are_not_learnt():
    kept = {skill.names[-1] for skill in SKILLS}, {skill.described[-1] for skill in SKILLS}
    asked = lessons("order", "order", 60)
    learnt = [tool["function"] for example in asked for tool in example.tools]
    assert not {tool["name"] for tool in learnt} & kept[0] and not {tool["description"] for tool in learnt} & kept[1]
    examined = [tool["function"] for example in lessons("order", "order", 60, held_out=True) for tool in example.tools]
    assert {tool["name"] for tool in examined} == kept[0] and {tool["description"] for tool in examined} == kept[1]


def test_tools_and_schemas_to_learn_with_have_names_that_nobody_would_guess():
    """Else those that it has learnt are called, whatever the request brings."""
    names = [tool["function"]["name"] for example in lessons("order", "order", 80) for tool in example.tools]
    assert len(set(names)) > 60 and not all(Counter(names)[name] > 1 for name in names)
    keys = [key for example in lessons("sum_in_json", "sum", 40) for key in json.loads(example.answer)]
    assert len(set(keys)) > 20
    held_out = [
        key for example in lessons("sum_in_json", "sum", 20, held_out=True) for key in json.loads(example.answer)
    ]
    assert set(held_out) <= {"result", "expression", "answer", "sum", "value", "question"}


def test_names_are_copied_that_cannot_be_learnt_by_heart():
    """What is asked is all in the request, and its words seldom come again."""
    examples = [reading.names_copied(np.random.default_rng(n)) for n in range(60)]
    for example in examples:
        assert example.answer in example.messages[-1]["content"]
        assert example.thought is None or example.answer in example.thought
    told = [name for example in examples for name in re.split(r",? ", example.answer)]
    assert len(told) > 150 and len(set(told)) > 0.9 * len(told)
    kept = {name for skill in SKILLS for name in (skill.names[-1], *skill.arguments[-1]) if "_" not in name}
    assert not kept & {part for name in told for part in re.split("_|(?<=[a-z])(?=[A-Z])", name)}


def test_thoughts_about_sounds_say_how_much_of_it_there_was():
    for example in lessons("speakers", "speakers", 10):
        (recording,) = example.recordings
        lowest, highest = sorted(recording.heights)
        told = f"The lowest is {lowest}, the highest is {highest}, that is {highest - lowest} apart, "
        assert told + ("the same." if recording.count == 1 else "not the same.") in example.thought


@pytest.mark.parametrize("task,kind", [("facts", "facts"), ("sum_in_json", "sum"), ("sound_in_json", "tone")])
def test_json_answers_fit_the_schema_that_is_asked_for(task, kind):
    for example in lessons(task, kind, 12):
        asked = json.dumps(example.messages, ensure_ascii=False)
        schema = json.loads(re.search(r"\{.*\}", json.loads(f'"{asked_text(example)}"'))[0])
        answer = json.loads(example.answer)
        assert list(answer) == list(schema["properties"]) == schema["required"], asked
        for key, value in answer.items():
            assert schema["properties"][key]["type"] == ("integer" if isinstance(value, int) else "string")


def asked_text(example) -> str:
    texts = [m["content"] for m in example.messages if isinstance(m["content"], str)]
    texts += [
        p["text"] for m in example.messages if isinstance(m["content"], list) for p in m["content"] if "text" in p
    ]
    return json.dumps(next(text for text in texts if "{" in text))[1:-1]


def test_what_is_not_english_is_said_to_be_not_understood():
    for kind, seconds in (("strange", 0.5), ("beeps", 0.1)):
        for example in lessons("strange", kind, 12):
            assert example.answer.startswith("I did not understand that. I hear ")
            assert example.recordings[0].seconds > seconds and not example.recordings[0].text


def test_words_are_counted_and_the_louder_one_is_louder():
    for example in lessons("word_count", "sentence", 5):
        assert example.answer == f"Words: {len(example.recordings[0].text.split())}."
    for example in lessons("loud", "loud", 5):
        recording = example.recordings[0]
        sounding = np.convolve(np.abs(recording.samples) > 1e-4, np.ones(400), "same") > 0.5
        edges = np.flatnonzero(np.diff(np.pad(sounding.astype(int), 1)))
        pieces = [recording.samples[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a > 800]
        words = recording.text.split()
        if len(pieces) == len(words):  # no pause within a word
            assert words[int(np.argmax([np.mean(piece**2) for piece in pieces]))] == recording.told


def test_of_two_speakers_the_faster_one_says_more_letters_a_second():
    random, faster = np.random.default_rng(5), []
    while len(faster) < 3:
        heard = [draw_scene(random, "sum") for _ in "ab"]
        example = make_lesson("compare", heard, random)
        if example and example.tags == ("faster",):
            told = [int(number) for number in re.findall(r"\d+", example.thought)]
            assert told == [round(len(each.text.replace(" ", "")) / each.seconds) for each in heard]
            faster.append((told[0] > told[1]) == (example.expected == "first"))
    assert sum(faster) >= 2


def test_a_question_can_be_asked_aloud():
    random = np.random.default_rng(4)
    for task, kind in (("pitch", "sum"), ("word_count", "sentence"), ("phrase", "phrase")):
        example = lessons(task, kind, 1)[0]
        aloud = asked_aloud(example, random)
        assert task in ALOUD and len(aloud.recordings) == 2
        assert aloud.messages[-1]["content"] == [{"type": "audio"}, {"type": "audio"}]
        assert aloud.thought.startswith(f"I am asked: {aloud.recordings[1].text}. ")
        assert aloud.answer == example.answer
    order = lessons("order", "order", 1)[0]
    assert asked_aloud(order, random) == order


def test_what_is_said_can_be_written_instead():
    random = np.random.default_rng(5)
    recordings = [draw_unspoken(random, "order")]
    written = typed(next(filter(None, (make_lesson("order", recordings, random) for _ in range(50)))))
    assert recordings[0].text in json.dumps(written.messages) and not written.recordings


def test_sentences_are_plain_and_those_for_evaluation_apart():
    assert plain('The "full-length" play; don\'t!') == "the full length play don't"
    for kept in (False, True):
        for text in sentences(kept)[:500]:
            assert set(text) <= set(collation.LETTERS) and held_out(text) == kept
    assert sum(SHARES.values()) > 100

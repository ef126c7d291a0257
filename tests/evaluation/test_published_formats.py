"""Published data sets, in the shape they are published in and asked as they were."""

import json
from dataclasses import replace

import pytest

from evaluation_fixture import SETTINGS, item
from step_audio_evaluation.answers import EvaluatedAnswer
from step_audio_evaluation.data_set import load_data_set
from step_audio_evaluation.formats import FORMATS
from step_audio_evaluation.items import EvaluationError, repeated
from step_audio_evaluation.report import grade, make_report
from step_audio_evaluation.scoring import score
from step_audio_evaluation.tables import table

MMAU = {
    "id": "3fe64f3d", "audio_id": "./clips/a.wav", "question": "What is heard?", "choices": ["Man", "Dog", "Rain"],
    "answer": "Dog", "dataset": "x", "task": "sound", "split": "test-mini", "category": "Perception",
    "sub-category": "y", "difficulty": "easy",
}  # fmt: skip
MMSU = {
    "id": "accent_1", "task_name": "accent", "audio_path": "clips/a.wav", "question": "Which accent?",
    "choice_a": "India", "choice_b": "Ireland", "choice_c": "Ghana", "choice_d": None, "answer_gt": "Ireland",
    "category": "Perception", "sub-category": "Linguistics",
}  # fmt: skip
MMAR = {
    "id": "ID1_0", "audio_path": "./clips/a.wav", "question": "Is she sincere?", "choices": ["Yes", "No"],
    "answer": "No", "modality": "speech", "category": "Semantic Layer", "language": "en", "url": "https://x",
}  # fmt: skip
SPOKEN = {"id": 7, "audio": {"path": "clips/a.wav"}, "answer": "3 + 4 = 7 #### 7", "transcription": "three ..."}
BIG_BENCH = {
    "category": "formal_fallacies", "official_answer": "invalid", "file_name": "clips/a.mp3", "id": 0,
    "transcript": "Here comes ...",
}  # fmt: skip
LISTED = (
    "\nPlease choose the answer from the following options, do not provide any additional explanations or content: \n"
)


@pytest.fixture
def published(data_set, tmp_path):
    (tmp_path / "clips" / "a.mp3").write_bytes(b"a")

    def make(*rows, array=False):
        file = data_set(*rows)
        if array:
            file.write_text(json.dumps(rows, indent=1))
        return file

    return make


def text_and_order(one):
    parts = one.messages[0]["content"]
    return next(part["text"] for part in parts if part["type"] == "text"), [part["type"] for part in parts]


@pytest.mark.parametrize("array", [False, True])
@pytest.mark.parametrize(
    ("name", "row", "question", "task", "right", "wrong"),
    [
        ("mmau", MMAU, f"What is heard?{LISTED}A. Man\nB. Dog\nC. Rain\n\n", "sound", "B. Dog", "C"),
        ("mmsu", MMSU, f"Which accent?{LISTED}A. India\nB. Ireland\nC. Ghana\n\n", "accent", "Ireland", "India"),
        ("mmar", MMAR, f"Is she sincere?{LISTED}A. Yes\nB. No\n\n", "speech", "No.", "Yes"),
        ("spoken-mqa", SPOKEN, "Solve the given math question step by step.\n", "set", r"3+4=7, so \boxed{7}.", "4"),
    ],
)
def test_text_comes_before_the_recording(name, row, question, task, right, wrong, array, published):
    (one,) = load_data_set(published(row, array=array), form=FORMATS[name])
    assert text_and_order(one) == (question, ["text", "audio"])
    assert one.task == task and one.id == f"set/{row['id']}"
    assert score(one, one.parse(f"Hm.\n</think>\n{right}")).correct
    assert not score(one, one.parse(f"Hm.\n</think>\n{wrong}")).correct


@pytest.mark.parametrize(
    ("official", "right", "wrong"),
    [
        ("invalid", ["invalid", "Invalid.", "The argument is **invalid**."], ["valid", "valid or invalid", ""]),
        ("valid", ["valid"], ["invalid", "not valid", "It is not valid."]),
        ("Yes", ["yes", "Yes."], ["no", "yes and no"]),
        ("3", ["3", "three", "Three."], ["4", "yes"]),
    ],
)
def test_big_bench_audio(official, right, wrong, published):
    (one,) = load_data_set(published({**BIG_BENCH, "official_answer": official}), form=FORMATS["big-bench-audio"])
    text, order = text_and_order(one)
    assert order == ["audio", "text"] and text.startswith('仅用 "valid" 或 "invalid"') and "A. " not in text
    assert one.task == "formal_fallacies"
    for answer in right:
        assert score(one, one.parse(f"Hm.\n</think>\n{answer}")).correct, answer
    for answer in wrong:
        assert not score(one, one.parse(f"Hm.\n</think>\n{answer}")).correct, answer


@pytest.mark.parametrize(
    "change",
    [
        {"choices": ["(A) Man", "(B) Dog", "(C) Rain"], "answer": "(B) Dog"},
        {"choices": ["A. Man", "B. Dog", "C. Rain"], "answer": "B"},
        {"choices": "['Man', 'Dog', 'Rain']"},
        {"choices": None, "options": ["Man", "Dog", "Rain"], "answer": None, "answer_index": 1},
        {"answer": "(B)"},
        {"audio_id": None, "audio": "clips/a.wav"},
    ],
    ids=str,
)
def test_rows_as_other_exports_have_them(change, published):
    row = {key: value for key, value in {**MMAU, **change}.items() if value is not None}
    (one,) = load_data_set(published(row), form=FORMATS["mmau"])
    assert (one.options, one.expected) == (("Man", "Dog", "Rain"), "Dog")
    assert text_and_order(one)[0].endswith("A. Man\nB. Dog\nC. Rain\n\n")


def test_recordings_elsewhere(published, tmp_path):
    file = published({**MMAU, "audio_id": "a.wav"})
    (one,) = load_data_set(file, form=FORMATS["mmau"], audio_dir=tmp_path / "clips")
    assert one.audio == (tmp_path / "clips" / "a.wav",)


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({**MMAU, "answer": "Cat"}, "answer: 'Cat' is neither one of the choices"),
        ({key: value for key, value in MMAU.items() if key != "answer"}, "answer: Field required"),
        ({key: value for key, value in MMAU.items() if key != "question"}, "question: Field required"),
        ({key: value for key, value in MMAU.items() if key != "audio_id"}, "audio_path: Field required"),
        ({**MMAU, "choices": "Man, Dog"}, "choices: "),
        (3, "not a JSON object"),
    ],
)
def test_errors_name_the_row_and_the_key(row, text, published):
    with pytest.raises(EvaluationError) as raised:
        load_data_set(published(MMAU, row, array=True), form=FORMATS["mmau"])
    assert f"set.jsonl, row 2: {text}" in str(raised.value)


def test_several_rounds(tmp_path):
    items = repeated([item("q-0"), item("q-1")], 3)
    assert [(one.id, one.round) for one in items] == [
        ("q-0", 0), ("q-1", 0), ("q-0#2", 1), ("q-1#2", 1), ("q-0#3", 2), ("q-1#3", 2),
    ]  # fmt: skip
    right = {"q-0", "q-1", "q-0#2"}
    answers = {
        one.id: EvaluatedAnswer(
            id=one.id, expected="5", text=f"Hm.\n</think>\n{5 if one.id in right else 6}", token_ids=[1]
        )
        for one in items
    }
    (row,) = make_report(grade(items, answers), SETTINGS, "today").rows
    assert row.rounds == (1.0, 0.5, 0.0) and row.spread == 0.5 and row.accuracy == 0.5
    once = replace(row, rounds=(), spread=None)
    assert " 3, 50.0 % |" in table([row]) and "rounds" not in table([once])
    (single,) = make_report(grade(items[:2], answers), SETTINGS, "today").rows
    assert single.rounds == () and single.interval.low < 1 < 2 * single.interval.high

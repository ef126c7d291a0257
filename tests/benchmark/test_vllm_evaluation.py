"""What the comparison of two servers' answers says of made ones."""

from __future__ import annotations

import pytest

from scripts import script_of
from step_audio_evaluation.answers import EvaluatedAnswer
from step_audio_evaluation.items import Item


@pytest.fixture(scope="module")
def script():
    return script_of("benchmarks/vllm_evaluation.py")


ITEMS = [Item(f"{task}-{n}", task, (), (), "number", str(n)) for task in ("arithmetic", "pitch") for n in range(2)]


def answers(*said: str | None) -> dict[str, EvaluatedAnswer]:
    """None: the request failed."""
    found = {}
    for item, text in zip(ITEMS, said, strict=True):
        given = {"error": "lost"} if text is None else {"text": text, "token_ids": [*text.encode()]}
        found[item.id] = EvaluatedAnswer(id=item.id, expected=item.expected, **given)
    return found


def test_right_and_same_are_counted_by_task(script):
    ours = answers("</think>0", "</think>1", "</think>0", None)
    theirs = answers("</think>0", "</think>7", "</think>is 0", None)
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in script.table(ITEMS, ours, theirs).split("\n")
    ]
    shown = {row[0]: (row[1], row[2], row[4], row[6]) for row in rows[2:]}
    assert shown == {
        "arithmetic": ("2", "100.0 %", "50.0 %", "1 of 2"),
        "pitch": ("2", "50.0 %", "50.0 %", "0 of 2"),  # two failures are no same answer
        "all": ("4", "75.0 %", "50.0 %", "1 of 4"),
    }
    assert rows[-1][3] == "30.1 to 95.4", "Wilson's interval of 3 of 4"


def test_where_they_part_is_said(script):
    ours = answers("</think>0", "</think>1", "</think>0", "</think>1")
    theirs = answers("</think>0", "</think>7", "</think>0", "</think>1")
    first, *parted = script.sentences(ITEMS, ours, theirs, seed=0)
    assert first.startswith("vLLM less ours: -25.0 points on the same 4 questions") and "1 only with ours" in first
    assert parted == ["arithmetic-1 parts at token 8: '</think>1', '</think>7'"]


async def test_answers_are_asked_for_as_the_evaluation_does(script, monkeypatch):
    async def run(items, client, sampling, answers):
        assert sampling.temperature == 0
        for answer in answers_of(items):
            answers.add(answer)

    def answers_of(items):
        return [EvaluatedAnswer(id=item.id, expected=item.expected, text="1") for item in items]

    monkeypatch.setattr(script, "run", run)
    found = await script.ask("127.0.0.1:1", ITEMS, seed=0)
    assert [found[item.id].text for item in ITEMS] == ["1"] * 4

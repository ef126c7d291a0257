"""The report, its plot, and the agreement with torch."""

import json
from dataclasses import replace

import pytest

from evaluation_fixture import SETTINGS, item
from step_audio_evaluation.agreement import Greedy, agreement, first_difference
from step_audio_evaluation.answers import EvaluatedAnswer
from step_audio_evaluation.plots import plot_budgets, plot_noise
from step_audio_evaluation.report import make_report
from step_audio_evaluation.statistics import wilson
from step_audio_evaluation.tables import markdown, sentences, table, write


def test_report(graded, tmp_path):
    report = make_report(graded, SETTINGS, "2026-01-02")
    rows = {(row.task, row.snr_db, row.tag): row for row in report.rows}
    assert len(rows) == len(report.rows) == 11
    assert rows["arithmetic", None, None].accuracy == 0.9
    assert (rows["arithmetic", None, "2 numbers"].correct, rows["arithmetic", None, "2 numbers"].n) == (3, 4)
    assert rows["transcription", None, None].wer == 2 / 40 and rows["arithmetic", None, None].wer is None
    assert rows["arithmetic", "clean", None].correct == 10 and rows["arithmetic", 0.0, None].correct == 4
    difference = report.differences["thought against no thought"]
    assert (difference.only_first, difference.only_second, difference.pairs) == (5, 0, 10)
    text = markdown(report)
    assert "# Evaluation of stub, 2026-01-02" in text and "+50.0 points on the same 10 sums" in text
    assert "arithmetic@None-00000, expected `5`:" in text
    assert "arithmetic, no noise" in table(report.rows) and "arithmetic, 10 dB SNR" in text
    assert len({len(line) for line in table(report.rows).splitlines()}) == 1
    write(report, tmp_path)
    data = json.loads((tmp_path / "report.json").read_text())
    assert data["settings"] == SETTINGS and data["rows"][0]["interval"]["low"] == wilson(9, 10).low
    assert data["wrong"][0]["id"] == "arithmetic@None-00000"


def test_plot(graded, tmp_path):
    pytest.importorskip("matplotlib")
    rows = make_report(graded, SETTINGS, "today").rows
    for name in ("a.svg", "b.svg"):
        plot_noise(rows, tmp_path / name)
    text = (tmp_path / "a.svg").read_text()
    assert text == (tmp_path / "b.svg").read_text()
    assert all(f">{word}<" in text for word in ("no noise", "10", "arithmetic", "transcription"))


def test_budgets(graded, tmp_path):
    pytest.importorskip("matplotlib")
    some = [g for g in graded if g.item.task == "arithmetic" and g.item.snr_db is None]
    within = [replace(g, item=replace(g.item, tags=(), budget=budget)) for budget in (0, "unlimited") for g in some]
    rows = make_report([*some, *within], SETTINGS, "today").rows
    assert [(row.budget, row.n) for row in rows if row.tag is None] == [(None, 10), (0, 10), ("unlimited", 10)]
    assert "arithmetic, 0 tokens of thought" in table(rows) and "arithmetic, all of the thought" in table(rows)
    plot_budgets(rows, tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    assert all(f">{word}<" in text for word in ("0", "unlimited"))


# -- against torch


class Known:
    """A reference whose tokens are given; 99 ends an answer."""

    stop_ids = (99,)

    def __init__(self, tokens):
        self.tokens = tokens

    def greedy(self, item, max_tokens):
        ids = self.tokens[item.id][:max_tokens]
        return Greedy(ids, [0.5 * (n + 1) for n in range(len(ids))])

    def text(self, ids):
        return f"Hm.\n</think>\n{sum(ids)}"


def test_first_difference():
    assert first_difference([], []) is None and first_difference([1, 2], [1, 2]) is None
    assert first_difference([1, 2], [1, 3]) == 1 and first_difference([1, 2], [1]) == first_difference([1], [1, 2]) == 1


def test_agreement():
    def served(name, ids, reason="stop", error=None):
        text = f"Hm.\n</think>\n{sum(ids)}"
        return EvaluatedAnswer(id=name, expected="", text=text, token_ids=ids, finish_reason=reason, error=error)

    items = [item(name, kind="number", expected="9" if name == "c" else "6") for name in "abcdef"]
    answers = {
        "a": served("a", [1, 2, 3]),  # without its last token, as the engine leaves end_id out
        "b": served("b", [1, 2, 99]),
        "c": served("c", [1, 5, 3]),  # one in the middle
        "d": served("d", [1, 2], "length"),
        "e": served("e", [1, 2]),  # torch goes on
        "f": served("f", [], None, "failed"),
    }
    wanted = {"a": [1, 2, 3, 99], "b": [1, 2, 99], "c": [1, 2, 3, 99], "d": [1, 2, 3], "e": [1, 2, 4, 99]}
    steps = []
    found = agreement(items, answers, Known(wanted), lambda: steps.append(1))
    assert (found.items, found.identical, found.tokens, len(steps)) == (5, 3, 12, 5)
    assert [(one.id, one.position, one.margin) for one in found.differing] == [("c", 1, 1.0), ("e", 2, 1.5)]
    assert (found.correct, found.reference_correct) == (2, 1)  # a for both; of c, 9 is served where torch says 6
    assert found.before_difference == 10 / 12 and found.equal == 11 / 12
    text = sentences(replace(make_report([], SETTINGS, "today"), agreement=found))[0]
    assert "3 of 5 answers have the same tokens (60.0 %)" in text and "right are 2 as served and 1 in torch" in text
    assert "leads by at most 1.5" in text

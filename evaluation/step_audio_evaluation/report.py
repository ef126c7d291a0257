"""The figures of an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev
from typing import TypeVar

from step_audio_evaluation.agreement import Agreement
from step_audio_evaluation.answers import EvaluatedAnswer, EvaluationSettings
from step_audio_evaluation.items import Budget, Item, Snr
from step_audio_evaluation.scoring import Score, score
from step_audio_evaluation.statistics import Difference, Interval, bootstrap_ratio, paired_difference, wilson
from step_audio_evaluation.voices import is_false_alarm

Key = TypeVar("Key")

WRONG_SHOWN = 3  # examples of a task's wrong answers in the report


@dataclass(frozen=True)
class Graded:
    """A question, what was answered, and whether that is right."""

    item: Item
    answer: EvaluatedAnswer
    score: Score


@dataclass(frozen=True)
class Row:
    """Of one task, or of those of its questions that share a tag, a level of noise or a budget of thought."""

    task: str
    n: int
    correct: int
    accuracy: float
    interval: Interval
    failed: int  # requests without an answer; they count as wrong
    unfinished: int  # answers that ran into the limit of tokens
    tokens: float  # mean length of an answer
    tag: str | None = None
    snr_db: Snr | None = None
    budget: Budget | None = None
    wer: float | None = None  # word error rate of a transcript: errors over words
    wer_interval: Interval | None = None
    rounds: tuple[float, ...] = ()  # accuracy of each, where every question was asked several times
    spread: float | None = None  # standard deviation of these


@dataclass(frozen=True)
class Report:
    """All that `report.md` and `report.json` show: accuracy by task, and how it was measured."""

    settings: EvaluationSettings
    date: str
    rows: list[Row]
    differences: dict[str, Difference]
    false_alarms: (
        tuple[int, int] | None
    )  # answers that did not understand speech, of how many, where it was asked about
    agreement: Agreement | None  # with plain torch, where that was asked for
    wrong: list[Graded] = field(repr=False)


def grade(items: Sequence[Item], answers: Mapping[str, EvaluatedAnswer]) -> list[Graded]:
    """Every item has an answer, be it an error."""
    graded = []
    for item in items:
        answer = answers[item.id]
        reply = item.parse(answer.text) if answer.error is None else None
        graded.append(Graded(item, answer, score(item, reply)))
    return graded


def make_report(graded: Sequence[Graded], settings: EvaluationSettings, date: str) -> Report:
    """Rows in the order of the questions; a task's tags behind it."""
    seed = settings["seed"]
    rows, wrong = [], []
    for (task, snr, budget), group in _groups(graded, lambda g: (g.item.task, g.item.snr_db, g.item.budget)):
        rows.append(replace(_row(group, task, seed), snr_db=snr, budget=budget))
        for tag in sorted({tag for g in group for tag in g.item.tags}) if snr is None else ():
            tagged = [g for g in group if tag in g.item.tags]
            if len(tagged) < len(group):
                rows.append(_row(tagged, task, seed, tag=tag))
        wrong += [g for g in group if not g.score.correct][:WRONG_SHOWN]
    return Report(settings, date, rows, _differences(graded, seed), _false_alarms(graded), None, wrong)


def _false_alarms(graded: Sequence[Graded]) -> tuple[int, int] | None:
    said = [is_false_alarm(g.item, g.item.parse(g.answer.text).content or "") for g in graded]
    about_speech = [each for each in said if each is not None]
    return (sum(about_speech), len(about_speech)) if about_speech else None


def _groups(graded: Sequence[Graded], key: Callable[[Graded], Key]) -> list[tuple[Key, list[Graded]]]:
    groups: dict[Key, list[Graded]] = {}
    for one in graded:
        groups.setdefault(key(one), []).append(one)
    return list(groups.items())


def _row(group: Sequence[Graded], task: str, seed: int, tag: str | None = None) -> Row:
    n, correct = len(group), sum(g.score.correct for g in group)
    rounds = tuple(
        fmean(g.score.correct for g in group if g.item.round == r) for r in sorted({g.item.round for g in group})
    )
    errors, words = [g.score.errors for g in group], [g.score.words for g in group]
    spoken = all(words)  # of a transcript each recording has some
    return Row(
        task, n, correct, correct / n,
        wilson(correct / len(rounds), n // len(rounds)),  # more rounds are no more questions
        failed=sum(g.answer.error is not None for g in group),
        unfinished=sum(g.answer.finish_reason == "length" for g in group),
        tokens=sum(len(g.answer.token_ids) for g in group) / n,
        tag=tag,
        wer=sum(errors) / sum(words) if spoken else None,
        wer_interval=bootstrap_ratio(errors, words, seed) if spoken else None,
        rounds=rounds if len(rounds) > 1 else (),
        spread=stdev(rounds) if len(rounds) > 1 else None,
    )  # fmt: skip


def _differences(graded: Sequence[Graded], seed: int) -> dict[str, Difference]:
    """What thinking is worth: the same sums with the thought, and without it or with a part of it."""

    def right(task: str) -> dict[str, bool]:
        # The number behind the dash is the question's, the same in all of these tasks.
        chosen = [g for g in graded if g.item.task == task and g.item.snr_db is None and g.item.budget is None]
        return {g.item.id.rpartition("-")[2]: g.score.correct for g in chosen}

    whole = right("arithmetic")
    differences = {}
    for name, task in (("no thought", "arithmetic_no_think"), ("cut thought", "arithmetic_cut_thought")):
        other = right(task)
        if both := sorted(whole.keys() & other.keys()):
            pair = paired_difference([whole[n] for n in both], [other[n] for n in both], seed)
            differences[f"thought against {name}"] = pair
    return differences

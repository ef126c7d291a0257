"""A report in words: the table that is printed, and the files that are written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from step_audio.markdown import markdown_table
from step_audio_evaluation.agreement import Agreement
from step_audio_evaluation.report import Graded, Report, Row
from step_audio_evaluation.statistics import wilson

REPORT = "report.json"
_HEADINGS = ("task", "n", "right", "95 % interval", "WER", "95 % interval", "failed", "unfinished", "tokens")
_LONGEST = 300  # characters that are shown of a wrong answer


def table(rows: Sequence[Row]) -> str:
    """A Markdown table whose columns also line up in a terminal."""
    lines = [list(_HEADINGS), *(list(_cells(row)) for row in rows)]
    if any(row.rounds for row in rows):
        spreads = ["rounds, spread", *(f"{len(row.rounds)}, {_percent(row.spread or 0)}" for row in rows)]
        lines = [[*line, spread] for line, spread in zip(lines, spreads, strict=True)]
    return markdown_table(lines)


def _cells(row: Row) -> tuple[str, ...]:
    name = row.task
    if row.tag:
        name = f"- {row.tag}"
    elif row.snr_db is not None:
        name += ", no noise" if row.snr_db == "clean" else f", {row.snr_db:g} dB SNR"
    elif row.budget is not None:
        name += ", all of the thought" if row.budget == "unlimited" else f", {row.budget} tokens of thought"
    wer = _percent(row.wer) if row.wer is not None else ""
    wer_interval = row.wer_interval.in_percent if row.wer_interval else ""
    return (
        name, str(row.n), _percent(row.accuracy), row.interval.in_percent, wer, wer_interval,
        str(row.failed), str(row.unfinished), f"{row.tokens:.1f}",
    )  # fmt: skip


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def sentences(report: Report) -> list[str]:
    """What the table does not say."""
    lines = []
    for name, pair in report.differences.items():
        lines.append(
            f"{name}: {100 * pair.value:+.1f} points on the same {pair.pairs} sums, 95 % interval "
            f"{pair.interval.in_percent}; {pair.only_first} right only with it, {pair.only_second} only without, "
            f"p = {pair.p:.2g} (McNemar's exact test)"
        )
    if report.false_alarms:
        count, asked = report.false_alarms
        text = f"not understood, though it was speech: {count} of {asked} answers ({_percent(count / asked)})"
        lines.append(f"{text}, 95 % interval {wilson(count, asked).in_percent}")
    if report.agreement:
        lines.append(_agreement(report.agreement))
    return lines


def _agreement(found: Agreement) -> str:
    text = (
        f"against plain torch: {found.identical} of {found.items} answers have the same tokens "
        f"({_percent(found.identical / max(found.items, 1))}); {_percent(found.before_difference)} of {found.tokens} "
        f"tokens come before a first difference, {_percent(found.equal)} are equal position by position"
    )
    text += f"; right are {found.correct} as served and {found.reference_correct} in torch"
    if found.differing:
        margins = sorted(different.margin for different in found.differing)
        text += f"; where they part, torch's choice leads by at most {margins[-1]:.2g} in logits"
    return text


def markdown(report: Report) -> str:
    settings = "\n".join(f"- {key}: {value}" for key, value in report.settings.items())
    parts = [f"# Evaluation of {report.settings['model']}, {report.date}", settings, table(report.rows)]
    parts += sentences(report)
    if report.wrong:
        parts.append("## Some wrong answers")
        parts += [_wrong(one) for one in report.wrong]
    return "\n\n".join(parts) + "\n"


def _wrong(one: Graded) -> str:
    failed = one.answer.error is not None
    given = one.answer.error or one.answer.text
    given = given if len(given) <= _LONGEST else f"... {given[-_LONGEST:]}"
    quoted = "\n".join(f"    {line}" for line in given.splitlines())
    return f"{one.item.id}, expected `{one.item.expected}`{', failed' if failed else ''}:\n\n{quoted}"


def write(report: Report, directory: Path) -> None:
    """report.json and report.md."""
    wrong = [
        {"id": one.item.id, "expected": one.item.expected, "text": one.answer.text, "error": one.answer.error}
        for one in report.wrong
    ]
    data = {**asdict(replace(report, wrong=[])), "wrong": wrong}
    (directory / REPORT).write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (directory / "report.md").write_text(markdown(report), encoding="utf-8")

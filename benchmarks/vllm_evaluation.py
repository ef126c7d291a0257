"""The questions of `step-audio eval` to the same checkpoint on our engine, and on vLLM (docs/engines.md).

    python benchmarks/vllm_evaluation.py --llm-python FILE [--per-task 60] [--dtype bfloat16]

Greedy, the same recordings, one server after the other. An answer is the same where all of its tokens are.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

from bench import serving
from step_audio.command_line import count
from step_audio.config import DType
from step_audio.markdown import markdown_table
from step_audio_client import Sampling, StepAudioClient
from step_audio_evaluation.agreement import first_difference
from step_audio_evaluation.answers import AnswerFile, EvaluatedAnswer, EvaluationSettings
from step_audio_evaluation.held_out import TASKS, end_speakers, held_out
from step_audio_evaluation.items import Item
from step_audio_evaluation.presets import GREEDY
from step_audio_evaluation.report import Graded, grade
from step_audio_evaluation.run import run
from step_audio_evaluation.statistics import paired_difference, wilson
from step_audio_server.assets import embedded_checkpoint

SOME = ("arithmetic", "transcription", "pitch", "tool_call", "text_only")
HEADINGS = ("task", "n", "right, ours", "95 % interval", "right, vLLM", "95 % interval", "the same answer")

Answers = Mapping[str, EvaluatedAnswer]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--llm-python", type=Path, required=True, metavar="FILE", help="as for `step-audio serve`")
    parser.add_argument("--checkpoint", type=Path, default=embedded_checkpoint(), help="default: %(default)s")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=SOME, help="default: %(default)s")
    parser.add_argument("--per-task", type=count, default=60, help="questions of a task (default %(default)s)")
    parser.add_argument("--dtype", choices=get_args(DType), default="float32", help="of both (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


async def ask(address: str, items: Sequence[Item], seed: int) -> Answers:
    """Raises EvaluationError where the server is gone."""
    settings: EvaluationSettings = {"model": address, "seed": seed, "sampling": dict(GREEDY)}
    with tempfile.TemporaryDirectory() as folder:
        answers = AnswerFile(Path(folder), settings)
        async with StepAudioClient(address) as client:
            await run(items, client, Sampling(**GREEDY), answers)
        return answers.of


def table(items: Sequence[Item], ours: Answers, theirs: Answers) -> str:
    """A row for each task, and one for all of them."""
    graded = list(zip(grade(items, ours), grade(items, theirs), strict=True))
    rows = [_row(task, [pair for pair in graded if pair[0].item.task == task]) for task in _tasks(items)]
    return markdown_table([HEADINGS, *rows, _row("all", graded)])


def sentences(items: Sequence[Item], ours: Answers, theirs: Answers, seed: int) -> list[str]:
    """The difference, question by question, and where answers part."""
    first, second = ([one.score.correct for one in grade(items, answers)] for answers in (theirs, ours))
    pair = paired_difference(first, second, seed)
    lines = [
        f"vLLM less ours: {100 * pair.value:+.1f} points on the same {pair.pairs} questions, 95 % interval "
        f"{pair.interval.in_percent}; {pair.only_first} right only with vLLM, {pair.only_second} only with ours"
    ]
    for item in items:
        parted = first_difference(ours[item.id].token_ids, theirs[item.id].token_ids)
        if parted is not None:
            lines.append(f"{item.id} parts at token {parted}: {ours[item.id].text!r}, {theirs[item.id].text!r}")
    return lines


def _tasks(items: Sequence[Item]) -> list[str]:
    return list(dict.fromkeys(item.task for item in items))


def _row(name: str, pairs: Sequence[tuple[Graded, Graded]]) -> list[str]:
    n, cells = len(pairs), []
    for side in range(2):
        right = sum(pair[side].score.correct for pair in pairs)
        cells += [f"{100 * right / n:.1f} %", wilson(right, n).in_percent]
    same = sum(a.answer.error is None and a.answer.token_ids == b.answer.token_ids for a, b in pairs)
    return [name, str(n), *cells, f"{same} of {n}"]


def main() -> None:
    options = arguments()
    try:
        items = held_out([task for task in TASKS if task in options.tasks], options.per_task, options.seed)
    finally:
        end_speakers()
    with serving(options.checkpoint, dtype=options.dtype) as service:
        ours = asyncio.run(ask(service.address, items, options.seed))
    with serving(options.checkpoint, dtype=options.dtype, llm="vllm", llm_python=options.llm_python) as service:
        theirs = asyncio.run(ask(service.address, items, options.seed))
    print("\n".join([table(items, ours, theirs), "", *sentences(items, ours, theirs, options.seed)]))


if __name__ == "__main__":
    main()

"""Whether others draw the tokens that we draw: greedy answers to the same questions, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from step_audio.errors import StepAudioError
from step_audio.markdown import markdown_table
from step_audio_benchmark.load import Level, Way
from step_audio_benchmark.workload import Workload

QUESTIONS = 8
BEGIN = 2 * 10**9  # the first one's number: none of these is asked when something is measured


@dataclass(frozen=True)
class TokenAgreement:
    """Of one target with another."""

    target: str
    other: str
    answers: int
    equal: int  # answers of which every token is
    tokens: int
    before: int  # tokens up to the first difference, over all answers

    @classmethod
    def of(cls, target: str, other: str, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> TokenAgreement:
        lengths = [common(ours, theirs) for ours, theirs in pairs]
        tokens = [len(ours) for ours, _ in pairs]
        whole = sum(length == count for length, count in zip(lengths, tokens, strict=True))
        return cls(target, other, len(pairs), whole, sum(tokens), sum(lengths))


def common(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """How many ids both begin with."""
    for place, (one, other) in enumerate(zip(ours, theirs, strict=False)):
        if one != other:
            return place
    return min(len(ours), len(theirs))


async def answers(way: Way, workload: Workload) -> list[list[int]]:
    """Ids of greedy answers, one request at a time. Raises StepAudioError where one fails or tells no ids."""
    greedy = replace(workload, sampling={"temperature": 0.0})
    run = await way.run(Level(concurrency=1), greedy.questions(QUESTIONS, BEGIN), greedy, lambda: None)
    for record in run.records:
        if record.error is not None:
            raise StepAudioError(f"{way.name}: {record.error}")
        if not record.token_ids:
            raise StepAudioError(f"{way.name} does not tell which tokens it has drawn")
    return [record.token_ids for record in run.records]


def agreement_table(found: Sequence[TokenAgreement]) -> str:
    """Markdown; empty where nothing was compared."""
    if not found:
        return ""
    rows = [["greedy answers", "equal", "tokens before the first difference"]]
    for one in found:
        rows.append(
            [f"{one.target}, {one.other}", f"{one.equal} of {one.answers}", f"{one.before / max(one.tokens, 1):.1%}"]
        )
    return markdown_table(rows)

"""How much of what was served is what a reference gives, token by token."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from step_audio_evaluation.answers import EvaluatedAnswer
from step_audio_evaluation.items import Item
from step_audio_evaluation.scoring import score

LONGEST = 512  # tokens of an answer of the reference's own


@dataclass(frozen=True)
class Greedy:
    """`margins[n]`: by how much the logit of token n leads over the next best one."""

    token_ids: list[int]
    margins: list[float]


class Reference(Protocol):
    """A model whose greedy answers served ones are compared with."""

    @property
    def stop_ids(self) -> Sequence[int]: ...

    def greedy(self, item: Item, max_tokens: int) -> Greedy:
        """Up to and including a stop token."""
        ...

    def text(self, token_ids: Sequence[int]) -> str: ...


@dataclass(frozen=True)
class Differing:
    """An answer that torch gives otherwise: from which token on, and torch's lead there."""

    id: str
    position: int
    margin: float


@dataclass(frozen=True)
class Agreement:
    """Of served tokens with torch's, the token that ends an answer left out."""

    items: int
    identical: int
    correct: int  # of the served answers
    reference_correct: int  # of torch's
    tokens: int  # that were served
    before_difference: float  # share of them that comes before the first difference of their answer
    equal: float  # share of them that is torch's at the same position
    differing: list[Differing]


def agreement(
    items: Sequence[Item], answers: Mapping[str, EvaluatedAnswer], reference: Reference, step: Callable[[], None]
) -> Agreement:
    """Of the answers that were greedy and did not fail; `step` is called after each."""
    identical = tokens = before = equal = correct = reference_correct = 0
    differing: list[Differing] = []
    asked = [item for item in items if answers[item.id].error is None]
    for item in asked:
        answer = answers[item.id]
        served = _without_stop(answer.token_ids, reference.stop_ids)
        # One more than was served: there the answer must end.
        made = reference.greedy(item, len(served) + (answer.finish_reason == "stop"))
        wanted = _without_stop(made.token_ids, reference.stop_ids)
        parted = first_difference(served, wanted)
        right = score(item, item.parse(answer.text)).correct
        correct += right
        if parted is None:
            identical += 1
            reference_correct += right
        else:
            whole = reference.greedy(item, max(LONGEST, len(served)))
            text = reference.text(_without_stop(whole.token_ids, reference.stop_ids))
            reference_correct += score(item, item.parse(text)).correct
            differing.append(Differing(item.id, parted, made.margins[parted]))
        tokens += len(served)
        before += len(served) if parted is None else parted
        equal += sum(a == b for a, b in zip(served, wanted, strict=False))
        step()
    shares = before / max(tokens, 1), equal / max(tokens, 1)
    return Agreement(len(asked), identical, correct, reference_correct, tokens, *shares, differing)


def first_difference(first: Sequence[int], second: Sequence[int]) -> int | None:
    """
    >>> first_difference([1, 2, 3], [1, 2])
    2
    """
    shorter = min(len(first), len(second))
    parted = next((n for n in range(shorter) if first[n] != second[n]), shorter)
    return None if parted == len(first) == len(second) else parted


def _without_stop(ids: Sequence[int], stop_ids: Sequence[int]) -> list[int]:
    return list(ids[:-1] if ids and ids[-1] in stop_ids else ids)

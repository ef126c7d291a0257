"""Neither the messages that tokens come in nor the time at which they come decide what a mind-paced answer says."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from chat_stream_fixture import CALL, TOOLS, in_order, tokens
from fake_triton import EOT, TOKENIZER
from mind_paced_fixture import CLOSE, WITHOUT_THOUGHT, Model, hear, thoughts
from step_audio.tokenizer import Tokenizer
from step_audio_client import ChatDelta

LETTERS = TOKENIZER.encode("abcdefghij klmnopq rstuvw xyz 你好")
# One token a message, then messages of random sizes; one brain is slow, or the other, or none.
WAYS = [(None, (0, 0)), (1, (0.0005, 0)), (2, (0, 0.0005)), (3, (0, 0))]


@dataclass
class Chain(Model):
    """Greedy as an engine is: each token follows from all that is before it, so another prompt is another answer."""

    said: int = 40  # tokens that an answer has

    def line(self, request):
        suffix_ids, without_thought = list(request.suffix_ids), request.prompt.input_ids[0].tolist() == WITHOUT_THOUGHT
        if not suffix_ids and not without_thought:
            return [*self.thought, *follow(self.thought, self.said), EOT], False
        start = (
            0
            if without_thought
            else max(n for n in range(len(suffix_ids) + 1) if suffix_ids[:n][-len(CLOSE) :] == CLOSE)
        )
        return [*follow(suffix_ids, self.said - len(suffix_ids) + start), EOT], True


def follow(before: list[int], count: int) -> list[int]:
    ids = list(before)
    for _ in range(count):
        ids.append(random.Random(str(ids)).choice(LETTERS))
    return ids[len(before) :]


def content(model: Model, deltas: list[ChatDelta]) -> dict[str, Any]:
    """What must not differ: all prompts and limits, the answer and its end, what each segment was made of."""
    last = deltas[-1]
    assert last.usage and last.speech
    return {
        "asked": [(r.prompt.input_ids.tolist(), tuple(r.suffix_ids), r.sampling) for r in model.requests],
        "answer": in_order(deltas),
        "finish": last.finish_reason,
        "segments": [(s.thought_tokens, s.spoken_tokens, s.total_blocks) for s in last.speech.segments],
        "before": last.speech.thought_before,
        "answer_tokens": last.usage.completion_tokens - last.usage.reasoning_tokens,
    }


def thought_of(deltas: list[ChatDelta]) -> tuple[str, int] | None:
    """Text and tokens. None where the answer ended without it: there is as much as had come."""
    last = deltas[-1]
    assert last.usage and last.speech
    whole = last.speech.thought_ended is not None or last.finish_reason == "length"
    return ("".join(d.reasoning for d in deltas), last.usage.reasoning_tokens) if whole else None


def the_same(make: Callable[..., Model], **options: Any) -> dict[str, Any]:
    """The content, after a look at all ways."""
    first, whole = None, None
    for seed, pauses in WAYS:
        model = make(seed=seed, pauses=pauses)
        deltas = hear(model, **options)[2]
        first = first or content(model, deltas)
        assert content(model, deltas) == first
        whole = whole or thought_of(deltas)
        assert thought_of(deltas) in (None, whole)
    assert first
    return first


@pytest.mark.parametrize("mode", ["think_first", "speak_first", "think_before_speak", "no_think"])
@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 35, 81])
@pytest.mark.parametrize("most", [None, 6, 33])
def test_the_same_tokens_are_the_same_answer(mode, size, most):
    draw = random.Random(f"{mode} {size} {most}")
    thought = [*draw.choices(LETTERS, k=size), *CLOSE]
    pace = {"mode": mode, "think_tokens": draw.choice([4, 10]), "speak_tokens": draw.choice([3, 7])}
    for said in (2, 40):  # the answer ends before the thought, and behind it
        the_same(lambda said=said, **way: Chain(thought, said=said, **way), max_tokens=most, **pace)


def test_a_thought_that_ends_soon_after_a_segment_is_due():
    """81 tokens, the first segment due out of 75: also where the 75th and the last come in one message."""
    thought = [*random.Random(0).choices(LETTERS, k=82 - len(CLOSE)), *CLOSE]
    for seed in range(12):
        last = hear(Chain(thought, seed=seed), mode="think_first", think_tokens=75, speak_tokens=5)[2][-1]
        assert [segment.thought_tokens for segment in last.speech.segments] == [75, 81]


@pytest.mark.parametrize("marker", [[], CLOSE[:-2]])
@pytest.mark.parametrize("mode", ["think_first", "speak_first", "think_before_speak"])
def test_a_turn_that_ends_within_the_thought(mode, marker):
    thought = random.Random(1).choices(LETTERS, k=30) + marker

    class Short(Chain):
        def line(self, request):
            line, speaks = super().line(request)
            return (line if speaks else [*thought, EOT]), speaks

    assert the_same(lambda **way: Short(thought, **way), mode=mode, think_tokens=10, speak_tokens=3)["answer"]


@pytest.mark.parametrize("stop", ["is", "five, ", "5. "])
@pytest.mark.parametrize("mode", ["think_first", "speak_first", "think_before_speak", "no_think"])
def test_stop_strings(mode, stop):
    answer = the_same(Model, mode=mode, stop=(stop,), think_tokens=10, speak_tokens=3)
    assert answer["finish"] == "stop" and stop not in "".join(answer["answer"])


@pytest.mark.parametrize("mode", ["think_first", "speak_first", "think_before_speak"])
def test_a_call_that_several_segments_have_parts_of(mode):
    ids = tokens("I ask. ", *CALL, "And", *CALL, "<|EOT|>")
    answer = the_same(lambda **way: Model(answer=ids, **way), mode=mode, tools=TOOLS, think_tokens=10, speak_tokens=3)
    call = ("get_time", '{"tz": "猫"}')
    assert (answer["answer"], answer["finish"]) == (["I ask. ", call, "And", call], "tool_calls")


@pytest.mark.parametrize(("mode", "first"), [("think_first", 10), ("speak_first", 0)])
@pytest.mark.parametrize("seed", [None, 1, 2, 3, 4])
def test_with_a_speech_rate_the_first_segment_goes_by_no_clock(mode, first, seed):
    model = Model(seed=seed)
    hear(model, mode=mode, think_tokens=10, speak_tokens=3, speech_rate=50)
    assert thoughts(model)[0] == first


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_a_token_of_marker_and_answer(seed):
    """`>The`: what it has of an answer is neither shown beside that of the other brain nor put into its prompt."""
    merged = Tokenizer.from_json(TOKENIZER.to_json().replace("<|fim_pad|>", ">The"))
    thought = [*tokens("so it is\n</think"), merged.added_tokens[">The"]]
    model = Chain(thought, seed=seed, said=10)
    _, answer, _ = hear(model, mode="think_first", think_tokens=2, speak_tokens=3, tokenizer=merged)
    prompt = merged.decode(model.requests[-1].suffix_ids)
    assert len(model.requests) == 5 and prompt.count("</think>") == 1
    assert "The" not in prompt + answer

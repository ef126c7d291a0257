"""Two brains against a model with a script: what each is asked for and when, and that their words add up."""

from __future__ import annotations

import asyncio
import random
from contextlib import aclosing

import pytest

from fake_triton import EOT, TOKENIZER
from mind_paced_fixture import (
    ANSWER,
    ANSWER_TEXT,
    CLOSE,
    MAX_SEQ_LEN,
    PROMPT,
    THOUGHT,
    THOUGHT_TEXT,
    WITHOUT_THOUGHT,
    Model,
    hear,
    prepared,
    speaker,
    thoughts,
)
from step_audio_client import ChatOptions, Guide, MindPaced, RequestError, Sampling, Thinking
from step_audio_client.mind_paced import MindPacedSpeaker, check
from step_audio_client.prepared import PreparedRequest
from step_audio_client.tokens import Tokens
from waiting import SECONDS

SEEDS = pytest.mark.parametrize("seed", [None, 1, 2, 3])  # of the sizes of messages


@pytest.mark.parametrize("mode", ["think_first", "speak_first", "think_before_speak", "no_think"])
@pytest.mark.parametrize("rate", [None, 50, 5000])
def test_whatever_the_pace_the_words_are_the_same(mode, rate):
    draw = random.Random(f"{mode}{rate}")
    for seed in (None, 1, 2, 3, 4, 5):
        model = Model(seed=seed, pauses=(draw.choice([0, 0.0005]), draw.choice([0, 0.0005])))
        pace = {"think_tokens": draw.randint(1, 60), "speak_tokens": draw.randint(1, 30)}
        thought, speech, deltas = hear(model, mode=mode, speech_rate=rate, **pace)
        assert speech == ANSWER_TEXT
        last = deltas[-1]
        whole = last.speech.thought_ended is not None  # the answer may be said before
        assert thought == THOUGHT_TEXT if whole else THOUGHT_TEXT.startswith(thought)
        assert last.finish_reason == "stop"
        assert sum(segment.spoken_tokens for segment in last.speech.segments) == len(ANSWER)
        assert last.usage.prompt_tokens == 4 and last.usage.audio_tokens == 4
        assert last.usage.reasoning_tokens == last.speech.thought_tokens >= whole
        rest = last.usage.completion_tokens - last.usage.reasoning_tokens - len(ANSWER)
        assert rest == 1 + (len(model.requests) == 1 and mode != "no_think")  # the end, and the line end of the marker


@SEEDS
@pytest.mark.parametrize("pauses", [(0.002, 0), (0, 0.002), (0, 0)])
@pytest.mark.parametrize(("mode", "first"), [("think_first", 10), ("speak_first", 0)])
def test_each_segment_knows_ten_tokens_more(mode, first, pauses, seed):
    """Also where the thought is ahead: no segment is left out."""
    model = Model(seed=seed, pauses=pauses)
    _, _, deltas = hear(model, mode=mode, think_tokens=10, speak_tokens=2)
    assert thoughts(model)[:4] == list(range(first, first + 40, 10))
    segments = deltas[-1].speech.segments
    assert [segment.thought_tokens for segment in segments][:4] == list(range(first, first + 40, 10))
    assert {segment.spoken_tokens for segment in segments[:-1]} == {2}
    assert all(request.sampling.max_tokens == 2 for request in model.requests[1:5])
    assert segments[0].first <= segments[-1].first
    assert deltas[-1].speech.thought_before == first
    assert [(s.total_blocks, s.reused_blocks) for s in segments] == [(10, 9)] * len(segments)


def test_speech_begins_before_the_thought_ends():
    model = Model(pauses=(0.002, 0))
    _, _, deltas = hear(model, mode="speak_first", think_tokens=10, speak_tokens=2)
    kinds = "".join("t" if delta.reasoning else "s" if delta.content else "" for delta in deltas)
    assert kinds.index("s") < 3 and "ts" in kinds and "st" in kinds


@SEEDS
def test_a_thought_shorter_than_a_segment_goes_on_into_the_answer(seed):
    one, other = Model(seed=seed), Model()
    assert hear(one, mode="think_first", think_tokens=500)[:2] == hear(other, mode="think_before_speak")[:2]
    assert len(one.requests) == len(other.requests) == 1


@SEEDS
def test_the_last_segment_knows_all_and_has_no_end(seed):
    model = Model(seed=seed)
    hear(model, mode="speak_first", think_tokens=10, speak_tokens=1)
    *_, last = model.requests
    assert list(last.suffix_ids[: len(THOUGHT) + len(CLOSE)]) == [*THOUGHT, *CLOSE]
    assert last.sampling.max_tokens == MAX_SEQ_LEN - len(last)


@SEEDS
@pytest.mark.parametrize("known", range(len(THOUGHT) - 1, len(THOUGHT) + len(CLOSE) + 1))
def test_a_cut_within_the_end_marker_leaves_one_marker(known, seed):
    model = Model(seed=seed)
    hear(model, mode="think_first", think_tokens=known, speak_tokens=2)
    for request in model.requests[1:]:
        text = TOKENIZER.decode(request.suffix_ids)
        assert text.count("</think>") == 1 and "</" not in text.partition("</think>")[0]


def test_a_thought_that_ends_without_a_word_is_closed():
    model = Model(thought=[*THOUGHT, EOT])
    model.__class__ = type("Short", (Model,), {"__call__": _short})
    thought, speech, deltas = hear(model, mode="think_first", think_tokens=500)
    assert (thought, speech) == (THOUGHT_TEXT, ANSWER_TEXT)
    assert list(model.requests[1].suffix_ids) == [*THOUGHT, *CLOSE] and deltas[-1].finish_reason == "stop"


async def _short(self, request):
    """Formulation ends its turn within the thought."""
    if request.suffix_ids:
        async for tokens in Model.__call__(self, request):
            yield tokens
    else:
        self.requests.append(request)
        yield Tokens([*THOUGHT, EOT], [], 4, "stop")


def test_an_answer_that_ends_first_ends_the_thought():
    model = Model(answer=[*ANSWER[:2], EOT], pauses=(0.01, 0))
    thought, _, deltas = hear(model, mode="speak_first", think_tokens=10, speak_tokens=20)
    assert deltas[-1].finish_reason == "stop" and deltas[-1].speech.thought_ended is None
    assert len(thought) < len(THOUGHT_TEXT) / 2


def test_a_stop_string_ends_both():
    _, speech, deltas = hear(Model(pauses=(0.01, 0)), mode="speak_first", stop=("five",), speak_tokens=3)
    assert (speech, deltas[-1].finish_reason) == ("It is ", "stop")


@SEEDS
@pytest.mark.parametrize("most", [1, 5, 30, 200])
def test_max_tokens_bounds_both_together(most, seed):
    for mode in ("think_first", "speak_first", "no_think", "think_before_speak"):
        model = Model(seed=seed)
        _, _, deltas = hear(model, mode=mode, max_tokens=most, think_tokens=10, speak_tokens=5)
        fits = most == 200 or (most == 30 and mode == "no_think")
        assert deltas[-1].finish_reason == ("stop" if fits else "length")
        assert deltas[-1].usage.completion_tokens <= most
        assert fits or deltas[-1].usage.completion_tokens == most


def test_a_late_thought_is_not_waited_for():
    """Formulation needs 10 ms a token, the listener hears one in 5."""
    model = Model(pauses=(0.01, 0))
    _, speech, deltas = hear(model, mode="speak_first", think_tokens=80, speak_tokens=4, speech_rate=200)
    known = thoughts(model)
    assert speech == ANSWER_TEXT and known == sorted(known) and 0 < known[-1] < 80
    assert deltas[-1].speech.thought_ended is None  # all was said before


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("after", [0, 2])
@pytest.mark.parametrize("seed", [None, 1])
def test_a_fault_in_either_brain_ends_both(number, after, seed):
    model = Model(seed=seed, pauses=(0.002, 0.0005), fault=(number, after))
    with pytest.raises(RequestError, match="the engine failed"):
        hear(model, mode="speak_first", think_tokens=10, speak_tokens=5)
    assert model.open == 0


@pytest.mark.parametrize("taken", [0, 1, 5, 20, 60])
@pytest.mark.parametrize("cancelled", [False, True])
def test_leaving_ends_both(taken, cancelled):
    model = Model(pauses=(0.002, 0.002))

    async def run():
        async with aclosing(speaker(model, mode="speak_first", think_tokens=10, speak_tokens=4).deltas()) as deltas:
            for _ in range(taken):
                await anext(deltas)
            if cancelled:
                task = asyncio.create_task(anext(deltas))
                await asyncio.sleep(0.001)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        assert model.open == 0
        assert len(asyncio.all_tasks()) == 2  # this one, and wait_for

    asyncio.run(asyncio.wait_for(run(), SECONDS))


@pytest.mark.parametrize("rate", [None, 5.0])
@pytest.mark.parametrize("hops", [0, 1, 2, 3])
def test_a_cancel_that_comes_with_a_token_is_not_lost(rate, hops):
    """In the middle of the thought, while the first segment is being played."""

    class Cancelling(Model):
        async def __call__(self, request):
            heard = 0
            async with aclosing(super().__call__(request)) as stream:
                async for tokens in stream:
                    heard += 1
                    if heard == 20 and request is self.requests[0]:
                        after(hops, task.cancel)
                    yield tokens

    def after(count, call):
        asyncio.get_running_loop().call_soon(*((after, count - 1, call) if count else (call,)))

    model = Cancelling(pauses=(0.002, 0.0005))
    brains = speaker(model, mode="speak_first", think_tokens=200, speak_tokens=4, speech_rate=rate)
    task = None

    async def drain():
        async with aclosing(brains.deltas()) as deltas:
            async for _ in deltas:
                pass

    async def run():
        nonlocal task
        task = asyncio.create_task(drain())
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled() and model.open == 0

    asyncio.run(asyncio.wait_for(run(), SECONDS))


def test_seeds_differ_from_generation_to_generation():
    model = Model()
    pace = MindPaced("speak_first", 10, 5)
    options = ChatOptions(sampling=Sampling(seed=7), mind_paced=pace)
    many = MindPacedSpeaker(model, prepared(PROMPT), prepared(WITHOUT_THOUGHT), TOKENIZER, options, MAX_SEQ_LEN, 0.0)

    async def run():
        return [delta async for delta in many.deltas()]

    asyncio.run(run())
    seeds = [request.sampling.seed for request in model.requests]
    assert len(set(seeds)) == len(seeds)


def test_the_request_has_the_ids_behind_the_prompt():
    request = PreparedRequest(prepared(PROMPT), Sampling(5, temperature=0), (8, 9), (77,))
    inputs = request.inputs()
    assert inputs["input_ids"].tolist() == [[1, 2, 3, 4, 8, 9]] and inputs["input_lengths"].tolist() == [[6]]
    assert inputs["prompt_table_extra_ids"].tolist() == [[0, 7, 7, 0, 0, 0]]
    assert inputs["frames"].tolist() == [[8]] and inputs["content_hash"].tolist() == [[7]]
    assert inputs["stop_words_list"].shape[:2] == (1, 2) and 77 in inputs["stop_words_list"]
    assert {name: array.dtype.name for name, array in inputs.items() if "ids" in name} == {
        "input_ids": "int32", "prompt_table_extra_ids": "uint64",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mind_paced": MindPaced("speak-first")}, "mode must be one of think_first, speak_first,"),
        ({"mind_paced": MindPaced(think_tokens=0)}, "think_tokens must be at least 1"),
        ({"mind_paced": MindPaced(speak_tokens=-1)}, "speak_tokens must be at least 1"),
        ({"mind_paced": MindPaced(speech_rate=0)}, "speech_rate must be a number above 0"),
        ({"mind_paced": MindPaced(speech_rate=float("nan"))}, "speech_rate must be a number above 0"),
        ({"thinking": Thinking("off")}, "thinking does not go with"),
        ({"guide": Guide("json")}, "response_format does not go with"),
        ({"logprobs": True}, "logprobs does not go with"),
        ({"continue_final_message": True}, "continue_final_message does not go with"),
        ({"sampling": Sampling(min_tokens=3)}, "min_tokens does not go with"),
        ({"tool_choice": "required"}, "tool_choice does not go with"),
    ],
)
def test_what_does_not_go_together(options, said):
    with pytest.raises(RequestError, match=said):
        check(ChatOptions(**{"mind_paced": MindPaced()} | options))

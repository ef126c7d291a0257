"""Mind-Paced Speaking over HTTP: the official package, the gateway's process, a real server."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from front_door_fixture import door, messages
from gateway_calls import CHAT, HELLO
from raw_triton import active
from step_audio_evaluation.held_out import held_out
from step_audio_evaluation.items import Item
from waiting import wait_until

PACE = {"mode": "speak_first", "think_tokens": 12, "speak_tokens": 2}  # the answer is longer than that allows at first
REPORT = {"first_spoken_seconds", "thought_tokens_before", "thought_tokens", "thought_seconds", "underruns"}
REPORT |= {"silence_seconds", "segments"}
SEGMENT = {"begun", "first", "last", "thought_tokens", "spoken_tokens", "prompt_blocks", "reused_blocks"}


def sums(n: int) -> list[Item]:
    return held_out(["arithmetic"], n, seed=5)


def request(item: Item, **options: Any) -> dict[str, Any]:
    return {
        "model": "R1",
        "messages": messages(item),
        "temperature": 0,
        "max_tokens": 200,
        "extra_body": {"mind_paced_speaking": PACE},
    } | options


def check_report(report: dict[str, Any], usage: Any) -> None:
    first, *later = report["segments"]
    assert set(report) == REPORT and set(first) == SEGMENT
    assert report["thought_tokens_before"] == first["thought_tokens"] == 0
    assert report["first_spoken_seconds"] == first["first"] > 0
    assert report["thought_seconds"] > 0 and report["underruns"] == 0 and report["silence_seconds"] == 0
    assert later and all(segment["spoken_tokens"] <= 2 for segment in [first, *later[:-1]])
    assert later[-1]["thought_tokens"] == report["thought_tokens"]
    spoken = sum(segment["spoken_tokens"] for segment in report["segments"])
    assert report["thought_tokens"] + spoken <= usage.completion_tokens <= report["thought_tokens"] + spoken + 1
    assert 10 < usage.completion_tokens_details.reasoning_tokens <= report["thought_tokens"]
    assert usage.prompt_tokens_details.audio_tokens > 12


def test_speaks_while_it_thinks(client):
    (item,) = sums(1)
    whole = client.chat.completions.create(**request(item, extra_body={})).choices[0]
    chunks = list(client.chat.completions.create(**request(item), stream=True, stream_options={"include_usage": True}))
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    thoughts = [i for i, delta in enumerate(deltas) if getattr(delta, "reasoning_content", None)]
    words = [i for i, delta in enumerate(deltas) if delta.content]
    # Greedy: the thought is the very thought of the answer that waits for it.
    assert "".join(deltas[i].reasoning_content for i in thoughts) == whole.message.reasoning_content
    assert "".join(deltas[i].reasoning for i in thoughts) == whole.message.reasoning_content
    content = "".join(deltas[i].content for i in words)
    assert content.endswith(".") and "think>" not in content
    *before, last = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert last.finish_reason == "stop" and not any(hasattr(choice, "mind_paced_speaking") for choice in before)
    check_report(last.mind_paced_speaking, chunks[-1].usage)


def test_a_whole_reply(client):
    reply = client.chat.completions.create(**request(sums(2)[1]))
    (choice,) = reply.choices
    assert choice.finish_reason == "stop" and choice.message.content.endswith(".")
    assert choice.message.reasoning_content.startswith("I hear: ")
    check_report(choice.mind_paced_speaking, reply.usage)


def test_thinks_first(client):
    """Spoken sums come out right when a good part of the thought is known before the first word."""
    right = 0
    for item in sums(4):
        pace = {"mode": "think_first", "think_tokens": 40, "speak_tokens": 3}
        reply = client.chat.completions.create(**request(item, extra_body={"mind_paced_speaking": pace}))
        report = reply.choices[0].mind_paced_speaking
        assert 30 < report["thought_tokens_before"] <= 40  # without the beginning of the end marker
        right += item.expected in reply.choices[0].message.content
    assert right >= 3


def test_played_at_a_rate(client):
    pace = PACE | {"speech_rate": 20}
    reply = client.chat.completions.create(**request(sums(1)[0], extra_body={"mind_paced_speaking": pace}))
    first, second, *_ = reply.choices[0].mind_paced_speaking["segments"]
    assert second["first"] > first["first"]


def test_the_package_sees_a_refusal(client, openai):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**request(sums(1)[0], n=2))
    assert caught.value.param == "n" and "mind_paced_speaking" in caught.value.message


# With random weights, which never come to an end.


def test_hanging_up_frees_both_slots(service):
    pace = {"mode": "speak_first", "think_tokens": 10_000, "speak_tokens": 1000}
    body = {"messages": HELLO, "max_tokens": 20_000, "mind_paced_speaking": pace, "stream": True}
    with contextmanager(door)(service.address) as url:
        with httpx.stream("POST", f"{url}{CHAT}", json=body, timeout=60) as response:
            lines, texts = response.iter_lines(), ""
            while not ('"reasoning_content"' in texts and '"content":"' in texts.replace('"content":""', "")):
                texts += next(lines)
            wait_until(lambda: active(service) == 2, "two brains at work")
        wait_until(lambda: active(service) == 0, "the slots to be free")

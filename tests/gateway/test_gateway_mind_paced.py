"""Mind-Paced Speaking through the HTTP door: the official package, the gateway's process, a small trained model."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from front_door_fixture import door, messages
from gateway_fixture import FakeClient, events, http, shared
from raw_triton import active
from step_audio_client import ChatDelta, ChatUsage, MindPaced, Segment, SpeechTiming
from step_audio_evaluation.held_out import held_out
from step_audio_evaluation.items import Item
from step_audio_gateway import metrics
from waiting import wait_until

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
PACE = {"mode": "speak_first", "think_tokens": 12, "speak_tokens": 2}  # the answer is longer than that allows at first

USAGE = ChatUsage(prompt_tokens=20, completion_tokens=6, audio_tokens=0, reasoning_tokens=4)
TIMING = SpeechTiming(0.12345, 0, 4, None, 1, 0.25049, (Segment(0.1, 0, 0.12345, 0.2, 2, 3, 1), Segment(0.3, 4)))
INTERLEAVED = [
    ChatDelta(content="Fo", raw="Fo"),
    ChatDelta(reasoning="It says ", raw="It says "),
    ChatDelta(reasoning="four.", content="ur.", raw="four.ur."),
    ChatDelta(finish_reason="stop", usage=USAGE, speech=TIMING),
]
REPORT = {
    "first_spoken_seconds": 0.123,
    "thought_tokens_before": 0,
    "thought_tokens": 4,
    "thought_seconds": None,
    "underruns": 1,
    "silence_seconds": 0.25,
    "segments": [
        {"begun": 0.1, "first": 0.123, "last": 0.2, "thought_tokens": 0, "spoken_tokens": 2}
        | {"prompt_blocks": 3, "reused_blocks": 1},
        {"begun": 0.3, "first": None, "last": None, "thought_tokens": 4, "spoken_tokens": 0}
        | {"prompt_blocks": 0, "reused_blocks": 0},
    ],
}


# In front of a client library that plays a script.


async def ask(fake: FakeClient, settings: dict[str, Any] | None = None, **body: Any) -> httpx.Response:
    async with http(fake, **settings) if settings else shared(fake) as client:
        return await client.post(CHAT, json={"messages": HELLO} | body)


async def test_whole_and_streamed():
    fake = FakeClient(lambda messages, options: INTERLEAVED)
    whole = (await ask(fake, mind_paced_speaking=PACE | {"speech_rate": 6.25})).json()
    assert fake.options.mind_paced == MindPaced("speak_first", 12, 2, 6.25)
    (choice,) = whole["choices"]
    assert choice["mind_paced_speaking"] == REPORT
    assert (choice["message"]["reasoning_content"], choice["message"]["content"]) == ("It says four.", "Four.")

    chunks = events((await ask(fake, mind_paced_speaking={}, stream=True)).text)
    assert fake.options.mind_paced == MindPaced()
    choices = [chunk["choices"][0] for chunk in chunks]
    assert choices[-1]["finish_reason"] == "stop" and choices[-1]["mind_paced_speaking"] == REPORT
    assert not any("mind_paced_speaking" in choice for choice in choices[:-1])
    assert [(c["delta"].get("reasoning_content", ""), c["delta"].get("content", "")) for c in choices[:-1]] == [
        ("", "Fo"),
        ("It says ", ""),
        ("four.", "ur."),
    ]


async def test_absent_when_not_asked_for():
    for body in ({}, {"mind_paced_speaking": None}):
        fake = FakeClient()
        assert "mind_paced_speaking" not in (await ask(fake, **body)).text
        assert "mind_paced_speaking" not in (await ask(fake, **body, stream=True)).text
        assert fake.options.mind_paced is None


async def test_the_first_token_is_timed_at_the_first_word_of_either(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(metrics, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def script(messages, options):
        now[0] += 0.12
        yield INTERLEAVED[0]
        now[0] += 0.6
        yield from INTERLEAVED[1:]

    async with http(FakeClient(script)) as client:
        await client.post(CHAT, json={"messages": HELLO, "mind_paced_speaking": PACE})
        lines = (await client.get("/metrics")).text.splitlines()
    assert "step_audio_time_to_first_token_seconds_count 1.0" in lines
    assert 'step_audio_time_to_first_token_seconds_bucket{le="0.5"} 1.0' in lines
    assert 'step_audio_time_to_first_token_seconds_bucket{le="0.1"} 0.0' in lines
    assert 'step_audio_tokens_total{kind="reasoning"} 4.0' in lines


@pytest.mark.parametrize(
    "name, value",
    [
        ("n", 2),
        ("logprobs", True),
        ("response_format", {"type": "json_object"}),
        ("response_format", {"type": "json_schema", "json_schema": {"schema": {}}}),
        ("thinking", {"mode": "off"}),
        ("thinking", {"budget_tokens": 5}),
        ("chat_template_kwargs", {"enable_thinking": False}),
        ("reasoning_effort", "none"),
        ("tool_choice", "required"),
        ("tool_choice", {"type": "function", "function": {"name": "weather"}}),
        ("min_tokens", 5),
        ("ignore_eos", True),
        ("bad_words", ["no"]),
        ("continue_final_message", True),
        ("separate_reasoning", False),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_does_not_go_with_it_is_refused_by_name(name, value, stream):
    last = [{"role": "assistant", "content": "<think>\nI"}] if name == "continue_final_message" else []
    fake = FakeClient()
    body = {"messages": HELLO + last, "tools": [TOOL], "mind_paced_speaking": PACE, "stream": stream, name: value}
    error = (response := await ask(fake, **body)).json()["error"]
    assert response.status_code == 400 and not fake.begun
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", name, "unsupported_parameter")
    assert name in error["message"] and "mind_paced_speaking" in error["message"]


async def test_a_prefilled_answer_and_a_door_that_separates_nothing():
    prefilled = await ask(
        FakeClient(), messages=[*HELLO, {"role": "assistant", "content": "I"}], mind_paced_speaking={}
    )
    assert prefilled.json()["error"]["param"] == "continue_final_message"
    raw = {"separate_reasoning": False}
    assert (await ask(FakeClient(), raw, mind_paced_speaking={})).json()["error"]["param"] == "separate_reasoning"
    assert (await ask(FakeClient(), raw, mind_paced_speaking={}, separate_reasoning=True)).status_code == 200


async def test_what_goes_with_it():
    harmless = {"thinking": {"mode": "on"}, "tools": [TOOL], "tool_choice": "none", "response_format": {"type": "text"}}
    fake = FakeClient()
    assert (await ask(fake, mind_paced_speaking=PACE, n=1, min_tokens=0, **harmless)).status_code == 200
    assert fake.options.mind_paced


@pytest.mark.parametrize(
    "pace, param",
    [
        ({"mode": "never"}, "mode"),
        ({"think_tokens": 0}, "think_tokens"),
        ({"speak_tokens": -1}, "speak_tokens"),
        ({"speak_tokens": 2**31}, "speak_tokens"),
        ({"speech_rate": 0}, "speech_rate"),
        ({"speech_rate": 1e9}, "speech_rate"),
        ({"thinktokens": 3}, "thinktokens"),
    ],
)
async def test_faults_are_named(pace, param):
    response = await ask(FakeClient(), mind_paced_speaking=pace)
    assert response.status_code == 400 and response.json()["error"]["param"] == f"mind_paced_speaking.{param}"


# With the small trained model behind it.


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
    assert set(report) == set(REPORT) and set(first) == set(REPORT["segments"][0])
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
    assert words[0] < thoughts[-1], "nothing was said before the thought had ended"
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


def test_the_package_sees_a_refusal(client):
    import openai

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

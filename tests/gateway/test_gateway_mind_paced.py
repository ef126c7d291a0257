"""Mind-Paced Speaking over HTTP, in front of a client library that plays a script."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from gateway_calls import CHAT, HELLO, TOOL, ask
from gateway_fixture import FakeClient, events, http
from step_audio_client import ChatDelta, ChatUsage, MindPaced, Segment, SpeechTiming
from step_audio_gateway import metrics

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
    raw = {"settings": {"separate_reasoning": False}, "mind_paced_speaking": {}}
    assert (await ask(FakeClient(), **raw)).json()["error"]["param"] == "separate_reasoning"
    assert (await ask(FakeClient(), **raw, separate_reasoning=True)).status_code == 200


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

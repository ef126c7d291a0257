"""The gateway before a client library that plays a script: what is answered."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from functools import partial

import pytest

from gateway_calls import HELLO, TOOL, WAV, ask, asked, refusal
from gateway_fixture import ANSWER, REPLY, THOUGHT, USAGE, FakeClient, events, shared
from step_audio_client import Audio, AudioReport, ChatDelta, Guide, Sampling, ServerBusy, Thinking, TtsContent


async def test_a_whole_reply():
    fake = FakeClient()
    body = (await ask(fake, temperature=0.5)).json()
    assert body.pop("id").startswith("chatcmpl-") and body.pop("created") > 1e9
    assert body == {
        "object": "chat.completion",
        "model": "tiny",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant", "content": ANSWER, "reasoning_content": THOUGHT, "reasoning": THOUGHT,
                },
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 20,
            "completion_tokens": 6,
            "total_tokens": 26,
            "prompt_tokens_details": {"audio_tokens": 13, "cached_tokens": 16},
            "completion_tokens_details": {"reasoning_tokens": 4},
        },
    }  # fmt: skip
    assert fake.messages == HELLO and fake.options.sampling == Sampling(temperature=0.5)
    assert fake.begun == fake.closed == 1


async def test_a_streamed_reply():
    response = await ask(FakeClient(), stream=True, stream_options={"include_usage": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, last = events(response.text)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {
        "role": "assistant", "content": "", "reasoning_content": "It says ", "reasoning": "It says ",
    }  # fmt: skip
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == THOUGHT
    assert "".join(delta.get("content", "") for delta in deltas) == ANSWER
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 4 + ["stop"]
    assert last["choices"] == [] and last["usage"]["total_tokens"] == 26
    assert len({chunk["id"] for chunk in [*chunks, last]}) == 1
    assert all("usage" not in chunk and chunk["object"] == "chat.completion.chunk" for chunk in chunks)


async def test_what_is_amiss_with_recordings_is_told():
    reports = (AudioReport(0, 0.42, False), AudioReport(2, 0, True))
    fake = FakeClient(lambda *_: [*REPLY[:-1], replace(REPLY[-1], audio=reports)])
    told = [
        {"index": 0, "lost_seconds": 0.42, "text": "0.42 s of it are missing or could not be decoded"},
        {"index": 2, "lost_seconds": 0, "text": "its channels cancel each other, their mean is nearly silent: ask for "
         "one with `channel`"},
    ]  # fmt: skip
    assert (await ask(fake)).json()["audio_warnings"] == told
    *others, last = events((await ask(fake, stream=True)).text)
    assert last["audio_warnings"] == told and last["choices"][0]["finish_reason"] == "stop"
    assert not any("audio_warnings" in chunk for chunk in others)


async def test_what_is_amiss_with_a_recording_comes_with_its_transcript():
    said = ChatDelta(content="Four.", raw="Four.")
    last = ChatDelta(finish_reason="stop", usage=USAGE, audio=(AudioReport(0, 0.42, False),))
    told = [{"index": 0, "lost_seconds": 0.42, "text": "0.42 s of it are missing or could not be decoded"}]
    for script in ([said, last], [replace(last, content="Four.", raw="Four.")]):
        async with shared(FakeClient(lambda *_, script=script: list(script))) as client:
            for path, form in (
                ("transcriptions", "json"),
                ("transcriptions", "verbose_json"),
                ("translations", "json"),
            ):
                fields = {"response_format": form}
                reply = await client.post(f"/v1/audio/{path}", files={"file": WAV}, data=fields)
                assert reply.json()["audio_warnings"] == told, (path, form)
            reply = await client.post("/v1/audio/transcriptions", files={"file": WAV}, data={"stream": "true"})
            events_ = [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: {")]
            assert [event["type"] for event in events_] == ["transcript.text.delta", "transcript.text.done"]
            assert events_[-1]["audio_warnings"] == told and events_[-1]["text"] == "Four."
    async with shared(FakeClient(lambda *_: [said, replace(last, audio=())])) as client:
        reply = await client.post("/v1/audio/transcriptions", files={"file": WAV}, data={"stream": "true"})
        assert "audio_warnings" not in reply.text


@pytest.mark.parametrize("route", ["transcriptions", "translations"])
@pytest.mark.parametrize(
    "reports, said",
    [
        ((), None),
        ((AudioReport(0, 0.42, False),), "0.42 s of it are missing or could not be decoded"),
        (
            (AudioReport(0, 0, True),),
            "its channels cancel each other, their mean is nearly silent: ask for one with",
        ),
        (
            (AudioReport(0, 3, True),),
            "3.00 s of it are missing or could not be decoded; its channels cancel each other",
        ),
    ],
)
async def test_plain_text_has_its_warnings_in_a_header(route, reports, said):
    """Its body has no place for them. A page of another origin may read it."""
    fake = FakeClient(lambda *_: [*REPLY[:-1], replace(REPLY[-1], audio=reports)])
    headers = {"Origin": "https://page.example"}
    async with shared(fake, allowed_origins=("https://page.example",)) as client:
        ask = partial(client.post, f"/v1/audio/{route}", files={"file": WAV}, headers=headers)
        text, body = await ask(data={"response_format": "text"}), await ask()
    assert text.text == f"{ANSWER}\n" and "x-audio-warnings" not in body.headers
    told = text.headers.get("x-audio-warnings")
    assert told == said or (said and told and told.startswith(said))
    assert "X-Audio-Warnings" in text.headers["access-control-expose-headers"]


async def test_a_channel_reaches_the_client():
    fake, data = FakeClient(), base64.b64encode(b"sound").decode()
    content = [
        {"type": "input_audio", "input_audio": {"data": data, "format": "wav", "channel": 1}},
        {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{data}", "channel": 0}},
        {"type": "audio", "audio": data},
    ]
    await ask(fake, messages=[{"role": "user", "content": content}])
    assert [part["audio"] for part in fake.messages[0]["content"]] == [
        Audio(b"sound", 1), Audio(b"sound", 0), Audio(b"sound"),
    ]  # fmt: skip
    content[0]["input_audio"]["channel"] = 64
    message, _ = await refusal(messages=[{"role": "user", "content": content}])
    assert "channel" in message


@pytest.mark.parametrize("path", ["transcriptions", "translations"])
async def test_a_channel_of_a_form(path):
    """As the reply advises where the channels cancel each other."""
    fake = FakeClient()
    async with shared(fake) as client:

        async def send(**data: str):
            return await client.post(f"/v1/audio/{path}", files={"file": WAV}, data=data)

        assert (await send(channel="1")).status_code == 200
        assert fake.messages[0]["content"][0]["audio"] == Audio(WAV, 1)
        assert (await send()).status_code == 200
        assert fake.messages[0]["content"][0]["audio"] == Audio(WAV)
        for wrong in ("64", "-1", "left"):
            assert (await send(channel=wrong)).json()["error"]["param"] == "channel"


async def test_no_usage_chunk_unless_asked_for():
    assert all(chunk["choices"] for chunk in events((await ask(FakeClient(), stream=True)).text))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("settings, body", [({"separate_reasoning": False}, {}), ({}, {"separate_reasoning": False})])
async def test_raw_content(stream, settings, body):
    """As the model card's server has it."""
    response = await ask(FakeClient(), settings=settings, stream=stream, tools=[TOOL], **body)
    raw = f'{THOUGHT}\n</th<tool_call>function\nweather\n{{"city": "Paris"}}</tool_call>'
    if not stream:
        assert response.json()["choices"][0]["message"] == {"role": "assistant", "content": raw}
        assert response.json()["choices"][0]["finish_reason"] == "stop"
        return
    deltas = [chunk["choices"][0]["delta"] for chunk in events(response.text)]
    assert "".join(delta.get("content", "") for delta in deltas) == raw
    assert not any(delta.keys() - {"role", "content"} for delta in deltas)


async def test_a_request_may_ask_for_separation():
    response = await ask(FakeClient(), settings={"separate_reasoning": False}, separate_reasoning=True)
    assert response.json()["choices"][0]["message"]["reasoning_content"] == THOUGHT


async def test_several_answers_differ_in_their_seeds():
    fake = FakeClient()
    body = (await ask(fake, n=3, seed=-1)).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert sorted(options.sampling.seed for _, options in fake.asked) == [0, 1, 2**64 - 1]
    assert body["usage"]["prompt_tokens"] == 20 and body["usage"]["completion_tokens"] == 18
    streamed = events((await ask(fake, n=3, stream=True, stream_options={"include_usage": True})).text)
    for index in range(3):
        deltas = [c["choices"][0]["delta"] for c in streamed[:-1] if c["choices"][0]["index"] == index]
        assert "".join(delta.get("content", "") for delta in deltas) == ANSWER
        assert [delta.get("role") for delta in deltas] == ["assistant"] + [None] * (len(deltas) - 1)
    assert streamed[-1]["usage"]["completion_tokens"] == 18
    assert {options.sampling.seed for _, options in fake.asked[3:]} == {None}  # the client library draws each


async def test_one_answer_that_fails_ends_the_others():
    fake = FakeClient()
    fake.script = lambda messages, options: [ServerBusy("full")] if fake.begun == 2 else [*REPLY[:1], 60.0]
    response = await ask(fake, n=3)
    assert response.status_code == 429 and fake.begun == fake.closed == 3


async def test_speech_is_absent_rather_than_null():
    """The card's client calls `delta.tts_content.get`."""
    spoken = ChatDelta(tts=TtsContent("Four", "<audio_1>"), raw="Four<audio_1>")
    more = ChatDelta(tts=TtsContent(".", "<audio_2>"), raw=".<audio_2>")
    fake = FakeClient(lambda messages, options: [spoken, more, REPLY[-1]])
    message = (await ask(fake)).json()["choices"][0]["message"]
    assert message["tts_content"] == {"tts_text": "Four.", "tts_audio": "<audio_1><audio_2>"}
    deltas = [chunk["choices"][0]["delta"] for chunk in events((await ask(fake, stream=True)).text)]
    assert deltas[1] == {"tts_content": {"tts_text": ".", "tts_audio": "<audio_2>"}}
    assert "tts_content" not in (await ask(FakeClient(), stream=True)).text


async def test_parameters_reach_the_client():
    fake = await asked(
        temperature=0.5, top_p=0.9, top_k=5, min_tokens=2, repetition_penalty=1.07, presence_penalty=0.1,
        frequency_penalty=-0.2, seed=7, max_tokens=32000, stop=["a", "b"], stop_token_ids=[3], logprobs=True,
        skip_special_tokens=False, thinking={"budget_tokens": 16}, response_format={"type": "json_object"},
        bad_words=["no"], ignore_eos=False, top_logprobs=0, user="me", min_p=0, logit_bias={}, n=None,
    )  # fmt: skip
    options = fake.options
    assert options.sampling == Sampling(
        max_tokens=32000, temperature=0.5, top_p=0.9, top_k=5, min_tokens=2, repetition_penalty=1.07,
        presence_penalty=0.1, frequency_penalty=-0.2, seed=7,
    )  # fmt: skip
    assert options.stop == ("a", "b") and options.stop_token_ids == (3,) and not options.skip_special_tokens
    assert options.bad_words == ("no",) and not options.ignore_eos and (await asked(ignore_eos=True)).options.ignore_eos
    assert options.thinking == Thinking("on", 16) and options.guide == Guide("json") and options.logprobs
    defaults = (await asked(stop="x", max_completion_tokens=9, top_k=-1, temperature=None)).options
    assert defaults.sampling == Sampling(max_tokens=9) and defaults.stop == ("x",) and defaults.skip_special_tokens
    assert (await asked()).options.timeout is None


async def test_a_budget_of_nothing():
    assert (await asked(thinking={"budget_tokens": 0})).options.thinking == Thinking("on", 0)


async def test_stop_strings_hold_for_what_is_shown():
    assert not (await asked(stop="a")).options.stop_in_thought
    assert (await asked(stop="a", separate_reasoning=False)).options.stop_in_thought


async def test_one_call_at_a_time():
    assert not (await asked(tools=[TOOL], parallel_tool_calls=False)).options.parallel_tool_calls
    assert (await asked(tools=[TOOL])).options.parallel_tool_calls


async def test_tools():
    fake = FakeClient()
    named = {"type": "function", "function": {"name": "weather"}}
    choice = (await ask(fake, tools=[TOOL], tool_choice=named)).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
    assert choice["message"]["tool_calls"] == [call]
    assert fake.options.tools == (TOOL,) and fake.options.tool_choice == "weather"
    chunks = events((await ask(fake, tools=[TOOL], stream=True)).text)
    assert chunks[-2]["choices"][0]["delta"] == {"tool_calls": [{"index": 0, **call}]}
    answer = {"role": "tool", "tool_call_id": "call_1", "content": "sunny"}
    await ask(fake, messages=[*HELLO, choice["message"], answer], tools=[TOOL])
    assert fake.messages == [*HELLO, {"role": "assistant", "content": None, "tool_calls": [call]}, answer]
    assert fake.options.tool_choice == "auto"


async def test_json_schema():
    schema = {"type": "object", "properties": {"stadt": {"type": "string"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    guide = (await asked(response_format=wanted)).options.guide
    assert guide.kind == "json_schema" and json.loads(guide.text) == schema
    assert (await asked(response_format={"type": "text"})).options.guide is None
    # A call that is demanded is no text: some clients send both.
    named = {"type": "function", "function": {"name": "weather"}}
    for choice, form in (("auto", guide), ("none", guide), ("required", None), (named, None)):
        options = (await asked(response_format=wanted, tools=[TOOL], tool_choice=choice)).options
        assert options.guide == form and options.tools

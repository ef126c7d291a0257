"""The HTTP door, in front of a client library that plays a script."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import socket
from dataclasses import replace

import pytest

from gateway_fixture import ANSWER, LIMITS, REPLY, THOUGHT, FakeClient, events, http, wav
from step_audio_client import (
    Audio,
    ChatDelta,
    Guide,
    RequestError,
    RequestTimeout,
    Sampling,
    ServerBusy,
    Thinking,
    TtsContent,
    Unavailable,
)
from step_audio_gateway.app import create_app
from step_audio_gateway.generations import EventStream
from step_audio_gateway.server import listen
from step_audio_gateway.settings import GatewaySettings
from step_audio_server.launch.ports import free_ports

CHAT = "/v1/chat/completions"
WAV = wav()
WAV64 = base64.b64encode(WAV).decode()
HELLO = [{"role": "user", "content": "hello"}]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


async def ask(fake: FakeClient, *, settings: dict | None = None, headers: dict | None = None, **body):
    async with http(fake, **settings or {}) as client:
        return await client.post(CHAT, json={"messages": HELLO} | body, headers=headers)


async def asked(**body) -> FakeClient:
    """The fake after one request that must succeed."""
    fake = FakeClient()
    response = await ask(fake, **body)
    assert response.status_code == 200, response.text
    return fake


async def refusal(**body) -> tuple[str, str | None]:
    """Message and param of a request that must be refused before anything is asked."""
    fake = FakeClient()
    response = await ask(fake, **body)
    error = response.json()["error"]
    assert response.status_code == 400 and error["type"] == "invalid_request_error" and not fake.begun
    return error["message"], error["param"]


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
            "prompt_tokens_details": {"audio_tokens": 13},
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
        top_logprobs=0, user="me", min_p=0, logit_bias={}, n=None,
    )  # fmt: skip
    options = fake.options
    assert options.sampling == Sampling(
        max_tokens=32000, temperature=0.5, top_p=0.9, top_k=5, min_tokens=2, repetition_penalty=1.07,
        presence_penalty=0.1, frequency_penalty=-0.2, seed=7,
    )  # fmt: skip
    assert options.stop == ("a", "b") and options.stop_token_ids == (3,) and not options.skip_special_tokens
    assert options.thinking == Thinking("on", 16) and options.guide == Guide("json") and options.logprobs
    defaults = (await asked(stop="x", max_completion_tokens=9, top_k=-1, temperature=None)).options
    assert defaults.sampling == Sampling(max_tokens=9) and defaults.stop == ("x",) and defaults.skip_special_tokens
    assert (await asked()).options.timeout is None


@pytest.mark.parametrize(
    "body",
    [
        {"thinking": {"mode": "off"}},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"reasoning_effort": "none"},
        {"thinking": {}, "reasoning_effort": "none"},
    ],
)
async def test_thinking_off(body):
    assert (await asked(**body)).options.thinking == Thinking("off")


@pytest.mark.parametrize(
    "body, param",
    [
        ({"thinking": {"type": "disabled"}}, "thinking.type"),
        ({"thinking": {"budget": 3}}, "thinking.budget"),
        ({"chat_template_kwargs": {"thinking": False}}, "chat_template_kwargs.thinking"),
        ({"enable_thinking": False}, "enable_thinking"),
    ],
)
async def test_other_servers_words_for_thinking_are_not_swallowed(body, param):
    assert (await refusal(**body))[1] == param


async def test_a_budget_of_nothing():
    assert (await asked(thinking={"budget_tokens": 0})).options.thinking == Thinking("on", 0)


async def test_stop_strings_hold_for_what_is_shown():
    assert not (await asked(stop="a")).options.stop_in_thought
    assert (await asked(stop="a", separate_reasoning=False)).options.stop_in_thought


async def test_one_call_at_a_time():
    assert not (await asked(tools=[TOOL], parallel_tool_calls=False)).options.parallel_tool_calls
    assert (await asked(tools=[TOOL])).options.parallel_tool_calls


@pytest.mark.parametrize(
    "said, param, code",
    [
        ("guide: guided_decoding_guide cannot be used as json_schema: x", "response_format", None),
        ("tool_choice: guided_decoding_guide cannot be used as json_schema: x", "tool_choice", None),
        ("the prompt has 9 positions and max_seq_len is 5; send less", "messages", "context_length_exceeded"),
        ("audio[0]: there are no bytes", "messages", None),
        ("thinking: no", "thinking", None),
        ("something else", None, None),
    ],
)
async def test_the_field_at_fault(said, param, code):
    error = (await ask(FakeClient(lambda messages, options: [RequestError(said)]))).json()["error"]
    assert (error["param"], error["code"]) == (param, code)
    assert error["message"] == said.replace("guide: guided_decoding_guide", "response_format")


async def test_paths_and_methods():
    """A path that is nobody's is not found, whatever the method; the page's files are answered for like others."""
    async with http(FakeClient()) as client:
        status = {
            (method, path): (await client.request(method, path)).status_code
            for method in ("GET", "HEAD", "POST")
            for path in ("/", "/style.css", "/health", "/ready", CHAT, "/v1/completions", "/none", "/../settings.py")
        }
        assert (await client.get("/v1/models/tiny")).json()["id"] == "tiny"
        assert (await client.get("/v1/models/other")).status_code == 404
    assert {code for (_, path), code in status.items() if path in ("/v1/completions", "/none", "/../settings.py")} == {
        404
    }
    for path in ("/", "/style.css", "/health", "/ready"):
        assert [status[method, path] for method in ("GET", "HEAD", "POST")] == [200, 200, 405], path
    assert status["GET", CHAT] == status["HEAD", CHAT] == 405


async def test_thinking_that_contradicts_itself():
    assert (await refusal(thinking={"mode": "on"}, reasoning_effort="none"))[1] == "thinking"
    assert (await refusal(thinking={"mode": "off", "budget_tokens": 3}))[1] == "thinking.budget_tokens"


@pytest.mark.parametrize(
    "name, value",
    [
        ("top_logprobs", 3),
        ("min_p", 0.1),
        ("best_of", 2),
        ("logit_bias", {"1": 5}),
        ("guided_json", {}),
        ("modalities", ["text", "audio"]),
        ("reasoning_effort", "high"),
        ("use_beam_search", True),
    ],
)
async def test_what_cannot_be_honoured_is_refused_by_name(name, value):
    message, param = await refusal(**{name: value})
    assert message.startswith(f"{name} is not supported: ") and param == name


@pytest.mark.parametrize(
    "body, param",
    [
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
            "messages[0].content[0].input_audio.data",
        ),
        ({"stop": ["x", ""]}, "stop[1]"),
        ({"stop_token_ids": [150_000]}, "stop_token_ids"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.schema"),
        ({"response_format": {"type": "xml"}}, "response_format"),
    ],
)
async def test_faults_are_named(body, param):
    message, named = await refusal(**body)
    assert named == param and param in message


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


@pytest.mark.parametrize(
    "part",
    [
        {"type": "input_audio", "input_audio": {"data": WAV64, "format": "wav"}},
        {"type": "input_audio", "input_audio": {"data": f"data:audio/wav;base64,{WAV64}"}},
        {"type": "input_audio", "input_audio": {"data": "\n".join([WAV64[:77], WAV64[77:]])}},
        {"type": "audio_url", "audio_url": {"url": f"data:audio/x-wav;base64,{WAV64}"}},
        {"type": "audio", "audio": WAV64},
        {"type": "audio", "audio": f"data:audio/wav;base64,{WAV64}"},
    ],
)
async def test_audio_parts(part):
    fake = await asked(messages=[{"role": "human", "content": [part, {"type": "text", "text": "who?"}, part]}])
    audio = {"type": "audio", "audio": Audio(WAV)}
    assert fake.messages == [{"role": "human", "content": [audio, {"type": "text", "text": "who?"}, audio]}]


@pytest.mark.parametrize(
    "part, said",
    [
        ({"type": "audio", "audio": "%%%%"}, "neither base64 nor a URL"),
        ({"type": "audio", "audio": ""}, "empty"),
        ({"type": "audio_url", "audio_url": {"url": "data:audio/wav,abc"}}, "must be base64"),
        ({"type": "audio_url", "audio_url": {"url": WAV64}}, "must be a data: or https: URL"),
        ({"type": "audio_url", "audio_url": {"url": "https://example.com/a.wav"}}, "switched off"),
        ({"type": "audio_url", "audio_url": {"url": "file:///etc/passwd"}}, "switched off"),
        ({"type": "input_audio", "input_audio": {"data": "https://example.com/a.wav"}}, "go into audio_url"),
        ({"type": "audio", "audio": base64.b64encode(wav(62.5, 8000)).decode()}, "62.5 s of audio, the limit is 60 s"),
    ],
)
async def test_audio_that_is_refused(part, said):
    assert said in (await refusal(messages=[{"role": "user", "content": [part]}]))[0]


async def test_limits_of_count_and_size():
    part = {"type": "audio", "audio": WAV64}
    assert "5 recordings, the limit is 4" in (await refusal(messages=[{"role": "user", "content": [part] * 5}]))[0]
    part = {"type": "audio", "audio": "A" * (LIMITS["max_audio_bytes"] * 4 // 3 + 8)}
    response = await ask(FakeClient(), messages=[{"role": "user", "content": [part]}])
    assert response.status_code == 413 and response.json()["error"]["code"] == "audio_too_large"


@pytest.mark.parametrize("declared", [True, False])
async def test_a_body_that_is_too_large(declared):
    async with http(FakeClient(), max_body_bytes=1000) as client:
        body = json.dumps({"messages": [{"role": "user", "content": "x" * 2000}]}).encode()

        async def pieces():
            for start in range(0, len(body), 100):
                yield body[start : start + 100]

        headers = {"Content-Type": "application/json"}
        response = await client.post(CHAT, content=body if declared else pieces(), headers=headers)
    assert response.status_code == 413 and response.json()["error"]["code"] == "request_too_large"
    assert "x-request-id" in response.headers


PREFILL = {"role": "assistant", "content": "<think>\n"}


@pytest.mark.parametrize(
    "last, flags, proceeds",
    [
        (PREFILL, {}, True),
        (PREFILL | {"eot": False}, {}, True),
        (PREFILL | {"eot": True}, {}, False),
        (PREFILL | {"eot": False}, {"continue_final_message": True, "add_generation_prompt": False}, True),
        (PREFILL, {"continue_final_message": True}, True),
        (PREFILL, {"add_generation_prompt": False}, True),
        (PREFILL, {"add_generation_prompt": True}, False),
        (PREFILL, {"continue_final_message": False}, False),
    ],
)
async def test_a_last_assistant_message(last, flags, proceeds):
    fake = await asked(messages=[*HELLO, last], **flags)
    assert fake.options.continue_final_message is proceeds
    assert fake.messages == [*HELLO, PREFILL]


async def test_a_last_assistant_message_without_content_is_a_place_for_the_answer():
    fake = await asked(messages=[*HELLO, {"role": "assistant", "content": None}])
    assert fake.messages == HELLO and not fake.options.continue_final_message


async def test_continuations_that_cannot_be():
    assert (await refusal(messages=HELLO, continue_final_message=True))[1] == "continue_final_message"
    assert (await refusal(messages=HELLO, add_generation_prompt=False))[1] == "add_generation_prompt"
    both = {"continue_final_message": True, "add_generation_prompt": True}
    assert (await refusal(messages=[*HELLO, PREFILL], **both))[1] == "continue_final_message"


async def test_the_published_end_of_turn_is_this_tokenizers():
    fake = FakeClient()
    assert (await ask(fake, stop_token_ids=[151665])).status_code == 200
    assert fake.options.stop_token_ids == ((await fake.tokenizer()).special.eot,)


async def test_other_keys_are_tolerated():
    message = {"role": "user", "content": "hello", "eot": True, "reasoning_content": "hm", "mood": [1]}
    assert (await asked(messages=[message], wish="none", stream_options=None)).messages == HELLO
    fake = await asked(messages=[{"role": "developer", "content": "be brief"}, *HELLO])
    assert fake.messages[0]["role"] == "system"


@pytest.mark.parametrize(
    "error, status, code",
    [
        (RequestError("too long"), 400, None),
        (RequestError("internal error; the log has it"), 500, "internal_error"),
        (ServerBusy("full"), 429, "server_busy"),
        (Unavailable("nobody there"), 503, "unavailable"),
        (RequestTimeout("too late"), 504, "timeout"),
        (ZeroDivisionError("ours"), 500, "internal_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_errors_before_the_first_token(error, status, code, stream):
    response = await ask(FakeClient(lambda messages, options: [error]), stream=stream)
    assert response.status_code == status and response.json()["error"]["code"] == code
    assert ("retry-after" in response.headers) == (status in (429, 503))


async def test_an_error_in_the_middle_of_a_stream():
    response = await ask(FakeClient(lambda m, o: [REPLY[0], Unavailable("gone")]), stream=True)
    assert response.status_code == 200
    assert events(response.text)[-1]["error"] == {
        "message": "gone", "type": "server_error", "param": None, "code": "unavailable",
    }  # fmt: skip


async def test_models():
    async with http(FakeClient()) as client:
        (model,) = (await client.get("/v1/models")).json()["data"]
        assert model["id"] == "tiny" and model["max_model_len"] == 4096
        error = (await client.post(CHAT, json={"messages": HELLO, "model": "gpt"})).json()["error"]
        assert error["code"] == "model_not_found"
    async with http(FakeClient(), served_model_name=["Step-Audio-R1.1", "step"]) as client:
        assert [m["id"] for m in (await client.get("/v1/models")).json()["data"]] == ["Step-Audio-R1.1", "step"]
        assert (await client.post(CHAT, json={"messages": HELLO})).json()["model"] == "Step-Audio-R1.1"
        assert (await client.post(CHAT, json={"messages": HELLO, "model": "step"})).json()["model"] == "step"
        assert (await client.post(CHAT, json={"messages": HELLO, "model": "tiny"})).status_code == 404


async def test_the_page_may_load_nothing_from_elsewhere():
    async with http(FakeClient()) as client:
        page = await client.get("/")
        script = await client.get("/app.js")
    assert page.status_code == 200 and "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert script.headers["Content-Type"].startswith("text/javascript")


async def test_health_and_readiness():
    fake = FakeClient()
    async with http(fake) as client:
        assert (await client.get("/health")).status_code == (await client.get("/ready")).status_code == 200
        fake.up = False
        assert (await client.get("/health")).status_code == 200 and (await client.get("/ready")).status_code == 503


async def test_api_keys(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# ours\nsecond\n\nthird\n")
    async with http(FakeClient(), api_key=["first"], api_key_file=file) as client:
        for key in ("first", "second", "third"):
            given = {"Authorization": f"Bearer {key}"}
            assert (await client.get("/v1/models", headers=given)).status_code == 200
        for given in ({}, {"Authorization": "Bearer fourth"}, {"Authorization": "Basic first"}, {"Authorization": ""}):
            response = await client.post(CHAT, json={"messages": HELLO}, headers=given)
            assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer"
            assert response.json()["error"]["code"] == "invalid_api_key"
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/openapi.json")).json()["components"]["securitySchemes"]


@pytest.mark.parametrize("content", ["", "# only\n"])
def test_a_file_without_keys_does_not_open_the_door(tmp_path, content):
    file = tmp_path / "keys"
    file.write_text(content)
    with pytest.raises(Exception, match="holds no key"):
        create_app(GatewaySettings.create(api_key_file=file), FakeClient())


async def test_bodies_that_are_no_json():
    async with http(FakeClient()) as client:
        for body in (b"{", b'{"messages": [{"role": "user", "content": "\\ud800"}]}', b"[" * 5000, b'{"n": NaN}', b""):
            response = await client.post(CHAT, content=body, headers={"Content-Type": "application/json"})
            assert response.status_code == 400 and response.json()["error"]["type"] == "invalid_request_error"
        response = await client.post(CHAT, content=b'{"messages": []}', headers={"Content-Type": "text/plain"})
        assert response.status_code == 415 and "Content-Type: application/json" in response.json()["error"]["message"]
        assert (await client.get("/v1/nothing")).json()["error"]["message"] == "Not Found: GET /v1/nothing"


async def test_request_ids_and_the_log(caplog):
    caplog.set_level(logging.INFO, "step_audio_gateway")
    secret = [{"role": "user", "content": [{"type": "text", "text": "SECRET"}, {"type": "audio", "audio": WAV64}]}]

    async def logged(**settings) -> dict:
        caplog.clear()
        fake = FakeClient(lambda m, o: [ChatDelta(content="SECRET", raw="SECRET"), REPLY[-1]])
        response = await ask(fake, messages=secret, settings=settings, headers={"X-Request-Id": "mine-1"})
        assert response.headers["x-request-id"] == "mine-1"
        (record,) = [record for record in caplog.records if record.name == "step_audio_gateway"]
        return record.fields

    fields = await logged()
    assert fields["request_id"] == "mine-1" and fields["status"] == 200 and fields["prompt_tokens"] == 20
    assert fields["finish"] == ["stop"] and fields["model"] == "tiny" and "SECRET" not in json.dumps(fields)
    fields = await logged(log_content=True)
    assert fields["messages"][0]["content"][0]["text"] == "SECRET" and fields["replies"] == ["SECRET"]
    assert fields["messages"][0]["content"][1]["audio"] == {"bytes": len(WAV)}

    caplog.clear()
    await ask(FakeClient(), messages=[{"role": "SECRET", "content": "x"}])
    await ask(FakeClient(), model="SECRET")
    refusals = [vars(record)["fields"] for record in caplog.records if record.name == "step_audio_gateway"]
    assert [fields["status"] for fields in refusals] == [400, 404] and "SECRET" not in json.dumps(refusals)
    for bad in ("", "a b", "x" * 200):
        assert len((await ask(FakeClient(), headers={"X-Request-Id": bad})).headers["x-request-id"]) == 32


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_chunks_do_not_wait_for_acknowledgements(host):
    """Not set by asyncio for a socket that is handed in."""
    (port,) = free_ports(1)
    with (
        listen(GatewaySettings(host=host, port=port)) as listener,
        socket.create_connection((host, port)),
        listener.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_metrics():
    fake = FakeClient()
    async with http(fake) as client:
        await client.post(CHAT, json={"messages": HELLO})
        fake.script = lambda m, o: [REPLY[0], RequestError("no")]
        await client.post(CHAT, json={"messages": HELLO})
        await client.get("/made/up")
        response = await client.get("/metrics")
    lines = response.text.splitlines()
    assert response.headers["content-type"].startswith("text/plain")
    assert f'step_audio_http_requests_total{{route="{CHAT}",status="200"}} 1.0' in lines
    assert f'step_audio_http_requests_total{{route="{CHAT}",status="400"}} 1.0' in lines
    assert 'step_audio_tokens_total{kind="audio"} 13.0' in lines
    assert "step_audio_time_to_first_token_seconds_count 2.0" in lines
    assert "step_audio_answers_running 0.0" in lines and "step_audio_answers_unfinished_total 1.0" in lines
    assert not any("/made/up" in line for line in lines)


async def test_time_between_tokens():
    """Of three tokens after the first: one 0.12 s behind it, two together 0.4 s later."""
    deltas = [replace(REPLY[0], token_ids=ids) for ids in [(1,), (2,), (3, 4)]]
    fake = FakeClient(lambda m, o: [0.3, deltas[0], 0.12, deltas[1], 0.4, deltas[2], *REPLY[1:]])
    async with http(fake) as client:
        await client.post(CHAT, json={"messages": HELLO})
        lines = (await client.get("/metrics")).text.splitlines()
    name = "step_audio_inter_token_latency_seconds"
    assert f"{name}_count 3.0" in lines
    assert [f'{name}_bucket{{le="{le}"}} {n}' in lines for le, n in [("0.1", 0.0), ("0.5", 3.0)]] == [True, True]


@pytest.mark.parametrize("body", [{}, {"stream": True}, {"n": 3}, {"n": 3, "stream": True}])
@pytest.mark.parametrize("steps", [[60.0], [REPLY[0], 60.0]])
async def test_a_client_that_hangs_up_frees_its_slots(body, steps):
    fake = FakeClient(lambda messages, options: steps)
    app = create_app(GatewaySettings(), fake)
    asked_for = json.dumps({"messages": HELLO} | body).encode()
    received, gone = asyncio.Queue(), asyncio.Event()
    received.put_nowait({"type": "http.request", "body": asked_for})

    async def receive():
        if not received.empty():
            return received.get_nowait()
        await gone.wait()
        return {"type": "http.disconnect"}

    sent = []

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "POST",
        "scheme": "http", "path": CHAT, "raw_path": CHAT.encode(), "query_string": b"", "root_path": "",
        "headers": [(b"content-type", b"application/json")], "client": ("1.2.3.4", 5), "server": ("gateway", 80),
    }  # fmt: skip
    call = asyncio.create_task(app(scope, receive, send))
    n = body.get("n", 1)
    while fake.begun < n:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    assert not call.done() and fake.closed == 0
    gone.set()
    await asyncio.wait_for(call, 5)
    assert fake.closed == n
    started = [message for message in sent if message["type"] == "http.response.start"]
    assert [message["status"] for message in started] == [200 if body.get("stream") and len(steps) > 1 else 499]


async def test_a_client_that_stops_reading_and_hangs_up():
    """The reply is stuck in the connection, not in the model."""
    closed = []

    async def source():
        try:
            yield "first"
            yield "second"
        finally:
            closed.append(True)

    events = source()
    await anext(events)
    stuck = asyncio.Event()

    async def receive():
        await stuck.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        if message["type"] == "http.response.body":
            stuck.set()
            await asyncio.sleep(60)

    scope = {"type": "http", "state": {"log": {}}}
    await asyncio.wait_for(EventStream(events, events)(scope, receive, send), 5)
    assert closed and scope["state"]["log"] == {"error": "client_gone"}

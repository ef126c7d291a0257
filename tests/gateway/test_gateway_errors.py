"""The gateway before a client library that plays a script: what is refused, and which field is at fault."""

from __future__ import annotations

import pytest

from gateway_calls import CHAT, HELLO, TOOL, WAV, WAV64, ask, asked, refusal
from gateway_fixture import REPLY, FakeClient, events, shared
from step_audio.errors import Code
from step_audio_client import RequestError, Unavailable, UnsupportedParameter
from step_audio_client.errors import error_of


@pytest.mark.parametrize(
    "param, field",
    [
        ("response_format", "response_format"),
        ("structured_outputs.regex", "structured_outputs.regex"),
        ("messages[0].role", "messages[0].role"),
        ("audio", "messages"),
        ("frames", "messages"),
        ("top_p", "top_p"),
        (None, None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_the_field_at_fault(param, field, stream):
    """It is the error's own, whatever its text begins with."""
    said = RequestError("temperature is one word, and max_seq_len another", param)
    error = (await ask(FakeClient(lambda messages, options: [said]), stream=stream)).json()["error"]
    assert (error["param"], error["code"]) == (field, None)
    assert error["message"] == "temperature is one word, and max_model_len another"


async def test_the_recording_at_fault_by_its_place():
    parts = [{"type": "text", "text": "both:"}, *(2 * [{"type": "input_audio", "input_audio": {"data": WAV64}}])]
    fake = FakeClient(lambda messages, options: [RequestError("audio[1]: it is cut off", "audio[1]")])
    error = (await ask(fake, messages=[*HELLO, {"role": "user", "content": parts}])).json()["error"]
    place = "messages[1].content[2]"
    assert (error["message"], error["param"]) == (f"{place}: it is cut off", place)


@pytest.mark.parametrize("stream", ["false", "true"])
async def test_the_recording_at_fault_is_the_file(stream):
    fake = FakeClient(lambda messages, options: [RequestError("audio[0]: it is cut off", "audio[0]")])
    for path in ("transcriptions", "translations") if stream == "false" else ("transcriptions",):
        async with shared(fake) as client:
            response = await client.post(f"/v1/audio/{path}", files={"file": WAV}, data={"stream": stream})
        error = response.json()["error"]
        assert (error["message"], error["param"]) == ("file: it is cut off", "file")


async def test_paths_and_methods():
    """A path that is nobody's is not found, whatever the method; the page's files are answered for like others."""
    async with shared(FakeClient()) as client:
        status = {
            (method, path): (await client.request(method, path)).status_code
            for method in ("GET", "HEAD", "POST")
            for path in ("/", "/style.css", "/health", "/ready", CHAT, "/v1/embeddings", "/none", "/../settings.py")
        }
        assert (await client.get("/v1/models/tiny")).json()["id"] == "tiny"
        assert (await client.get("/v1/models/other")).status_code == 404
    assert {code for (_, path), code in status.items() if path in ("/v1/embeddings", "/none", "/../settings.py")} == {
        404
    }
    for path in ("/", "/style.css", "/health", "/ready"):
        assert [status[method, path] for method in ("GET", "HEAD", "POST")] == [200, 200, 405], path
    assert status["GET", CHAT] == status["HEAD", CHAT] == 405


async def test_thinking_that_contradicts_itself():
    assert (await refusal(thinking={"mode": "on"}, reasoning_effort="none"))[1] == "thinking.mode"
    assert (await refusal(thinking={"type": "disabled", "budget_tokens": 3}))[1] == "thinking.budget_tokens"
    assert (await refusal(thinking={"budget_tokens": 3}, thinking_token_budget=4))[1] == "thinking.budget_tokens"
    assert (await refusal(enable_thinking=True, chat_template_kwargs={"thinking": False}))[1] == "enable_thinking"
    assert (await refusal(reasoning_effort="none", thinking_token_budget=4))[1] == "thinking_token_budget"
    assert (await refusal(thinking={"mode": "off", "budget_tokens": 3}))[1] == "thinking.budget_tokens"


@pytest.mark.parametrize(
    "name, value",
    [
        ("length_penalty", 2),
        ("best_of", 2),
        ("logit_bias", {"1": 5}),
        ("modalities", ["text", "audio"]),
        ("use_beam_search", True),
    ],
)
async def test_what_cannot_be_honoured_is_refused_by_name(name, value):
    outer, _, inner = name.partition(".")
    message, param = await refusal(**{outer: {inner: value} if inner else value})
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


async def test_a_list_that_is_too_long_is_told_so():
    """Not that it is no string, which it might be instead."""
    message, named = await refusal(stop=["x"] * 100)
    assert named == "stop" and "at most 64 items" in message


async def test_other_keys_are_tolerated():
    message = {"role": "user", "content": "hello", "eot": True, "reasoning_content": "hm", "mood": [1]}
    assert (await asked(messages=[message], wish="none", stream_options=None)).messages == HELLO


GONE = "the server is not available: try again later"
# By code: HTTP's status, `code` and `type` of OpenAI's error, seconds to wait, what is told, the field at fault.
STATUSES = {
    Code.INVALID_REQUEST: (400, None, "invalid_request_error", None, "said", None),
    Code.INVALID_GUIDE: (400, "invalid_guide", "invalid_request_error", None, "said", None),
    Code.CONTEXT_TOO_LONG: (400, "context_length_exceeded", "invalid_request_error", None, "said", "messages"),
    Code.UNSUPPORTED: (400, "unsupported_parameter", "invalid_request_error", None, "said", None),
    Code.CONFLICT: (409, "conflict", "invalid_request_error", None, "said", None),
    Code.NOT_CACHED: (503, "unavailable", "server_error", "1", GONE, None),
    Code.QUEUE_FULL: (429, "server_busy", "rate_limit_error", "1", "said", None),
    Code.UNAVAILABLE: (503, "unavailable", "server_error", "1", GONE, None),
    Code.SERVER_LOST: (503, "unavailable", "server_error", "1", GONE, None),
    Code.ANSWER_LOST: (503, "unavailable", "server_error", "1", "said", None),
    Code.QUARANTINED: (500, "quarantined", "server_error", None, "said", None),
    Code.TIMED_OUT: (504, "timeout", "server_error", None, "said", None),
    Code.CANCELLED: (499, "cancelled", "invalid_request_error", None, "said", None),
    Code.INTERNAL: (500, "internal_error", "server_error", None, "internal error", None),
}


@pytest.mark.parametrize("code", Code)
@pytest.mark.parametrize("stream", [False, True])
async def test_errors_before_the_first_token(code, stream):
    said = "said" if code not in (Code.UNAVAILABLE, Code.SERVER_LOST, Code.INTERNAL) else "no server at 10.1.2.3:8001"
    response = await ask(FakeClient(lambda messages, options: [error_of(code, said)]), stream=stream)
    error = response.json()["error"]
    wait = response.headers.get("retry-after")
    told = (response.status_code, error["code"], error["type"], wait, error["message"], error["param"])
    assert told == STATUSES[code]


async def test_a_fault_of_ours():
    response = await ask(FakeClient(lambda messages, options: [ZeroDivisionError("ours")]))
    assert response.status_code == 500 and response.json()["error"]["code"] == "internal_error"


async def test_a_message_is_one_short_line():
    response = await ask(FakeClient(lambda messages, options: [RequestError("no:\n" + "ab\n" * 10_000)]))
    message = response.json()["error"]["message"]
    assert len(message) == 400 and "\n" not in message


async def test_what_the_served_llm_does_not_take_is_refused_by_name():
    response = await ask(FakeClient(lambda messages, options: [UnsupportedParameter("min_p")]), min_p=0.1)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, "min_p", "unsupported_parameter")
    assert error["message"].startswith("min_p is not supported: ")


@pytest.mark.parametrize("name", ["temperature", "top_p", "min_p", "repetition_penalty"])
async def test_what_the_engine_refuses_names_its_parameter(name):
    response = await ask(FakeClient(lambda messages, options: [RequestError(f"{name} must be other, not 3", name)]))
    assert response.json()["error"]["param"] == name


async def test_two_names_of_one_parameter_must_agree():
    fake = await asked(max_tokens=7, max_completion_tokens=7)
    assert fake.options.sampling.max_tokens == 7
    assert (await asked(max_completion_tokens=5)).options.sampling.max_tokens == 5
    message, param = await refusal(max_tokens=7, max_completion_tokens=8)
    assert message == "max_tokens and max_completion_tokens differ: send one of them" and param == "max_tokens"


async def test_what_asks_for_nothing_is_as_if_left_out():
    plain = (await asked(seed=1)).options.sampling
    assert (await asked(seed=1, min_p=0, top_k=-1, min_tokens=0, top_p=None)).options.sampling == plain
    assert (await asked(min_p=0.05)).options.sampling.min_p == 0.05


async def test_an_error_in_the_middle_of_a_stream():
    response = await ask(FakeClient(lambda m, o: [REPLY[0], Unavailable("gone")]), stream=True)
    assert response.status_code == 200
    assert events(response.text)[-1]["error"] == {
        "message": GONE, "type": "server_error", "param": None, "code": "unavailable",
    }  # fmt: skip


async def test_bodies_that_are_no_json():
    async with shared(FakeClient()) as client:
        for body in (b"{", b'{"messages": [{"role": "user", "content": "\\ud800"}]}', b"[" * 5000, b'{"n": NaN}', b""):
            response = await client.post(CHAT, content=body, headers={"Content-Type": "application/json"})
            assert response.status_code == 400 and response.json()["error"]["type"] == "invalid_request_error"
        response = await client.post(CHAT, content=b'{"messages": []}', headers={"Content-Type": "text/plain"})
        assert response.status_code == 415 and "Content-Type: application/json" in response.json()["error"]["message"]
        assert (await client.get("/v1/nothing")).json()["error"]["message"] == "Not Found: GET /v1/nothing"


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_a_length_is_called_what_the_caller_called_it(name):
    fake = FakeClient(lambda messages, options: [RequestError("max_tokens 7 is wrong", "max_tokens")])
    error = (await ask(fake, **{name: 7})).json()["error"]
    assert (error["message"], error["param"]) == (f"{name} 7 is wrong", name)

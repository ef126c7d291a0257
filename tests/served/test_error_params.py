"""Which field of a request is at fault, in the caller's words, from the step that finds it to the HTTP door."""

from __future__ import annotations

import asyncio
import base64
import io

import httpx
import pytest

from gateway_fixture import wav
from step_audio_client import Audio, ChatOptions, RequestError, Sampling, StepAudioClient, user

CHAT, RESPONSES, SPEECH = "/v1/chat/completions", "/v1/responses", "/v1/audio/transcriptions"
HELLO = [{"role": "user", "content": "hello"}]
LONG = "one two " * 40_000
NOISE = base64.b64encode(b"this is no recording, whatever it says" * 20).decode()
NO_SCHEMA = {"type": 5}


def said(*parts: dict) -> dict:
    return {"messages": [*HELLO, {"role": "user", "content": [{"type": "text", "text": "this:"}, *parts]}]}


def clip(data: str, **more) -> dict:
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"} | more}


GOOD = clip(base64.b64encode(wav()).decode())
FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": NO_SCHEMA}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": NO_SCHEMA}}
CASES = [
    (CHAT, {"messages": HELLO, "max_tokens": 0}, "max_tokens"),
    (CHAT, {"messages": HELLO, "max_completion_tokens": 0}, "max_completion_tokens"),
    (CHAT, {"messages": HELLO, "bad_words": ["a b c d e f " * 80] * 256}, "bad_words"),
    (CHAT, {"messages": [{"role": "user", "content": LONG}]}, "messages"),
    (CHAT, {"messages": HELLO, "response_format": FORMAT}, "response_format"),
    (CHAT, {"messages": HELLO, "guided_json": NO_SCHEMA}, "guided_json"),
    (CHAT, {"messages": HELLO, "structured_outputs": {"regex": "("}}, "structured_outputs.regex"),
    (CHAT, {"messages": HELLO, "ebnf": "x ::="}, "ebnf"),
    (CHAT, {"messages": HELLO, "tools": [TOOL], "tool_choice": "required"}, "tool_choice"),
    (CHAT, said(clip(NOISE)), "messages[1].content[1]"),
    (CHAT, said(GOOD, clip(NOISE)), "messages[1].content[2]"),
    (CHAT, said(GOOD, GOOD | {"input_audio": GOOD["input_audio"] | {"channel": 7}}), "messages[1].content[2]"),
    (RESPONSES, {"input": LONG}, "input"),
    (RESPONSES, {"input": "hello", "max_output_tokens": 0}, "max_output_tokens"),
    (RESPONSES, {"input": [{"role": "user", "content": [clip(NOISE)]}]}, "input"),
    (RESPONSES, {"input": "hello", "text": {"format": FORMAT["json_schema"] | {"type": "json_schema"}}}, "text.format"),
    ("/v1/completions", {"prompt": LONG}, "prompt"),
    ("/v1/completions", {"prompt": ["hello", LONG]}, "prompt[1]"),
    ("/v1/completions", {"prompt": "hello", "bad_words": ["a b c d e f " * 80] * 256}, "bad_words"),
    ("/tokenize", {"prompt": LONG}, "prompt"),
    ("/detokenize", {"tokens": [10**6]}, "tokens"),
]


@pytest.mark.parametrize(("path", "body", "param"), CASES, ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.parametrize("stream", [False, True])
def test_a_field_of_json(url, path, body, param, stream):
    more = {"stream": True} if stream else {}
    response = httpx.post(url + path, json={"thinking": {"mode": "off"}} | body | more, timeout=120)
    error = response.json()["error"]
    assert response.status_code == 400 and error["param"] == param, error
    for inner in ("guided_decoding_guide", "_list", "audio[", "request_output_len", "max_seq_len"):
        assert inner not in error["message"], error


def test_a_field_of_a_form(url):
    def refusal(file: bytes, **fields: str) -> str:
        response = httpx.post(url + SPEECH, files={"file": io.BytesIO(file)}, data=fields, timeout=120)
        assert response.status_code == 400, response.text
        return response.json()["error"]["param"]

    assert refusal(b"") == refusal(b"no recording" * 50) == refusal(wav(5000, 8000)) == "file"
    assert refusal(wav(), temperature="9") == "temperature"
    assert refusal(wav(), hotwords="Anna") == "hotwords"


@pytest.mark.parametrize(
    ("parts", "options", "param"),
    [
        (["hello"], ChatOptions(sampling=Sampling(top_p=3)), "top_p"),
        (["hello"], ChatOptions(sampling=Sampling(temperature=-1)), "temperature"),
        (["hello"], ChatOptions(sampling=Sampling(repetition_penalty=-1)), "repetition_penalty"),
        (["hello"], ChatOptions(sampling=Sampling(seed=-(2**70))), "seed"),
        (["hello"], ChatOptions(bad_words=("a b c d " * 300,) * 300), "bad_words"),
        (["hello", Audio(wav()), Audio(b"none")], ChatOptions(), "audio[1]"),
        ([LONG], ChatOptions(), "messages"),
    ],
)
def test_of_the_client_library(listener, parts, options, param):
    async def chat():
        async with StepAudioClient(listener.address) as client:
            async for _ in client.chat([user(*parts)], options):
                pass

    with pytest.raises(RequestError) as caught:
        asyncio.run(chat())
    assert caught.value.param == param, caught.value

"""Every request field that OpenAI, vLLM and SGLang publish is honoured, refused by name, or ignored for a reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gateway_calls import asked, refusal
from gateway_fixture import FakeClient, shared
from step_audio_client import Guide
from step_audio_gateway.controls import StreamOptions, StructuredOutputs
from step_audio_gateway.published import (
    IGNORED,
    IGNORED_COMPLETIONS,
    IGNORED_FORM,
    IGNORED_RESPONSES,
    REFUSED,
    REFUSED_COMPLETIONS,
    REFUSED_DETOKENIZE,
    REFUSED_FORM,
    REFUSED_RESPONSES,
    REFUSED_SPEECH,
    REFUSED_TOKENIZE,
    REFUSED_TRANSLATION,
)
from step_audio_gateway.raw_request import CompletionRequest
from step_audio_gateway.response_request import ResponseRequest
from step_audio_gateway.schemas import ChatRequest, SamplingFields
from step_audio_gateway.speech.route import SpeechRequest
from step_audio_gateway.tokenization import DetokenizeRequest, TokenizeRequest

PUBLISHED = json.loads(Path(__file__).with_name("published_fields.json").read_text("utf-8"))
SCHEMA = {"type": "object", "properties": {"a": {"const": 1}}}


def names(route: str) -> set[str]:
    return set().union(*PUBLISHED[route].values())


def test_the_list_has_what_everybody_knows():
    """Of each of the three, so that a wheel that is laid out otherwise is noticed."""
    by = PUBLISHED["/v1/chat/completions"]
    known = {"openai": "prediction", "vllm": "cache_salt", "sglang": "lora_path"}
    for package, name in known.items():
        assert any(key.startswith(package) and name in fields for key, fields in by.items()), package
    assert {"guided_json", "structured_outputs", "ebnf", "stop_regex", "priority"} <= names("/v1/chat/completions")


def test_every_published_field_has_one_place():
    ours = {field.alias or name for name, field in ChatRequest.model_fields.items()}
    for name in names("/v1/chat/completions"):
        assert [name in place for place in (ours, REFUSED, IGNORED)].count(True) == 1, name
    assert not ours & (REFUSED.keys() | IGNORED.keys()), "one place"


def test_every_published_field_of_a_response_has_one_place():
    """One of its own, or that of a chat."""
    ours = {field.alias or name for name, field in ResponseRequest.model_fields.items()}
    chat = {field.alias or name for name, field in ChatRequest.model_fields.items()}
    for name in names("/v1/responses"):
        places = [name in place for place in (ours, REFUSED_RESPONSES, IGNORED_RESPONSES)]
        if not any(places):
            places = [name in place for place in (chat, REFUSED, IGNORED)]
        assert places.count(True) == 1, name


@pytest.mark.parametrize("route, refused", [("transcriptions", REFUSED_FORM), ("translations", REFUSED_TRANSLATION)])
def test_every_published_field_of_a_form_has_one_place(route, refused):
    ours = {"file", "model", "language", "prompt", "response_format", *SamplingFields.model_fields}
    ours |= {"stream"} - refused.keys()
    for name in names(f"/v1/audio/{route}"):
        assert [name in place for place in (ours, refused, IGNORED_FORM)].count(True) == 1, name


@pytest.mark.parametrize(
    "route, model, refused",
    [
        ("/tokenize", TokenizeRequest, REFUSED_TOKENIZE),
        ("/detokenize", DetokenizeRequest, REFUSED_DETOKENIZE),
        ("/v1/audio/speech", SpeechRequest, REFUSED_SPEECH),
    ],
)
def test_every_published_field_of_tokens_and_of_speech_has_one_place(route, model, refused):
    for name in names(route):
        assert [name in place for place in (model.model_fields, refused)].count(True) == 1, name


ROUTES = [
    ("/v1/responses", {"input": "hello"}, REFUSED_RESPONSES),
    ("/v1/completions", {"prompt": "hello"}, REFUSED_COMPLETIONS),
    ("/tokenize", {"prompt": "hello"}, REFUSED_TOKENIZE),
    ("/detokenize", {"tokens": [1]}, REFUSED_DETOKENIZE),
]


@pytest.mark.parametrize("route, body, name", [(route, body, name) for route, body, table in ROUTES for name in table])
async def test_refused_by_name_on_other_routes(route, body, name):
    refused = next(table for path, _, table in ROUTES if path == route)
    async with shared(FakeClient()) as client:
        for value in (1.25, "x", ["x"], {"x": 1}, True):
            if value not in refused[name][0]:
                response = await client.post(route, json=body | {name: value})
                error = response.json()["error"]
                assert (response.status_code, error["param"]) == (400, name)
                assert error["message"] == f"{name} is not supported: {refused[name][1]}"
        for nothing in (None, *refused[name][0]):
            assert (await client.post(route, json=body | {name: nothing})).status_code == 200, nothing


async def test_fields_of_a_chat_that_are_refused_in_a_response_too():
    async with shared(FakeClient()) as client:
        for name in names("/v1/responses") & REFUSED.keys():
            response = await client.post("/v1/responses", json={"input": "hello", name: {"x": 1}})
            assert (response.status_code, response.json()["error"]["param"]) == (400, name)


def test_every_published_field_of_a_text_completion_has_one_place():
    ours = {field.alias or name for name, field in CompletionRequest.model_fields.items()}
    for name in names("/v1/completions"):
        places = (ours, REFUSED_COMPLETIONS, {**IGNORED, **IGNORED_COMPLETIONS})
        assert [name in place for place in places].count(True) == 1, name
    assert not ours & (REFUSED_COMPLETIONS.keys() | IGNORED_COMPLETIONS.keys())


@pytest.mark.parametrize("name", REFUSED)
async def test_refused_by_name(name):
    """Whatever it is; but for what asks for nothing, and null."""
    for value in (1.25, "x", ["x"], {"x": 1}, True):
        if value not in REFUSED[name][0]:
            message, param = await refusal(**{name: value})
            assert message == f"{name} is not supported: {REFUSED[name][1]}" and param == name
    for nothing in (None, *REFUSED[name][0]):
        await asked(**{name: nothing})


async def test_ignored():
    await asked(**dict.fromkeys(IGNORED, "x"))


@pytest.mark.parametrize("field, model", [("stream_options", StreamOptions), ("structured_outputs", StructuredOutputs)])
async def test_what_is_within_a_field(field, model):
    ours = {inner.alias or name for name, inner in model.model_fields.items()}
    for name in names(field) - ours:
        assert (await refusal(**{field: {name: "x"}}))[1] == f"{field}.{name}"


@pytest.mark.parametrize(
    "body, guide",
    [
        ({"structured_outputs": {"json": SCHEMA}}, Guide("json_schema", json.dumps(SCHEMA))),
        ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, Guide("json_schema", json.dumps(SCHEMA))),
        ({"structured_outputs": {"json_object": True}}, Guide("json")),
        ({"structured_outputs": {"regex": "[0-9]+"}}, Guide("regex", "[0-9]+")),
        ({"structured_outputs": {"choice": ["ja", 'n"n']}}, Guide("ebnf_grammar", 'root ::= "ja" | "n\\"n"')),
        ({"structured_outputs": {"grammar": 'root ::= "a"'}}, Guide("ebnf_grammar", 'root ::= "a"')),
        ({"structured_outputs": {}}, None),
        ({"guided_json": SCHEMA}, Guide("json_schema", json.dumps(SCHEMA))),
        ({"guided_regex": "a|b"}, Guide("regex", "a|b")),
        ({"guided_choice": ["a"]}, Guide("ebnf_grammar", 'root ::= "a"')),
        ({"guided_grammar": 'root ::= "a"'}, Guide("ebnf_grammar", 'root ::= "a"')),
        ({"regex": "a|b"}, Guide("regex", "a|b")),
        ({"ebnf": 'root ::= "a"'}, Guide("ebnf_grammar", 'root ::= "a"')),
    ],
)
async def test_forms_of_the_answer(body, guide):
    assert (await asked(**body)).options.guide == guide


@pytest.mark.parametrize(
    "body, param",
    [
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_regex"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs.choice"),
        ({"ebnf": "a", "regex": "a"}, "ebnf"),
    ],
)
async def test_two_forms_exclude_each_other(body, param):
    assert (await refusal(**body))[1] == param

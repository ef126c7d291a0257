"""Every request field that OpenAI, vLLM and SGLang publish is honoured, refused by name, or ignored for a reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gateway_calls import asked, refusal
from step_audio_client import Guide
from step_audio_gateway.controls import StreamOptions, StructuredOutputs
from step_audio_gateway.published import IGNORED, IGNORED_FORM, REFUSED, REFUSED_FORM
from step_audio_gateway.schemas import ChatRequest, SamplingFields

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


def test_every_published_field_of_a_transcription_has_one_place():
    ours = {"file", "model", "language", "prompt", "response_format", "stream", *SamplingFields.model_fields}
    for name in names("/v1/audio/transcriptions"):
        assert [name in place for place in (ours, REFUSED_FORM, IGNORED_FORM)].count(True) == 1, name


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

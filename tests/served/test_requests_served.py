"""What a request asks for and the small trained model does, asked by OpenAI's own package."""

from __future__ import annotations

import json
import re
from typing import Literal

import pytest
from pydantic import BaseModel

HELLO = [{"role": "user", "content": "What is three plus four?"}]


@pytest.mark.parametrize("thinking", [{"mode": "on"}, {"mode": "off"}, {"budget_tokens": 5}])
def test_the_model_cannot_end_an_answer_that_ignores_eos(client, thinking):
    def ask(**extra):
        body = {"thinking": thinking, **extra}
        return client.chat.completions.create(model="", messages=HELLO, max_tokens=200, temperature=0, extra_body=body)

    usual, long = ask(), ask(ignore_eos=True)
    assert usual.usage.completion_tokens < 200 and usual.choices[0].finish_reason == "stop"
    assert long.usage.completion_tokens == 200 and long.choices[0].finish_reason == "length"


def test_bad_words_are_not_written(client):
    def ask(**extra):
        reply = client.chat.completions.create(
            model="", messages=HELLO, max_tokens=60, temperature=0, extra_body={"thinking": {"mode": "off"}} | extra
        )
        return reply.choices[0].message.content

    usual = ask()
    word = max(usual.split(), key=len)
    assert word not in ask(bad_words=[word])


class Weather(BaseModel):
    """What an answer is to be made of."""

    city: Literal["Paris", "Rome"]
    degrees: int
    wind: float | None


SCHEMA_TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": Weather.model_json_schema() | {"additionalProperties": False}},
}
SEEDS = range(6)


def ended(reply) -> str:
    """The content of a reply that has come to its end by itself."""
    assert reply.choices[0].finish_reason in ("stop", "tool_calls"), reply
    return reply.choices[0].message.content


@pytest.mark.parametrize("thinking", [{"mode": "off"}, {"budget_tokens": 20}])
def test_answers_of_a_schema_end(client, thinking):
    """Though the model was not taught to give any: nothing lets it write white space without end."""
    for seed in SEEDS:
        reply = client.chat.completions.parse(
            model="", messages=HELLO, max_tokens=300, seed=seed, response_format=Weather,
            extra_body={"thinking": thinking, "top_p": 0.9},
        )  # fmt: skip
        assert isinstance(reply.choices[0].message.parsed, Weather), reply
        assert not re.search(r"\s{2}|\n", ended(reply))


def test_calls_that_are_required_end(client):
    for seed in SEEDS:
        reply = client.chat.completions.create(
            model="", messages=HELLO, max_tokens=300, seed=seed, tools=[SCHEMA_TOOL], tool_choice="required",
            extra_body={"thinking": {"budget_tokens": 20}},
        )  # fmt: skip
        ended(reply)
        (call,) = reply.choices[0].message.tool_calls
        assert isinstance(Weather.model_validate_json(call.function.arguments), Weather)


def test_any_json_is_an_object(client):
    """Its strings have no bound: what is there when the room is used up is the beginning of an object."""
    texts = []
    for seed in SEEDS:
        reply = client.chat.completions.create(
            model="", messages=HELLO, max_tokens=200, seed=seed, response_format={"type": "json_object"},
            extra_body={"thinking": {"mode": "off"}},
        )  # fmt: skip
        text = reply.choices[0].message.content
        assert text.startswith("{") and "  " not in text.split('"')[0]
        if reply.choices[0].finish_reason == "stop":
            texts.append(text)
            assert isinstance(json.loads(text), dict)
    assert texts

"""How long the model may think: under everyone's names for it, and by default."""

from __future__ import annotations

import pytest

from gateway_calls import ask, asked, refusal
from gateway_fixture import FakeClient
from step_audio.errors import SettingsError
from step_audio_client import MindPaced, Sampling, Thinking
from step_audio_gateway.defaults import Defaults
from step_audio_gateway.settings import GatewaySettings

ON, OFF = Thinking("on"), Thinking("off")


@pytest.mark.parametrize(
    "body",
    [
        {"thinking": {"mode": "off"}},
        {"thinking": {"type": "disabled"}},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"chat_template_kwargs": {"thinking": False}},
        {"reasoning_effort": "none"},
        {"enable_thinking": False},
        {"reasoning": {"effort": "none"}},
        {"reasoning": {"enabled": False}},
        {"thinking": {}, "reasoning_effort": "none"},
    ],
)
async def test_thinking_off(body):
    assert (await asked(**body)).options.thinking == OFF


@pytest.mark.parametrize(
    "body, budget",
    [
        ({"thinking": {"budget_tokens": 3}}, 3),
        ({"thinking": {"budget_tokens": 0}}, 0),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, 1024),
        ({"thinking": {"type": "adaptive"}}, None),
        ({"thinking_token_budget": 7}, 7),
        ({"thinking_token_budget": -1}, None),
        ({"chat_template_kwargs": {"enable_thinking": True, "thinking_budget": 9}}, 9),
        ({"enable_thinking": True}, None),
        ({"reasoning_effort": "minimal"}, 128),
        ({"reasoning_effort": "low"}, 512),
        ({"reasoning_effort": "medium"}, 2048),
        ({"reasoning_effort": "high"}, 8192),
        ({"reasoning_effort": "xhigh"}, None),
        ({"reasoning_effort": "low", "thinking_token_budget": 7}, 7),
        ({"thinking": {"budget_tokens": 7}, "thinking_token_budget": 7}, 7),
        ({"reasoning": {"effort": "low"}}, 512),
        ({"reasoning": {"effort": "low"}, "reasoning_effort": "low"}, 512),
        ({"reasoning": {"max_tokens": 7, "effort": "low", "enabled": True, "exclude": False}}, 7),
        ({"reasoning": {"enabled": True}}, None),
    ],
)
async def test_thinking_with_a_budget(body, budget):
    assert (await asked(**body)).options.thinking == Thinking("on", budget)


@pytest.mark.parametrize(
    "body, param",
    [
        ({"thinking": {"budget": 3}}, "thinking.budget"),
        ({"thinking": {"type": "off"}}, "thinking.type"),
        ({"thinking": {"budget_tokens": -1}}, "thinking.budget_tokens"),
        ({"reasoning_effort": "huge"}, "reasoning_effort"),
        ({"chat_template_kwargs": {"think": False}}, "chat_template_kwargs.think"),
        ({"reasoning": {"max_tokens": -1}}, "reasoning.max_tokens"),
        ({"reasoning": {"budget": 1}}, "reasoning.budget"),
        ({"reasoning": {"exclude": True}}, "reasoning.exclude"),
        ({"reasoning": {"enabled": False, "max_tokens": 5}}, "reasoning.max_tokens"),
        ({"reasoning": {"effort": "high", "enabled": False}}, "reasoning.effort"),
        ({"reasoning": {"effort": "high"}, "reasoning_effort": "low"}, "reasoning_effort"),
    ],
)
async def test_other_words_are_not_swallowed(body, param):
    assert (await refusal(**body))[1] == param


async def thought(body: dict | None = None, **settings) -> Thinking:
    fake = FakeClient()
    assert (await ask(fake, settings=settings, **body or {})).status_code == 200
    return fake.options.thinking


async def test_the_server_s_defaults():
    assert await thought() == ON
    assert await thought(default_thinking="off") == OFF
    assert await thought({"thinking": {"mode": "on"}}, default_thinking="off") == ON
    assert await thought({"reasoning_effort": "low"}, default_thinking="off") == Thinking("on", 512)
    assert await thought(default_thinking_budget=50) == Thinking("on", 50)
    assert await thought({"enable_thinking": True}, default_thinking_budget=50) == Thinking("on", 50)
    assert await thought({"thinking_token_budget": -1}, default_thinking_budget=50) == ON
    assert await thought({"reasoning_effort": "low"}, reasoning_effort_budgets=["low=5"]) == Thinking("on", 5)
    assert await thought({"reasoning_effort": "high"}, reasoning_effort_budgets=["low=5"]) == ON


async def test_a_mind_paced_answer_has_its_own_ways_of_thinking():
    fake = FakeClient()
    body = {"mind_paced_speaking": {"mode": "speak_first"}}
    assert (await ask(fake, settings={"default_thinking": "off"}, **body)).status_code == 200
    assert fake.options.thinking == ON and isinstance(fake.options.mind_paced, MindPaced)


async def test_sampling_parameters_by_default():
    fake = FakeClient()
    settings = {"default_sampling": "temperature=0.2, max_tokens=99,top_k=7"}
    await ask(fake, settings=settings)
    assert fake.options.sampling == Sampling(temperature=0.2, max_tokens=99, top_k=7)
    await ask(fake, settings=settings, temperature=1, max_completion_tokens=5, top_k=None)
    assert fake.options.sampling == Sampling(temperature=1.0, max_tokens=5, top_k=7)


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"default_sampling": ["temperature"]}, "--default-sampling: 'temperature' is not NAME=VALUE"),
        ({"default_sampling": ["warmth=1"]}, "--default-sampling: warmth is no sampling parameter"),
        ({"default_sampling": ["temperature=5"]}, "--default-sampling: temperature: .*less than or equal to 2"),
        ({"reasoning_effort_budgets": ["huge=1"]}, "there is no effort 'huge', but minimal, low"),
        ({"reasoning_effort_budgets": ["low=many"]}, "'many' is not a number of tokens"),
        ({"reasoning_effort_budgets": ["low=1", "low=2"]}, "'low=2' is not NAME=VALUE, each name once"),
        ({"default_thinking": "off", "default_thinking_budget": 5}, "needs --default-thinking on"),
    ],
)
def test_defaults_that_cannot_be(settings, said):
    with pytest.raises(SettingsError, match=said):
        Defaults.of(GatewaySettings.create(**settings))

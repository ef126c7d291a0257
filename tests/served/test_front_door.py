"""The whole way with a model that listens: OpenAI's package or a browser, gateway, tritonserver, a trained model."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soxr
from selenium.webdriver.common.keys import Keys

from browser import Page, browser, needs_browser
from front_door_fixture import door, messages
from raw_triton import active
from step_audio.audio import decode_audio, encode_wav
from step_audio.clips import SAMPLE_RATE
from step_audio_evaluation.held_out import held_out
from step_audio_evaluation.items import Item
from step_audio_server.commands.demo import QUESTION, aloud
from waiting import wait_until

SCREENSHOTS = os.environ.get("SCREENSHOTS")  # a folder to keep the pictures of the page in


def ask_all(url: str, items: list[Item], **options: Any) -> list[Any]:
    """All at once, greedily."""
    import openai

    async def run() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120) as client:

            def ask(item: Item) -> Any:
                tools = {"tools": list(item.tools)} if item.tools else {}
                request = {"model": "R1", "temperature": 0, "max_tokens": 200} | tools | options
                return client.chat.completions.create(messages=messages(item), **request)

            return await asyncio.gather(*map(ask, items))

    return asyncio.run(run())


def test_spoken_sums(url):
    items = held_out(["arithmetic"], 12, seed=5)
    replies = ask_all(url, items)
    right = [item.expected in r.choices[0].message.content for item, r in zip(items, replies, strict=True)]
    assert sum(right) >= 9, [r.choices[0].message.content for r in replies]
    for reply in replies:
        assert reply.choices[0].finish_reason == "stop"
        assert reply.choices[0].message.reasoning_content.startswith("I hear: ")
        assert "think>" not in reply.choices[0].message.content
        assert reply.usage.completion_tokens > reply.usage.completion_tokens_details.reasoning_tokens > 10


@pytest.mark.parametrize("natural", [True, False], ids=["natural", "espeak"])
def test_what_the_demo_asks(client, natural):
    recording = encode_wav(0.5 * aloud(QUESTION, natural))
    audio = {"type": "input_audio", "input_audio": {"data": base64.b64encode(recording).decode(), "format": "wav"}}
    reply = client.chat.completions.create(
        model="R1", temperature=0, messages=[{"role": "user", "content": [audio]}], max_tokens=200
    )
    assert reply.choices[0].message.content == "48 plus 34 is 82."


def test_a_spoken_sum_too_large_for_its_head_is_a_tool_call_and_back(url, client):
    items = [item for item in held_out(["tool_call"], 14, seed=5) if item.kind == "tool_call"]
    replies = [reply.choices[0] for reply in ask_all(url, items)]
    called = [choice for choice in replies if choice.finish_reason == "tool_calls"]
    assert len(called) >= 0.6 * len(items), [choice.message.content for choice in replies]
    right = 0
    for item, choice in zip(items, replies, strict=True):
        if choice.finish_reason == "tool_calls":
            (call,) = choice.message.tool_calls
            assert call.function.name == "calculator" and not choice.message.content
            right += json.loads(call.function.arguments) == {"expression": item.expected}
    assert right >= 0.5 * len(items)

    item, choice = next((i, c) for i, c in zip(items, replies, strict=True) if c in called)
    (call,) = choice.message.tool_calls
    answer = client.chat.completions.create(
        model="R1",
        messages=[
            *messages(item),
            choice.message.model_dump(include={"role", "content", "tool_calls"}),
            {"role": "tool", "tool_call_id": call.id, "content": "777"},
        ],
        tools=list(item.tools),
        temperature=0,
        max_tokens=200,
    )
    assert answer.choices[0].finish_reason == "stop"
    assert "777" in answer.choices[0].message.reasoning_content + answer.choices[0].message.content


# What it knows, and bounded.
CALCULATOR = {
    "type": "function",
    "function": {
        "name": "calculator",
        "description": "Work out a sum exactly.",
        "parameters": {
            "type": "object",
            "properties": {"expression": {"type": "string", "pattern": "^[0-9]{1,3}[+*-][0-9]{1,3}$"}},
            "required": ["expression"],
            "additionalProperties": False,
        },
    },
}


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "calculator"}}])
def test_a_call_can_be_demanded(url, choice):
    """Of sums that it does by head: thought first, then a call that the schema guides."""
    replies = [
        reply.choices[0]
        for reply in ask_all(url, held_out(["arithmetic"], 6, seed=6), tools=[CALCULATOR], tool_choice=choice)
    ]
    assert {reply.finish_reason for reply in replies} == {"tool_calls"}
    for reply in replies:
        (call,) = reply.message.tool_calls
        assert call.function.name == "calculator"
        assert re.fullmatch("[0-9]+[+*-][0-9]+", json.loads(call.function.arguments)["expression"])
    thoughts = [reply.message.reasoning_content for reply in replies]
    assert all(thoughts) and sum(thought.startswith("I hear: ") for thought in thoughts) >= 4


@pytest.mark.parametrize("raw", [False, True])
def test_a_thought_by_itself_and_the_answer_to_it(client, raw):
    """Stopped at the end of the thought, then continued behind it; raw as the model card's server has it."""

    def ask(item, prefill, **options):
        opened = [*messages(item), {"role": "assistant", "content": prefill, "eot": False}]
        body = {"separate_reasoning": not raw, "skip_special_tokens": False}
        reply = client.chat.completions.create(
            model="R1", messages=opened, temperature=0, max_tokens=200, extra_body=body, **options
        )
        assert reply.choices[0].finish_reason == "stop"
        return reply.choices[0].message

    right = 0
    for item in held_out(["arithmetic"], 4, seed=5):
        message = ask(item, "<think>\n", stop=["</think>"])
        thought, other = message.reasoning_content if not raw else message.content, message.content
        assert thought.startswith("I hear: ") and "think>" not in thought and (raw or not other)
        answer = ask(item, f"<think>\n{thought.rstrip()}\n</think>\n").content
        assert "think>" not in answer
        right += item.expected in answer
    assert right >= 3


@pytest.mark.parametrize("language", [{}, {"language": "en"}])
def test_dictation(client, language):
    """`/v1/audio/transcriptions`, which asks without a thought; clients for speech say `en` unasked."""
    right = 0
    for item in held_out(["transcription"], 10, seed=4):
        audio = ("question.wav", bytes(item.audio[0]), "audio/wav")
        right += client.audio.transcriptions.create(model="R1", file=audio, **language).text == item.expected
    assert right >= 7


def test_how_long_it_thinks(url):
    items = held_out(["arithmetic"], 4, seed=8)
    whole = ask_all(url, items)
    short = ask_all(url, items, extra_body={"thinking": {"budget_tokens": 6}})
    none = ask_all(url, items, extra_body={"thinking": {"mode": "off"}})
    for long, cut, off in zip(whole, short, none, strict=True):
        thoughts = [r.usage.completion_tokens_details.reasoning_tokens for r in (long, cut, off)]
        assert thoughts[0] > 20 > thoughts[1] >= 6 and thoughts[2] == 0
        assert long.choices[0].message.reasoning_content.startswith(cut.choices[0].message.reasoning_content.strip())
        assert not getattr(off.choices[0].message, "reasoning_content", None)
        assert all(r.choices[0].message.content.endswith(".") for r in (cut, off))


# The page.


def question(text: str) -> bytes:
    """Spoken, with a second of silence behind it, as the browser's microphone takes it."""
    samples = np.concatenate([0.5 * aloud(text, False), np.zeros(SAMPLE_RATE, np.float32)])
    return encode_wav(soxr.resample(samples, SAMPLE_RATE, 48000), 48000)


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("chromium"), question("what is 48 plus 34")) as driver:
        yield driver


def opened(driver: Any, url: str) -> Page:
    page = Page(driver)
    page.resize(1280, 800)
    driver.get(url)
    page.wait(lambda: page.all("#server[data-state=ready]"), "the server's state")
    return page


@needs_browser
def test_hold_speak_and_watch_it_think(driver, url):
    page = opened(driver, url)
    page.set("temperature", "0")
    page.set("auto", False)
    for _ in range(3):  # the fake microphone plays in a loop: somewhere within the recording is the whole question
        page.find("#start-over").click()
        page.hold(2 * len(decode_audio(question("what is 48 plus 34"))) / SAMPLE_RATE)
        page.wait(lambda: page.all(".tray .clip"), "the recording")
        page.find(".send").click()
        page.wait_state("done")
        if page.text(".thought-text").startswith("I hear"):
            break
    assert page.text(".thought-text").startswith("I hear: ") and page.text(".answer")
    facts = page.facts()
    assert int(facts["audio tokens"]) > 12 and float(facts["first thought"].split()[0]) > 0
    for name, size in (("desktop", (1280, 800)), ("phone", (390, 844))):
        page.resize(*size)
        assert page.overflow() <= 0
        if SCREENSHOTS:
            page.screenshot(Path(SCREENSHOTS) / f"{name}.png")


@needs_browser
def test_watch_it_speak_while_it_thinks(driver, url):
    page = opened(driver, url)
    for name, value in {"temperature": "0", "pace": "speak_first", "think_tokens": "12", "speak_tokens": "2"}.items():
        page.set(name, value)
    page.type("How much is 48 plus 34?" + Keys.ENTER)
    page.wait_state("done")
    assert page.text(".thought-text") and page.text(".answer")
    facts = page.facts()
    assert facts["first spoken"].endswith(" s") and facts["thought before"] == "0 tokens" and "underruns" in facts


@needs_browser
def test_stop_frees_the_slot(driver, service):
    """With random weights, which never come to an end."""

    with contextlib.contextmanager(door)(service.address) as url:
        page = opened(driver, url)
        page.set("max_tokens", "20000")
        page.type("Think" + Keys.ENTER)
        page.wait(lambda: len(page.text(".thought-text")) > 20, "the thought")
        wait_until(lambda: active(service) == 1)
        page.find("body").send_keys(Keys.ESCAPE)
        page.wait_state("stopped")
        wait_until(lambda: not active(service))

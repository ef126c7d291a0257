"""The live conversation in a real browser, whose microphone hears one question again and again, at a real gateway."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from browser import Page, browser, needs_browser
from gateway_fixture import ANSWER, THOUGHT, USAGE, FakeClient, listening, script
from playground_fixture import opened
from speech_fixture import speech_server
from step_audio.audio import encode_wav
from step_audio_client import ChatDelta
from step_audio_training.speech import Voice, speak

pytestmark = needs_browser

RATE = 48_000
PAUSE = 3.0  # seconds between two questions
LONG = "Once upon a time there was a king. He had three daughters and a garden, and in it there stood an old tree."
KEY = "sk-page"


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    said = np.repeat(speak("what is three plus four", Voice(variant="f3")).samples / 2, 3)
    question = np.concatenate([np.zeros(RATE), said, np.zeros(round((PAUSE - 1) * RATE))])
    with browser(tmp_path_factory.mktemp("chromium"), encode_wav(question, RATE)) as driver:
        yield driver


@pytest.fixture(scope="module")
def fake() -> FakeClient:
    return FakeClient()


@pytest.fixture(scope="module")
def in_writing(fake: FakeClient) -> Iterator[str]:
    with listening(fake, api_key=KEY) as url:
        yield url


@pytest.fixture(scope="module")
def aloud(fake: FakeClient) -> Iterator[str]:
    with speech_server() as speech, listening(fake, speech=speech) as url:
        yield url


@pytest.fixture
def page(driver: Any, request: pytest.FixtureRequest, fake: FakeClient) -> Iterator[Page]:
    fake.asked.clear()
    fake.script = script
    with opened(driver, request.getfixturevalue(request.param), meant="401") as page:
        yield page
        if state(page) != "off":
            page.find(".dialogue-end").click()
        page.js("localStorage.clear(); sessionStorage.clear()")


def begin(page: Page) -> None:
    page.find(".converse").click()
    page.wait(lambda: state(page) == "listening", "the session")


def state(page: Page) -> str:
    return page.find("body").get_attribute("data-dialogue")


def answers(fake: FakeClient) -> list[list[dict[str, Any]]]:
    """What was asked for answers, and not for what was said in words."""
    return [messages for messages, options in fake.asked if options.thinking.mode == "on"]


def told(fake: FakeClient) -> set[str]:
    """What the model has been told that its first answer was: a server that lags learns late what was heard."""
    return {part["text"] for messages in answers(fake) if len(messages) > 2 for part in messages[1]["content"]}


@pytest.mark.parametrize("page", ["aloud"], indirect=True)
def test_the_server_answers_aloud_when_the_question_is_over(page: Page, fake: FakeClient) -> None:
    begin(page)
    assert not page.find("#composer textarea").is_displayed() and not page.find(".talk").is_displayed()
    page.wait(lambda: state(page) == "hearing", "the speech")
    page.wait_state("done")
    page.wait(lambda: page.text(".exchange .question-text") == ANSWER, "what was said, in words")
    assert page.text(".exchange .answer") == ANSWER and page.text(".exchange .thought-text") == THOUGHT
    assert not page.find(".exchange details.thought").get_property("open")
    assert page.all(".exchange .question .clip canvas")
    shown = page.facts(".exchange:first-child")
    assert {"turn over", "first thought", "first answer", "first sound", "all written"} <= shown.keys()
    assert 0.3 < float(shown["turn over"].split()[0]) <= float(shown["first answer"].split()[0])
    assert "tokens/s" not in shown
    page.wait(lambda: len(page.all(".exchange[data-state=done]")) == 2, "another turn")
    assert [message["role"] for message in answers(fake)[-1]] == ["user", "assistant", "user"]
    page.find(".dialogue-end").click()
    assert state(page) == "off" and page.find("#composer textarea").is_displayed()
    page.type("And in writing?\n")
    page.wait(lambda: len(page.all(".exchange[data-state=done]")) == 3, "an answer in writing")
    history = fake.messages
    assert [message["role"] for message in history] == ["user", "assistant"] * 2 + ["user"]
    assert len(history[0]["content"]) == 1 and history[0]["content"][0]["audio"].data[:4] == b"RIFF"


def interrupted(page: Page, fake: FakeClient) -> tuple[str, str]:
    """What was heard of a long answer that speech has interrupted, and all of it."""
    long = " ".join([LONG] * 6)
    fake.script = lambda messages, options: [
        ChatDelta(content=long, raw=long),
        ChatDelta(finish_reason="stop", usage=USAGE),
    ]
    begin(page)
    page.wait(lambda: page.all(".exchange:first-child .unheard"), "the interruption")
    heard = page.js("return document.querySelector('.answer').firstChild.data")
    assert long.startswith(heard) and 0 < len(heard) < len(long)
    return heard, long


@pytest.mark.parametrize("page", ["aloud"], indirect=True)
def test_speech_interrupts_an_answer_and_what_was_not_heard_is_struck_out(page: Page, fake: FakeClient) -> None:
    heard, long = interrupted(page, fake)
    assert page.text(".answer") == long
    page.wait(lambda: heard in told(fake), "the server to forget the same")


@pytest.mark.parametrize("page", ["in_writing"], indirect=True)
def test_the_browsers_voice_says_what_the_server_does_not(page: Page, fake: FakeClient) -> None:
    """A voice that says a word in 0.1 s, as far as it gets."""
    page.set("key", KEY)
    page.js(
        """
        window.said = [];
        speechSynthesis.getVoices = () => [{}];
        let queue = Promise.resolve();
        speechSynthesis.speak = (utterance) => {
          queue = queue.then(async () => {
            utterance.dispatchEvent(new Event("start"));
            for (const word of utterance.text.matchAll(/\\S+/g)) {
              utterance.dispatchEvent(Object.assign(new Event("boundary"), { charIndex: word.index }));
              said.push(word[0]);
              await new Promise((resolve) => setTimeout(resolve, 100));
            }
            utterance.dispatchEvent(new Event("end"));
          });
        };
        """
    )
    heard, _ = interrupted(page, fake)
    page.wait(lambda: heard.rstrip() in told(fake), "the server to forget the same")
    assert page.js("return said.slice(0, 4)") == LONG.split()[:4]
    assert "first sound" in page.facts(".exchange:first-child")


@pytest.mark.parametrize("page", ["aloud"], indirect=True)
def test_a_call_is_shown_and_what_it_brought_is_said(page: Page, fake: FakeClient) -> None:
    page.set("tools", json.dumps([{"name": "weather", "parameters": {"type": "object"}}]))
    page.set("instructions", "Be brief.")
    begin(page)
    page.wait(lambda: page.all(".call-result"), "the call")
    assert page.text(".call-name") == "weather" and json.loads(page.text(".call-arguments")) == {"city": "Paris"}
    page.find(".call-result").send_keys("Sunny")
    page.find(".calls > button").click()
    page.wait(lambda: page.all(".exchange[data-state=done] .answer:not([hidden])"), "the answer")
    after = next(messages for messages in answers(fake) if messages[-1]["role"] == "tool")
    assert after[0] == {"role": "system", "content": "Be brief."} and after[-1]["content"] == "Sunny"


@pytest.mark.parametrize("page", ["in_writing"], indirect=True)
def test_a_conversation_in_writing_goes_on_aloud(page: Page, fake: FakeClient) -> None:
    """Without any voice: answers are read."""
    page.js("speechSynthesis.getVoices = () => []; speechSynthesis.speak = () => {}")
    page.find(".converse").click()
    page.wait(lambda: "API key" in page.text("#toast"), "what is missing")
    assert page.js("return document.activeElement.name") == "key" and state(page) == "off"
    page.set("key", KEY)
    page.type("My name is Anna.\n")
    page.wait_state("done")
    begin(page)
    page.wait(lambda: len(page.all(".exchange[data-state=done]")) == 2, "the answer")
    first, answer, _ = answers(fake)[-1]
    page.wait(lambda: len(page.all(".exchange[data-state=done]")) == 3, "another answer")
    assert not page.all(".unheard"), "what can be read is not forgotten"
    assert first["content"][0]["text"] == "My name is Anna." and answer["content"][0]["text"] == ANSWER
    assert KEY not in str(page.js("return performance.getEntries().map((entry) => entry.name)"))


@pytest.mark.parametrize("page", ["aloud"], indirect=True)
def test_sound_and_resampling_are_right(page: Page) -> None:
    """A tone stays a tone, at its pitch and loudness, whatever the microphone's rate and the blocks."""
    for rate in (8_000, 16_000, 44_100, 48_000):
        out = page.driver.execute_async_script(
            """
            const [rate, done] = arguments;
            import(new URL("resampler.js", document.baseURI)).then(({ Resampler }) => {
              const resampler = new Resampler(rate, 16000);
              const all = [];
              for (let block = 0; block < 40; block++) {
                const at = (i) => 0.5 * Math.sin((2 * Math.PI * 440 * (1024 * block + i)) / rate);
                all.push(...resampler.push(Float32Array.from({ length: 1024 }, (_, i) => at(i))));
              }
              done(all);
            });
            """,
            rate,
        )
        out = np.array(out)
        assert abs(len(out) - 40 * 1024 * 16_000 / rate) < 100
        expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(len(out)) / 16_000)
        assert np.abs(out - expected)[100:].max() < 0.01


@pytest.mark.parametrize("page", ["aloud"], indirect=True)
@pytest.mark.parametrize("width", [1280, 390, 360])
def test_layout(page: Page, width: int, tmp_path: Any) -> None:
    page.resize(width, 740)
    page.screenshot(tmp_path / "0-empty.png")
    assert page.overflow() == 0
    for selector in (".converse", ".talk", ".send"):
        box = page.find(selector).rect
        assert box["x"] >= 0 and box["x"] + box["width"] <= width, selector
    assert min(page.find(".converse").rect[side] for side in ("width", "height")) >= 44  # a thumb's worth
    begin(page)
    page.wait_state("done")
    page.screenshot(tmp_path / "1-answered.png")
    assert page.overflow() == 0
    for selector in (".dialogue-end", ".dialogue canvas", ".answer"):
        box = page.find(selector).rect
        assert box["x"] >= 0 and box["x"] + box["width"] <= width, selector
    assert page.find(".dialogue-end").rect["height"] >= 44
    page.find("body").send_keys("\ue00c")
    page.wait(lambda: state(page) == "off", "the end")

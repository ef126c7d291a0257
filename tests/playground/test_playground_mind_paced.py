"""The playground when the model speaks while it thinks, against a stand-in for the gateway."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from selenium.webdriver.common.keys import Keys

from browser import Page, browser, needs_browser
from playground_fixture import THOUGHT, FakeGateway, Handler, fake_gateway, opened, pieces, tone

pytestmark = needs_browser

REPORT = {
    "first_spoken_seconds": 0.25,
    "thought_tokens_before": 12,
    "thought_tokens": 42,
    "thought_seconds": 1.5,
    "underruns": 2,
    "silence_seconds": 0.5,
    "segments": [],
}
PAUSE = 0.6  # seconds between two pieces of the answer: the page must take it for one


def interleaves(request: Handler) -> None:
    """Half of the thought, a piece of the answer, the other half, the rest of the answer."""
    half = len(THOUGHT) // 2

    def thinks(text: str) -> None:
        for piece in pieces(text):
            request.event({"reasoning_content": piece})
            time.sleep(0.01)

    def says(text: str) -> None:
        for piece in pieces(text):
            request.event({"content": piece})
            time.sleep(0.01)

    request.begin()
    thinks(THOUGHT[:half])
    says("Well, it comes to 3")
    request.server.proceed.wait()
    thinks(THOUGHT[half:])
    says(".14, that is cer")
    time.sleep(PAUSE)
    says("tain. 好的，我")
    time.sleep(PAUSE)
    says("们走 now")
    request.last(of_choice={"mind_paced_speaking": REPORT})


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with browser(tmp_path_factory.mktemp("chromium"), tone(1, 48000)) as driver:
        yield driver


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    with fake_gateway() as server:
        yield server


@pytest.fixture
def page(driver: Any, gateway: FakeGateway) -> Iterator[Page]:
    with opened(driver, gateway.url) as page:
        page.js("localStorage.clear()")
        driver.refresh()
        page.wait(lambda: page.all("#server[data-state=ready]"), "the server's state")
        page.js("window.said = []; speechSynthesis.speak = (utterance) => said.push(utterance.text)")
        yield page


def choose(page: Page, mode: str) -> None:
    """By keyboard, from the choice that is checked."""
    page.js("document.querySelector('[name=pace]:checked').focus()")
    order = ["off", "think_first", "speak_first"]
    now = page.js("return document.activeElement.value")
    steps = order.index(mode) - order.index(now)
    for _ in range(abs(steps)):
        page.js("return document.activeElement").send_keys(Keys.ARROW_RIGHT if steps > 0 else Keys.ARROW_LEFT)
    assert page.js("return document.querySelector('[name=pace]:checked').value") == mode


def test_the_answer_begins_while_the_thought_goes_on(page: Page, gateway: FakeGateway) -> None:
    gateway.script = interleaves
    gateway.proceed.clear()
    choose(page, "think_first")
    page.set("aloud", True)
    page.type("Hello" + Keys.ENTER)
    page.wait(lambda: page.text(".answer") == "Well, it comes to 3", "the first piece")
    assert page.find(".answer").is_displayed() and page.find("details.thought").get_property("open")
    half = page.text(".thought-text")
    assert half and half != THOUGHT
    # In the pause all whole words are said, and not the figure, which may go on.
    page.wait(lambda: " ".join(page.js("return said")) == "Well, it comes to", "the voice")
    page.wait(lambda: page.text(".thought-title") == "Thought", "the thought to pause")
    gateway.proceed.set()
    page.wait(lambda: page.text(".thought-title") == "Thinking", "the thought to go on")
    assert page.find(".exchange").get_attribute("data-state") == "answering"
    page.wait(lambda: page.text(".thought-text") == THOUGHT, "the rest of the thought")
    assert page.find("details.thought").get_property("open")
    page.wait_state("done")
    assert page.text(".answer") == "Well, it comes to 3.14, that is certain. 好的，我们走 now"
    assert not page.find("details.thought").get_property("open")
    said = page.js("return said")
    assert "".join(said).replace(" ", "") == page.text(".answer").replace(" ", "")
    assert not {"3", "3.", ".14", "cer", "tain."} & {word for text in said for word in text.split()}
    assert len(said) < 10  # by pieces and clauses, not by letters
    shown = page.facts()
    assert shown["first spoken"] == "0.25 s" and shown["thought before"] == "12 tokens"
    assert shown["underruns"] == "2 · 0.50 s"
    assert "thinking and answering" in page.find(".strip").get_attribute("aria-label")


def test_what_is_sent(page: Page, gateway: FakeGateway) -> None:
    defaults = {"think_tokens": 80, "speak_tokens": 20, "speech_rate": 6.25}

    def sent(number: int) -> dict[str, Any] | None:
        page.type("Hello" + Keys.ENTER)
        page.wait(lambda: len(page.all(".exchange[data-state=done]")) == number, "the answer")
        return gateway.bodies[-1].get("mind_paced_speaking")

    assert sent(1) is None
    assert "first spoken" not in page.facts()
    assert not page.find("#think_tokens").is_displayed()
    choose(page, "speak_first")
    assert all(page.find(f"#{name}").is_displayed() for name in defaults)
    assert sent(2) == {"mode": "speak_first"} | defaults
    choose(page, "think_first")
    for name, value in {"think_tokens": "12", "speak_tokens": "3", "speech_rate": "12.5"}.items():
        page.set(name, value)
    assert page.text("[name=speech_rate_shown]") == "12.5 tokens/s"
    assert sent(3) == {"mode": "think_first", "think_tokens": 12, "speak_tokens": 3, "speech_rate": 12.5}
    page.set("thinking", "off")  # there is no thought to speak from
    assert not page.find("#pace").is_displayed()
    assert sent(4) is None


def test_the_sliders_begin_where_the_model_wants_them(page: Page, gateway: FakeGateway) -> None:
    gateway.pace = {"think_tokens": 16, "speak_tokens": 2}
    page.driver.refresh()
    page.wait(lambda: page.find("#think_tokens").get_property("value") == "16", "the model's own")
    choose(page, "speak_first")
    page.set("speak_tokens", "5")
    gateway.pace = {"think_tokens": 32, "speak_tokens": 4}
    page.driver.refresh()
    page.wait(lambda: page.find("#think_tokens").get_property("value") == "32", "the next model's")
    assert page.find("#speak_tokens").get_property("value") == "5"  # what was chosen stays chosen


def test_a_phone_has_room_for_it(page: Page, gateway: FakeGateway) -> None:
    gateway.script = interleaves
    page.resize(360, 640)
    page.set("pace", "speak_first")
    page.find("#settings-toggle").click()
    page.wait_at_rest("#settings")
    for name in ("think_tokens", "speak_tokens", "speech_rate"):
        box = page.find(f"#{name}").rect
        assert box["x"] >= 0 and box["x"] + box["width"] <= 360
    for label in page.all("#pace .segments span"):
        assert label.size["height"] < 40, label.text  # in one line
    assert page.overflow() == 0
    page.find("body").send_keys(Keys.ESCAPE)
    page.wait(lambda: not page.find("#settings").is_displayed(), "the drawer to close")
    page.type("Hello" + Keys.ENTER)
    page.wait_state("done")
    assert page.overflow() == 0

"""The playground in a real browser: history, settings, tools, speech, errors, layout."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from browser import Page, needs_browser
from playground_fixture import ANSWER, PLAYGROUND, FakeGateway, Handler, thinks_and_answers
from step_audio.sampling_parameters import PARAMETERS

pytestmark = needs_browser


def test_history_has_no_thought(page: Page, gateway: FakeGateway) -> None:
    page.set("instructions", "Be brief.")
    for question in ("First?", "Second?"):
        page.type(question + Keys.ENTER)
        page.wait(lambda: page.all(".exchange:last-child[data-state=done]"), "the answer")
    page.wait(lambda: len(page.all(".exchange[data-state=done]")) == 2, "both answers")
    assert gateway.bodies[1]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "First?"},
        {"role": "assistant", "content": ANSWER},
        {"role": "user", "content": "Second?"},
    ]
    assert "tuning fork" not in json.dumps(gateway.bodies)
    page.find("#start-over").click()
    assert not page.all(".exchange")
    page.type("Third?" + Keys.ENTER)
    page.wait_state("done")
    assert len(gateway.bodies[2]["messages"]) == 2


def test_settings_reach_the_request_and_survive_a_reload(page: Page, gateway: FakeGateway) -> None:
    page.set("thinking", "budget")
    page.set("budget", "3")
    page.set("temperature", "0")
    page.set("top_p", "0.9")
    page.set("min_p", "0.05")
    page.set("max_tokens", "77")
    page.set("seed", "5")
    page.set("key", "secret")
    page.driver.refresh()
    page.wait(lambda: page.all("#server[data-state=ready]"), "the server's state")
    page.type("Hello" + Keys.ENTER)
    page.wait_state("done")
    body = gateway.bodies[0]
    assert body["thinking"] == {"mode": "on", "budget_tokens": 128}
    assert [body[name] for name in ("temperature", "top_p", "min_p", "max_tokens", "seed")] == [0, 0.9, 0.05, 77, 5]
    assert body["model"] == "step-audio-r1.1"
    assert gateway.keys == ["Bearer secret"]
    assert "secret" not in page.js("return JSON.stringify(localStorage)")
    page.set("thinking", "off")
    page.type("Again" + Keys.ENTER)
    page.wait(lambda: len(page.all(".exchange[data-state=done]")) == 2, "the second answer")
    assert gateway.bodies[1]["thinking"] == {"mode": "off"}


def test_the_chosen_model_survives_a_reload(page: Page, gateway: FakeGateway) -> None:
    gateway.models = ["one", "two"]
    for _ in range(2):
        page.driver.refresh()
        page.wait(lambda: len(page.all("#model option")) == 2, "the choice of models")
        page.type("Hello" + Keys.ENTER)
        page.wait_state("done")
        page.set("model", "two")
    assert [body["model"] for body in gateway.bodies] == ["one", "two"]


def test_controls_are_the_list_s_and_reset_puts_them_back(page: Page, gateway: FakeGateway) -> None:
    defaults = "return SAMPLING.map(({name}) => [name, document.getElementById(name).value])"
    shown = page.js(defaults.replace("SAMPLING", "[...document.querySelectorAll('#sampling input')]"))
    assert {name for name, _ in shown} == {one.name for one in PARAMETERS if one.control}
    expected = {"max_tokens": "", "temperature": "0.7", "top_p": "1", "min_p": "0", "seed": ""}
    assert expected.items() <= dict(shown).items()
    for name, value in (("temperature", "1.5"), ("min_p", "0.3"), ("seed", "9")):
        page.set(name, value)
    page.js("document.querySelector('#settings-form [type=reset]').click()")
    assert page.js(defaults.replace("SAMPLING", "[...document.querySelectorAll('#sampling input')]")) == shown
    page.set("max_tokens", "0")
    page.type("Hello" + Keys.ENTER)
    page.wait_state("failed")
    assert page.text(".exchange:last-child .trouble").startswith("Max tokens: ")


def test_what_the_served_model_does_not_take_is_not_offered(page: Page, gateway: FakeGateway) -> None:
    page.set("min_p", "0.3")
    assert page.find("#min_p").is_displayed()
    gateway.parameters = ["max_tokens", "temperature", "top_p", "seed"]
    page.driver.refresh()
    page.wait(lambda: page.all("#server[data-state=ready]"), "the server's state")
    assert not page.find("#min_p").is_displayed() and page.find("#top_p").is_displayed()
    page.type("Hello" + Keys.ENTER)
    page.wait_state("done")
    assert "min_p" not in gateway.bodies[0] and gateway.bodies[0]["top_p"] == 1


def test_space_scrolls_a_thought_that_has_the_focus(page: Page, gateway: FakeGateway) -> None:
    gateway.script = partial(thinks_and_answers, thought="On and on.\n" * 200)
    page.type("Hello" + Keys.ENTER)
    page.wait_state("done")
    page.find("details.thought summary").click()
    page.js("const text = document.querySelector('.thought-text'); text.scrollTop = 0; text.focus()")
    ActionChains(page.driver).send_keys(Keys.SPACE).perform()
    page.wait(lambda: page.js("return document.querySelector('.thought-text').scrollTop") > 0, "the thought to scroll")
    assert page.find("#composer").get_attribute("data-talk") == "idle"


def test_tool_call_is_shown_and_its_result_returned(page: Page, gateway: FakeGateway) -> None:
    def calls(request: Handler) -> None:
        request.begin()
        request.event({"reasoning_content": "I need the weather."})
        call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city"'}}
        request.event({"tool_calls": [call]})
        request.event({"tool_calls": [{"index": 0, "function": {"arguments": ': "Wien"}'}}]})
        request.last("tool_calls")

    tool = {"name": "weather", "parameters": {"type": "object"}}
    page.set("tools", "{")
    assert "not JSON" in page.text("[name=tools_shown]")
    page.set("tools", json.dumps([tool]))
    assert page.text("[name=tools_shown]") == "1 tool"
    gateway.script = calls
    page.type("Weather?" + Keys.ENTER)
    page.wait_state("done")
    assert page.text(".call-name") == "weather"
    assert json.loads(page.text(".call-arguments")) == {"city": "Wien"}
    gateway.script = thinks_and_answers
    page.find(".call-result").send_keys("Sunny")
    page.find(".calls > button").click()
    page.wait(lambda: len(page.all(".exchange[data-state=done]")) == 2, "the answer")
    first, second = gateway.bodies
    assert first["tools"] == [{"type": "function", "function": tool}] and first["tool_choice"] == "auto"
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Wien"}'}}
    assert second["messages"][-2:] == [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "Sunny"},
    ]


def test_reads_the_answer_aloud_by_the_sentence(page: Page, gateway: FakeGateway) -> None:
    gateway.script = partial(thinks_and_answers, answer="It is 3.14 long. Is that so? 是的。好 Yes")
    page.js("window.said = []; speechSynthesis.speak = (utterance) => said.push([utterance.text, utterance.lang])")
    page.type("Quietly" + Keys.ENTER)
    page.wait_state("done")
    assert page.js("return said") == []
    page.set("aloud", True)
    page.type("Aloud" + Keys.ENTER)
    page.wait(lambda: len(page.all(".exchange[data-state=done]")) == 2, "the answer")
    said = page.js("return said")
    assert said[0] == ["It is 3.14 long.", ""] and said[-1] == ["好 Yes", "zh-CN"]
    assert " ".join(text for text, _ in said) == "It is 3.14 long. Is that so? 是的。 好 Yes"


def test_the_empty_page_says_what_the_served_model_can_do(page: Page, gateway: FakeGateway) -> None:
    assert len(page.all(".idea")) == 4 and not page.find(".say").is_displayed()
    gateway.suggestions = {"say": ["What is two plus two?", "Hello"], "ask": ["High or low?", "<b>Loud?</b>"]}
    page.driver.refresh()
    page.wait(lambda: page.all("#server[data-state=ready]"), "the server's state")
    assert page.find(".say").text == "Say What is two plus two?, or Hello."  # in quotation marks of the style's
    assert page.texts(".idea") == ["High or low?", "<b>Loud?</b>"]
    page.find(".idea").click()
    assert page.find("#composer textarea").get_attribute("value") == "High or low?"


def test_a_rate_is_told_where_there_is_one(page: Page, gateway: FakeGateway) -> None:
    def at_once(request: Handler) -> None:
        request.begin()
        request.event({"content": ANSWER})
        request.last()

    page.type("By and by" + Keys.ENTER)
    page.wait_state("done")
    assert "tokens/s" in page.facts()
    gateway.script = at_once
    page.type("At once" + Keys.ENTER)
    page.wait(lambda: len(page.all(".exchange[data-state=done]")) == 2, "the answer")
    facts = page.facts(".exchange:last-child")
    assert "answer tokens" in facts and "tokens/s" not in facts


def test_errors_are_short_messages(page: Page, gateway: FakeGateway) -> None:
    def refuses(status: int, message: str, headers: dict[str, str] | None = None) -> Callable[[Handler], None]:
        return lambda request: request.reply(status, {"error": {"message": message, "type": "x"}}, headers)

    def breaks(request: Handler) -> None:
        request.begin()
        request.event({"content": "Half an ans"})

    def fails_inside(request: Handler) -> None:
        request.begin()
        request.event(error={"message": "The engine was restarted."})

    for script, message in (
        (refuses(400, "temperature must not exceed 2"), "temperature must not exceed 2"),
        (refuses(429, "The queue is full.", {"Retry-After": "7"}), "The queue is full. Try again in 7 s."),
        (refuses(401, "no"), "This server wants an API key. Put it into the settings."),
        (breaks, "The connection ended before the answer did."),
        (fails_inside, "The engine was restarted."),
    ):
        gateway.script = script
        page.type("Hello" + Keys.ENTER)
        page.wait_state("failed")
        assert page.text(".exchange:last-child .trouble").startswith(message)
        if "API key" in message:
            assert page.js("return document.activeElement.name") == "key"
    assert page.text(".exchange:nth-child(4) .answer") == "Half an ans"
    assert [message["role"] for message in gateway.bodies[-1]["messages"]] == ["user"]  # a fragment is no answer
    gateway.script = thinks_and_answers
    page.find(".exchange:last-child .note button").click()
    page.wait_state("done")
    page.set("key", "schlüssel→")
    page.type("Hello" + Keys.ENTER)
    page.wait_state("failed")
    assert page.text(".exchange:last-child .trouble").startswith("The API key has characters that no key can have.")


def test_what_is_amiss_with_recordings_is_shown_with_their_own_reply(page: Page, gateway: FakeGateway) -> None:
    """Indices count the recordings of all messages, those of earlier exchanges, too."""
    lost = "0.42 s of it are missing or could not be decoded"

    def ask(clips: int, *indices: int) -> list[str]:
        warnings = [{"index": index, "lost_seconds": 0.42, "text": lost} for index in indices]
        gateway.script = partial(thinks_and_answers, warnings=warnings)
        for number in range(clips):
            page.hold(1)
            page.wait(lambda most=number + 1: len(page.all(".tray .clip")) == most, "the clip")
        page.type("What is it?")
        before = len(page.all(".exchange"))
        page.find(".send").click()
        page.wait(lambda: len(page.all(".exchange[data-state=done]")) == before + 1, "the reply")
        return page.texts(".exchange:last-child .warnings p")

    page.set("auto", False)
    assert ask(1, 0) == [f"The recording: {lost}."]
    assert ask(2, 0, 2) == [f"Recording 2: {lost}."]
    assert ask(0, 0, 2) == [] and not page.find(".exchange:last-child .warnings").is_displayed()


LONG_THOUGHT = (
    "The recording is 27 seconds of speech over faint room noise. A woman, thirties perhaps, speaks quickly; her pitch "
    "rises at the end of most phrases and the breaths between them are short.\n\nShe asks how many apples are left: "
    "twelve, minus a third, minus two more. A third of twelve is four, so eight remain, and then six.\n\nThere is a "
    "smile in the vowels, so I should not read the haste as distress. "
)
LONG_ANSWER = (
    "Six apples are left: twelve minus a third is eight, minus two is six.\n\nShe sounds hurried but cheerful. Her "
    "pitch rises at the ends of phrases and you can hear the smile in her vowels."
)


@pytest.mark.parametrize(
    ("width", "height", "scheme"), [(1280, 800, "light"), (390, 844, "light"), (390, 844, "dark"), (360, 640, "dark")]
)
def test_layout(page: Page, gateway: FakeGateway, tmp_path: Path, width: int, height: int, scheme: str) -> None:
    gateway.script = partial(thinks_and_answers, thought=LONG_THOUGHT, answer=LONG_ANSWER)
    page.resize(width, height)
    page.scheme(scheme)
    page.screenshot(tmp_path / "0-empty.png")
    assert page.overflow() == 0
    page.set("auto", False)
    page.hold(1)
    page.wait(lambda: page.all(".tray .clip"), "the clip")
    page.type("How many are left, and how does she feel?")
    page.screenshot(tmp_path / "1-composed.png")
    gateway.proceed.clear()
    page.find(".send").click()
    page.wait(lambda: "rises at the end" in page.text(".thought-text"), "half the thought")
    page.screenshot(tmp_path / "2-thinking.png")
    assert page.overflow() == 0
    gateway.proceed.set()
    page.wait_state("done")
    page.wait_at_rest(".exchange:last-child")
    page.screenshot(tmp_path / "3-answered.png")
    assert page.overflow() == 0
    for selector in (".talk", ".send", ".attach", "#composer", ".answer", ".facts"):
        box = page.find(selector).rect
        assert box["x"] >= 0 and box["x"] + box["width"] <= width, selector
    composer = page.find("#composer").rect
    assert composer["y"] + composer["height"] <= height
    assert page.find(".talk").rect["height"] >= 44  # a thumb's worth
    if width < 1080:
        page.find("#settings-toggle").click()
        page.wait_at_rest("#settings")
        page.screenshot(tmp_path / "4-settings.png")
        assert page.overflow() == 0
        for _ in range(40):  # all the way round: what lies behind the drawer has no focus
            ActionChains(page.driver).send_keys(Keys.TAB).perform()
            assert not page.js("return document.activeElement.closest('main, header')")
        assert page.find("#settings").rect["x"] + page.find("#settings").rect["width"] == width
        page.find("body").send_keys(Keys.ESCAPE)
        page.wait(lambda: not page.find("#settings").is_displayed(), "the drawer to close")
        assert page.js("return document.activeElement.id") == "settings-toggle"


def test_page_asks_nobody_else() -> None:
    for file in PLAYGROUND.iterdir():
        source = file.read_text()
        addresses = set(re.findall(r"https?://[^\s\"'`]+", source))
        assert addresses <= {"http://www.w3.org/2000/svg"}, file.name  # the name of a language, not a place
        assert "innerHTML" not in source and "insertAdjacentHTML" not in source, file.name
        assert file.suffix != ".html" or not re.search(
            r"\son\w+=|\sstyle=|<style|<script(?! type=\"module\" src)", source
        )

"""The playground in a real browser, against a stand-in for the gateway that streams what the test gives it."""

from __future__ import annotations

import base64
import io
import json
import re
import time
import wave
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playground_fixture import (
    ANSWER,
    PLAYGROUND,
    THOUGHT,
    TONE_HZ,
    FakeGateway,
    Handler,
    fake_gateway,
    opened,
    thinks_and_answers,
    tone,
)
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from browser import Page, browser, needs_browser

pytestmark = needs_browser


def never_ends(request: Handler) -> None:
    request.begin()
    try:
        while True:
            request.event({"reasoning_content": "On and on. "})
            time.sleep(0.02)
    except OSError:
        request.server.hung_up.set()


def falls_silent(request: Handler) -> None:
    request.begin()
    request.event({"reasoning_content": "On and on. On and on."})
    if not request.connection.recv(1):  # as after a FIN
        request.server.hung_up.set()


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    with fake_gateway() as server:
        yield server


def read_wav(data: bytes) -> tuple[np.ndarray, int]:
    with wave.open(io.BytesIO(data)) as file:
        assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
        frames = file.readframes(file.getnframes())
        assert len(frames) == 2 * file.getnframes(), "the header promises another length"
        return np.frombuffer(frames, "<i2") / 32768, file.getframerate()


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with browser(tmp_path_factory.mktemp("chromium"), tone(5, 48000)) as driver:
        yield driver


@pytest.fixture
def page(driver: Any, gateway: FakeGateway) -> Iterator[Page]:
    with opened(driver, gateway) as page:
        yield page


def parts(body: dict[str, Any], kind: str) -> list[Any]:
    return [part[kind] for part in body["messages"][-1]["content"] if part["type"] == kind]


def test_records_sends_and_shows_thought_then_answer(page: Page, gateway: FakeGateway) -> None:
    gateway.proceed.clear()
    began = time.monotonic()
    page.hold(1.2)
    page.wait_state("thinking")
    page.wait(lambda: "steady tone" in page.text(".thought-text"), "the thought")
    assert page.find("details.thought").get_property("open")
    assert not page.find(".answer").is_displayed()
    assert "≈" in page.text(".thought-count")
    gateway.proceed.set()
    page.wait_state("done")
    assert page.text(".thought-text") == THOUGHT
    assert page.text(".answer") == ANSWER  # markup is text
    assert not page.find("details.thought").get_property("open")
    assert "42 tokens" in page.text(".thought-count")
    names, values = ([cell.text for cell in page.all(f".facts {tag}")] for tag in ("dt", "dd"))
    facts = dict(zip(names, values, strict=True))
    assert facts.items() >= {"audio tokens": "27", "text in": "48", "answer tokens": "18"}.items()
    assert float(facts["first thought"].split()[0]) < float(facts["first answer"].split()[0])
    assert page.text("#status") == f"Answer: {ANSWER}"

    (body,) = gateway.bodies
    (audio,) = parts(body, "input_audio")
    samples, rate = read_wav(base64.b64decode(audio["data"]))
    assert audio["format"] == "wav" and rate == 16000
    assert 0.5 < len(samples) / rate < time.monotonic() - began
    middle = samples[len(samples) // 4 : -len(samples) // 4]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    assert np.abs(samples).max() > 0.05
    assert abs(np.argmax(spectrum) * rate / len(middle) - TONE_HZ) < 5
    assert body["stream"] and body["stream_options"] == {"include_usage": True}
    assert body["thinking"] == {"mode": "on"} and body["temperature"] == 0.7
    assert "max_tokens" not in body and "seed" not in body and "tools" not in body


def test_space_and_click_record_and_escape_discards(page: Page, gateway: FakeGateway) -> None:
    page.set("auto", False)
    ActionChains(page.driver).key_down(Keys.SPACE).perform()
    page.wait_recording()
    time.sleep(0.5)
    ActionChains(page.driver).key_up(Keys.SPACE).perform()
    page.wait(lambda: len(page.all(".tray .clip")) == 1, "the first clip")
    page.find(".talk").click()
    page.wait_recording()
    time.sleep(0.5)
    page.find(".talk").click()
    page.wait(lambda: len(page.all(".tray .clip")) == 2, "the second clip")
    page.find(".talk").click()
    page.wait_recording()
    page.find("body").send_keys(Keys.ESCAPE)
    page.wait(lambda: page.all("#composer[data-talk=idle]"), "the end of the recording")
    page.type("two of them")  # the space is only a space here
    assert page.find("#composer").get_attribute("data-talk") == "idle"
    assert len(page.all(".tray .clip")) == 2
    page.find(".tray .clip [aria-label^=Remove]").click()
    page.type(Keys.ENTER)
    page.wait_state("done")
    assert len(parts(gateway.bodies[0], "input_audio")) == 1
    assert parts(gateway.bodies[0], "text") == ["two of them"]


@pytest.mark.parametrize(("how", "script"), [("button", never_ends), ("escape", falls_silent)])
def test_stops_a_long_reply(page: Page, gateway: FakeGateway, how: str, script: Callable[[Handler], None]) -> None:
    gateway.script = script
    page.type("Think" + Keys.ENTER)
    page.wait(lambda: "On and on. On and on." in page.text(".thought-text"), "the thought")
    assert page.find(".send").get_attribute("aria-label") == "Stop (Esc)"
    if how == "button":
        page.find(".send").click()
    else:
        page.find("body").send_keys(Keys.ESCAPE)
    assert gateway.hung_up.wait(10)
    page.wait_state("stopped")
    assert "Stopped." in page.text(".note")
    gateway.script = thinks_and_answers
    page.find(".note button").click()
    page.wait_state("done")
    assert page.text(".thought-text") == THOUGHT
    assert gateway.bodies[1]["messages"] == [{"role": "user", "content": "Think"}]


def test_dropped_and_chosen_files_travel_as_they_are(page: Page, gateway: FakeGateway, tmp_path: Path) -> None:
    (tmp_path / "chosen.wav").write_bytes(tone(0.5, 8000))
    (tmp_path / "undecodable.amr").write_bytes(b"#!AMR\nnot really")
    files = f"{tmp_path / 'chosen.wav'}\n{tmp_path / 'undecodable.amr'}"
    page.find("#composer [name=files]").send_keys(files)
    page.wait(lambda: len(page.all(".tray .clip")) == 2, "the chosen files")
    dropped = base64.b64encode(tone(3)).decode()
    page.js(
        "const transfer = new DataTransfer(); const bytes = Uint8Array.from(atob(arguments[0]), c => c.charCodeAt(0));"
        "transfer.items.add(new File([bytes], 'dropped.wav', {type: 'audio/wav'}));"
        "transfer.items.add(new File(['x'], 'notes.pdf', {type: 'application/pdf'}));"
        "for (const type of ['dragenter', 'dragover', 'drop'])"
        "  document.body.dispatchEvent(new DragEvent(type, {dataTransfer: transfer, bubbles: true, cancelable: true}))",
        dropped,
    )
    page.wait(lambda: len(page.all(".tray .clip")) == 3, "the dropped file")
    page.wait(lambda: "notes.pdf is not a recording" in page.text("#toast"), "the message about the PDF")
    assert page.find("body").get_attribute("data-drop") == "false"
    assert [clip.text for clip in page.all(".tray .clip-time")] == ["0:00", "amr", "0:03"]
    page.find(".tray .clip:nth-child(3) button").click()
    page.wait(lambda: page.all(".tray .clip:nth-child(3) [aria-label^=Pause]"), "playback")
    page.type("Compare" + Keys.ENTER)
    page.wait_state("done")
    sent = parts(gateway.bodies[0], "input_audio")
    assert [audio["format"] for audio in sent] == ["wav", "amr", "wav"]
    assert base64.b64decode(sent[0]["data"]) == tone(0.5, 8000)
    assert sent[2]["data"] == dropped


def test_waveform_shows_what_is_loud(page: Page) -> None:
    rate = 16000
    samples = np.concatenate([np.zeros(rate), 0.5 * np.sin(np.arange(rate) * 0.3)])
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((1, 2, rate, 0, "NONE", ""))
        out.writeframes((samples * 32767).astype("<i2").tobytes())
    page.js(
        "const bytes = Uint8Array.from(atob(arguments[0]), c => c.charCodeAt(0)); const t = new DataTransfer();"
        "t.items.add(new File([bytes], 'half.wav', {type: 'audio/wav'}));"
        "document.body.dispatchEvent(new DragEvent('drop', {dataTransfer: t, bubbles: true, cancelable: true}))",
        base64.b64encode(file.getvalue()).decode(),
    )
    page.wait(lambda: page.all(".tray .clip"), "the clip")
    time.sleep(0.3)
    silent, loud = page.js(
        "const c = document.querySelector('.tray canvas'); const w = c.width >> 1; const g = c.getContext('2d');"
        "const painted = x => g.getImageData(x, 0, w, c.height).data.filter((v, i) => i % 4 === 3 && v > 0).length;"
        "return [painted(0), painted(w)]"
    )
    assert loud > 4 * silent > 0


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
    page.set("max_tokens", "77")
    page.set("seed", "5")
    page.set("key", "secret")
    page.driver.refresh()
    page.wait(lambda: page.all("#server[data-state=ready]"), "the server's state")
    page.type("Hello" + Keys.ENTER)
    page.wait_state("done")
    body = gateway.bodies[0]
    assert body["thinking"] == {"mode": "on", "budget_tokens": 128}
    assert [body[name] for name in ("temperature", "top_p", "max_tokens", "seed")] == [0, 0.9, 77, 5]
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
    time.sleep(0.3)
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
        time.sleep(0.4)
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

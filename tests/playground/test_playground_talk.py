"""The playground in a real browser: the microphone, files, and replies that are stopped."""

from __future__ import annotations

import base64
import io
import time
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from browser import Page, needs_browser
from playground_fixture import ANSWER, THOUGHT, TONE_HZ, FakeGateway, Handler, thinks_and_answers, tone
from step_audio.audio import encode_wav
from step_audio.clips import SAMPLE_RATE
from step_audio.containers import ADVICE, EXTENSIONS, MIME_TYPES
from waiting import SECONDS

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


def read_wav(data: bytes) -> tuple[np.ndarray, int]:
    with wave.open(io.BytesIO(data)) as file:
        assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
        frames = file.readframes(file.getnframes())
        assert len(frames) == 2 * file.getnframes(), "the header promises another length"
        return np.frombuffer(frames, "<i2") / 32768, file.getframerate()


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
    facts = page.facts()
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
    assert gateway.hung_up.wait(SECONDS)
    page.wait_state("stopped")
    assert "Stopped." in page.text(".note:not(.warnings)")
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
        "for (const [name, type] of [['old.ra', 'audio/x-realaudio'], ['notes.pdf', 'application/pdf']])"
        "  transfer.items.add(new File(['x'], name, {type}));"
        "for (const type of ['dragenter', 'dragover', 'drop'])"
        "  document.body.dispatchEvent(new DragEvent(type, {dataTransfer: transfer, bubbles: true, cancelable: true}))",
        dropped,
    )
    page.wait(lambda: len(page.all(".tray .clip")) == 3, "the dropped file")
    page.wait(lambda: "notes.pdf is not a recording" in page.text("#toast"), "the message about the PDF")
    assert ADVICE in page.text("#toast")
    accept = page.find("#composer [name=files]").get_attribute("accept").split(",")
    assert accept == [*MIME_TYPES, *(f".{extension}" for extension in EXTENSIONS)]
    assert page.find("body").get_attribute("data-drop") == "false"
    assert page.texts(".tray .clip-time") == ["0:00", "amr", "0:03"]
    page.find(".tray .clip:nth-child(3) button").click()
    page.wait(lambda: page.all(".tray .clip:nth-child(3) [aria-label^=Pause]"), "playback")
    page.type("Compare" + Keys.ENTER)
    page.wait_state("done")
    sent = parts(gateway.bodies[0], "input_audio")
    assert [audio["format"] for audio in sent] == ["wav", "amr", "wav"]
    assert base64.b64decode(sent[0]["data"]) == tone(0.5, 8000)
    assert sent[2]["data"] == dropped


def test_waveform_shows_what_is_loud(page: Page) -> None:
    half = encode_wav(np.concatenate([np.zeros(SAMPLE_RATE), 0.5 * np.sin(np.arange(SAMPLE_RATE) * 0.3)]))
    page.js(
        "const bytes = Uint8Array.from(atob(arguments[0]), c => c.charCodeAt(0)); const t = new DataTransfer();"
        "t.items.add(new File([bytes], 'half.wav', {type: 'audio/wav'}));"
        "document.body.dispatchEvent(new DragEvent('drop', {dataTransfer: t, bubbles: true, cancelable: true}))",
        base64.b64encode(half).decode(),
    )
    page.wait(lambda: page.all(".tray .clip canvas"), "the clip")
    painted = (
        "const c = document.querySelector('.tray canvas'); const w = c.width >> 1; const g = c.getContext('2d');"
        "const painted = x => g.getImageData(x, 0, w, c.height).data.filter((v, i) => i % 4 === 3 && v > 0).length;"
        "return [painted(0), painted(w)]"
    )
    page.wait(lambda: page.js(painted)[1], "the drawing")
    silent, loud = page.js(painted)
    assert loud > 4 * silent > 0

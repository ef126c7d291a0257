"""A real browser on the playground, in the words of a user."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(
    not (CHROMIUM and CHROMEDRIVER), reason="needs a browser: apt-get install chromium chromium-driver"
)


class Page:
    """The browser, in the words of a user."""

    def __init__(self, driver: Any):
        self.driver = driver

    def find(self, selector: str) -> Any:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        """All of it, folded away or not; empty as long as there is no such element."""
        return "".join(self.texts(selector)[:1])

    def texts(self, selector: str) -> list[str]:
        """Of all such elements, at one moment: the page may draw them anew at the next."""
        script = "return Array.from(document.querySelectorAll(arguments[0]), (found) => found.textContent)"
        found: list[str] = self.js(script, selector)
        return found

    def facts(self, exchange: str = ".exchange") -> dict[str, str]:
        """What is told below a reply, by name."""
        script = (
            "return Array.from(document.querySelectorAll(arguments[0]), ({children}) =>"
            "  [children[0].textContent, children[1].textContent])"
        )
        return dict(self.js(script, f"{exchange} .facts div"))

    def js(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def wait(self, condition: Callable[[], Any], what: str, seconds: float = 60) -> Any:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with suppress(StaleElementReferenceException):  # drawn anew while it was looked at
                if value := condition():
                    return value
            time.sleep(0.03)
        raise AssertionError(f"waited in vain for {what}; the page says: {self.find('main').text!r}")

    def wait_at_rest(self, selector: str) -> None:
        """Until its transitions are over."""
        running = "return document.querySelector(arguments[0]).getAnimations({subtree: true}).length"
        self.wait(lambda: self.find(selector).is_displayed() and not self.js(running, selector), f"{selector} to rest")

    def wait_state(self, state: str) -> None:
        self.wait(lambda: self.all(f".exchange:last-child[data-state={state}]"), f"a reply that is {state}")

    def type(self, text: str) -> None:
        self.find("#composer textarea").send_keys(text)

    def set(self, name: str, value: Any) -> None:
        """Fills a field of the settings, wherever the layout has put it."""
        self.js(
            "const field = document.querySelector('#settings-form').elements[arguments[0]];"
            "if (field.type === 'checkbox') field.checked = arguments[1]; else field.value = arguments[1];"
            "(field[0] ?? field).dispatchEvent(new Event('input', {bubbles: true}))",
            name,
            value,
        )

    def resize(self, width: int, height: int) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def scheme(self, name: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": name}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def hold(self, seconds: float) -> None:
        """Holds the talk button; the clock starts once the microphone is open."""
        button = self.find(".talk")
        ActionChains(self.driver).move_to_element(button).click_and_hold().perform()
        self.wait_recording()
        time.sleep(seconds)
        ActionChains(self.driver).release().perform()

    def wait_recording(self) -> None:
        self.wait(lambda: self.all("#composer[data-talk=recording]"), "the microphone")

    def screenshot(self, path: Path) -> None:
        assert self.driver.save_screenshot(str(path))

    def overflow(self) -> int:
        """By how many pixels the page is wider than the window."""
        return self.js("return document.documentElement.scrollWidth - document.documentElement.clientWidth")


@contextmanager
def browser(folder: Path, microphone: bytes) -> Iterator[Any]:
    """Chromium without a screen; its fake microphone plays the WAV file `microphone`, again and again."""
    (folder / "microphone.wav").write_bytes(microphone)
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={folder / 'profile'}",
        "--force-prefers-reduced-motion",
        "--window-size=1280,800",
        "--autoplay-policy=no-user-gesture-required",
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={folder / 'microphone.wav'}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(CHROMEDRIVER))
    try:
        yield driver
    finally:
        driver.quit()

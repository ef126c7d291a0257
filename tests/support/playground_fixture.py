"""A stand-in for the gateway that streams what a test gives it, and the playground opened on it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from browser import Page
from paths import ROOT
from step_audio.audio import encode_wav
from step_audio.sampling_parameters import PARAMETERS
from step_audio_gateway.page import offers_module

PLAYGROUND = ROOT / "gateway" / "step_audio_gateway" / "playground"
TONE_HZ = 440.0  # what the browser's fake microphone hears
POLICY = (  # the strictest the page can live with
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; media-src blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
THOUGHT = "The speaker holds one steady tone. No words, no melody: a tuning fork, perhaps. "
ANSWER = "A single tone at 440 Hz. <b>Nothing</b> else."
USAGE = {
    "prompt_tokens": 75,
    "completion_tokens": 60,
    "prompt_tokens_details": {"audio_tokens": 27},
    "completion_tokens_details": {"reasoning_tokens": 42},
}


class FakeGateway(ThreadingHTTPServer):
    """Serves the page under a strict policy; `script` says how the next chat request is answered."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(PLAYGROUND)))
        self.models = ["step-audio-r1.1"]
        self.parameters = [one.name for one in PARAMETERS]
        self.pace = {"think_tokens": 80, "speak_tokens": 20}
        self.suggestions: dict[str, list[str]] = {}
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.hung_up = threading.Event()
        self.proceed = threading.Event()  # cleared: a reply pauses half-way through its thought
        self.proceed.set()
        self.script: Callable[[Handler], None] = thinks_and_answers

    def describe(self, name: str) -> dict[str, Any]:
        told = {"mind_paced_speaking": self.pace, "suggestions": self.suggestions}
        return {"id": name, "object": "model", "supported_parameters": self.parameters} | told

    @property
    def url(self) -> str:
        return f"http://localhost:{self.server_port}/"  # browsers lend the microphone to localhost


class Handler(SimpleHTTPRequestHandler):
    server: FakeGateway

    def end_headers(self) -> None:
        self.send_header("Content-Security-Policy", POLICY)
        super().end_headers()

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self.reply(200, {"data": [self.server.describe(id_) for id_ in self.server.models]})
        elif self.path == "/offers.js":
            self.reply(200, offers_module().encode(), {"Content-Type": "text/javascript"})
        else:
            super().do_GET()

    def do_POST(self) -> None:
        self.server.keys.append(self.headers["Authorization"])
        self.server.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.server.script(self)

    def reply(self, status: int, body: dict[str, Any] | bytes, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def begin(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()

    def event(
        self,
        delta: dict[str, Any] | None = None,
        finish: str | None = None,
        of_choice: dict[str, Any] | None = None,
        **more: Any,
    ) -> None:
        choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish} | (of_choice or {})]
        self.wfile.write(f"data: {json.dumps({'choices': choices, **more})}\n\n".encode())
        self.wfile.flush()

    def last(self, reason: str = "stop", of_choice: dict[str, Any] | None = None, **more: Any) -> None:
        self.event({}, reason, of_choice, **more)
        self.event(usage=USAGE)
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *_: Any) -> None:
        pass


def pieces(text: str, size: int = 5) -> list[str]:
    return [text[i : i + size] for i in range(0, len(text), size)]


def thinks_and_answers(
    request: Handler, thought: str = THOUGHT, answer: str = ANSWER, warnings: Sequence[dict[str, Any]] = ()
) -> None:
    request.begin()
    first_half = len(thought) // 2
    for text in (thought[:first_half], thought[first_half:]):
        for piece in pieces(text):
            request.event({"reasoning_content": piece})
            time.sleep(0.01)
        request.server.proceed.wait()
    for piece in pieces(answer):
        request.event({"content": piece})
        time.sleep(0.01)
    request.last(**({"audio_warnings": list(warnings)} if warnings else {}))


def tone(seconds: float, rate: int = 16000) -> bytes:
    return encode_wav(0.4 * np.sin(2 * np.pi * TONE_HZ * np.arange(int(seconds * rate)) / rate), rate)


@contextmanager
def fake_gateway() -> Iterator[FakeGateway]:
    with FakeGateway() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server
        server.proceed.set()
        server.shutdown()


@contextmanager
def opened(driver: Any, url: str, meant: str = "v1/chat/completions") -> Iterator[Page]:
    """The page, in the browser; when it is left it must not have been refused anything but what was `meant`."""
    page = Page(driver)
    page.resize(1280, 800)
    page.scheme("light")
    driver.get(url)
    page.wait(lambda: page.all("#server:not([data-state=away])"), "the server's state")
    yield page
    complaints = [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
    refused = [line for line in complaints if meant not in line]
    assert not refused, refused

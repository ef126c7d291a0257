"""A speech server of somebody's, as the gateway asks one."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np


class Speech(BaseHTTPRequestHandler):
    """A speech server: 10 ms of a tone for each character."""

    protocol_version = "HTTP/1.1"
    asked: list[dict] = []  # noqa: RUF012
    fails = False

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).asked.append(asked | {"path": self.path, "key": self.headers["Authorization"]})
        tone = 8000 * np.sin(np.arange(240 * len(asked["input"])) / 8)
        data = tone.astype("<i2").tobytes()
        self.send_response(500 if type(self).fails else 200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        for start in range(0, len(data), 4801):  # odd: within a sample
            self.wfile.write(data[start : start + 4801])

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def speech_server() -> Iterator[str]:
    """Its base URL. It does not fail, whatever others had it do."""
    Speech.asked, Speech.fails = [], False
    server = ThreadingHTTPServer(("127.0.0.1", 0), Speech)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

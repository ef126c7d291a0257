"""The gateway as a child process, for `step-audio serve`: it dies with its parent and outlives a restart of Triton."""

from __future__ import annotations

import contextlib
import http.client
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from typing import IO

from step_audio.errors import SettingsError
from step_audio.settings import children_environment
from step_audio_gateway.server import SHUTDOWN_TIMEOUT, listen
from step_audio_gateway.settings import GatewaySettings

START_TIMEOUT = 60.0  # seconds; imports alone take some on a busy machine


class GatewayProcess:
    """One gateway of `settings`; its log goes to `log`, else to stderr."""

    def __init__(self, settings: GatewaySettings, log: IO[bytes] | None = None):
        self.settings = settings
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        host = "localhost" if self.settings.host in ("127.0.0.1", "0.0.0.0", "::", "::1") else self.settings.host
        return f"{'https' if self.settings.ssl_certfile else 'http'}://{host}:{self.settings.port}"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def check(self, others: Callable[[], None] = lambda: None) -> None:
        """What would keep it from starting, before anything slow is begun. Raises SettingsError.

        `others`: checks other ports, while this one is taken.
        """
        self.settings.keys()
        self.settings.tls()
        with listen(self.settings):
            others()

    def start(self) -> None:
        """Returns when it answers. Raises SettingsError."""
        self.check()
        # A session of its own: a Ctrl-C in the terminal reaches the parent alone, which stops us in order.
        self._process = process = subprocess.Popen(
            [sys.executable, "-m", "step_audio_gateway.server"],
            env=children_environment(),
            stdin=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,
        )
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(self.settings.model_dump_json().encode() + b"\n")
            process.stdin.flush()
        deadline = time.monotonic() + START_TIMEOUT
        while not self._answers():
            if fault := self.fault():
                raise SettingsError(fault)
            if self._process is not process:
                raise SettingsError("the gateway was stopped while it started")
            if time.monotonic() > deadline:
                self.stop()
                raise SettingsError(f"the gateway did not answer within {START_TIMEOUT:.0f} s")
            time.sleep(0.05)

    def fault(self) -> str | None:
        """What is wrong, None while all is well or it was never started."""
        process = self._process
        if process is None or process.poll() is None:
            return None
        return f"the gateway ended with status {process.returncode}"

    def stop(self) -> None:
        """Answers under way get a few seconds. Returns when the process is gone."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(SHUTDOWN_TIMEOUT + 5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _answers(self) -> bool:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.settings.host, self.settings.host)
        if self.settings.ssl_certfile:  # to itself it need not prove who it is
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                host, self.settings.port, timeout=2, context=ssl._create_unverified_context()
            )
        else:
            connection = http.client.HTTPConnection(host, self.settings.port, timeout=2)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

"""`step-audio serve`: builds what is missing, starts the server, proves it with a request, and watches it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import signal
import threading
import time
import wave
from typing import TYPE_CHECKING

import numpy as np

from step_audio.audio import SAMPLE_RATE
from step_audio.command_line import Echo
from step_audio_client import Audio, RequestError, Sampling, StepAudioClient, user
from step_audio_server.errors import ServerError
from step_audio_server.launch.ports import Ports
from step_audio_server.prepare import prepare
from step_audio_server.settings import ServeSettings
from step_audio_server.tritonserver import TritonServer

if TYPE_CHECKING:
    from step_audio_gateway.gateway_process import GatewayProcess
    from step_audio_gateway.settings import GatewaySettings

MAX_RESTARTS = 3  # within RESTART_WINDOW; more means that a restart does not help
RESTART_WINDOW = 600.0  # seconds of serving
WATCH_PERIOD = 0.5  # seconds
WARM_UP_TIMEOUT = 120.0  # seconds


class Service:
    """A served checkpoint. Used as a context manager by tests and by the demo, or run until a signal.

    `gateway`: opens the HTTP door too, while it is run; its `triton` is ours.
    """

    def __init__(self, settings: ServeSettings, echo: Echo = lambda line: None, gateway: GatewaySettings | None = None):
        self.settings = settings
        self.ports = Ports(settings.grpc_port, settings.http_port, settings.metrics_port, settings.triton_host)
        self.echo = echo
        self.server: TritonServer | None = None
        self.gateway: GatewayProcess | None = None
        if gateway is not None:
            from step_audio_gateway.gateway_process import GatewayProcess

            self.gateway = GatewayProcess(gateway.model_copy(update={"triton": (self.address,)}))

    @property
    def address(self) -> str:
        return f"{self.ports.reached_at}:{self.ports.grpc}"

    def __enter__(self) -> Service:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Returns when a warm-up request has gone through. Raises StepAudioError; then nothing is left running."""
        settings = self.settings
        self.ports.check_free()
        launch = prepare(settings, self.ports, self.echo)
        self.echo("tritonserver: loading the models")
        for last in (False, True):
            self.server = TritonServer(launch, self.ports, settings.run_dir / "tritonserver.log")
            try:
                self.server.wait_live(settings.resolved_startup_timeout())
                asyncio.run(warm_up(self.address))
                return
            except (ServerError, RequestError) as error:
                crashed, reason = self.server.crashed, self.server.reason()
                self.stop()
                if last or not crashed:
                    raise ServerError(f"{error}: {reason}") from None
                self.echo("tritonserver crashed while loading: trying once more")
            except BaseException:
                self.stop()
                raise

    def stop(self) -> None:
        if self.server is not None:
            self.server.stop()
            self.server = None

    def run(self) -> None:
        """Serve until SIGINT or SIGTERM; restart a server or gateway that died, a few times."""
        stopping = threading.Event()
        previous = {s: signal.signal(s, _Interrupt(stopping)) for s in (signal.SIGINT, signal.SIGTERM)}
        restarts: list[float] = []
        starting = 0.0  # seconds, which do not count for the window: a large model takes longer
        try:
            if self.gateway is not None:
                self.gateway.check()
            self._start_and_tell()
            while not stopping.wait(WATCH_PERIOD):
                assert self.server is not None
                server_fault = self.server.fault()
                fault = server_fault or (self.gateway.fault() if self.gateway is not None else None)
                if fault is None:
                    continue
                now = time.monotonic() - starting
                restarts = [at for at in restarts if now - at < RESTART_WINDOW] + [now]
                if len(restarts) > MAX_RESTARTS:
                    raise ServerError(f"{fault}, after {MAX_RESTARTS} restarts; log: {self.server.log}")
                self.echo(f"{fault}: restart {len(restarts)} of at most {MAX_RESTARTS}")
                if server_fault:
                    self.stop()
                began = time.monotonic()
                self._start_and_tell()
                starting += time.monotonic() - began
        except KeyboardInterrupt:
            pass
        finally:
            if self.server is not None:
                with contextlib.suppress(
                    BrokenPipeError
                ):  # who read this has left, and a server is still to be stopped
                    self.echo("stopping")
            if self.gateway is not None:  # first, for its answers may still end
                self.gateway.stop()
            self.stop()
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _start_and_tell(self) -> None:
        """Whichever of the two is not running."""
        if self.server is None:
            self.start()
        door = ""
        if self.gateway is not None:
            if not self.gateway.running:
                self.gateway.start()
            door = f"{self.gateway.url}, "
        metrics = f"http://{self.ports.reached_at}:{self.ports.metrics}/metrics"
        self.echo(f"ready: {door}gRPC {self.address}, metrics {metrics}")


class _Interrupt:
    """The first signal ends the loop, or breaks off a start; the next ones are ignored while the server stops."""

    def __init__(self, stopping: threading.Event):
        self.stopping = stopping

    def __call__(self, *_: object) -> None:
        if not self.stopping.is_set():
            self.stopping.set()
            raise KeyboardInterrupt


async def warm_up(address: str) -> None:
    """One second of faint noise and a word through every model. Raises RequestError."""
    noise = np.random.default_rng(0).normal(0, 300, SAMPLE_RATE).astype("<i2")
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(SAMPLE_RATE)
        writer.writeframes(noise.tobytes())
    async with StepAudioClient(address) as client:
        await client.complete(
            [user("hello", Audio(file.getvalue()))], Sampling(max_tokens=2, temperature=0), timeout=WARM_UP_TIMEOUT
        )

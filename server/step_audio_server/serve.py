"""`step-audio serve`: builds what is missing, starts the server, proves it with a request, and watches it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from typing import TYPE_CHECKING, TextIO

import numpy as np

from step_audio.audio import encode_wav
from step_audio.clips import SAMPLE_RATE
from step_audio.command_line import Echo
from step_audio_build.artefacts.lock import lock
from step_audio_client import Audio, RequestError, Sampling, StepAudioClient, Tls, user
from step_audio_client.tls import SCHEME
from step_audio_server.adapters import load_adapters
from step_audio_server.errors import ServerCrashed, ServerError
from step_audio_server.launch.ports import Ports
from step_audio_server.prepare import prepare
from step_audio_server.records import Death, Records, limit
from step_audio_server.settings import ServeSettings
from step_audio_server.supervision import Keeper
from step_audio_server.tritonserver import TritonServer
from step_audio_server.vllm_process import VllmProcess

if TYPE_CHECKING:
    from step_audio_gateway.gateway_process import GatewayProcess
    from step_audio_gateway.settings import GatewaySettings

LOADS = 4  # times that a server is tried that crashes while it loads
WARM_UP_TIMEOUT = 120.0  # seconds


class Service:
    """A served checkpoint. Used as a context manager by tests and by the demo, or run until a signal.

    `gateway`: opens the HTTP door too, while it is run; its `triton` is ours.
    """

    def __init__(self, settings: ServeSettings, echo: Echo = lambda line: None, gateway: GatewaySettings | None = None):
        self.settings = settings
        self.ports = Ports(
            settings.grpc_port, settings.http_port, settings.metrics_port, settings.triton_host, settings.certificates()
        )
        self.echo = echo
        self.records = Records(settings.run_dir)
        self.server: TritonServer | None = None
        self.stopping = threading.Event()  # by a signal
        self._loading = False
        self._lock: TextIO | None = None  # of the run directory
        self.llm: VllmProcess | None = None
        if settings.llm_python is not None:
            self.llm = VllmProcess(settings.llm_python, settings.vllm_dir, settings.run_dir / "vllm.log")
        self.gateway: GatewayProcess | None = None
        if gateway is not None:
            from step_audio_gateway.gateway_process import GatewayProcess

            self.gateway = GatewayProcess(gateway.model_copy(update=self._behind_gateway()))

    @property
    def address(self) -> str:
        scheme = "" if self.ports.certificates is None else SCHEME
        return f"{scheme}{self.ports.reached_at}:{self.ports.grpc}"

    @property
    def tls(self) -> Tls:
        """With which we ask our own server: we know it by its very certificate, and where it wants one of us, too, it
        gets that one."""
        own = self.ports.certificates
        if own is None:
            return Tls()
        return Tls(own.cert, name=self.settings.grpc_server_name, **own.shown_to_itself())

    def _behind_gateway(self) -> dict[str, object]:
        tls = {f"triton_{name}": value for name, value in vars(self.tls).items()}
        return {"triton": (self.address,)} | tls

    def __enter__(self) -> Service:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Returns when a warm-up request has gone through. Raises StepAudioError; then nothing is left running.

        ServerCrashed: of its own fault, again and again.
        """
        settings = self.settings
        self.ports.check_free()
        try:
            launch = prepare(settings, self.ports, self.echo, self._claim)
            self._start_llm()
        except BaseException:
            self._unlock()
            raise
        self.echo("tritonserver: loading the models")
        for attempt in range(1, LOADS + 1):
            # A KeyboardInterrupt is lost where a process is just being forked: here signals only set `stopping`.
            self._loading = True
            try:
                self.server = TritonServer(launch, self.ports, settings.run_dir / "tritonserver.log")
                self.server.wait_live(settings.resolved_startup_timeout(), self.stopping)
                self._loading = False
                if self.stopping.is_set():
                    raise KeyboardInterrupt
                load_adapters(settings, self.address, self.tls)
                asyncio.run(warm_up(self.address, self.tls))
                self.server.watch(self.address, self.tls)
                return
            except (ServerError, RequestError) as error:
                assert self.server is not None
                crashed, reason = self.server.crashed, self.server.reason()
                if attempt == LOADS or not crashed:
                    self.kill()
                    raise (ServerCrashed if crashed else ServerError)(f"{error}: {reason}") from None
                self.server.kill()
                self.echo("tritonserver crashed while loading: trying again")
            except BaseException:
                self.kill()
                raise
            finally:
                self._loading = False

    def _start_llm(self) -> None:
        """Before the server that asks it; it outlives a restart of that one."""
        if self.llm is None:
            return
        self.echo("vLLM: loading the model")
        self._loading = True
        try:
            self.llm.start(self.settings.resolved_startup_timeout(), self.stopping)
        finally:
            self._loading = False

    def stop(self) -> None:
        if self.server is not None:
            self.server.stop()
            self.server = None
        if self.llm is not None:
            self.llm.stop()
        self._unlock()

    def kill(self) -> None:
        """As `stop`, but nothing that is under way is waited for."""
        if self.llm is not None:
            self.llm.kill()
        self.kill_server()

    def kill_server(self) -> None:
        """tritonserver alone."""
        if self.server is not None:
            self.server.kill()
            self.server = None
        self._unlock()

    def _claim(self) -> None:
        self._lock = lock(self.settings.run_dir)
        if self._lock is None:
            raise ServerError(
                f"another `step-audio serve` is using {self.settings.run_dir}: choose another --grpc-port"
            )

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def run(self) -> None:
        """Serve until SIGINT or SIGTERM; start a server or gateway that died again, each by itself."""
        stopping, keeper = self.stopping, Keeper(_KeptServer(self), self.echo, self.stopping)
        previous = {s: signal.signal(s, self._interrupt) for s in (signal.SIGINT, signal.SIGTERM)}
        door: threading.Thread | None = None
        minder: threading.Thread | None = None
        try:
            if self.gateway is not None:
                self.gateway.check(self.ports.check_free)
            if not keeper.begin():
                return
            self.records.begin()
            if self.gateway is not None:
                self.gateway.start()
                watch = Keeper(_KeptGateway(self, self.gateway), self.echo, stopping)
                door = threading.Thread(target=watch.run, name="gateway", daemon=True)
                door.start()
            if self.llm is not None:
                minder = threading.Thread(
                    target=Keeper(_KeptLlm(self, self.llm), self.echo, stopping).run, name="vllm", daemon=True
                )
                minder.start()
            self.tell_ready()
            keeper.run()
        except KeyboardInterrupt:
            pass
        finally:
            if self.server is not None:
                with contextlib.suppress(
                    BrokenPipeError
                ):  # who read this has left, and a server is still to be stopped
                    self.echo("stopping")
            stopping.set()
            if self.gateway is not None:  # first, for its answers may still end
                self.gateway.stop()
            if door is not None and self.gateway is not None:
                door.join()
                self.gateway.stop()  # where it was just being started again
            if minder is not None:
                minder.join()
            self.stop()
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _interrupt(self, *_: object) -> None:
        """The first signal ends the loop, or breaks off a start; the next ones are ignored while the server stops."""
        if not self.stopping.is_set():
            self.stopping.set()
            if not self._loading:
                raise KeyboardInterrupt

    def tell_ready(self) -> None:
        door = "" if self.gateway is None else f"{self.gateway.url}, "
        metrics = f"http://{self.ports.reached_at}:{self.ports.metrics}/metrics"
        self.echo(f"ready: {door}gRPC {self.address}, metrics {metrics}")


class _KeptServer:
    """The server of a service."""

    def __init__(self, service: Service):
        self._service = service

    def fault(self) -> Death | None:
        server = self._service.server
        if server is not None:
            with contextlib.suppress(OSError):  # a full disk: the log grows no more by itself
                limit(server.log)
        death = None if server is None else server.fault()
        if death is not None:
            self._service.records.died("tritonserver", death)
        return death

    def start(self) -> None:
        self._service.start()

    def end(self) -> None:
        self._service.kill_server()

    def restarted(self, death: Death) -> None:
        self._service.records.restarted("tritonserver")
        self._service.tell_ready()


class _KeptGateway:
    """The gateway of a service, which has its own deaths."""

    def __init__(self, service: Service, gateway: GatewayProcess):
        self._service, self._gateway = service, gateway

    def fault(self) -> Death | None:
        if (fault := self._gateway.fault()) is None:
            return None
        death = Death(fault, "gateway")
        self._service.records.died("gateway", death)
        return death

    def start(self) -> None:
        self._gateway.start()

    def end(self) -> None:
        """It has ended."""

    def restarted(self, death: Death) -> None:
        self._service.records.restarted("gateway")
        self._service.tell_ready()


class _KeptLlm:
    """vLLM of a service; tritonserver goes on without it, and its clients wait."""

    def __init__(self, service: Service, llm: VllmProcess):
        self._service, self._llm = service, llm

    def fault(self) -> Death | None:
        with contextlib.suppress(OSError):  # a full disk: the log grows no more by itself
            limit(self._llm.log)
        if (death := self._llm.fault()) is not None:
            self._service.records.died("vllm", death)
        return death

    def start(self) -> None:
        service = self._service
        try:
            self._llm.start(service.settings.resolved_startup_timeout(), service.stopping)
        except KeyboardInterrupt:
            raise ServerError("vLLM was stopped while it started") from None

    def end(self) -> None:
        self._llm.kill()

    def restarted(self, death: Death) -> None:
        self._service.records.restarted("vllm")
        self._service.tell_ready()


async def warm_up(address: str, tls: Tls) -> None:
    """Two seconds of faint noise and a word through every model, twice. Raises RequestError.

    They fill a block of the KV cache, which the second request finds there: reuse with a prompt table on several GPUs
    has crashed TensorRT-LLM (https://github.com/NVIDIA/TensorRT-LLM/issues/2417), and a user is not to be the first.
    """
    noise = np.random.default_rng(0).normal(0, 0.01, 2 * SAMPLE_RATE).astype(np.float32)
    messages = [user(Audio(encode_wav(noise)), "hello")]
    async with StepAudioClient(address, tls=tls) as client:
        for _ in range(2):
            await client.complete(messages, Sampling(max_tokens=2, temperature=0), timeout=WARM_UP_TIMEOUT)

"""Finding and starting tritonserver: what is missing is said with what to do about it."""

import contextlib
import importlib.metadata
import importlib.util
import os
import socket
import subprocess
import sys
import sysconfig
from collections import namedtuple
from types import SimpleNamespace

import pytest

from step_audio_gateway.settings import GatewaySettings
from step_audio_server import tritonserver
from step_audio_server.errors import ServerError
from step_audio_server.launch import ports as launch_ports
from step_audio_server.launch.installation import Installation
from step_audio_server.launch.launch import Launch
from step_audio_server.launch.ports import Ports, free_ports
from step_audio_server.serve import Service
from step_audio_server.settings import ServeSettings
from step_audio_server.tritonserver import TritonServer
from waiting import SECONDS


def test_free_ports_are_none_that_the_system_gives_out():
    """While a server on one is away, a connection of anybody's would else take it."""
    found = free_ports(20)
    assert len(set(found)) == 20
    with contextlib.ExitStack() as stack:
        given = []
        for _ in range(200):
            anybody = stack.enter_context(socket.socket())
            anybody.bind(("127.0.0.1", 0))
            given.append(anybody.getsockname()[1])
        low, high = min(given), max(given)
        assert not any(low <= port <= high for port in found)
        for port in found:
            stack.enter_context(socket.socket()).bind(("127.0.0.1", port))


@pytest.mark.processes
def test_two_processes_are_given_different_ports():
    """Though nobody listens on one of them yet, and each asks for some that another could have drawn."""
    code = "from step_audio_server.launch.ports import free_ports; print(*free_ports(700), flush=True); input()"
    with contextlib.ExitStack() as stack:
        others = [
            stack.enter_context(
                subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            for _ in range(2)
        ]
        for other in others:  # ends them, before they are waited for
            stack.callback(other.stdin.close)
        found = [port for other in others for port in map(int, other.stdout.readline().split())]
        found += [free_ports(1)[0] for _ in range(700)]
    assert len(set(found)) == len(found) == 2100


def test_ports_that_are_taken_are_told(monkeypatch):
    monkeypatch.setattr(launch_ports, "_RESERVED", iter([1, 2]))
    monkeypatch.setattr(launch_ports, "LOOPBACK", "192.0.2.1")  # of nobody's: no port of it can be taken
    with pytest.raises(ServerError, match=r"no port of 192\.0\.2\.1 is free"):
        free_ports(1)


@pytest.mark.parametrize("name", ["grpc", "http", "metrics"])
def test_a_port_in_use_names_its_flag(name):
    free = dict(zip(("grpc", "http", "metrics"), free_ports(3), strict=True))
    Ports(**free).check_free()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServerError, match=f"port {port} is in use: choose another with --{name}-port"):
            Ports(**free | {name: port}).check_free()
    Ports(**free | {name: port}).check_free()
    other = "http" if name != "http" else "grpc"
    with pytest.raises(ServerError, match="--grpc-port, --http-port and --metrics-port must differ"):
        Ports(**free | {name: free[other]}).check_free()


@pytest.mark.parametrize("name", ["grpc", "http", "metrics"])
def test_the_gateway_s_port_is_found_among_triton_s_before_anything_is_loaded(name, tmp_path):
    ports = dict(zip(("grpc", "http", "metrics"), free_ports(3), strict=True))
    settings = ServeSettings(
        checkpoint=tmp_path, work_dir=tmp_path, **{f"{kind}_port": port for kind, port in ports.items()}
    )
    service = Service(settings, gateway=GatewaySettings(port=ports[name]))
    with pytest.raises(ServerError, match=f"port {ports[name]} is in use: choose another with --{name}-port"):
        service.run()
    assert service.server is None


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A made-up nvidia-pytriton with numpy 1 and this Python's library: all that is needed."""
    package = tmp_path / "pytriton" / "__init__.py"
    stub = tmp_path / "pytriton/tritonserver/python_backend_stubs" / version() / "triton_python_backend_stub"
    stub.parent.mkdir(parents=True)
    stub.touch()
    library = tmp_path / f"libpython{version()}.so.1.0"
    library.touch()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace(origin=str(package)))
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.26.4")
    monkeypatch.setattr(sysconfig, "get_config_var", lambda name: str(tmp_path) if name == "LIBDIR" else None)
    return SimpleNamespace(root=tmp_path, stub=stub, library=library)


def version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def test_all_is_there(wheel):
    found = Installation.find()
    root = wheel.root / "pytriton" / "tritonserver"
    assert (found.binary, found.backends, found.stub) == (root / "bin" / "tritonserver", root / "backends", wheel.stub)
    assert found.libraries == (wheel.root / "nvidia_pytriton.libs", wheel.root)


def test_no_pytriton(wheel, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ServerError, match=r"no tritonserver here: pip install -e '\.\[cpu\]'"):
        Installation.find()


def test_numpy_2(wheel, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: {"numpy": "2.3.1"}[name])
    with pytest.raises(ServerError, match=r"numpy 2 .*pip install 'numpy==1\.26\.4'"):
        Installation.find()


def test_a_python_without_a_stub(wheel, monkeypatch):
    info = namedtuple("info", "major minor")(3, 14)
    monkeypatch.setattr(sys, "version_info", info)
    with pytest.raises(ServerError, match=r"no stub for Python 3\.14: use Python 3\.11 or 3\.12"):
        Installation.find()


def test_no_shared_libpython(wheel, monkeypatch):
    wheel.library.unlink()
    monkeypatch.setattr(sys, "base_prefix", str(wheel.root))
    monkeypatch.setattr("step_audio_server.tritonserver.Path", fenced(wheel.root))
    with pytest.raises(ServerError, match=rf"libpython{version()}\.so\.1\.0 is missing .*apt-get install libpython"):
        Installation.find()


def fenced(root):
    """Paths of which only those below `root` exist: this machine may well have the library in /usr/lib."""
    from pathlib import PosixPath

    class Fenced(PosixPath):
        def exists(self) -> bool:
            return str(self).startswith(str(root)) and super().exists()

    return Fenced


@pytest.mark.processes
def test_a_server_that_waits_for_a_model_it_has_given_up_has_crashed(tmp_path, monkeypatch):
    """It would wait for ever, for that process lives."""
    monkeypatch.setattr(tritonserver, "STUB_ENDS_IN", 0.2)
    given_up = (sys.executable, "-c", "import subprocess; subprocess.run(['sleep', '1000'])")
    launch = Launch(given_up, dict(os.environ), prefix=f"step_audio_test_{os.getpid()}_", drain_timeout=0)
    server = TritonServer(launch, Ports(*free_ports(3)), tmp_path / "tritonserver.log")
    try:
        with pytest.raises(ServerError, match="waits for its end"):
            server.wait_live(SECONDS)
        assert server.crashed
    finally:
        server.kill()


LOG = """\
I1123 02:05:44.1 20734 metrics.cc:877] "Collecting CPU metrics"
E1123 02:05:44.4 20734 server.cc:241] "CudaDriverHelper has not been initialized."
E1123 02:05:48.4 20734 ensemble_scheduler.cc:1468] "unable to create stream for x: CUDA driver version is insufficient"
Exception ignored in: <module 'threading'>
"""
FAULTS = """\
E1123 02:05:50.1 20734 model_lifecycle.cc:642] "failed to load 'tensorrt_llm' version 1: Internal: no engine"
E1123 02:05:51.9 20734 main.cc:535] "failed to stop server: Internal - Exit timeout expired. Exiting immediately."
"""


def test_the_reason_is_the_first_error_that_matters(tmp_path):
    server = TritonServer.__new__(TritonServer)
    server.log = tmp_path / "tritonserver.log"
    server.log.write_text(LOG + FAULTS)
    assert server.reason() == (
        f"failed to load 'tensorrt_llm' version 1: Internal: no engine (log: {server.log})"
    )  # fmt: skip
    server.log.write_bytes(LOG.encode() + b"\xff not UTF-8\n")
    assert server.reason() == f"no error in its log (log: {server.log})"

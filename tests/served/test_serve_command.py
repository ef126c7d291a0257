"""`step-audio serve` as a person runs it: a process, its words, its signals, and what it does about a dead model."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from serve_process import ServeProcess, living
from server_settings import settings_for
from step_audio_build.convert.make_tiny import make_tiny
from waiting import SECONDS, wait_until

pytestmark = pytest.mark.server


@pytest.fixture
def command(checkpoint, work_dir):
    running = ServeProcess(settings_for(checkpoint, work_dir))
    yield running
    running.end()


def test_serves_survives_a_dead_model_and_stops(command):
    ready = command.wait_for("ready")
    assert str(command.settings.grpc_port) in ready
    assert command.ask() == 5
    assert json.loads(command.get("/v1/models"))["data"][0]["id"] == command.settings.checkpoint.name
    assert b"<html" in command.get("/").lower()  # the playground

    stubs = [pid for pid in command.family() if "triton_python" in Path(f"/proc/{pid}/comm").read_text()]
    assert len(stubs) == 6  # one a model
    os.kill(stubs[0], signal.SIGKILL)
    command.wait_for("died: starting again")
    command.wait_for("ready")
    assert command.ask() == 5

    family = command.family()
    command.process.send_signal(signal.SIGTERM)
    assert command.process.wait(SECONDS) == 0
    wait_until(lambda: not any(map(living, family)), "the end of its processes")
    assert not list(Path("/dev/shm").glob(f"step_audio_{command.process.pid}_*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_it_starts(command, number):
    """The models are not waited for."""
    command.wait_for("loading the models", 5 * SECONDS)  # it may build first
    family = command.family()
    command.process.send_signal(number)
    assert command.process.wait(SECONDS) == 0
    wait_until(lambda: not any(map(living, family)), "the end of its processes")
    assert "Started HTTPService" not in (command.settings.run_dir / "tritonserver.log").read_text()


def refused(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "step_audio_server", *arguments], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_what_serve_refuses(checkpoint, work_dir, tmp_path):
    here = ("--checkpoint", str(checkpoint), "--work-dir", str(work_dir))
    assert "step-audio serve DIR" in refused("serve")
    assert "does not exist" in refused("serve", "--checkpoint", str(tmp_path / "nothing"))
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        assert f"port {port} is in use: choose another with --grpc-port" in refused("serve", *here, "--grpc-port", port)
    assert "max_seq_len 99999999" in refused("serve", *here, "--max-seq-len", "99999999")
    assert "neither default nor published nor a file, got 'nowhere.jinja'" in refused(
        "serve", *here, "--chat-template", "nowhere.jinja"
    )


def test_a_broken_rank_file_is_named(tmp_path):
    """A conversion that was tampered with is not served."""
    checkpoint, work = tmp_path / "tiny", tmp_path / "work"
    make_tiny(checkpoint, dtype="float32")
    from step_audio_server.prepare import build_for_cpu

    settings = settings_for(checkpoint, work, max_seq_len=4096)
    build_for_cpu(settings, lambda line: None)
    rank = work / "decoder-tp4-float32" / "rank2.safetensors"
    rank.write_bytes(rank.read_bytes()[:-100])
    assert "rank2.safetensors" in refused("serve", "--checkpoint", str(checkpoint), "--work-dir", str(work))

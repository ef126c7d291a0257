"""Settings of the gateway, its command, and its life as a process beside another."""

from __future__ import annotations

import argparse
import http.client
import os
import signal
import socket
import time

import pytest

from step_audio_gateway import command
from step_audio_gateway.gateway_process import GatewayProcess
from step_audio_gateway.settings import GatewaySettings, SettingsError, add_flags, layers
from step_audio_server.launch.ports import free_ports

NAMES = list(GatewaySettings.model_fields)


def read(flags: str, environment: dict[str, str] | None = None, config=None) -> GatewaySettings:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return GatewaySettings.create(**layers(NAMES, vars(parser.parse_args(flags.split())), environment or {}, config))


def test_defaults():
    settings = read("")
    assert (settings.host, settings.port, settings.triton) == ("127.0.0.1", 9999, ("127.0.0.1:8001",))
    assert settings.separate_reasoning and not settings.keys() and not settings.allowed_media_domains


def test_flags_go_before_the_environment_and_that_before_the_file(tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text('port = 1\nserved-model-name = ["file"]\nlog_content = true\nhost = "0.0.0.0"\n')
    environment = {"STEP_AUDIO_PORT": "2", "STEP_AUDIO_API_KEY": "a, b", "STEP_AUDIO_HOST": "::", "STEP_AUDIO_X": "1"}
    settings = read("--port 3 --no-separate-reasoning --triton h1:1 h2:2", environment, file)
    assert settings.port == 3 and settings.host == "::" and settings.api_key == ("a", "b")
    assert settings.served_model_name == ("file",) and settings.log_content and not settings.separate_reasoning
    assert settings.triton == ("h1:1", "h2:2") and read("--triton h1:1,h2:2").triton == ("h1:1", "h2:2")


@pytest.mark.parametrize(
    "flags, text, said",
    [
        ("--port 70000", "", "port: .*got '70000'"),
        ("--request-timeout 0", "", "request_timeout: .*greater than 0"),
        ("", "colour = 1", "unknown setting colour"),
        ("", "port = ", "settings.toml"),
    ],
)
def test_faults_are_said_in_words(tmp_path, flags, text, said):
    file = tmp_path / "settings.toml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=said):
        read(flags, config=file)


def test_keys_are_not_shown(tmp_path):
    for empty in ("", " , ", [""]):  # a secret that was not set must not open the door
        with pytest.raises(SettingsError, match="api_key: it is empty"):
            GatewaySettings.create(api_key=empty)
    settings = GatewaySettings.create(api_key=["secret"])
    assert "secret" not in repr(settings)
    with pytest.raises(SettingsError) as caught:
        GatewaySettings.create(api_key=5)
    assert "5" not in str(caught.value)
    with pytest.raises(SettingsError, match="cannot be read"):
        GatewaySettings.create(api_key_file=tmp_path / "none").keys()


def test_the_flags_of_serve(monkeypatch):
    parser = argparse.ArgumentParser()
    parser.add_argument("--max-seq-len", "--max-model-len", type=int)
    command.add_serve_flags(parser)
    monkeypatch.setenv("STEP_AUDIO_MAX_NUM_SEQS", "4")
    monkeypatch.setenv("STEP_AUDIO_PORT", "5")
    names = ("max_seq_len", "max_batch_size")
    values, gateway = command.serve_settings(parser.parse_args(["--max-model-len", "64", "--api-key", "k"]), names)
    assert values == {"max_seq_len": 64, "max_batch_size": "4"}
    assert gateway is not None and gateway.port == 5 and gateway.keys() == ("k",)
    assert command.serve_settings(parser.parse_args(["--headless"]), names)[1] is None


def test_the_command_has_its_flags():
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    arguments = parser.parse_args(["gateway", "--triton", "h:1", "--port", "1234"])
    assert arguments.run is command.run and arguments.triton == ["h:1"]
    assert "--allowed-media-domains" in parser._subparsers._group_actions[0].choices["gateway"].format_help()


def get(port: int, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


def test_a_process_beside():
    """Alive without a served model, killed and started again, gone with the pipe."""
    port, nobody = free_ports(2)
    process = GatewayProcess(GatewaySettings.create(port=port, triton=[f"127.0.0.1:{nobody}"]))
    try:
        process.start()
        assert process.running and process.fault() is None and process.url == f"http://localhost:{port}"
        assert get(port, "/health") == 200 and get(port, "/ready") == 503
        with pytest.raises(SettingsError, match=f"port {port} is in use: choose another with --port"):
            GatewayProcess(process.settings).start()
        os.kill(process._process.pid, signal.SIGKILL)
        while process.running:
            time.sleep(0.01)
        assert process.fault() == "the gateway ended with status -9"
        process.start()
        assert get(port, "/health") == 200
    finally:
        process.stop()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0

"""Settings of the gateway, its command, and its life as a process beside another."""

from __future__ import annotations

import argparse
import http.client
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from step_audio.settings import add_flags, fields_of, said
from step_audio_gateway import command
from step_audio_gateway.gateway_process import GatewayProcess
from step_audio_gateway.settings import GatewaySettings, SettingsError
from step_audio_server.launch.ports import free_ports
from step_audio_server.settings import ServeSettings


@pytest.fixture
def read(monkeypatch):
    """The settings of `step-audio gateway FLAGS`, in an environment and with a file."""

    def run(flags: str, environment: dict[str, str] | None = None, config: Path | None = None) -> GatewaySettings:
        for name, value in (environment or {}).items():
            monkeypatch.setenv(name, value)
        parser = argparse.ArgumentParser()
        command.add_parser(parser.add_subparsers())
        arguments = parser.parse_args(["gateway", *flags.split(), *(["--config", str(config)] if config else [])])
        return GatewaySettings.create(**said(command.FIELDS, arguments))

    return run


def test_defaults(read):
    settings = read("")
    assert (settings.host, settings.port, settings.triton) == ("127.0.0.1", 9999, ("127.0.0.1:8001",))
    assert settings.separate_reasoning and not settings.keys() and not settings.allowed_media_domains


def test_flags_go_before_the_environment_and_that_before_the_file(tmp_path, read):
    file = tmp_path / "settings.toml"
    file.write_text('port = 1\nserved-model-name = ["file"]\nlog_content = true\nhost = "0.0.0.0"\n')
    environment = {"STEP_AUDIO_PORT": "2", "STEP_AUDIO_API_KEY": "a, b", "STEP_AUDIO_HOST": "::", "STEP_AUDIO_X": "1"}
    settings = read("--port 3 --no-separate-reasoning --triton h1:1 h2:2", environment, file)
    assert settings.port == 3 and settings.host == "::" and settings.api_key == ("a", "b")
    assert settings.served_model_name == ("file",) and settings.log_content and not settings.separate_reasoning
    assert settings.triton == ("h1:1", "h2:2") and read("--triton h1:1,h2:2").triton == ("h1:1", "h2:2")


@pytest.mark.parametrize(
    "flags, text, words",
    [
        ("--port 70000", "", "port: .*got 70000"),
        ("--request-timeout 0", "", "request_timeout: .*greater than 0"),
        ("", "colour = 1", "unknown setting colour"),
        ("", "port = ", "settings.toml"),
    ],
)
def test_faults_are_said_in_words(tmp_path, read, flags, text, words):
    file = tmp_path / "settings.toml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=words):
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


def test_the_flags_of_serve(tmp_path, monkeypatch):
    parser = argparse.ArgumentParser()
    add_flags(parser, fields_of(ServeSettings))
    command.add_serve_flags(parser)
    file = tmp_path / "settings.toml"
    file.write_text("max-batch-size = 2\nmax-model-len = 8\nmax_audios = 3\nmax_audio_seconds = 9\n")
    for name, value in {"MAX_NUM_SEQS": "4", "MAX_AUDIO_SECONDS": "7", "PORT": "5", "TRITON": "nobody:1"}.items():
        monkeypatch.setenv(f"STEP_AUDIO_{name}", value)
    given = ["--max-model-len", "64", "--no-kv-cache-reuse", "--api-key", "k", "--config", str(file)]
    values, gateway = command.serve_settings(parser.parse_args(given), ServeSettings)
    limits = {"max_audios": 3, "max_audio_seconds": "7"}
    assert values == {"max_seq_len": 64, "max_batch_size": "4", "kv_cache_reuse": False, "limits": limits}
    assert gateway is not None and (gateway.port, gateway.triton) == (5, ("127.0.0.1:8001",))
    assert gateway.keys() == ("k",)
    assert command.serve_settings(parser.parse_args(["--headless"]), ServeSettings)[1] is None


def test_flags_of_serve_are_those_of_vllm_too():
    parser = argparse.ArgumentParser()
    add_flags(parser, fields_of(ServeSettings))
    for name in ("--max-num-seqs", "--max-batch-size"):
        assert parser.parse_args([name, "3"]).max_batch_size == 3
    assert parser.parse_args(["--max-model-len", "3"]).max_seq_len == 3
    text = parser.format_help()
    assert "(default 512 MiB)" in text and "{L,L-2}" in text and "(default: 600, on GPUs 1800)" in text


def test_the_environment_is_a_command_s(monkeypatch):
    """A server that is started from code is what the code says."""
    monkeypatch.setenv("STEP_AUDIO_PORT", "5")
    monkeypatch.setenv("STEP_AUDIO_GRPC_PORT", "5")
    assert GatewaySettings.create().port == 9999
    assert ServeSettings.create(checkpoint=Path("x"), work_dir=Path("y")).grpc_port == 8001


def test_the_command_has_its_flags():
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    arguments = parser.parse_args(["gateway", "--triton", "h:1", "--port", "1234"])
    assert arguments.run.__wrapped__ is command.run and arguments.triton == ["h:1"]
    assert "--allowed-media-domains" in parser._subparsers._group_actions[0].choices["gateway"].format_help()


def get(port: int, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.processes
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


@pytest.mark.parametrize(
    "name, value",
    [
        ("allowed_origins", '["*"]'),
        ("allowed_origins", "https://page.example/"),
        ("allowed_origins", "page.example"),
        ("allowed_origins", "https://page.example/path"),
        ("allowed_media_domains", "media.example:443"),
        ("allowed_media_domains", "https://media.example"),
        ("allowed_media_domains", "media.example/files"),
        ("allowed_media_domains", "*media.example"),
        ("allowed_media_domains", ""),
        ("allowed_hosts", "https://speech.example"),
        ("allowed_hosts", "speech.example:9999"),
        ("allowed_hosts", "*.speech.example"),
        ("allowed_hosts", "speech.example/path"),
    ],
)
def test_what_could_never_match_is_refused(name, value):
    if value:
        with pytest.raises(SettingsError, match=name):
            GatewaySettings.create(**{name: value})
    for good in ("*", "https://page.example, http://localhost:3000, http://[::1]:80") if "origins" in name else (
        "*", "media.example,localhost" if "hosts" in name else "media.example,*.media.example,localhost"
    ):  # fmt: skip
        assert getattr(GatewaySettings.create(**{name: good}), name)

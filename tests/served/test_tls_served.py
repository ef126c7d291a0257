"""TLS of a real server's gRPC port: `serve`, its gateway and its watch over the server use it, others must."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request

import pytest

from certificates import Authority
from serve_process import ServeProcess
from server_settings import settings_for
from step_audio_client import RequestError, Sampling, StepAudioClient, Tls, Unavailable, user
from step_audio_server.serve import Service
from waiting import SECONDS

NAME = "triton.example"


@pytest.fixture(scope="module")
def ours(tmp_path_factory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "ours")


def ask(address: str, tls: Tls | None = None) -> int:
    async def once() -> int:
        async with StepAudioClient(address, tls=tls) as client:
            answer = await client.complete([user("hello")], Sampling(max_tokens=5, temperature=0), timeout=SECONDS)
            return answer.usage.completion_tokens

    return asyncio.run(once())


def post(port: int, path: str, body: dict) -> int:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        return urllib.request.urlopen(request, timeout=SECONDS).status
    except urllib.error.HTTPError as error:
        return error.code


def test_tls(checkpoint, work_dir, ours, tmp_path):
    cert, key = ours.issue("localhost")
    settings = settings_for(checkpoint, work_dir, grpc_server_cert=cert, grpc_server_key=key)
    with Service(settings) as service:  # its warm-up has gone through
        address = f"grpcs://localhost:{settings.grpc_port}"
        assert ask(address, Tls(ours.ca)) == 5
        with pytest.raises(Unavailable, match=r"^no server answers at "):
            ask(f"localhost:{settings.grpc_port}")
        with pytest.raises(Unavailable, match=r"is not trusted here, or for another name$"):
            ask(address, Tls(Authority(tmp_path / "others").ca))
        for path in ("infer", "generate"):  # Triton's HTTP port has no TLS: nothing is asked there
            assert post(settings.http_port, f"/v2/models/tokenizer/{path}", {"inputs": []}) == 403
        assert service.server.fault() is None


def test_mutual_tls(checkpoint, work_dir, ours):
    cert, key = ours.issue(NAME)
    settings = settings_for(checkpoint, work_dir)
    running = ServeProcess(
        settings,
        *("--grpc-server-cert", str(cert), "--grpc-server-key", str(key)),
        *("--grpc-root-cert", str(ours.ca), "--grpc-server-name", NAME),
    )
    try:
        running.wait_for("ready", seconds=300)
        address = f"grpcs://localhost:{settings.grpc_port}"
        assert ask(address, ours.client(name=NAME)) == 5
        with pytest.raises(RequestError, match=r"^no server answers at grpcs://"):
            ask(address, Tls(ours.ca, name=NAME))
        chat = {"model": settings.checkpoint.name, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}
        assert post(running.port, "/v1/chat/completions", chat) == 200  # through the gateway

        running.kill("tokenizer")
        running.wait_for("died: starting again")
        running.wait_for("ready", seconds=300)
        assert ask(address, ours.client(name=NAME)) == 5
    finally:
        running.end()

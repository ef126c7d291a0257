"""What nobody may do at Triton's own ports, and who may read what a server shares and writes."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
from pathlib import Path

import grpc
import pytest
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc import service_pb2_grpc

from step_audio_client import Sampling, user, wire
from step_audio_server.processes import arguments

MODEL = "tokenizer"


def region(service) -> str:
    """The name of the memory that the server shares with one of its stubs."""
    return next(Path("/dev/shm").glob(f"{service.server.launch.prefix}*")).name


def closed_to_grpc(service) -> dict:
    return {
        "SystemSharedMemoryRegister": messages.SystemSharedMemoryRegisterRequest(
            name="stolen", key=f"/{region(service)}", offset=0, byte_size=64
        ),
        "SystemSharedMemoryStatus": messages.SystemSharedMemoryStatusRequest(),
        "SystemSharedMemoryUnregister": messages.SystemSharedMemoryUnregisterRequest(),
        "RepositoryIndex": messages.RepositoryIndexRequest(),
        "RepositoryModelLoad": messages.RepositoryModelLoadRequest(model_name=MODEL),
        "RepositoryModelUnload": messages.RepositoryModelUnloadRequest(model_name=MODEL),
        "LogSettings": messages.LogSettingsRequest(),
        "TraceSetting": messages.TraceSettingRequest(),
    }


async def refused(service, metadata=None) -> dict[str, str]:
    """What is said to each call."""
    said = {}
    async with wire.channel(service.address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for name, request in closed_to_grpc(service).items():
            try:
                await getattr(stub, name)(request, timeout=60, metadata=metadata)
                said[name] = "done"
            except grpc.aio.AioRpcError as error:
                said[name] = error.details()
    return said


@pytest.mark.parametrize("metadata", [None, [("triton-grpc-protocol-closed", "0" * 64)]], ids=["nothing", "a guess"])
def test_what_grpc_refuses(service, ask, metadata):
    said = asyncio.run(refused(service, metadata))
    assert {name for name, text in said.items() if "closed" not in text} == set(), said
    assert ask(lambda client: client.complete([user("hello")], Sampling(max_tokens=3, temperature=0)))


CLOSED_TO_HTTP = {
    "/v2/systemsharedmemory/region/stolen/register": {"key": "REGION", "offset": 0, "byte_size": 64},
    "/v2/systemsharedmemory/unregister": {},
    "/v2/cudasharedmemory/unregister": {},
    "/v2/repository/index": {},
    f"/v2/repository/models/{MODEL}/load": {},
    f"/v2/repository/models/{MODEL}/unload": {},
    "/v2/logging": {"log_file": "/tmp/stolen", "log_verbose_level": 1},
    "/v2/trace/setting": {"trace_file": "/tmp/stolen", "trace_level": ["TIMESTAMPS"]},
    f"/v2/models/{MODEL}/trace/setting": {"trace_file": "/tmp/stolen", "trace_level": ["TIMESTAMPS"]},
}


@pytest.mark.parametrize("path", CLOSED_TO_HTTP)
@pytest.mark.parametrize("headers", [{}, {"closed": "0" * 64}], ids=["nothing", "a guess"])
def test_what_http_refuses(service, path, headers):
    body = json.dumps(CLOSED_TO_HTTP[path]).replace("REGION", f"/{region(service)}")
    assert http_call(service, "POST", path, body, headers)[0] == 403


def http_call(service, method: str, path: str, body: str = "", headers=None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", service.settings.http_port, timeout=60)
    connection.request(method, path, body, headers or {})
    response = connection.getresponse()
    return response.status, response.read()


@pytest.mark.parametrize("path", ["/v2", "/v2/health/ready", f"/v2/models/{MODEL}", f"/v2/models/{MODEL}/stats"])
def test_what_stays_open(service, path):
    assert http_call(service, "GET", path)[0] == 200


def test_the_value_is_another_at_each_start(service):
    from step_audio_server.launch.launch import restrictions

    (value,) = {v for word in arguments(service.server.process.pid) for v in re.findall("closed=([0-9a-f]{64})$", word)}
    assert len({value, *(word.rpartition("=")[2] for word in restrictions() + restrictions())}) == 3

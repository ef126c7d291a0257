"""Plain KServe calls, for what the client library would not send."""

from __future__ import annotations

import asyncio
import http.client
import re
from uuid import uuid4

import numpy as np

from step_audio_client import calls, wire
from step_audio_server.serve import Service

scalar = wire.scalar


def texts(*values: bytes | str) -> np.ndarray:
    return wire.byte_strings([value.encode() if isinstance(value, str) else value for value in values])


def prompt(ids: list[int], new: int, **others: np.ndarray) -> dict[str, np.ndarray]:
    """Inputs of the `tensorrt_llm` model."""
    return {
        "input_ids": np.array([ids], np.int32),
        "input_lengths": scalar(len(ids), np.int32),
        "request_output_len": scalar(new, np.int32),
    } | others


async def send(address: str, model: str, inputs: dict[str, np.ndarray], request_id: str = "", timeout: float = 120):
    """All responses of one request. Raises calls.StreamError."""
    async with wire.channel(address) as channel:
        stub = wire.Stub(channel)
        request = wire.infer_request(model, request_id or uuid4().hex, inputs)
        try:
            return [response async for response in calls.stream(stub, request, timeout)]
        finally:
            await calls.ended(stub)


def call(address: str, model: str, inputs: dict[str, np.ndarray], request_id: str = ""):
    return asyncio.run(send(address, model, inputs, request_id))


def refusal(address: str, model: str, inputs: dict[str, np.ndarray]) -> str:
    """The error text of a request that must be refused; an answer fails the test."""
    try:
        responses = call(address, model, inputs)
    except calls.StreamError as error:
        return str(error)
    raise AssertionError(f"answered with {len(responses)} responses")


def active(service: Service) -> float:
    """Generations under way, as tritonserver counts them."""
    return metrics(service.settings.metrics_port)["request.active"]


def steps(service: Service) -> float:
    """Of the engine, since it started."""
    return metrics(service.settings.metrics_port)["general.iteration_counter"]


def metrics(port: int) -> dict[str, float]:
    """`family{label value}` or `family` -> value, of the engine's gauges."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/metrics")
    page = connection.getresponse().read().decode()
    connection.close()
    found = {}
    for name, labels, value in re.findall(r"^(nv_trt_llm_\w+)\{([^}]*)\} (\S+)$", page, re.M):
        kind = [v for k, v in re.findall(r'(\w+)="([^"]*)"', labels) if k not in ("model", "version")]
        found[f"{name.removeprefix('nv_trt_llm_').removesuffix('_metrics')}.{kind[0]}"] = float(value)
    return found

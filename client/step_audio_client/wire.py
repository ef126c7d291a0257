"""KServe v2 requests and responses over gRPC: arrays in, arrays out.

The raw stubs are used instead of tritonclient's own asyncio client, because that one cannot ask for the
empty final response, without which the end of a stream is silence.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor, np_to_triton_dtype, serialize_byte_tensor, triton_to_np_dtype

from step_audio.arrays import AnyArray
from step_audio.steps.leases import PREFIX as LEASE_ID
from step_audio.tracing import PARAMETER
from step_audio_client.generators import inner
from step_audio_client.tls import SCHEME, Tls

Call = grpc.aio.StreamStreamCall[Any, Any]
Lease = grpc.aio.UnaryUnaryCall[Any, Any]

LEASE = "lease"  # the model; its ids are LEASE_ID and the answer's own

# Two bytes that are handed on as they came: numpy has no such numbers.
BFLOAT16 = np.dtype("V2")

CHANNEL = [
    ("grpc.max_send_message_length", -1),  # recordings are large
    ("grpc.max_receive_message_length", -1),
    # A server that is started again is back in seconds, and is not to be waited for by gRPC's own two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.min_reconnect_backoff_ms", 5000),  # in spite of its name, what one attempt may take
]
# Of a call that had reached the server, which answers by messages: the connection broke, or the server ended.
BROKEN = (
    grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DATA_LOSS,
)  # fmt: skip


@dataclass(frozen=True)
class Response:
    """One response of a stream: arrays by output name. `final`: no other follows."""

    outputs: dict[str, AnyArray]
    final: bool


def scalar(value: float, kind: type[np.generic]) -> AnyArray:
    """One value with the batch dimension that the models expect, [1, 1]."""
    return np.array([[value]], kind)


def byte_strings(values: Sequence[bytes]) -> AnyArray:
    """Byte strings with the batch dimension, [1, n] of objects."""
    array = np.empty((1, len(values)), object)
    array[0, :] = values
    return array


def infer_request(model: str, request_id: str, inputs: Mapping[str, AnyArray]) -> service_pb2.ModelInferRequest:
    """Arrays keep their shapes; object arrays hold bytes."""
    request = service_pb2.ModelInferRequest(model_name=model, id=request_id)
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    for name, array in inputs.items():
        tensor = request.inputs.add(name=name, shape=array.shape)
        if array.dtype == object:
            tensor.datatype = "BYTES"
            request.raw_input_contents.append(serialize_byte_tensor(array).item() if array.size else b"")
        else:
            tensor.datatype = "BF16" if array.dtype == BFLOAT16 else np_to_triton_dtype(array.dtype)
            request.raw_input_contents.append(array.tobytes())
    return request


def infer_response(response: service_pb2.ModelInferResponse) -> Response:
    outputs = {}
    for tensor, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        if tensor.datatype == "BYTES":
            array = deserialize_bytes_tensor(raw)
        else:
            kind = BFLOAT16 if tensor.datatype == "BF16" else triton_to_np_dtype(tensor.datatype)
            array = np.frombuffer(raw, kind)
        outputs[tensor.name] = array.reshape(list(tensor.shape))
    return Response(outputs, response.parameters["triton_final_response"].bool_param)


def trace(request: service_pb2.ModelInferRequest, traceparent: str | None) -> None:
    """Names the span that the steps' spans are within; Triton hands a request's parameters to each."""
    if traceparent is not None:
        request.parameters[PARAMETER].string_param = traceparent


class StreamError(Exception):
    """The server's error text for one stream."""


class ConnectionLost(Exception):
    """The server ended, or the connection to it, with the request in hand."""


@inner
async def stream(
    stub: service_pb2_grpc.GRPCInferenceServiceStub,
    request: service_pb2.ModelInferRequest,
    timeout: float | None,
    leased: bool = False,
) -> AsyncGenerator[Response]:
    """Responses of one request up to and including the final one.

    `leased`: by the model `lease` the server ends the LLM's work when this call breaks, or its time is up. That is
    asked by a call of its own: tritonserver crashes where answers of a decoupled model and of another meet on a stream.
    Raises StreamError, ConnectionLost, and grpc.aio.AioRpcError for what did not reach the server or took too long.
    """
    sent = False
    # Written and read, not iterated: gRPC would do that in tasks and generators of its own, which nobody ends.
    call = stub.ModelStreamInfer(timeout=timeout)
    lease: Lease | None = stub.ModelInfer(_lease(request.id, True, timeout), timeout=timeout) if leased else None
    try:
        await _write(call, request)
        sent = True
        while (message := await call.read()) is not grpc.aio.EOF:
            if message.error_message:
                await _end(call)
                await _give_back(stub, lease, request.id)
                raise StreamError(message.error_message)
            response = infer_response(message.infer_response)
            if response.final:  # before it is handed on, for a caller who has all may leave at once
                await _end(call)
                await _give_back(stub, lease, request.id)
            yield response
            if response.final:
                return
        raise ConnectionLost("the stream ended without a final response")
    except grpc.aio.AioRpcError as error:
        if sent and error.code() in BROKEN:
            raise ConnectionLost(error.details()) from None
        raise
    finally:
        for left in (call, lease):
            if left is not None and not left.done():
                left.cancel()


def _lease(request_id: str, open_: bool, seconds: float | None = None) -> service_pb2.ModelInferRequest:
    inputs = {"open": scalar(open_, np.bool_)}
    if seconds is not None:
        inputs["seconds"] = scalar(seconds, np.float32)
    return infer_request(LEASE, f"{LEASE_ID}{request_id}", inputs)


async def _write(call: Call, request: service_pb2.ModelInferRequest) -> None:
    with contextlib.suppress(asyncio.InvalidStateError):  # it has ended: reading says how
        await call.write(request)


async def _end(call: Call) -> None:
    """Read a finished stream to its end: cancelling one that is about to end makes tritonserver 2.51 leak a reference
    to the model, and its shutdown wait."""
    # What goes wrong now, a deadline or a dying server, is no fault of the answer that is here already.
    with contextlib.suppress(TimeoutError, asyncio.InvalidStateError, grpc.aio.AioRpcError):
        async with asyncio.timeout(1):  # Python 3.11's wait_for loses a cancel that comes with the end
            # Only now, as NVIDIA's client does it: else tritonserver ends the stream while it writes the answer.
            await call.done_writing()
            while await call.read() is not grpc.aio.EOF:
                pass


async def _give_back(stub: service_pb2_grpc.GRPCInferenceServiceStub, lease: Lease | None, request_id: str) -> None:
    """The lease of an answer that has ended."""
    if lease is None:
        return
    with contextlib.suppress(TimeoutError, grpc.aio.AioRpcError):
        async with asyncio.timeout(1):
            await stub.ModelInfer(_lease(request_id, False), timeout=1)
            await lease


def channel(address: str, tls: Tls | None = None) -> grpc.aio.Channel:
    """Plain text to `host:port`, TLS to `grpcs://host:port`. Raises as `Tls.check` does."""
    tls = tls or Tls()
    tls.check(address)
    if not address.startswith(SCHEME):
        return grpc.aio.insecure_channel(address, options=CHANNEL)
    name = [("grpc.ssl_target_name_override", tls.name)] if tls.name else []
    return grpc.aio.secure_channel(address.removeprefix(SCHEME), tls.credentials(), options=[*CHANNEL, *name])

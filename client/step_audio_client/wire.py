"""KServe v2 requests and responses: arrays in, arrays out; and the channels that they travel by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import grpc
import numpy as np
from tritonclient.grpc import service_pb2
from tritonclient.utils import deserialize_bytes_tensor, np_to_triton_dtype, serialize_byte_tensor, triton_to_np_dtype

from step_audio.arrays import AnyArray
from step_audio.tracing import PARAMETER
from step_audio_client.tls import SCHEME, Tls

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


def channel(address: str, tls: Tls | None = None) -> grpc.aio.Channel:
    """Plain text to `host:port`, TLS to `grpcs://host:port`. Raises as `Tls.check` does."""
    tls = tls or Tls()
    tls.check(address)
    if not address.startswith(SCHEME):
        return grpc.aio.insecure_channel(address, options=CHANNEL)
    name = [("grpc.ssl_target_name_override", tls.name)] if tls.name else []
    return grpc.aio.secure_channel(address.removeprefix(SCHEME), tls.credentials(), options=[*CHANNEL, *name])

"""KServe v2 requests and responses: arrays in, arrays out; and the channels that they travel by."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2
from tritonclient.utils import deserialize_bytes_tensor, np_to_triton_dtype, triton_to_np_dtype

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
    ("grpc.use_local_subchannel_pool", 1),  # else it waits out a failure that another client of the process has met
]


SMALL = 1 << 19  # bytes, copied in less time than a thread takes
SERVICE = "/inference.GRPCInferenceService"
_CONTENTS = service_pb2.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER << 3 | 2  # a field of bytes


@dataclass(frozen=True, eq=False)
class InferRequest:
    """A request without what its inputs hold, and that, of each in pieces, beside it: protobuf, which would copy long
    recordings again and again, lets nobody else have the processor meanwhile."""

    message: service_pb2.ModelInferRequest
    contents: list[list[bytes]]

    @property
    def id(self) -> str:
        return str(self.message.id)

    def serialized(self) -> bytes:
        """As protobuf has it, whose fields may be put one behind the other."""
        pieces = [self.message.SerializeToString()]
        for content in self.contents:
            pieces += [bytes([_CONTENTS]), _varint(sum(map(len, content))), *content]
        return b"".join(pieces)  # a long one without the interpreter's lock

    async def encoded(self) -> bytes:
        """The same, beside the event loop where it takes time."""
        size = sum(len(piece) for content in self.contents for piece in content)
        return self.serialized() if size <= SMALL else await asyncio.to_thread(self.serialized)


class Stub:
    """Of tritonclient's those calls that are needed; requests for models are a `Request`, or its bytes."""

    def __init__(self, channel: grpc.aio.Channel):
        self.ModelReady: Any = channel.unary_unary(
            f"{SERVICE}/ModelReady",
            service_pb2.ModelReadyRequest.SerializeToString,
            service_pb2.ModelReadyResponse.FromString,
        )
        self.ModelInfer: Any = channel.unary_unary(
            f"{SERVICE}/ModelInfer", _serialized, service_pb2.ModelInferResponse.FromString
        )
        self.ModelStreamInfer: Any = channel.stream_stream(
            f"{SERVICE}/ModelStreamInfer", _serialized, service_pb2.ModelStreamInferResponse.FromString
        )


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


def infer_request(model: str, request_id: str, inputs: Mapping[str, AnyArray]) -> InferRequest:
    """Arrays keep their shapes; object arrays hold bytes."""
    message = service_pb2.ModelInferRequest(model_name=model, id=request_id)
    message.parameters["triton_enable_empty_final_response"].bool_param = True
    contents: list[list[bytes]] = []
    for name, array in inputs.items():
        tensor = message.inputs.add(name=name, shape=array.shape)
        if array.dtype == object:
            tensor.datatype = "BYTES"
            contents.append([piece for value in array.flat for piece in (len(value).to_bytes(4, "little"), value)])
        else:
            tensor.datatype = "BF16" if array.dtype == BFLOAT16 else np_to_triton_dtype(array.dtype)
            contents.append([array.tobytes()])
    return InferRequest(message, contents)


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


def _serialized(request: InferRequest | bytes) -> bytes:
    return request if isinstance(request, bytes) else request.serialized()


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first, as protobuf writes numbers."""
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*digits, value])


def trace(request: InferRequest, traceparent: str | None) -> None:
    """Names the span that the steps' spans are within; Triton hands a request's parameters to each."""
    if traceparent is not None:
        request.message.parameters[PARAMETER].string_param = traceparent


def channel(address: str, tls: Tls | None = None) -> grpc.aio.Channel:
    """Plain text to `host:port`, TLS to `grpcs://host:port`. Raises as `Tls.check` does."""
    tls = tls or Tls()
    tls.check(address)
    if not address.startswith(SCHEME):
        return grpc.aio.insecure_channel(address, options=CHANNEL)
    name = [("grpc.ssl_target_name_override", tls.name)] if tls.name else []
    return grpc.aio.secure_channel(address.removeprefix(SCHEME), tls.credentials(), options=[*CHANNEL, *name])

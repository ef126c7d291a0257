"""Requests and responses between the client library and a server."""

import threading

import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from fake_triton import TOKENIZER, answer, bytes_array, message, script, serving
from step_audio_client import Audio, Sampling, StepAudioClient, calls, quarantine, user, wire

LONG = bytes(range(256)) * 4096  # 1 MiB


def test_request_on_the_wire():
    inputs = {"a": np.array([[1, -2]], np.int32), "b": bytes_array(b"x", b"")}
    request = service_pb2.ModelInferRequest.FromString(wire.infer_request("model", "id-1", inputs).serialized())
    assert (request.model_name, request.id) == ("model", "id-1")
    assert request.parameters["triton_enable_empty_final_response"].bool_param
    assert [(t.name, t.datatype, list(t.shape)) for t in request.inputs] == [
        ("a", "INT32", [1, 2]), ("b", "BYTES", [1, 2]),
    ]  # fmt: skip
    assert list(request.raw_input_contents) == [b"\x01\0\0\0\xfe\xff\xff\xff", b"\x01\0\0\0x\0\0\0\0"]


@pytest.mark.parametrize(
    "array",
    [
        np.array([[1, -2]], np.int32),
        np.array([[2**64 - 1]], np.uint64),
        np.array([[[0.5]]], np.float32),
        np.array([[True, False]]),
        np.zeros((1, 1, 0), np.int32),
        bytes_array(b"", b"\xff\0", "é".encode()),
        np.empty((1, 0), object),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_arrays_survive_the_wire(array):
    message = service_pb2.ModelInferResponse.FromString(answer({"x": array}, final=True).SerializeToString())
    response = wire.infer_response(message)
    assert response.final
    got = response.outputs["x"]
    assert (got.dtype, got.shape, got.tolist()) == (array.dtype, array.shape, array.tolist())


@pytest.fixture
def on_the_loop(monkeypatch):
    """Whether what was done with a long recording was done by the loop's thread: `serialized`, `digested`."""
    seen = {}

    def watched(name, work, is_long):
        def watch(given):
            if is_long(given):
                seen.setdefault(name, set()).add(threading.current_thread() is threading.main_thread())
            return work(given)

        return watch

    def long_request(request):
        return sum(len(piece) for content in request.contents for piece in content) > len(LONG)

    monkeypatch.setattr(
        wire.InferRequest, "serialized", watched("serialized", wire.InferRequest.serialized, long_request)
    )
    monkeypatch.setattr(quarantine, "_digested", watched("digested", quarantine._digested, lambda _: True))
    return seen


async def test_long_recordings_are_handled_beside_the_event_loop(on_the_loop):
    """They are put together, and told from what servers have died with, by other threads."""
    runs = [[], [message(5, final=True)]]

    async def dies_once():
        for part in runs.pop(0):
            yield part

    async with serving(dies_once) as [(fake, address, _)], StepAudioClient(address, TOKENIZER, patience=5) as client:
        await client.complete([user(Audio(LONG), Audio(b""), Audio(LONG[:1000]))], Sampling(max_tokens=3))
    received = [entry[2]["audio"].tolist() for entry in fake.seen if entry[0] == "generate"]
    assert received == [[[LONG, b"", LONG[:1000]]]] * 2
    assert on_the_loop == {"serialized": {False}, "digested": {False}}


async def test_a_model_that_answers_once_is_asked_beside_the_event_loop_too(on_the_loop):
    async with serving(script()) as [(_, address, _)], wire.channel(address) as channel:
        request = wire.infer_request("audio_featurizer", "", {"audio": bytes_array(LONG)})
        request.message.outputs.add(name="mel")
        stub = wire.Stub(channel)
        response = await calls.ask(stub, request, 10)
        await calls.ended(stub)
    assert wire.infer_response(response).outputs["mel"].shape == (1, 1, 128, 8)
    assert on_the_loop == {"serialized": {False}}

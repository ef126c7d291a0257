"""A small gRPC server that behaves as tritonserver does, well and badly."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Sequence
from contextlib import asynccontextmanager
from itertools import zip_longest

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from step_audio.chat_template import load_template
from step_audio.errors import Code
from step_audio.sampling_parameters import PARAMETERS
from step_audio.tokenizer import Tokenizer
from step_audio_build.convert.small_tokenizer import build_tokenizer
from step_audio_client import StepAudioClient, wire
from step_audio_server.launch.ports import free_ports

TOKENIZER = Tokenizer(build_tokenizer().to_str())
EOT = TOKENIZER.special.eot
GUIDE = ("guided_decoding_guide_type", "guided_decoding_guide")


def answer(outputs: dict[str, np.ndarray], final: bool = False) -> service_pb2.ModelInferResponse:
    """As tritonserver encodes it."""
    written = wire.infer_request("m", "", outputs).serialized()  # inputs and outputs are written alike
    request = service_pb2.ModelInferRequest.FromString(written)
    response = service_pb2.ModelInferResponse()
    for tensor in request.inputs:
        response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    response.raw_output_contents.extend(request.raw_input_contents)
    response.parameters["triton_final_response"].bool_param = final
    return response


def bytes_array(*values: bytes) -> np.ndarray:
    array = np.empty((1, len(values)), object)
    array[0, :] = values
    return array


def read(request: service_pb2.ModelInferRequest) -> dict[str, np.ndarray]:
    """Its inputs."""
    outputs = [{"name": t.name, "datatype": t.datatype, "shape": t.shape} for t in request.inputs]
    raw = request.raw_input_contents
    return wire.infer_response(service_pb2.ModelInferResponse(outputs=outputs, raw_output_contents=raw)).outputs


class Fake(service_pb2_grpc.GRPCInferenceServiceServicer):
    """`script` yields messages for a generation; everything that reaches the server is in `seen`."""

    def __init__(self, script):
        self.script = script
        self.seen: list[tuple] = []
        self.leases: set[str] = set()  # that have been opened
        self.audio_report = np.zeros((1, 2, 0), np.float32)
        self.stopped: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.prompt: dict[str, np.ndarray] = {}  # outputs of the model step_audio_prompt
        self.time_left: list[float] = []  # seconds of each lease
        self.max_seq_len = 100
        self.parameters = [one.name for one in PARAMETERS]

    def info(self):
        return {
            "vocab_size": TOKENIZER.max_id + 1,
            "max_seq_len": self.max_seq_len,
            "tokens_per_block": 4,
            "chat_template": load_template("default").source,
            "adapters": {"terse": 7},
            "sampling_parameters": self.parameters,
            "mind_paced_speaking": {"think_tokens": 80, "speak_tokens": 20},
            "suggestions": {"say": [], "ask": []},
        }

    async def ModelInfer(self, request, context):
        if request.model_name == "lease":
            inputs = read(request)
            if "report" in inputs:
                return answer({"audio_report": self.audio_report})
            if not inputs["open"].item() and request.id in self.leases:
                self.seen.append(("left" if "stop" in inputs else "returned", request.id))
            if "seconds" in inputs:
                self.time_left.append(inputs["seconds"].item())
            self.leases.add(request.id)
            return answer({"ended": np.ones((1, 1), np.bool_)})
        if request.model_name == "step_audio_prompt":
            return answer(self.prompt)
        self.seen.append(("asked", request.outputs[0].name))
        if request.model_name == "prompt_builder":  # of a guide
            kind, text = (read(request)[name].item() for name in GUIDE)
            return answer(
                dict(zip(GUIDE, (bytes_array(b"ebnf_grammar"), bytes_array(kind + b" " + text)), strict=True))
            )
        if request.model_name == "audio_featurizer":
            return answer({"mel": np.ones((1, 1, 128, 8), np.float32)})
        values = {"tokenizer_json": TOKENIZER.to_json(), "serving_info": json.dumps(self.info())}
        return answer({request.outputs[0].name: bytes_array(values[request.outputs[0].name].encode())[0]})

    async def ModelStreamInfer(self, requests, context):
        async for request in requests:
            inputs = read(request)
            if "stop" in inputs:
                self.seen.append(("stop", request.id, inputs["stop"].item()))
                self.stopped[request.id].set()
                yield message(final=True)
                continue
            self.seen.append(("generate", request.id, inputs))
            assert context.time_remaining() is None  # a deadline is a cancel, which crashes tritonserver
            try:
                part = None
                async for part in until(self.stopped[request.id], self.script()):
                    yield part
                if part is None or not (
                    part.error_message or part.infer_response.parameters["triton_final_response"].bool_param
                ):
                    return  # it breaks off
            except asyncio.CancelledError:
                self.seen.append(("cancelled", request.id))
                raise
        self.seen.append(("ended",))


async def until(stopped: asyncio.Event, parts):
    """As long as nobody has stopped it."""
    stop = asyncio.ensure_future(stopped.wait())
    try:
        while True:
            part = asyncio.ensure_future(anext(parts, None))
            await asyncio.wait({stop, part}, return_when=asyncio.FIRST_COMPLETED)
            if not part.done():
                part.cancel()
                yield message(final=True, empty=True)
                return
            if part.result() is None:
                return
            yield part.result()
    finally:
        stop.cancel()


def message(
    *ids: int, final: bool = False, prompt: int = 10, empty: bool = False, error: str = "", reused: int | None = None
):
    if error:
        return service_pb2.ModelStreamInferResponse(error_message=error)
    outputs = {"output_ids": np.array([[ids]], np.int32), "num_input_tokens": np.array([[prompt]], np.int32)}
    if reused is not None:
        outputs["kv_cache_reused_blocks"] = np.array([[reused]], np.int32)
    return service_pb2.ModelStreamInferResponse(infer_response=answer({} if empty else outputs, final))


def refusal(code: Code, text: str = "so it is"):
    """As a step of an ensemble sends it."""
    return message(error=f"in ensemble 'step_audio_r1', {code.put_before(text)}")


def script(*messages, then=None):
    async def run():
        for each in messages:
            yield each
        if then:
            await then()

    return run


async def for_ever():
    await asyncio.sleep(60)


@asynccontextmanager
async def serving(*runs, addresses: Sequence[str] = ()):
    """For each run a server: (fake, address, grpc.aio.Server). Its port stays free when it is stopped."""
    started = []
    for run, address in zip_longest(runs, addresses):
        address = address or f"127.0.0.1:{free_ports(1)[0]}"
        server, fake = grpc.aio.server(), Fake(run)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(fake, server)
        server.add_insecure_port(address)
        await server.start()
        started.append((fake, address, server))
    try:
        yield started
    finally:
        for _, _, server in started:
            await server.stop(0.5)  # what the client leaves running reaches the server, or never


@asynccontextmanager
async def served(run, tokenizer: Tokenizer | None = TOKENIZER):
    """(fake, client of it)"""
    async with serving(run) as [(fake, address, _)], StepAudioClient(address, tokenizer) as client:
        yield fake, client


def stops(fake) -> list[tuple]:
    return [entry for entry in fake.seen if entry[0] in ("cancelled", "stop")]

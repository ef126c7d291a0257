"""What is asked of a server beside its work: whether every model answers, and to end a request.

tritonserver's own health endpoints go on saying that all is well when a model's process is dead, stopped or stuck.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import grpc
import numpy as np

from step_audio.errors import Code, Retry
from step_audio.lora import LoraTensors
from step_audio.serving_info import HEARTBEAT, LLM
from step_audio.steps.leases import PREFIX
from step_audio_client import calls, wire
from step_audio_client.audio_report import AudioReport, audio_reports
from step_audio_client.errors import RequestError, ServerLost, call_error, request_error

PROMPT = "step_audio_prompt"  # featurizer, prompt builder and encoder, one after the other
TOKENIZER = "tokenizer"
MESSAGES = b'[{"role": "user", "content": "."}]'


@dataclass(frozen=True)
class Silence:
    """`text`: which model does not answer, and how it does not. `behind`: it says itself that what computes for it, a
    process beside the server, is away."""

    text: str
    behind: bool = False


async def heartbeat(stub: wire.Stub, timeout: float) -> Silence | None:
    """What does not answer within `timeout` seconds; None while all do. What is behind a model only where all models
    answer.

    A small request goes through each, and takes neither a slot nor a place in the LLM's queue. An error is an answer,
    too, unless it says that the model is gone.
    """
    prompt = wire.infer_request(PROMPT, "", {"messages": wire.byte_strings([MESSAGES])})
    info = wire.infer_request(TOKENIZER, "", {})
    info.message.outputs.add(name="serving_info")
    nobodys = uuid4().hex
    lease = wire.infer_request(calls.LEASE, f"{PREFIX}{nobodys}", {"open": wire.scalar(False, np.bool_)})
    asked: dict[str, Awaitable[Any]] = {
        PROMPT: calls.ask(stub, prompt, timeout),
        TOKENIZER: calls.ask(stub, info, timeout),
        calls.LEASE: calls.ask(stub, lease, timeout),
        LLM: stop(stub, f"{HEARTBEAT}{nobodys}", timeout),  # of a request that nobody has made
    }
    answers = await asyncio.gather(*asked.values(), return_exceptions=True)
    found = [_silence(model, answer) for model, answer in zip(asked, answers, strict=True)]
    return min((one for one in found if one is not None), key=lambda one: one.behind, default=None)


async def audio_report(stub: wire.Stub, request_id: str, timeout: float) -> tuple[AudioReport, ...]:
    """Of the recordings of the generation of this id, whose first token has come; nothing where the server is gone."""
    asked = wire.infer_request(calls.LEASE, f"{PREFIX}{request_id}", {"report": wire.scalar(True, np.bool_)})
    try:
        answer = await stub.ModelInfer(asked, timeout=timeout)
    except grpc.aio.AioRpcError:
        return ()
    return audio_reports(wire.infer_response(answer).outputs["audio_report"])


async def load_adapter(stub: wire.Stub, task_id: int, lora: LoraTensors, timeout: float) -> None:
    """Gives the LLM an adapter, by the first request that names it, for one token. Raises as `stop`."""
    weights = lora.weights.view(wire.BFLOAT16) if lora.weights.dtype == np.uint16 else lora.weights
    inputs = {name: wire.scalar(1, np.int32) for name in ("input_ids", "input_lengths", "request_output_len")}
    inputs |= {"streaming": wire.scalar(True, np.bool_), "lora_task_id": wire.scalar(task_id, np.uint64)}
    inputs |= {"lora_weights": weights[None], "lora_config": lora.config[None]}
    async for _ in calls.stream(stub, wire.infer_request(LLM, f"adapter-{task_id}", inputs), timeout):
        pass


async def stop(stub: wire.Stub, request_id: str, timeout: float) -> None:
    """Has the LLM end the request of this id. Raises as `Answer.responses` does."""
    required = ("input_ids", "input_lengths", "request_output_len")  # by the model's configuration, not read
    inputs = {name: wire.scalar(1, np.int32) for name in required} | {"stop": wire.scalar(True, np.bool_)}
    async for _ in calls.stream(stub, wire.infer_request(LLM, request_id, inputs), timeout):
        pass


def _silence(model: str, answer: object) -> Silence | None:
    error: RequestError
    if isinstance(answer, TimeoutError):
        return Silence(f"{model} does not answer")
    if isinstance(answer, grpc.aio.AioRpcError):
        error = call_error(answer, "")
    elif isinstance(answer, calls.ConnectionLost):
        error = ServerLost(str(answer))
    elif isinstance(answer, calls.StreamError):
        error = request_error(str(answer))
    elif isinstance(answer, BaseException):
        raise answer
    else:
        return None
    if model == LLM and isinstance(answer, calls.StreamError) and error.code is Code.UNAVAILABLE:
        return Silence(f"{model} waits for its process", behind=True)
    return Silence(f"{model} is gone") if error.code.retry is Retry.WAIT else None

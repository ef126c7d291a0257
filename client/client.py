"""The client: one coroutine-safe object per server, one async iterator per generation."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from step_audio.tokenizer import IncrementalDecoder, Tokenizer
from step_audio_client import wire
from step_audio_client.errors import RequestError, request_error
from step_audio_client.messages import split_audio
from step_audio_client.sampling import Sampling

ENSEMBLE = "step_audio_r1"
LLM = "tensorrt_llm"

TOO_LATE = "the answer took longer than the timeout"

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Delta:
    """What is new. `text` is whole characters; the ids may be ahead of it."""

    token_ids: list[int]
    text: str
    logprobs: list[float] = field(default_factory=list)
    finish_reason: FinishReason | None = None  # on the last one
    usage: Usage | None = None  # on the last one


@dataclass(frozen=True)
class Generation:
    """A whole answer."""

    token_ids: list[int]
    text: str
    logprobs: list[float]
    finish_reason: FinishReason
    usage: Usage


class StepAudioClient:
    """Speaks gRPC to the model repository. `async with`, or `close()` when done.

    `tokenizer`: taken from the server at first use if not given.
    """

    def __init__(self, address: str = "127.0.0.1:8001", tokenizer: Tokenizer | None = None):
        self._channel = wire.channel(address)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._address = address
        self._tokenizer = tokenizer
        self._info: dict[str, Any] | None = None
        self._open: set[tuple[str, AsyncGenerator[wire.Response]]] = set()  # generations under way, by request id
        self._stops: set[asyncio.Task] = set()

    async def __aenter__(self) -> StepAudioClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Stops what is under way, and waits for it, so that no slot stays taken on the server."""
        # A `break` leaves the clean-up of `generate` to asyncio, which may get to it only when the channel is closed.
        while self._open:
            request_id, responses = self._open.pop()
            with contextlib.suppress(RuntimeError):  # another task is reading it
                await responses.aclose()
            self._stop_in_background(request_id)
        if self._stops:
            await asyncio.gather(*self._stops, return_exceptions=True)
        await self._channel.close()

    async def ready(self) -> bool:
        """Whether the whole pipeline is loaded."""
        try:
            answer = await self._stub.ModelReady(service_pb2.ModelReadyRequest(name=ENSEMBLE), timeout=5)
        except grpc.aio.AioRpcError:
            return False
        return answer.ready

    async def serving_info(self) -> dict[str, Any]:
        """The served model's name and limits; asked once."""
        if self._info is None:
            self._info = json.loads((await self._ask_tokenizer_model("serving_info")).decode())
        return self._info

    async def tokenizer(self) -> Tokenizer:
        """The given one, or the server's; asked once."""
        if self._tokenizer is None:
            self._tokenizer = Tokenizer.from_json((await self._ask_tokenizer_model("tokenizer_json")).decode())
        return self._tokenizer

    async def generate(
        self,
        messages: Sequence[Mapping[str, Any]],
        sampling: Sampling | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool = False,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> AsyncGenerator[Delta]:
        """Deltas of the answer; the last one carries `finish_reason` and `usage`.

        Leaving the iteration early, by `break`, cancellation or an exception, stops the server's work.
        `timeout` in seconds bounds the whole answer. `request_id` must be unguessable: who knows it can stop the
        request; None makes a UUID. Raises RequestError.
        """
        start = time.monotonic()
        tokenizer = await self.tokenizer()
        max_seq_len = (await self.serving_info())["max_seq_len"]
        sampling = sampling or Sampling()
        stop_ids = tokenizer.special.stop_ids
        text, audio = split_audio(messages)
        inputs = sampling.inputs() | {
            "messages": wire.byte_strings([text.encode()]),
            "streaming": wire.scalar(True, np.bool_),
            "return_num_input_tokens": wire.scalar(True, np.bool_),
        }
        if audio:
            inputs["audio"] = wire.byte_strings(audio)
        if tools:
            inputs["tools"] = wire.byte_strings([json.dumps(list(tools), ensure_ascii=False).encode()])
        if continue_final_message:
            inputs["continue_final_message"] = wire.scalar(True, np.bool_)

        request_id = request_id or uuid.uuid4().hex
        decoder = IncrementalDecoder(tokenizer)
        completion, prompt_tokens, last_id = 0, 0, None
        responses = wire.stream(self._stub, wire.infer_request(ENSEMBLE, request_id, inputs), timeout)
        entry = (request_id, responses)
        self._open.add(entry)
        try:
            async for response in responses:
                if response.final:
                    self._open.discard(entry)
                ids = response.outputs["output_ids"].reshape(-1).tolist() if response.outputs else []
                if response.outputs:
                    prompt_tokens = int(response.outputs["num_input_tokens"].reshape(-1)[0])
                completion += len(ids)
                last_id = ids[-1] if ids else last_id
                shown = decoder.push([token for token in ids if token not in stop_ids])
                # The engine sends those of the whole answer each time.
                logprobs = response.outputs.get("output_log_probs", np.zeros(0)).reshape(-1).tolist()
                logprobs = logprobs[len(logprobs) - len(ids) :]
                if not response.final:
                    yield Delta(ids, shown, logprobs)
                else:
                    limit = min(sampling.max_tokens or max_seq_len, max_seq_len - prompt_tokens)
                    # The engine says neither: an answer that used up its room ended by length, unless by its
                    # last token; of stop words the last token is kept, of end_id it is not.
                    by_length = completion >= limit and last_id not in stop_ids
                    reason: FinishReason = "length" if by_length else "stop"
                    usage = Usage(prompt_tokens, completion)
                    yield Delta(ids, shown + decoder.flush(), logprobs, reason, usage)
        except wire.StreamError as error:
            self._open.discard(entry)
            raise request_error(str(error)) from None
        except grpc.aio.AioRpcError as error:
            if timeout is not None and time.monotonic() - start >= timeout:
                raise RequestError(TOO_LATE) from None  # however the server put it
            raise RequestError(self._unreachable(error)) from None
        finally:
            # First the stream, which keeps steps from being scheduled; then the LLM, if it is already at work.
            await responses.aclose()
            if entry in self._open:
                self._open.discard(entry)
                self._stop_in_background(request_id)

    async def complete(
        self, messages: Sequence[Mapping[str, Any]], sampling: Sampling | None = None, **options: Any
    ) -> Generation:
        """The whole answer at once; arguments as for `generate`."""
        deltas = [delta async for delta in self.generate(messages, sampling, **options)]
        last = deltas[-1]
        assert last.finish_reason and last.usage
        return Generation(
            token_ids=[token for delta in deltas for token in delta.token_ids],
            text="".join(delta.text for delta in deltas),
            logprobs=[value for delta in deltas for value in delta.logprobs],
            finish_reason=last.finish_reason,
            usage=last.usage,
        )

    async def stop(self, request_id: str) -> None:
        """End a request of ours on the server.

        A cancelled stream does not do it: tritonserver never tells a step inside an ensemble. The LLM model
        takes a second request with the same id and `stop`.
        """
        required = ("input_ids", "input_lengths", "request_output_len")  # by the model's configuration, not read
        inputs = {name: wire.scalar(1, np.int32) for name in required} | {"stop": wire.scalar(True, np.bool_)}
        async for _ in wire.stream(self._stub, wire.infer_request(LLM, request_id, inputs), timeout=10):
            pass

    def _stop_in_background(self, request_id: str) -> None:
        """A task of its own: the caller may itself be cancelled, and must not be kept waiting."""
        task = asyncio.get_running_loop().create_task(self.stop(request_id))
        self._stops.add(task)
        task.add_done_callback(lambda done: (self._stops.discard(done), done.cancelled() or done.exception()))

    async def _ask_tokenizer_model(self, output: str) -> bytes:
        request = wire.infer_request("tokenizer", "", {})
        request.outputs.add(name=output)
        try:
            answer = await self._stub.ModelInfer(request, timeout=30)
        except grpc.aio.AioRpcError as error:
            raise RequestError(self._unreachable(error)) from None
        return wire.infer_response(answer).outputs[output].item()

    def _unreachable(self, error: grpc.aio.AioRpcError) -> str:
        if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
            return TOO_LATE
        if error.code() == grpc.StatusCode.UNAVAILABLE:
            return f"no server answers at {self._address}"
        return error.details() or error.code().name

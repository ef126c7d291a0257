"""Generations on the servers: tensors out, tokens in; what is left early is stopped, what a server loses goes on."""

from __future__ import annotations

import asyncio
import contextlib
import time
import weakref
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2

from step_audio import tracing
from step_audio.arrays import AnyArray
from step_audio.errors import Code, Retry
from step_audio_client import calls, wire
from step_audio_client.audio_report import AudioReport
from step_audio_client.chat_types import Guide
from step_audio_client.continuation import AnyRequest, Continuation
from step_audio_client.control import PROMPT, audio_report, heartbeat, stop
from step_audio_client.counts import Counts
from step_audio_client.errors import (
    TOO_LATE,
    Quarantined,
    RequestError,
    RequestTimeout,
    ServerLost,
    Unavailable,
    call_error,
    request_error,
)  # fmt: skip
from step_audio_client.failover import PATIENCE, Failover
from step_audio_client.generators import inner
from step_audio_client.prepared import PreparedPrompt, PreparedRequest
from step_audio_client.quarantine import Quarantine
from step_audio_client.run import Run, new_request_id
from step_audio_client.sampling import Sampling
from step_audio_client.servers import Server, Servers
from step_audio_client.tls import Tls
from step_audio_client.tokens import WHOLE, TokenRequest, Tokens, guide_inputs

READY_TIMEOUT = 4  # seconds in which every model has to answer
SOON = 30  # seconds for an answer that takes no work worth mentioning
STOP_TIMEOUT = 10  # seconds
STOP_AGAIN = 0.04  # seconds; each time twice as many, up to:
STOP_SELDOM = 1.0
REPORT_TIMEOUT = 10  # seconds
LAST_TIMEOUT = 1  # seconds, of stops when the event loop ends
FEATURIZER = "audio_featurizer"
BUILDER = "prompt_builder"
CLIPS = {"frames": np.int32, "audio_index": np.int32, "content_hash": np.uint64}  # of a prompt's recordings


@dataclass(frozen=True, eq=False)
class _Open:
    """A generation under way."""

    request_id: str
    server: Server
    answer: calls.Answer
    responses: AsyncGenerator[wire.Response]

    async def stop(self) -> None:
        """Again and again until it has ended: one that comes before the LLM has the request is lost."""
        pause = STOP_AGAIN
        while True:
            await stop(self.server.stub, self.request_id, STOP_TIMEOUT)
            if await self.answer.ended(pause):
                return
            pause = min(2 * pause, STOP_SELDOM)


class Pipeline:
    """The models of the repository on one server or several; `patience`: as for `Failover`, `tls`: for `Server`."""

    def __init__(self, addresses: str | Sequence[str], patience: float = PATIENCE, tls: Tls | None = None):
        self._servers = Servers(addresses, tls)
        self._patience = patience
        self._quarantine = Quarantine()
        self.counts = Counts()
        self._open: set[_Open] = set()  # generations under way
        self._stops: set[asyncio.Task[Any]] = set()
        self._runs: weakref.WeakSet[Run] = weakref.WeakSet()
        self._end: AsyncGenerator[None] | None = None

    async def close(self) -> None:
        """Stops what is under way, and waits for it, so that no slot stays taken on a server."""
        # A `break` leaves the clean-up of `tokens` to asyncio, which may get to it only when the channel is closed.
        while self._open:
            entry = self._open.pop()
            with contextlib.suppress(RuntimeError):  # another task is reading it
                await entry.responses.aclose()
            self._stop_in_background(entry)
        if self._stops:
            await asyncio.gather(*self._stops, return_exceptions=True)
        await self._servers.close()
        if self._end is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closing it
                await self._end.aclose()

    async def _at_the_end(self) -> AsyncGenerator[None]:
        """Begun, it is ended by the event loop where nobody calls `close`: when that has cancelled all tasks, whose
        stops are now on their way, or when this has become garbage."""
        try:
            yield
        finally:
            if self._stops:
                _, late = await asyncio.wait(self._stops, timeout=LAST_TIMEOUT)
                for task in late:
                    task.cancel()
                await asyncio.gather(*late, return_exceptions=True)
            await self._servers.close()

    def run(self, request_id: str | None = None, timeout: float | None = None, first: str | None = None) -> Run:
        """Starts the clock of one answer and takes its turn among the servers; `first`: the one that is tried first."""
        run = Run(self._servers.route(first), timeout, request_id or new_request_id())
        self._runs.add(run)
        return run

    @property
    def expected(self) -> int:
        """How many servers are in reach, or have been away for less than the patience."""
        return self._servers.expected(self._patience)

    async def ready(self) -> bool:
        """Whether one server at least has everything loaded, and every model of it answers."""
        return any(await asyncio.gather(*(self._ready(server) for server in self._servers.all)))

    async def _ready(self, server: Server) -> bool:
        try:
            request = service_pb2.ModelReadyRequest(name=WHOLE)
            if not (await server.stub.ModelReady(request, timeout=READY_TIMEOUT)).ready:
                return False
            return await heartbeat(server.stub, READY_TIMEOUT) is None
        except grpc.aio.AioRpcError:
            return False

    async def prepare(self, run: Run, request: TokenRequest) -> PreparedPrompt:
        """The prompt as the LLM is to get it, its recordings encoded. Raises RequestError."""
        try:
            outputs = await self._ask(run, wire.infer_request(PROMPT, "", request.pipeline_inputs()), None)
        except RequestError as error:
            if error.code.retry is not Retry.HERE or (whole := request.told_whole()) is None:
                raise
            return await self.prepare(run, whole)
        return PreparedPrompt.of(request, outputs)

    async def bounded(self, run: Run, guide: Guide) -> Guide:
        """As the LLM is to get it, where no other step is asked: JSON that comes to an end. Raises RequestError.

        For the first one a library is loaded: seconds, and on a busy machine half a minute.
        """
        names = ("guided_decoding_guide_type", "guided_decoding_guide")
        clips = {name: np.zeros((1, 0), kind) for name, kind in CLIPS.items()}
        inputs = TokenRequest([{"role": "user", "content": "x"}], Sampling()).prompt_inputs() | clips
        kind, text = await self.ask(run, BUILDER, inputs | guide_inputs(guide), *names, patience=None)
        return replace(guide, kind=kind.item().decode(), text=text.item().decode(), bounded=True)

    async def ask(
        self, run: Run, model: str, inputs: Mapping[str, AnyArray], *outputs: str, patience: float | None = SOON
    ) -> list[AnyArray]:
        """Outputs of a model that answers once, and in `patience` seconds. Raises RequestError."""
        request = wire.infer_request(model, "", inputs)
        for output in outputs:
            request.message.outputs.add(name=output)
        tensors = await self._ask(run, request, patience)
        return [tensors[output] for output in outputs]

    async def _ask(self, run: Run, request: wire.InferRequest, patience: float | None) -> dict[str, AnyArray]:
        failover = Failover(self._servers, run, self._patience)
        while True:
            server = run.route[0]
            connected = server.rank() == 0
            try:
                limits = [limit for limit in (patience, run.time_left()) if limit is not None]
                with tracing.attempt(request.message.model_name, {"server.address": server.address}) as traceparent:
                    wire.trace(request, traceparent)
                    answer = await calls.ask(server.stub, request, min(limits, default=None))
            except TimeoutError:
                await failover.after(RequestTimeout(TOO_LATE))
            except grpc.aio.AioRpcError as error:
                await failover.after(call_error(error, server.address, connected, run.request_id))
            else:
                server.seen = True
                return wire.infer_response(answer).outputs

    @inner
    async def tokens(
        self,
        run: Run,
        request: AnyRequest,
        stop_ids: Collection[int],
        max_seq_len: int,
        tokens_per_block: int,
    ) -> AsyncGenerator[Tokens]:
        """One generation; leaving it early stops the server's work. Raises RequestError.

        A server that dies is seen as a pause: another goes on, or the same when it is back. The rest is as for
        Continuation.
        """
        answer = Continuation(request, stop_ids, max_seq_len, tokens_per_block)
        failover = Failover(self._servers, run, self._patience)
        first: Mapping[str, AnyArray] | None = None  # what it is known by, however often it goes on
        mel: AnyArray | None = None
        while True:
            if run.stopped:
                yield answer.stopped()
                return
            inputs = answer.inputs()
            if mel is not None:
                inputs["mel"] = mel
            if run.lora_task_id is not None:
                inputs["lora_task_id"] = wire.scalar(run.lora_task_id, np.uint64)
            first = first or inputs
            await self._check(first)
            server, begun = run.route[0], time.monotonic()
            try:
                with tracing.attempt(answer.model, {"server.address": server.address}) as traceparent:
                    responses = self._responses(run, answer.model, run.next_id(), inputs, traceparent)
                    async with contextlib.aclosing(responses):
                        async for response in responses:
                            server.renewed(begun)
                            failover.progressed()
                            yield answer.add(response)
                await self._quarantine.survived(first)
                return
            except RequestError as error:
                if isinstance(error, ServerLost):
                    if death := server.lost(begun, error.stands):
                        self.counts.servers_lost += 1
                        await self._quarantine.died(first, death)
                elif isinstance(error, Unavailable):
                    server.renewed(begun)
                if error.code is Code.CANCELLED:  # on somebody's demand, or its lease is over
                    if run.stopped:
                        yield answer.stopped()
                        return
                    run.time_left()
                    raise
                if error.code.retry is Retry.WAIT and (last := answer.ended()):
                    yield last
                    return
                if error.code.retry is Retry.HERE and mel is None and isinstance(request, PreparedRequest):
                    mel = await self._features(run, request.prompt)  # the encoder has dropped what it knew of them
                    continue
                if error.code.retry is Retry.HERE and answer.tell_all():
                    continue
                try:
                    await failover.after(error)
                except RequestError:
                    self.counts.answers_lost += answer.begun and isinstance(error, Unavailable)
                    raise
                answer.count_again(self.counts)

    async def _check(self, inputs: Mapping[str, AnyArray]) -> None:
        """Raises Quarantined."""
        try:
            await self._quarantine.check(inputs)
        except Quarantined:
            self.counts.quarantined += 1
            raise

    async def _features(self, run: Run, prompt: PreparedPrompt) -> AnyArray:
        """Log-mel of a prompt's recordings, from which their embeddings are made. Raises RequestError."""
        inputs = replace(prompt.request, whole=True).pipeline_inputs()
        asked = wire.infer_request(FEATURIZER, "", {name: inputs[name] for name in ("messages", "audio")})
        asked.message.outputs.add(name="mel")
        return (await self._ask(run, asked, None))["mel"]

    async def audio_report(self, run: Run) -> tuple[AudioReport, ...]:
        """Of the recordings of the generation under way, whose first token has come. Who leaves does not cancel it."""
        asked = asyncio.create_task(audio_report(run.route[0].stub, run.last_id, REPORT_TIMEOUT))
        self._stops.add(asked)
        asked.add_done_callback(self._stop_ended)
        return await asyncio.shield(asked)

    async def stop(self, request_id: str) -> None:
        """End a request of ours on its server, and see it end; one that is not ours, on whichever has it.

        A cancelled stream does not do it: tritonserver never tells a step inside an ensemble. The LLM model
        takes a second request with the same id and `stop`.
        """
        for run in self._runs:
            run.stopped |= run.request_id == request_id
        ours = [one.stop() for one in self._open if one.request_id.partition("/")[0] == request_id]
        await asyncio.gather(*(ours or [stop(server.stub, request_id, STOP_TIMEOUT) for server in self._servers.all]))

    @inner
    async def _responses(
        self, run: Run, model: str, request_id: str, inputs: Mapping[str, AnyArray], traceparent: str | None
    ) -> AsyncGenerator[wire.Response]:
        """Of the first server of the route. Raises RequestError."""
        if self._end is None:
            self._end = self._at_the_end()
            await anext(self._end)
        server = run.route[0]
        request = wire.infer_request(model, request_id, inputs)
        wire.trace(request, traceparent)
        answer = calls.Answer(server.stub, request, run.time_left(), leased=True)
        responses = answer.responses()
        entry = _Open(request_id, server, answer, responses)
        self._open.add(entry)
        try:
            async for response in responses:
                server.seen = True
                if response.final:
                    self._open.discard(entry)
                yield response
        except calls.StreamError as error:
            server.seen = True
            self._open.discard(entry)
            failure = request_error(str(error), request_id)
            if isinstance(failure, ServerLost):
                failure.stands = True
            raise failure from None
        except calls.ConnectionLost:
            self._open.discard(entry)
            run.time_left()
            raise ServerLost(f"the server at {server.address} went away: try again later") from None
        except TimeoutError:
            raise RequestTimeout(TOO_LATE) from None
        except grpc.aio.AioRpcError as error:
            run.time_left()  # if it is up, that is the reason, however the server put it
            raise call_error(error, server.address, request_id=request_id) from None
        finally:
            # First the lease, which keeps it from the LLM; then the LLM, if it is already at work.
            await responses.aclose()
            if entry in self._open:
                self._open.discard(entry)
                self._stop_in_background(entry)

    def _stop_in_background(self, entry: _Open) -> None:
        """A task of its own: the caller may itself be cancelled, and must not be kept waiting."""
        loop = asyncio.get_running_loop()
        if getattr(loop, "_asyncgens_shutdown_called", False):  # it ends now, and no task with it; the lease does it
            return
        task = loop.create_task(entry.stop())
        self._stops.add(task)
        task.add_done_callback(self._stop_ended)

    def _stop_ended(self, task: asyncio.Task[Any]) -> None:
        self._stops.discard(task)
        if not task.cancelled():
            task.exception()  # read, or asyncio would report it; the server may be gone

"""Generations on the servers: tensors out, tokens in; what is left early is stopped, what was not begun is retried."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
import weakref
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import grpc
import numpy as np
from tritonclient.grpc import service_pb2

from step_audio.arrays import AnyArray
from step_audio_client import wire
from step_audio_client.control import PROMPT, heartbeat, stop
from step_audio_client.errors import (
    TOO_LATE,
    EmbeddingsGone,
    RequestError,
    RequestTimeout,
    ServerBusy,
    Unavailable,
    call_error,
    request_error,
)
from step_audio_client.prepared import PreparedPrompt, PreparedRequest
from step_audio_client.servers import Server, Servers
from step_audio_client.tokens import FinishReason, TokenRequest, Tokens

READY_TIMEOUT = 4  # seconds in which every model has to answer
STOP_TIMEOUT = 10  # seconds
FEATURIZER = "audio_featurizer"


def new_request_id() -> str:
    """Unguessable: whoever knows it can stop the request."""
    return uuid.uuid4().hex


@dataclass(eq=False)
class Run:
    """Where and until when one answer is made, however many generations it takes."""

    route: list[Server]  # the first has the work; the others are tried in turn if it does not begin
    timeout: float | None = None  # seconds, of all together
    request_id: str = field(default_factory=new_request_id)
    generations: int = 0
    stopped: bool = False  # on somebody's demand: what is still to be generated is not
    start: float = field(default_factory=time.monotonic)

    def next_id(self) -> str:
        """Every generation has its own: a late `stop` for the last one must not end the next."""
        self.generations += 1
        return self.request_id if self.generations == 1 else f"{self.request_id}/{self.generations}"

    def time_left(self) -> float | None:
        """Seconds. Raises RequestTimeout."""
        if self.timeout is None:
            return None
        if (left := self.start + self.timeout - time.monotonic()) <= 0:
            raise RequestTimeout(TOO_LATE)
        return left


class Pipeline:
    """The models of the repository on one server or several."""

    def __init__(self, addresses: str | Sequence[str]):
        self._servers = Servers(addresses)
        self._open: set[tuple[str, Server, AsyncGenerator[wire.Response]]] = set()  # generations under way
        self._stops: set[asyncio.Task[None]] = set()
        self._runs: weakref.WeakSet[Run] = weakref.WeakSet()

    async def close(self) -> None:
        """Stops what is under way, and waits for it, so that no slot stays taken on a server."""
        # A `break` leaves the clean-up of `tokens` to asyncio, which may get to it only when the channel is closed.
        while self._open:
            request_id, server, responses = self._open.pop()
            with contextlib.suppress(RuntimeError):  # another task is reading it
                await responses.aclose()
            self._stop_in_background(request_id, server)
        if self._stops:
            await asyncio.gather(*self._stops, return_exceptions=True)
        await self._servers.close()

    def run(self, request_id: str | None = None, timeout: float | None = None) -> Run:
        """Starts the clock of one answer and takes its turn among the servers."""
        run = Run(self._servers.route(), timeout, request_id or new_request_id())
        self._runs.add(run)
        return run

    async def ready(self) -> bool:
        """Whether one server at least has everything loaded, and every model of it answers."""
        return any(await asyncio.gather(*(self._ready(server) for server in self._servers.all)))

    async def _ready(self, server: Server) -> bool:
        try:
            request = service_pb2.ModelReadyRequest(name=TokenRequest.model)
            if not (await server.stub.ModelReady(request, timeout=READY_TIMEOUT)).ready:
                return False
            return await heartbeat(server.stub, READY_TIMEOUT) is None
        except grpc.aio.AioRpcError:
            return False

    async def prepare(self, run: Run, request: TokenRequest) -> PreparedPrompt:
        """The prompt as the LLM is to get it, its recordings encoded. Raises RequestError."""
        outputs = await self._ask(run, wire.infer_request(PROMPT, "", request.pipeline_inputs()), None)
        return PreparedPrompt.of(request, outputs)

    async def ask(self, run: Run, model: str, inputs: Mapping[str, AnyArray], *outputs: str) -> list[AnyArray]:
        """Outputs of a model that answers once, and soon. Raises RequestError."""
        request = wire.infer_request(model, "", inputs)
        for output in outputs:
            request.outputs.add(name=output)
        tensors = await self._ask(run, request, 30)
        return [tensors[output] for output in outputs]

    async def _ask(
        self, run: Run, request: service_pb2.ModelInferRequest, patience: float | None
    ) -> dict[str, AnyArray]:
        failures: list[RequestError] = []
        while True:
            server = run.route[0]
            try:
                limits = [limit for limit in (patience, run.time_left()) if limit is not None]
                answer = await server.stub.ModelInfer(request, timeout=min(limits, default=None))
            except grpc.aio.AioRpcError as error:
                failures.append(call_error(error, server.address))
                self._try_next(run, failures)
            else:
                return wire.infer_response(answer).outputs

    async def tokens(
        self, run: Run, request: TokenRequest | PreparedRequest, stop_ids: Collection[int], max_seq_len: int
    ) -> AsyncGenerator[Tokens]:
        """One generation; leaving it early stops the server's work. Raises RequestError.

        `stop_ids`: those that end an answer, `max_seq_len`: the most positions of prompt and answer, by which alone
        it can be told why an answer ended.
        """
        inputs, request_id = request.inputs(), run.next_id()
        limit = request.sampling.max_tokens or max_seq_len
        completion, prompt_tokens, last_id, begun = 0, 0, None, False
        blocks = dict.fromkeys(("kv_cache_alloc_total_blocks", "kv_cache_reused_blocks"), 0)
        if run.stopped:
            yield Tokens([], [], 0, "stop")
            return
        failures: list[RequestError] = []
        while True:
            try:
                async with contextlib.aclosing(self._responses(run, request.model, request_id, inputs)) as responses:
                    async for response in responses:
                        begun = True
                        ids = response.outputs["output_ids"].reshape(-1).tolist() if response.outputs else []
                        if response.outputs:
                            prompt_tokens = int(response.outputs["num_input_tokens"].reshape(-1)[0])
                        completion += len(ids)
                        last_id = ids[-1] if ids else last_id
                        # The engine sends those of the whole answer each time.
                        logprobs = response.outputs.get("output_log_probs", np.zeros(0)).reshape(-1).tolist()
                        reason: FinishReason | None = None
                        if response.final:
                            # The engine says neither: an answer that used up its room ended by length, unless by its
                            # last token; of stop words the last token is kept, of end_id it is not.
                            full = completion >= min(limit, max_seq_len - prompt_tokens)
                            reason = "length" if full and last_id not in stop_ids else "stop"
                        for name in blocks.keys() & response.outputs.keys():  # the final response may have none
                            blocks[name] = int(response.outputs[name].item())
                        new = logprobs[len(logprobs) - len(ids) :]
                        yield Tokens(ids, new, prompt_tokens, reason, *blocks.values())
                return
            except (ServerBusy, Unavailable) as error:
                if begun:
                    raise
                failures.append(error)
                self._try_next(run, failures)
            except EmbeddingsGone:  # the server's encoder has begun anew or has had much to do, or it is another server
                if "mel" in inputs or not isinstance(request, PreparedRequest):
                    raise
                inputs["mel"] = await self._features(run, request.prompt)

    async def _features(self, run: Run, prompt: PreparedPrompt) -> AnyArray:
        """Log-mel of a prompt's recordings, from which their embeddings are made. Raises RequestError."""
        inputs = prompt.request.pipeline_inputs()
        asked = wire.infer_request(FEATURIZER, "", {name: inputs[name] for name in ("messages", "audio")})
        asked.outputs.add(name="mel")
        return (await self._ask(run, asked, None))["mel"]

    async def stop(self, request_id: str) -> None:
        """End a request of ours on its server; one that is not ours, on whichever has it.

        A cancelled stream does not do it: tritonserver never tells a step inside an ensemble. The LLM model
        takes a second request with the same id and `stop`.
        """
        for run in self._runs:
            run.stopped |= run.request_id == request_id
        ours = [(id_, server) for id_, server, _ in self._open if id_.partition("/")[0] == request_id]
        targets = ours or [(request_id, server) for server in self._servers.all]
        await asyncio.gather(*(stop(server.stub, id_, STOP_TIMEOUT) for id_, server in targets))

    async def _responses(
        self, run: Run, model: str, request_id: str, inputs: Mapping[str, AnyArray]
    ) -> AsyncGenerator[wire.Response]:
        """Of the first server of the route. Raises RequestError."""
        server = run.route[0]
        request = wire.infer_request(model, request_id, inputs)
        responses = wire.stream(server.stub, request, run.time_left())
        entry = (request_id, server, responses)
        self._open.add(entry)
        try:
            async for response in responses:
                if response.final:
                    self._open.discard(entry)
                yield response
        except wire.StreamError as error:
            self._open.discard(entry)
            raise request_error(str(error)) from None
        except grpc.aio.AioRpcError as error:
            run.time_left()  # if it is up, that is the reason, however the server put it
            raise call_error(error, server.address) from None
        finally:
            # First the stream, which keeps steps from being scheduled; then the LLM, if it is already at work.
            await responses.aclose()
            if entry in self._open:
                self._open.discard(entry)
                self._stop_in_background(request_id, server)

    @staticmethod
    def _try_next(run: Run, failures: list[RequestError]) -> None:
        """Go on with the next server. Raises the last failure where no other helps, or what they all come to."""
        retry = isinstance(failures[-1], (ServerBusy, Unavailable))
        if retry and len(run.route) > 1:
            run.route.pop(0)
        elif retry and len(failures) > 1:
            busy = [failure for failure in failures if isinstance(failure, ServerBusy)]
            raise busy[0] if busy else Unavailable("none of the servers answers") from None
        else:
            raise failures[-1] from None

    def _stop_in_background(self, request_id: str, server: Server) -> None:
        """A task of its own: the caller may itself be cancelled, and must not be kept waiting."""
        task = asyncio.get_running_loop().create_task(stop(server.stub, request_id, STOP_TIMEOUT))
        self._stops.add(task)
        task.add_done_callback(self._stop_ended)

    def _stop_ended(self, task: asyncio.Task[None]) -> None:
        self._stops.discard(task)
        if not task.cancelled():
            task.exception()  # read, or asyncio would report it; the server may be gone

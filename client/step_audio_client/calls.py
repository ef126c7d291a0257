"""Calls of a server's models, each read to its end by a task of its own, whatever becomes of who asked.

A call is not cancelled while the server works for it, nor given a deadline of gRPC's, which is a cancel at the server.
Where a response comes, or is being written, at that moment, tritonserver 2.51 frees what belongs to a cancelled call
and goes on using it: it crashes, in this call or in a later one, or writes into another's stream. (Server r24.10,
src/grpc/infer_handler.h, HandleCancellation: a state that is WRITTEN is released while the core still answers it, at
e1db8a60, too; one that is CANCELLED while its alarm is on its way, which 25.04 has mended. And a handler that looks for
a cancel takes two locks in the other order than a response does.) So who leaves has the work ended by a stop, and the
rest is read; `tests/reliability/hammer.py` shows the difference.

The raw stubs are used instead of tritonclient's own asyncio client, because that one cannot ask for the empty final
response, without which the end of a stream is silence.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Coroutine
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2

from step_audio.steps.leases import PREFIX
from step_audio_client.errors import LOST
from step_audio_client.generators import inner
from step_audio_client.wire import InferRequest, Response, Stub, infer_request, infer_response, scalar

LEASE = "lease"  # the model; its ids are PREFIX and the answer's own
ENDING = 5.0  # seconds in which a call that nobody waits for has to end by itself; then it is cancelled

# Of a call that had reached the server, which answers by messages: the connection broke, or the server ended.
BROKEN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, *LOST)

_under_way: dict[asyncio.Task[Any], Stub] = {}


class StreamError(Exception):
    """The server's error text for one stream."""


class ConnectionLost(Exception):
    """The server ended, or the connection to it, with the request in hand."""


class Answer:
    """The responses to one request of a decoupled model.

    `timeout`: seconds that `responses` waits in all. `leased`: by the model `lease` the server ends the LLM's work when
    this client vanishes or leaves, or the time is up. That is asked by a call of its own: tritonserver crashes where
    answers of a decoupled model and of another meet on a stream.
    """

    def __init__(self, stub: Stub, request: InferRequest, timeout: float | None = None, leased: bool = False):
        self._stub, self._request, self._timeout = stub, request, timeout
        self._found: asyncio.Queue[Response | Exception] = asyncio.Queue()
        self._whole = False
        self._left = asyncio.Event()
        self._call = stub.ModelStreamInfer()
        self._task = _begin(stub, self._run(leased))

    @inner
    async def responses(self) -> AsyncGenerator[Response]:
        """Up to and including the final one. To close it is to leave: ending the work is the caller's, by a stop.

        Raises StreamError, ConnectionLost, TimeoutError, and grpc.aio.AioRpcError for what did not reach the server.
        """
        loop = asyncio.get_running_loop()
        timer = (
            None if self._timeout is None else loop.call_later(self._timeout, self._found.put_nowait, TimeoutError())
        )
        try:
            while True:
                found = await self._found.get()
                if isinstance(found, Exception):
                    raise found
                yield found
                if found.final:
                    return
        finally:
            if timer is not None:
                timer.cancel()
            self._left.set()
            _bound(self._task)

    async def ended(self, seconds: float) -> bool:
        """Waits for the end of the call, so long at most."""
        return bool((await asyncio.wait({self._task}, timeout=seconds))[0])

    async def _run(self, leased: bool) -> None:
        await asyncio.gather(self._read(), *([self._lease()] if leased else []))

    async def _read(self) -> None:
        sent = False
        try:
            with contextlib.suppress(asyncio.InvalidStateError):  # it has ended: reading says how
                # Written and read, not iterated: gRPC would do that in tasks of its own, which nobody ends.
                await self._call.write(await self._request.encoded())
            sent = True
            while (message := await self._call.read()) is not grpc.aio.EOF:
                if message.error_message:
                    self._end(StreamError(message.error_message))
                    break
                if message.infer_response.id not in ("", self._request.id):  # another's, whose state is ours now
                    raise ConnectionLost("the server has mixed up its streams")
                response = infer_response(message.infer_response)
                if response.final:
                    self._end(response)
                    break
                if not self._left.is_set():
                    self._found.put_nowait(response)
            else:
                raise ConnectionLost("the stream ended without a final response")
            with contextlib.suppress(asyncio.InvalidStateError):
                await self._call.done_writing()
            while await self._call.read() is not grpc.aio.EOF:
                pass
        except grpc.aio.AioRpcError as error:
            self._end(ConnectionLost(error.details()) if sent and error.code() in BROKEN else error)
        except asyncio.CancelledError:  # by `_bound`, or the channel was closed
            self._end(ConnectionLost("the call was cancelled"))
            raise
        except Exception as error:
            self._end(error)

    def _end(self, last: Response | Exception) -> None:
        if not self._whole:
            self._whole = True
            self._found.put_nowait(last)
            self._left.set()

    async def _lease(self) -> None:
        """Holds the answer's lease, and gives it back when the answer is whole, or the caller has left."""
        with contextlib.suppress(grpc.aio.AioRpcError):  # the answer has its own fate
            lease = self._stub.ModelInfer(_leased(self._request.id, open=True, seconds=self._timeout))
            await self._left.wait()
            await self._stub.ModelInfer(_leased(self._request.id, open=False, stop=not self._whole))
            await lease


async def ask(stub: Stub, request: InferRequest, timeout: float | None) -> service_pb2.ModelInferResponse:
    """The answer of a model that is not decoupled. Raises TimeoutError and grpc.aio.AioRpcError."""

    async def answer() -> service_pb2.ModelInferResponse:
        return await stub.ModelInfer(await request.encoded())

    task = _begin(stub, answer())
    try:
        done, _ = await asyncio.wait({task}, timeout=timeout)
    finally:
        if not task.done():
            _bound(task)
    if not done:
        raise TimeoutError
    return task.result()


@inner
async def stream(stub: Stub, request: InferRequest, timeout: float | None = None) -> AsyncGenerator[Response]:
    """`Answer.responses` of one that needs no lease; it begins with the first that is waited for."""
    async with contextlib.aclosing(Answer(stub, request, timeout).responses()) as responses:
        async for response in responses:
            yield response


async def ended(stub: Stub) -> None:
    """All calls by `stub` have ended; nobody waits for them any more."""
    tasks = [task for task, its in _under_way.items() if its is stub]
    for task in tasks:
        _bound(task)
    if tasks:
        await asyncio.wait(tasks)


def _begin(stub: Stub, call: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    task = asyncio.create_task(call)
    _under_way[task] = stub
    task.add_done_callback(_has_ended)
    return task


def _has_ended(task: asyncio.Task[Any]) -> None:
    del _under_way[task]
    if not task.cancelled():
        task.exception()  # read, or asyncio would report that of a call which nobody waits for


def _bound(task: asyncio.Task[Any]) -> None:
    """A call of gRPC's is cancelled with the task that reads it."""
    if not task.done():
        timer = asyncio.get_running_loop().call_later(ENDING, task.cancel)
        task.add_done_callback(lambda _: timer.cancel())


def _leased(request_id: str, *, open: bool, seconds: float | None = None, stop: bool = False) -> InferRequest:
    inputs = {"open": scalar(open, np.bool_)}
    if seconds is not None:
        inputs["seconds"] = scalar(seconds, np.float32)
    if stop:
        inputs["stop"] = scalar(True, np.bool_)
    return infer_request(LEASE, f"{PREFIX}{request_id}", inputs)

"""What stands in the stub process of every step that has a worker: tensors of Triton's requests to it, and back.

`execute` copies the inputs and returns: while it runs, tritonserver asks for a heartbeat, and gives the stub up when
one is a second late. It does not watch over a request that is answered later, by its response sender.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from step_audio import tracing
from step_audio.arrays import AnyArray
from step_audio.counters import WORKER_RESTARTS, Counters
from step_audio.errors import InvalidRequest
from step_audio.steps import dlpack
from step_audio.steps.memory import ALLOCATOR, give_back
from step_audio.steps.tensors import Bfloat16, Reply, Tensor, Tensors, triton_error
from step_audio.steps.worker_client import WorkerClient, python_command
from step_audio.tracing import Tracer

# One thread: the libraries' own pools would take the cores from the LLM.
ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1"} | ALLOCATOR

# Bytes of an answer, or of a string: to copy more takes so long, at a low priority, that others would notice.
LARGE = 4 << 20

MAX_STRINGS = 4096  # of one tensor, as many as a conversation has parts; each costs time, even if it is empty

log = logging.getLogger(__name__)


class StepStub:
    """`pb_utils` is handed in, because that module exists only inside Triton's Python backend."""

    def __init__(self, pb_utils: Any, args: dict[str, str]):
        logging.basicConfig(format=f"{args['model_name']}: %(levelname)s: %(message)s")
        self._pb_utils = pb_utils
        pb_utils.deserialize_bytes_tensor = strings
        runtime_file = json.loads(args["model_config"])["parameters"]["runtime_file"]["string_value"]
        command = python_command("step_audio.steps.worker", args["model_name"], runtime_file)
        step = args["model_name"]
        counters = Counters(Path(runtime_file).parent, step, [(WORKER_RESTARTS, step)])
        self._name, self._tracer = step, tracing.tracer(step)
        self._large = ThreadPoolExecutor(1, "large")  # sends what would hold all other answers up
        self._worker = WorkerClient(command, ENVIRONMENT, lambda: counters.count(WORKER_RESTARTS, step))

    def execute(self, requests: Sequence[Any]) -> list[None]:
        """Each request is answered for itself, when its own work is done."""
        for request in requests:
            sender = request.get_response_sender()
            told = None if self._tracer is None else _span(self._tracer, self._name, request)

            def answer(result: Tensors | Exception, sender: Any = sender, told: Reply | None = told) -> None:
                if told is not None:
                    told(result)
                if _size(result) < LARGE:
                    self._send(sender, result)
                else:
                    self._large.submit(self._send, sender, result)

            try:
                inputs = {tensor.name(): _read(tensor) for tensor in request.inputs()}
                self._worker.submit(inputs, answer)
            except Exception as error:
                answer(error)
                continue
            for tensor in request.inputs():
                if _is_numbers(inputs[tensor.name()]):
                    give_back(tensor)
        return [None] * len(requests)

    def close(self) -> None:
        """No request is in flight."""
        self._worker.close()
        self._large.shutdown()
        if self._tracer is not None:
            self._tracer.close()

    def _send(self, sender: Any, result: Tensors | Exception) -> None:
        """Never raises: all requests' answers come through the threads that call it."""
        try:
            response = self._response(result)
        except Exception as error:  # of this answer's making
            response = self._response(error)
        try:
            sender.send(response, flags=self._pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            for tensor in response.output_tensors():  # tritonserver has copied them out of the shared memory
                if isinstance(result, dict) and _is_numbers(result[tensor.name()]):
                    give_back(tensor)
        except Exception:
            log.warning("a response could not be sent", exc_info=True)

    def _response(self, result: Tensors | Exception) -> Any:
        pb = self._pb_utils
        if isinstance(result, Exception):
            return pb.InferenceResponse(error=triton_error(pb, result))
        return pb.InferenceResponse([self._write(name, tensor) for name, tensor in result.items()])

    def _write(self, name: str, tensor: Tensor) -> Any:
        if isinstance(tensor, Bfloat16):
            return self._pb_utils.Tensor.from_dlpack(name, dlpack.bfloat16_capsule(tensor.bits))
        return self._pb_utils.Tensor(name, tensor)


def _span(tracer: Tracer, name: str, request: Any) -> Reply:
    """To be told the request's result: from now until then it waits for the worker and is worked on."""
    within, start = tracing.given(request.parameters()), time.time_ns()

    def told(result: Tensors | Exception) -> None:
        error = result if isinstance(result, Exception) else None
        tracer.done(name, within, start, time.time_ns(), error=error)

    return told


class _TooMany:
    """What `strings` returns for more than are read: Triton's backend calls nothing but `reshape`."""

    @staticmethod
    def reshape(shape: Sequence[int]) -> AnyArray:
        return np.empty(shape, object)


def strings(encoded: npt.NDArray[np.uint8]) -> AnyArray | _TooMany:
    """uint8 [n], each string behind its length in four bytes -> bytes [strings], as objects; large ones as views.

    In the place of Triton's own, which takes seconds over millions of them, before `execute` is asked.
    """
    data, start = encoded.data, 0
    found: list[Any] = []
    while start < len(data):
        if len(found) > MAX_STRINGS:
            return _TooMany()
        start += 4
        end = start + int.from_bytes(data[start - 4 : start], "little")
        found.append(data[start:end] if end - start >= LARGE else bytes(data[start:end]))
        start = end
    made = np.empty(len(found), object)
    for place, string in enumerate(found):  # all at once, numpy would look into a view
        made[place] = string
    return made


def _size(result: Tensors | Exception) -> int:
    """Bytes of its numbers."""
    if isinstance(result, Exception):
        return 0
    arrays = (tensor.bits if isinstance(tensor, Bfloat16) else tensor for tensor in result.values())
    return sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))


def _is_numbers(tensor: Tensor) -> bool:
    return isinstance(tensor, Bfloat16) or (isinstance(tensor, np.ndarray) and tensor.dtype != object)


def _read(tensor: Any) -> Tensor:
    """A view of the request's memory, which is Triton's again when `execute` has returned."""
    array: AnyArray = tensor.as_numpy()
    if array.dtype != object:
        return array
    if array.size > MAX_STRINGS:
        raise InvalidRequest(
            f"{tensor.name()}: {array.size} elements, at most {MAX_STRINGS} are accepted", tensor.name()
        )
    return list(array.reshape(-1))

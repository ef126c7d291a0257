"""Which LoRA adapters the engine holds, by the ids that requests name them by."""

from __future__ import annotations

from collections.abc import Iterable

from step_audio.engine.executor import Executor
from step_audio.engine.request import GenerationRequest
from step_audio.engine.trtllm_checkpoint import EngineSpec
from step_audio.errors import InvalidRequest, NotServing
from step_audio.lora import LoraTensors, unpack


class Adapters:
    """Places 0 .. places - 1 of the executor. Not thread-safe.

    An id keeps its place, and a place its adapter, for good: blocks of the KV cache are known by the id.
    """

    def __init__(self, spec: EngineSpec, places: int):
        self._spec = spec
        self._free = list(range(places if spec.max_lora_rank else 0))[::-1]
        self._places: dict[int, int] = {}
        self._arrived: list[tuple[int, int, LoraTensors]] = []
        self.enabled = bool(self._free)

    def place(self, request: GenerationRequest) -> int:
        """Of the request's adapter, which it may bring; -1: it asks for none.

        Raises InvalidRequest and NotServing, with TensorRT-LLM's texts (batch_manager/peftCacheManager.cpp @0cedd9a).
        """
        task, lora = request.lora_task_id, request.lora
        if task is None:
            if lora is not None:
                raise InvalidRequest("lora_task_id must be set for LoRA inference", "lora_task_id")
            return -1
        if (place := self._places.get(task)) is not None:
            return place
        if not self.enabled:
            said = "input 'lora_task_id' needs adapters, which this server is not set up for"
            raise InvalidRequest(said, "lora_task_id")
        if lora is None:
            said = f"LoRA task {task} not found in cache. Please send LoRA weights with request"
            raise NotServing(said, "lora_task_id")  # not yet: the server gives it to the engine when it starts
        if not self._free:
            said = "there is no room for another adapter: the server holds those it was started with"
            raise InvalidRequest(said, "lora_task_id")
        place = self._places[task] = self._free.pop()
        self._arrived.append((task, place, lora))
        return place

    def take_arrived(self) -> list[tuple[int, int, LoraTensors]]:
        """Ids, places and adapters that the executor is still to be given."""
        arrived, self._arrived = self._arrived, []
        return arrived

    def load(self, executor: Executor, arrived: list[tuple[int, int, LoraTensors]]) -> dict[int | None, InvalidRequest]:
        """By the engine's thread, for it takes time. What is no adapter, by its id: it is to be forgotten."""
        refused: dict[int | None, InvalidRequest] = {}
        for task, place, lora in arrived:
            try:
                executor.load_adapter(place, unpack(lora, self._spec.dimensions, self._spec.max_lora_rank))
            except InvalidRequest as error:
                refused[task] = error
        return refused

    def forget(self, tasks: Iterable[int | None]) -> None:
        self._free += [self._places.pop(task) for task in tasks if task is not None]

"""The CPU stand-in of NVIDIA's `tensorrtllm` backend: Triton requests on one side, our engine on the other."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from step_audio.arrays import AnyArray
from step_audio.engine import Engine, EngineOptions, EngineStats
from step_audio.engine.options import Matrices, are_matrices
from step_audio.engine.request import SequenceOutput
from step_audio.engine.scheduler import Policy, is_policy
from step_audio.errors import ArtefactError, InvalidRequest, NotServing, Overloaded
from step_audio.serving_info import HEARTBEAT
from step_audio.steps.tensors import MAX_PENDING, MAX_PENDING_BYTES, Failed
from step_audio.steps.trtllm.request import is_stop, parse
from step_audio.steps.trtllm.response import ResponseStream, Send, SenderPool
from step_audio.steps.trtllm.traces import EngineTraces
from step_audio.steps.trtllm.vllm_engine import VllmEngine
from step_audio.vllm.options import VllmOptions

# As in front of the other steps; the engine's queue has a bound of its own, if the configuration says so.

log = logging.getLogger(__name__)


@dataclass(eq=False)
class _InFlight:
    triton_id: str
    is_cancelled: Callable[[], bool]
    size: int  # bytes of its inputs
    engine_ids: list[str] = field(default_factory=list)


class _Channel:
    """Triton frees a request with its final response, and a question about it from another thread then crashes
    the server: so the two exclude each other, and after the final one nothing is asked."""

    def __init__(self, send: Send, is_cancelled: Callable[[], bool]):
        self._send, self._is_cancelled = send, is_cancelled
        self._lock = threading.Lock()
        self._ended = False

    def send(self, tensors: dict[str, AnyArray] | None, error: Exception | None, final: bool) -> None:
        if not final:
            self._send(tensors, error, False)
            return
        with self._lock:
            self._ended = True
            self._send(tensors, error, True)

    def is_cancelled(self) -> bool:
        with self._lock:
            return not self._ended and self._is_cancelled()


class TrtllmBackend:
    """One per Triton model instance. Thread-safe."""

    def __init__(self, parameters: Mapping[str, str]):
        """`parameters`: the model configuration's, by key. Raises ArtefactError for one that does not parse."""
        self.exclude_input = _bool(parameters, "exclude_input_in_output", False)
        self.cancel_period = _number(parameters, "cancellation_check_period_ms", 100) / 1000
        self.stats_period = _number(parameters, "stats_check_period_ms", 100) / 1000
        max_tokens = int(_number(parameters, "max_tokens_in_paged_kv_cache", 0))
        policy = parameters.get("batch_scheduler_policy") or "guaranteed_no_evict"
        if not is_policy(policy):
            raise ArtefactError(f"batch_scheduler_policy must be one of {', '.join(get_args(Policy))}, got {policy!r}")
        guided = parameters.get("guided_decoding_backend")
        if guided and guided != "xgrammar":
            raise ArtefactError(f"guided_decoding_backend must be xgrammar or empty, got {guided!r}")
        matrices = parameters.get("decoder_matrices") or "stored"
        if not are_matrices(matrices):
            raise ArtefactError(f"decoder_matrices must be one of {', '.join(get_args(Matrices))}, got {matrices!r}")
        tokenizer_info = parameters.get("xgrammar_tokenizer_info_path")
        engine_dir = Path(parameters["gpt_model_path"])
        max_queue_size = int(_number(parameters, "max_queue_size", 0))
        if vllm_options := parameters.get("vllm_options"):
            self.engine: Engine | VllmEngine = VllmEngine(VllmOptions.read(vllm_options), max_queue_size)
        else:
            self.engine = Engine(
                EngineOptions(
                    engine_dir=engine_dir,
                    max_tokens_in_paged_kv_cache=max_tokens or None,
                    enable_kv_cache_reuse=_bool(parameters, "enable_kv_cache_reuse", True),
                    enable_chunked_context=_bool(parameters, "enable_chunked_context", False),
                    batch_scheduler_policy=policy,
                    normalize_log_probs=_bool(parameters, "normalize_log_probs", True),
                    matrices=matrices,
                    max_loras=int(_number(parameters, "max_loras", 0)),
                    max_queue_size=max_queue_size,
                    # As in the C++ backend either alone is nothing, and tokenizer_dir is not read.
                    xgrammar_tokenizer_info_path=tokenizer_info if guided and tokenizer_info else None,
                )
            )
        self._senders = SenderPool()
        self._traces = EngineTraces.begin()
        self._lock = threading.Lock()
        self._in_flight: set[_InFlight] = set()
        self._closing = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="watcher", daemon=True)
        self._watcher.start()

    @property
    def traced(self) -> bool:
        return self._traces is not None

    def stats(self) -> EngineStats:
        return self.engine.stats()

    def submit(
        self,
        triton_id: str,
        tensors: Mapping[str, AnyArray],
        requested: set[str],
        send: Send,
        is_cancelled: Callable[[], bool],
        trace: str | None = None,
    ) -> None:
        """Start one request; `requested`: the outputs that it asks for, `trace`: its `traceparent`.

        Each outcome, a refusal too, goes to the client by `send`, exactly one of it final.
        """
        channel = _Channel(send, is_cancelled)
        stream: ResponseStream | None = None

        def on_output(row: int, output: SequenceOutput) -> None:
            assert stream is not None
            stream.put(row, output)
            if self._traces is not None:
                self._traces.output(trace, output)

        try:
            if is_stop(tensors):
                self.stop(triton_id)
                channel.send({}, None, True)
                return
            size = sum(tensor.nbytes for tensor in tensors.values())
            self._check_room(size)
            if missing := sorted({"output_ids", "sequence_length"} - requested):
                raise InvalidRequest(f"output '{missing[0]}' must be requested")
            request = parse(tensors, self.exclude_input, on_output)
        except Exception as error:
            channel.send(None, error, True)
            return
        entry = _InFlight(triton_id, channel.is_cancelled, size)
        with self._lock:
            self._in_flight.add(entry)
        stream = ResponseStream(request.options, channel.send, self._senders, on_final=lambda: self._finish(entry))
        stream.expect([row.input_ids for row in request.rows])
        try:
            for row in request.rows:
                entry.engine_ids.append(row.request_id)  # before it can end, and before a stop can miss it
                self.engine.submit(row)
            if stream.ended:  # by an error of an early row, while later ones were on their way
                self._cancel(entry.engine_ids)
        except Exception as error:  # rows of the batch that were accepted end with the one that was not
            stream.fail(Failed.of(error).error())

    def stop(self, triton_id: str) -> None:
        """Cancel every request that carries this id; an unknown one is no error. Raises InvalidRequest for none.

        One of a heartbeat is nobody's: it is asked to hear whether the engine serves. Raises NotServing if not.
        """
        if not triton_id:
            raise InvalidRequest("stop needs the id of the request to stop")
        if triton_id.startswith(HEARTBEAT) and not self.engine.serving:
            raise NotServing("the language model is being started")
        with self._lock:
            ids = [i for entry in self._in_flight if entry.triton_id == triton_id for i in entry.engine_ids]
        self._cancel(ids)

    def _check_room(self, size: int) -> None:
        """Raises Overloaded."""
        with self._lock:
            held = sum(entry.size for entry in self._in_flight)
            if len(self._in_flight) >= MAX_PENDING or (held and held + size > MAX_PENDING_BYTES):
                raise Overloaded(f"{len(self._in_flight)} requests are waiting already, {held >> 20} MiB")

    def _cancel(self, engine_ids: list[str]) -> None:
        for engine_id in engine_ids:
            self.engine.cancel(engine_id)

    def shutdown(self) -> None:
        """Called when Triton has no request in flight any more."""
        self._closing.set()
        self._watcher.join()
        self.engine.shutdown()
        if self._traces is not None:
            self._traces.close()
        self._senders.shutdown()

    def _finish(self, entry: _InFlight) -> None:
        with self._lock:
            self._in_flight.discard(entry)
        self._cancel(entry.engine_ids)  # nothing to do unless another row of the batch failed

    def _watch(self) -> None:
        """Triton's own cancellation (a direct client hung up) is only to be had by asking."""
        while not self._closing.wait(self.cancel_period):
            if not self.engine.alive:
                log.critical("the engine has ended: so does this process, for its supervisor to start a new one")
                os._exit(1)
            with self._lock:
                entries = list(self._in_flight)
            for entry in entries:
                try:
                    cancelled = entry.is_cancelled()
                except Exception:  # the sender was closed in between
                    continue
                if cancelled:
                    self._cancel(entry.engine_ids)


def _bool(parameters: Mapping[str, str], key: str, default: bool) -> bool:
    text = parameters.get(key, "").lower()
    if text in ("true", "1"):
        return True
    if text in ("false", "0"):
        return False
    if text:
        raise ArtefactError(f"parameter {key} must be true or false, got {text!r}")
    return default


def _number(parameters: Mapping[str, str], key: str, default: float) -> float:
    try:
        return float(parameters.get(key) or default)
    except ValueError:
        raise ArtefactError(f"parameter {key} must be a number, got {parameters[key]!r}") from None

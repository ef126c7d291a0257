"""vLLM's process in the place of our engine: the same requests in, the same outputs back, nothing computed here."""

from __future__ import annotations

import logging
import queue
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from step_audio.engine import EngineStats, GenerationRequest, SequenceOutput, SequenceStats
from step_audio.engine.sampler import MAX_TOP_K
from step_audio.engine.validation import validate
from step_audio.errors import (
    Code,
    InvalidRequest,
    NotServing,
    Overloaded,
    StepAudioError,
    Unsupported,
)
from step_audio.guides import unusable
from step_audio.vllm.options import VllmOptions
from step_audio.vllm.protocol import Message, ProtocolError, pack, reachable, receive

CONNECT_PERIOD = 0.1  # seconds between two tries
MAX_PENALTY = 2.0  # vLLM's ranges, narrower than TensorRT-LLM's
MAX_TEMPERATURE = 2.0

log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Active:
    request: GenerationRequest
    left: set[int]  # indices of its answers that have not ended
    arrival_ns: int = field(default_factory=time.monotonic_ns)
    cum_log_probs: dict[int, float] = field(default_factory=dict)
    started: set[int] = field(default_factory=set)


class VllmEngine:
    """As `Engine`: `submit` and `cancel` from any thread, outputs from one of its own.

    While the process is away, requests end with SERVER_LOST or UNAVAILABLE, on which clients wait for it to be back.
    """

    def __init__(self, options: VllmOptions, max_queue_size: int):
        self.options, self._max_queue_size = options, max_queue_size
        self._lock = threading.Lock()  # guards what follows
        self._active: dict[str, _Active] = {}
        self._outgoing: queue.SimpleQueue[list[bytes | memoryview] | None] | None = None  # None: not connected
        self._stats: Message = {}
        self._block_size = 1
        self._total_requests = self._total_tokens = 0
        self._closing = threading.Event()
        self._connection: socket.socket | None = None
        self._thread = threading.Thread(target=self._run, name="vllm", daemon=True)
        self._thread.start()

    @property
    def serving(self) -> bool:
        """Whether there is a process, and its engine moves."""
        with self._lock:
            return self._outgoing is not None

    @property
    def alive(self) -> bool:
        """Always: it is the process that dies, and that is started again."""
        return True

    def submit(self, request: GenerationRequest) -> None:
        """Queue a request. Raises StepAudioError; then nothing is sent."""
        options = self.options
        new_tokens = validate(
            request, options, reuse=options.enable_prefix_caching, chunked=options.enable_chunked_prefill
        )
        message, arrays = _message(request, new_tokens, options), {"ids": np.ascontiguousarray(request.input_ids).data}
        table = request.prompt_table
        if table is not None and (request.input_ids >= options.vocab_size).any():
            arrays["table"] = np.ascontiguousarray(table).data
        parts = pack(message, arrays)
        active = _Active(request, set(range(request.num_return_sequences)))
        with self._lock:
            if self._outgoing is None:
                raise NotServing("the language model is being started: please try again")
            if request.request_id in self._active:
                raise InvalidRequest(f"request id {request.request_id!r} is in use: choose another")
            if self._max_queue_size and self._waiting() >= self._max_queue_size:
                raise Overloaded(
                    f"Maximum queue size of {self._max_queue_size} has been reached, please try again later"
                )
            self._active[request.request_id] = active
            self._total_requests += 1
            self._outgoing.put(parts)

    def cancel(self, request_id: str) -> bool:
        """End a request; False if there is none (any more) of that id."""
        with self._lock:
            if request_id not in self._active or self._outgoing is None:
                return False
            self._outgoing.put(pack({"do": "cancel", "request": request_id}))
            return True

    def stats(self) -> EngineStats:
        with self._lock:
            said = self._stats
            blocks, usage = int(said.get("blocks", 0)), float(said.get("usage", 0.0))
            answers = sum(len(active.left) for active in self._active.values())  # with none, vLLM takes no step
            used = round(blocks * usage) if answers else 0
            running, context = min(int(said.get("running", 0)), answers), int(said.get("context", 0))
            return EngineStats(
                healthy=self._outgoing is not None,
                iteration=int(said.get("steps", 0)),
                active_requests=len(self._active),
                waiting_requests=self._waiting(),
                max_batch_size=self.options.max_batch_size,
                scheduled=running,
                context=context,
                generation=max(running - context, 0),
                kv_blocks_max=blocks,
                kv_blocks_free=blocks - used,
                kv_blocks_used=used,
                kv_blocks_reused=int(said.get("reused", 0)) // self._block_size,
                kv_blocks_allocated=used,
                tokens_per_block=self._block_size,
                total_requests=self._total_requests,
                total_generated_tokens=self._total_tokens,
            )

    def shutdown(self) -> None:
        """End what is active and the threads."""
        self._closing.set()
        with self._lock:
            if self._connection is not None:
                self._connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def _waiting(self) -> int:
        """Requests with an answer that has not begun, beyond those that vLLM has slots for."""
        answers = sum(len(active.left) for active in self._active.values())
        waiting = sum(not active.started for active in self._active.values())
        return min(waiting, max(answers - self.options.max_batch_size, 0))

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                with socket.socket(socket.AF_UNIX) as end:
                    with reachable(Path(self.options.socket)) as name:
                        end.connect(name)
                    self._serve(end)
            except OSError:  # it is not there yet, or not any more
                pass
            self._closing.wait(CONNECT_PERIOD)

    def _serve(self, end: socket.socket) -> None:
        """Until the other end is gone, or hangs: then, too, its requests go on elsewhere."""
        outgoing: queue.SimpleQueue[list[bytes | memoryview] | None] = queue.SimpleQueue()
        seconds, rest = divmod(self.options.patience, 1)
        timeout = struct.pack("ll", int(seconds), int(rest * 1e6))
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)  # sending has none: a long prompt may take it
        try:
            hello, _ = receive(end)
            self._require_pulse(hello)
            sender = threading.Thread(target=_send, args=(end, outgoing), name="vllm-sender", daemon=True)
            sender.start()
            with self._lock:
                self._block_size, self._connection = max(int(hello["block_size"]), 1), end
                self._outgoing = outgoing
            while True:
                message, _ = receive(end)
                self._take(message)
        except (EOFError, ProtocolError, TimeoutError) as error:
            if self.serving and not self._closing.is_set():
                log.error("vLLM's process is given up: %s", error)
        finally:
            with self._lock:
                lost, self._active = list(self._active.values()), {}
                self._outgoing = self._connection = None
                self._stats = {}
            outgoing.put(None)
            for active in lost:
                self._end(active, StepAudioError("the language model's process died", code=Code.SERVER_LOST))

    def _require_pulse(self, message: Message) -> None:
        """Raises EOFError: an engine that hangs is as good as gone."""
        if message["silent"] > self.options.patience:
            raise EOFError("its engine makes no steps")

    def _take(self, message: Message) -> None:
        match message["do"]:
            case "pulse":
                self._require_pulse(message)
            case "stats":
                with self._lock:
                    self._stats = message
            case "tokens":
                self._tokens(message)
            case "failed":
                with self._lock:
                    active = self._active.pop(message["request"], None)
                    if active is not None and len(active.left) > 1 and self._outgoing is not None:
                        self._outgoing.put(pack({"do": "cancel", "request": message["request"]}))
                if active is not None:
                    self._end(active, _refusal(active.request, message))

    def _tokens(self, message: Message) -> None:
        index, tokens, finished = message["index"], message["tokens"], message.get("finished")
        with self._lock:
            active = self._active.get(message["request"])
            if active is None or index not in active.left:  # another answer to it has failed
                return
            if tokens:
                active.started.add(index)
            self._total_tokens += len(tokens)
            log_probs = message.get("log_probs", [])
            total = active.cum_log_probs[index] = active.cum_log_probs.get(index, 0.0) + sum(log_probs)
            if finished:
                active.left.discard(index)
                if not active.left:
                    del self._active[message["request"]]
            final = not active.left
        request = active.request
        output = SequenceOutput(
            request_id=request.request_id,
            sequence_index=index,
            token_ids=tokens,
            log_probs=log_probs if request.return_log_probs else [],
            cum_log_prob=total if request.return_log_probs else 0.0,
            top_log_probs=[[(token, value) for token, value in place] for place in message.get("top", [])],
            finished=finished,
            final=final,
            stats=self._sequence_stats(active, message.get("stats")),
        )
        self._give(request, output)

    def _sequence_stats(self, active: _Active, said: Message | None) -> SequenceStats | None:
        if said is None:
            return None
        prompt = len(active.request.input_ids)
        reused = said["cached"] // self._block_size
        total = -(-(prompt + said["output"]) // self._block_size)
        return SequenceStats(
            num_input_tokens=prompt,
            num_output_tokens=said["output"],
            reused_blocks=reused,
            new_blocks=total - reused,
            total_blocks=total,
            arrival_ns=active.arrival_ns,
            first_scheduled_ns=said["scheduled"],
            first_token_ns=said["first"],
            last_token_ns=said["last"],
        )

    def _end(self, active: _Active, error: StepAudioError) -> None:
        request_id, index = active.request.request_id, min(active.left)
        self._give(active.request, SequenceOutput(request_id, index, [], [], 0.0, error=error, final=True))

    def _give(self, request: GenerationRequest, output: SequenceOutput) -> None:
        try:
            request.on_output(output)
        except Exception:
            log.exception("nobody takes the outputs of request %s", request.request_id)
            self.cancel(request.request_id)


def _send(end: socket.socket, outgoing: queue.SimpleQueue[list[bytes | memoryview] | None]) -> None:
    while (parts := outgoing.get()) is not None:
        try:
            for part in parts:
                end.sendall(part)
        except OSError:  # the receiving thread hears of it, too
            return


def _message(request: GenerationRequest, new_tokens: int, options: VllmOptions) -> Message:
    """Raises Unsupported for what vLLM does not do."""
    sampling = request.sampling
    for name in ("presence_penalty", "frequency_penalty"):
        if abs(getattr(sampling, name)) > MAX_PENALTY:
            raise Unsupported(f"{name} is between -{MAX_PENALTY:g} and {MAX_PENALTY:g} with vLLM", name)
    if sampling.temperature > MAX_TEMPERATURE:
        raise Unsupported(f"temperature is at most {MAX_TEMPERATURE:g} with vLLM", "temperature")
    if request.lora_task_id is not None or request.lora is not None:
        raise Unsupported("adapters are not served by vLLM here", "lora_task_id")
    greedy = sampling.temperature == 0 or (sampling.top_k == 0 and sampling.top_p == 0)
    said: dict[str, Any] = {
        "do": "generate",
        "request": request.request_id,
        "answers": request.num_return_sequences,
        "max_tokens": new_tokens,
        "end_id": request.end_id,
        "stop_words": request.stop_words,
        "bad_words": request.bad_words,
        "log_probs": request.return_log_probs,
        "top_log_probs": request.num_top_log_probs,
        "sampling": {
            "temperature": 0.0 if greedy else sampling.temperature,
            "top_k": 0 if greedy else min(sampling.top_k, MAX_TOP_K),
            "top_p": 1.0 if greedy else sampling.top_p or 1.0,
            "min_p": 0.0 if greedy else sampling.min_p,
            "seed": sampling.seed,
            "min_tokens": min(sampling.min_tokens, new_tokens),
            "repetition_penalty": sampling.repetition_penalty,
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
        },
    }
    if request.guide is not None:
        said |= {"guide_kind": request.guide.kind, "guide": request.guide.text}
    return said


def _refusal(request: GenerationRequest, message: Message) -> StepAudioError:
    """What vLLM found wrong with a request; all else is a fault of the server's."""
    if not message["by_request"]:
        return StepAudioError("internal error")
    if request.guide is not None:
        return unusable(request.guide, ValueError(message["text"]))
    return InvalidRequest(f"vLLM refuses the request: {message['text']}")

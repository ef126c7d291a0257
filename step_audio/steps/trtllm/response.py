"""Generated tokens to responses of the `tensorrt_llm` model, sent from threads of their own.

A send is a round trip to the server of 0.15-0.3 ms, a large part of an engine step, so the engine only
queues. While a request's tokens wait, later ones of the same sequence join them. On its way through stub, server and
client a response costs 0.6 ms of a processor, about what a token of a small model costs: so one follows another after
some milliseconds, the more the more requests there are. First tokens and ends never wait.

What is in a response is what TensorRT-LLM 1.2's C++ backend puts there, with three differences: KV cache and time
figures come with an answer's first and last response only, a row of a batch that is refused ends the whole request, and
so does a stop, by an error: there is no other way to tell it from an answer that has come to its end.
"""

from __future__ import annotations

import heapq
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from itertools import count

import numpy as np

from step_audio.arrays import AnyArray, Int32Array, Int64Array
from step_audio.engine.request import SequenceOutput, TopLogProbs
from step_audio.errors import Code, StepAudioError
from step_audio.steps.trtllm.request import ResponseOptions

# tensors by output name, error, final flag
Send = Callable[[dict[str, AnyArray] | None, Exception | None, bool], None]

# Seconds between two responses of a stream: so much for each that is under way, within bounds.
SPACING = 0.003
LEAST = 0.01
MOST = 0.1

log = logging.getLogger(__name__)


class ResponseStream:
    """The responses of one Triton request: every token once, in order per sequence, and one final response."""

    def __init__(self, options: ResponseOptions, send: Send, pool: SenderPool, on_final: Callable[[], None]):
        self.options = options
        self.prompts: list[Int32Array] = []  # per row, for `exclude_input_in_output=false`
        self._rows_left = 0
        self._send = send
        self._pool = pool
        self._on_final = on_final
        self._pending: deque[tuple[int, SequenceOutput]] = deque()
        self._lock = threading.Lock()
        self._sent_at = 0.0  # time.monotonic() of the last response
        self._scheduled = False  # to be drained for what is pending
        self._urgent = False  # something that is pending must not wait
        self._draining = False
        self._ended = False
        self._log_probs: dict[tuple[int, int], list[float]] = {}  # per answer, all so far
        self._held: dict[tuple[int, int], list[SequenceOutput]] = {}  # not streaming: until the answer ends

    def expect(self, prompts: list[Int32Array]) -> None:
        """The prompts of the rows that are about to be submitted."""
        self.prompts = prompts
        self._rows_left = len(prompts)
        self._pool.count_streams(1)

    @property
    def ended(self) -> bool:
        """The final response is sent, or being sent."""
        return self._ended

    def put(self, row: int, output: SequenceOutput) -> None:
        """Called by the engine's thread; never blocks on the server."""
        urgent = bool(output.finished or output.final)
        with self._lock:
            self._pending.append((row, output))
            self._urgent |= urgent
            if not urgent and (self._scheduled or not self.options.streaming):
                return
            self._scheduled = True
        self._pool.schedule(self, 0.0 if urgent else self._sent_at + self._pool.spacing())

    def fail(self, error: StepAudioError) -> None:
        """End the request with an error, after what was put before."""
        self.put(0, SequenceOutput("", 0, [], [], 0.0, error=error, final=True))

    def drain(self) -> None:
        """Called by sender threads; a second one at the same time leaves the work to the first, for the order."""
        with self._lock:
            if self._draining:
                return
            self._draining = True
        while True:
            with self._lock:
                batch = list(self._pending)
                self._pending.clear()
                self._urgent = False
            for row, outputs in self._grouped(batch):
                self._deliver(row, outputs)
            self._sent_at = time.monotonic()
            with self._lock:
                if self._urgent:
                    continue
                self._draining, self._scheduled = False, bool(self._pending) and self.options.streaming
                if not self._scheduled:
                    return
            self._pool.schedule(self, self._sent_at + self._pool.spacing())
            return

    def _grouped(self, batch: list[tuple[int, SequenceOutput]]) -> list[tuple[int, list[SequenceOutput]]]:
        """Join outputs of the same sequence; without streaming, hold them back until it ends."""
        groups: dict[tuple[int, int], list[SequenceOutput]] = {}
        for row, output in batch:
            key = (row, output.sequence_index)
            # To the end: the group that holds a request's final output must be delivered last.
            group = groups.pop(key, [])
            group.append(output)
            groups[key] = group
        if self.options.streaming:
            return [(row, outputs) for (row, _), outputs in groups.items()]
        ready = []
        for key, outputs in groups.items():
            held = self._held.setdefault(key, [])
            held += outputs
            if held[-1].finished or held[-1].error or held[-1].final:
                ready.append((key[0], self._held.pop(key)))
        return ready

    def _deliver(self, row: int, outputs: list[SequenceOutput]) -> None:
        if self._ended:
            return
        failed = next((output.error for output in outputs if output.error), None)
        self._rows_left -= sum(output.final for output in outputs)
        final = self._rows_left == 0 or failed is not None
        if final and failed is None and outputs[-1].finished == "cancelled":
            failed = StepAudioError("the answer was stopped", code=Code.CANCELLED)
        self._ended = final
        try:
            if failed is not None:
                if self.options.streaming and any(output.token_ids for output in outputs):
                    self._send(self._tensors(row, [output for output in outputs if not output.error]), None, False)
                self._send(None, failed, True)
            else:
                self._send(self._tensors(row, outputs), None, final)
        except Exception:  # the client is gone; the engine must not hear of it
            log.warning("a response could not be sent", exc_info=True)
        finally:
            if final:
                self._pool.count_streams(-1)
                self._on_final()

    def _tensors(self, row: int, outputs: list[SequenceOutput]) -> dict[str, AnyArray]:
        last, options = outputs[-1], self.options
        tokens = [token for output in outputs for token in output.token_ids]
        log_probs = self._log_probs.setdefault((row, last.sequence_index), [])
        log_probs += [value for output in outputs for value in output.log_probs]
        if last.finished == "cancelled" and not options.streaming:
            tokens = []
        elif not options.streaming and not options.exclude_input:
            tokens = self.prompts[row].tolist() + tokens
        tensors: dict[str, AnyArray] = {
            "output_ids": np.array(tokens, np.int32).reshape(1, 1, -1),
            "sequence_length": _int32(len(tokens)),
        }
        if len(self.prompts) > 1:
            tensors["batch_index"] = _int32(row)
        if options.several_answers:
            tensors["sequence_index"] = _int32(last.sequence_index)
        if options.log_probs:  # of the whole answer, in every response
            tensors["output_log_probs"] = np.array(log_probs, np.float32).reshape(1, 1, -1)
            tensors["cum_log_probs"] = np.array([[last.cum_log_prob]], np.float32)
        if tops := [top for output in outputs for top in output.top_log_probs]:  # of this response
            tensors |= _top_log_probs(tops)
        if options.num_input_tokens:
            tensors["num_input_tokens"] = _int32(len(self.prompts[row]))
        if options.num_output_tokens:  # of this response
            tensors["num_output_tokens"] = _int32(len(tokens))
        stats = next((output.stats for output in reversed(outputs) if output.stats), None)
        if options.perf_metrics and stats is not None:
            tensors |= {
                "kv_cache_alloc_new_blocks": _int32(stats.new_blocks),
                "kv_cache_reused_blocks": _int32(stats.reused_blocks),
                "kv_cache_alloc_total_blocks": _int32(stats.total_blocks),
                "arrival_time_ns": _int64(stats.arrival_ns),
                "first_scheduled_time_ns": _int64(stats.first_scheduled_ns),
                "first_token_time_ns": _int64(stats.first_token_ns),
                "last_token_time_ns": _int64(stats.last_token_ns),
                "acceptance_rate": np.zeros((1, 1), np.float32),  # there is no speculation here
                "total_accepted_draft_tokens": _int32(0),
                "total_draft_tokens": _int32(0),
            }
        return tensors


def _top_log_probs(tops: list[TopLogProbs]) -> dict[str, AnyArray]:
    """Places with fewer tokens than others end in -1, and -infinity."""
    shape = (1, 1, len(tops), max(map(len, tops)))
    ids, values = np.full(shape, -1, np.int32), np.full(shape, -np.inf, np.float32)
    for place, top in enumerate(tops):
        ids[0, 0, place, : len(top)] = [token for token, _ in top]
        values[0, 0, place, : len(top)] = [value for _, value in top]
    return {"top_log_prob_ids": ids, "top_log_probs": values}


def _int32(value: int) -> Int32Array:
    return np.array([[value]], np.int32)


def _int64(value: int) -> Int64Array:
    return np.array([[value]], np.int64)


class SenderPool:
    """Threads that send, each stream not before its time."""

    def __init__(self, threads: int = 4):
        self._streams = 0  # not yet ended
        self._due: list[tuple[float, int, ResponseStream]] = []  # a heap; the number keeps streams from being compared
        self._serial = count()
        self._wake = threading.Condition()
        self._closing = False
        self._threads = [threading.Thread(target=self._run, name=f"sender-{i}", daemon=True) for i in range(threads)]
        for thread in self._threads:
            thread.start()

    def count_streams(self, more: int) -> None:
        with self._wake:
            self._streams += more

    def spacing(self) -> float:
        """Seconds between two responses of one stream."""
        return min(max(LEAST, self._streams * SPACING), MOST)

    def schedule(self, stream: ResponseStream, due: float) -> None:
        """Drain `stream` when time.monotonic() is `due`."""
        with self._wake:
            heapq.heappush(self._due, (due, next(self._serial), stream))
            self._wake.notify()

    def shutdown(self) -> None:
        """Returns when everything queued so far has been sent."""
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        for thread in self._threads:
            thread.join()

    def _next(self) -> ResponseStream | None:
        """Wait for the stream whose time has come; None when all is sent and the pool is closing."""
        with self._wake:
            while True:
                if self._closing and not self._due:
                    return None
                wait = self._due[0][0] - time.monotonic() if self._due else None
                if wait is not None and (wait <= 0 or self._closing):
                    return heapq.heappop(self._due)[2]
                self._wake.wait(wait)

    def _run(self) -> None:
        while (stream := self._next()) is not None:
            try:
                stream.drain()
            except Exception:
                log.exception("sending failed")

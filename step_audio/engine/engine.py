"""The engine: a thread that computes one step after another for all the requests it has been given."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import ParamSpec

from step_audio.arrays import Float32Array
from step_audio.engine.adapters import Adapters
from step_audio.engine.assembler import Assembler
from step_audio.engine.executor import TokenEmbedding
from step_audio.engine.executors import make_executor
from step_audio.engine.guide import CompiledGuide, GuideCompiler, TokenGuide
from step_audio.engine.kv_cache import BlockPool
from step_audio.engine.options import EngineOptions, EngineStats
from step_audio.engine.request import Finished, GenerationRequest, SequenceOutput
from step_audio.engine.sampler import Draw, draw, penalize
from step_audio.engine.scheduler import Scheduler
from step_audio.engine.sequence import Sequence
from step_audio.engine.trtllm_checkpoint import EngineSpec, Weights, load_engine
from step_audio.engine.validation import validate
from step_audio.errors import InvalidGuide, InvalidRequest, NotServing, Overloaded, StepAudioError

logger = logging.getLogger(__name__)
P = ParamSpec("P")


class _Active:
    """A request between `submit` and its final output."""

    def __init__(self, request: GenerationRequest, sequences: list[Sequence]):
        self.request = request
        self.sequences = sequences  # not yet finished
        # Of these, not yet given to the scheduler: each when the one before it is at work, so that a request for
        # many answers queues behind the others' requests with each of them, and not before them with all.
        self.queued = deque(sequences)
        self.arrival_ns = time.monotonic_ns()
        self.scheduled = False
        self.cancelled = False
        self.refusal: StepAudioError | None = None  # its guide cannot be compiled


class Engine:
    """In-flight batching over one executor.

    `submit` and `cancel` may be called from any thread; outputs come from the engine's own. A request that
    fails ends alone; a step that fails ends the requests it was computing, and the engine goes on.
    `model`: the spec and weights if they are in memory already, instead of `options.engine_dir`.
    """

    serving = True  # always, where it is asked

    def __init__(self, options: EngineOptions, model: tuple[EngineSpec, Weights] | None = None):
        spec, weights = model or load_engine(options.engine_dir)
        num_blocks = options.num_blocks(spec)
        # No sequence may outgrow the cache, or it could never be scheduled.
        self.spec = replace(spec, max_seq_len=min(spec.max_seq_len, num_blocks * spec.tokens_per_block))
        self.options = options
        self._adapters = Adapters(spec, options.max_loras)
        self._assemble = Assembler(TokenEmbedding(weights), self._adapters.enabled)
        info = options.xgrammar_tokenizer_info_path
        self._guides = GuideCompiler(info, spec.vocab_size) if info else None
        self._executor = make_executor(self.spec, weights, num_blocks, options)
        self._pool = BlockPool(num_blocks, options.enable_kv_cache_reuse)
        self._scheduler = Scheduler(
            self._pool,
            block_size=spec.tokens_per_block,
            max_batch_size=spec.max_batch_size,
            max_num_tokens=spec.max_num_tokens,
            chunked=options.enable_chunked_context,
            policy=options.batch_scheduler_policy,
        )
        self._condition = threading.Condition()  # guards what follows; the scheduler is the thread's alone
        self._active: dict[str, _Active] = {}
        self._arrived: list[_Active] = []
        self._cancelled: list[_Active] = []
        self._running = True
        self._healthy = True
        self._iteration = self._total_requests = self._total_tokens = 0
        self._last_step = (0, 0)  # sequences computing their prompt, decoding
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, request: GenerationRequest) -> None:
        """Queue a request. Raises InvalidRequest, or Overloaded if the queue is full; then nothing is sent."""
        options, spec = self.options, self.spec
        new_tokens = validate(
            request, spec, reuse=options.enable_kv_cache_reuse, chunked=options.enable_chunked_context
        )
        if request.guide is not None and self._guides is None:
            raise InvalidGuide(
                "input 'guided_decoding_guide_type' needs guided decoding, which this server is not set up for",
                "guided_decoding_guide_type",
            )
        sequences = [
            Sequence(
                request,
                index,
                new_tokens,
                spec.tokens_per_block,
                spec.vocab_size,
                normalize_log_probs=options.normalize_log_probs,
            )
            for index in range(request.num_return_sequences)
        ]
        active = _Active(request, sequences)
        with self._condition:
            if not self._running:
                raise NotServing("the engine is shut down")
            if request.request_id in self._active:
                raise InvalidRequest(f"request id {request.request_id!r} is in use: choose another")
            if options.max_queue_size and self._waiting() >= options.max_queue_size:
                raise Overloaded(  # NVIDIA's words
                    f"Maximum queue size of {options.max_queue_size} has been reached, please try again later"
                )
            request.adapter = self._adapters.place(request)
            self._active[request.request_id] = active
            self._total_requests += 1
            if request.guide is not None and self._guides is not None:  # arrives when that is compiled
                answers = tuple(sequences)
                self._guides.submit(request.guide, lambda outcome: self._compiled(active, answers, outcome))
                return
            self._arrived.append(active)
            self._condition.notify()

    def cancel(self, request_id: str) -> bool:
        """End a request before the next step; False if there is none (any more) of that id."""
        with self._condition:
            active = self._active.get(request_id)
            if active is None:
                return False
            if not active.cancelled:
                active.cancelled = True
                self._cancelled.append(active)
                self._condition.notify()
            return True

    def stats(self) -> EngineStats:
        with self._condition:
            context, generation = self._last_step
            return EngineStats(
                healthy=self._healthy,
                iteration=self._iteration,
                active_requests=len(self._active),
                waiting_requests=self._waiting(),
                max_batch_size=self.spec.max_batch_size,
                scheduled=context + generation,
                context=context,
                generation=generation,
                kv_blocks_max=self._pool.num_blocks,
                kv_blocks_free=self._pool.available,
                kv_blocks_used=self._pool.used,
                kv_blocks_reused=self._pool.reused,
                kv_blocks_allocated=self._pool.allocated,
                tokens_per_block=self.spec.tokens_per_block,
                total_requests=self._total_requests,
                total_generated_tokens=self._total_tokens,
            )

    @property
    def alive(self) -> bool:
        """False once the engine has ended, by `shutdown` or by a fault of its own; it cannot be revived."""
        return self._thread.is_alive()

    def shutdown(self) -> None:
        """Cancel what is active and end the thread; returns when the last output has been sent."""
        with self._condition:
            self._running = False
            self._condition.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()
        if self._guides is not None:
            self._guides.shutdown()

    def _waiting(self) -> int:
        return sum(not active.scheduled for active in self._active.values())

    def _compiled(
        self, active: _Active, sequences: tuple[Sequence, ...], outcome: CompiledGuide | StepAudioError
    ) -> None:
        """Called by a thread of the compiler's."""
        if isinstance(outcome, StepAudioError):
            active.refusal = outcome
        else:
            try:
                for sequence in sequences:
                    sequence.guide = TokenGuide(outcome, active.request)
            except Exception:
                logger.exception("the guide of request %s cannot be followed", active.request.request_id)
                active.refusal = StepAudioError("internal error")
        with self._condition:
            self._arrived.append(active)
            self._condition.notify()

    def _run(self) -> None:
        try:
            while self._take_orders():
                self._step()
        except Exception:  # a fault of ours: its state cannot be trusted, so this engine is over
            logger.exception("the engine ended in step %d", self._iteration)
            with self._condition:
                self._running = self._healthy = False
            for active in list(self._active.values()):
                index = active.sequences[0].index
                active.sequences.clear()
                self._send_error(active, index)
            self._active.clear()
        for active in list(self._active.values()):
            self._cancel(active)

    def _take_orders(self) -> bool:
        """Sleep until there is something to do; take in what was submitted and cancelled. False at the end."""
        with self._condition:
            while self._running and not (self._arrived or self._cancelled or self._busy()):
                self._last_step = (0, 0)
                self._condition.wait()
            arrived, self._arrived = self._arrived, []
            cancelled, self._cancelled = self._cancelled, []
            adapters = self._adapters.take_arrived()
        if refused := self._adapters.load(self._executor, adapters):
            with self._condition:
                self._adapters.forget(refused)
                named = [one for one in self._active.values() if one.request.lora_task_id in refused]
            for active in named:
                self._fail(active, refused[active.request.lora_task_id])
        for active in arrived:
            if active.refusal is not None:
                self._fail(active, active.refusal)
            elif active.queued:  # else cancelled while its guide was being compiled
                self._scheduler.add(active.queued.popleft())
        for active in cancelled:
            self._cancel(active)
        return self._running

    def _busy(self) -> bool:
        return bool(self._scheduler.running or self._scheduler.waiting)

    def _step(self) -> None:
        plan = self._scheduler.schedule()
        if not plan:
            return
        now = time.monotonic_ns()
        generation = 0
        for chunk in plan:
            sequence = chunk.sequence
            generation += sequence.decoding
            if not sequence.first_scheduled_ns:
                sequence.first_scheduled_ns = now
                starting = self._active[sequence.request.request_id]
                starting.scheduled = True
                if starting.queued:
                    self._scheduler.add(starting.queued.popleft())
        self._last_step = (len(plan) - generation, generation)
        self._iteration += 1
        try:
            logits = self._executor.forward(self._assemble(plan))
        except Exception:
            logger.exception("the executor failed in step %d", self._iteration)
            self._healthy = False
            for request_id in {chunk.sequence.request.request_id for chunk in plan}:
                self._fail(self._active[request_id])
            return
        self._healthy = True
        completing = [chunk.sequence for chunk in plan if chunk.completes]
        self._scheduler.advance(plan, (time.monotonic_ns() - now) / 1e9)
        self._draw(logits, completing)

    def _draw(self, logits: Float32Array, sequences: list[Sequence]) -> None:
        """Draw the next token of each sequence from its row and tell its request. A fault in one is its alone."""
        drawing: list[tuple[_Active, Sequence, Float32Array]] = []

        def mask(active: _Active, sequence: Sequence, row: Float32Array, guide: TokenGuide) -> None:
            if guide.mask(row):
                drawing.append((active, sequence, row))
            else:
                self._finish(active, sequence, "stop")

        for row, sequence in zip(logits, sequences, strict=True):
            active = self._active.get(sequence.request.request_id)
            if active is None or sequence not in active.sequences:
                continue  # another answer to it has just failed
            if sequence.guide is None:
                drawing.append((active, sequence, row))
            else:
                self._alone(active, mask, active, sequence, row, sequence.guide)
        penalize([row for _, _, row in drawing], [sequence.sampler for _, sequence, _ in drawing])
        drawing = [
            (active, sequence, row)
            for active, sequence, row in drawing
            if not sequence.sampler.forbids or self._alone(active, sequence.sampler.forbid, row, sequence.history())
        ]
        drawn = draw([row for _, _, row in drawing], [sequence.sampler for _, sequence, _ in drawing])
        now = time.monotonic_ns()
        for (active, sequence, _), outcome in zip(drawing, drawn, strict=True):
            if sequence in active.sequences:
                self._alone(active, self._extend, active, sequence, outcome, now)

    def _alone(self, active: _Active, work: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> bool:
        """Do what concerns one request; False if it has failed, and with it that request and no other."""
        try:
            work(*args, **kwargs)
        except StepAudioError as error:
            self._fail(active, error)
        except Exception:
            logger.exception("request %s failed", active.request.request_id)
            self._fail(active)
        else:
            return True
        return False

    def _extend(self, active: _Active, sequence: Sequence, drawn: Draw | None, now: int) -> None:
        """Append the token drawn at `now` and tell the request."""
        request, guide = sequence.request, sequence.guide
        if drawn is None:
            raise InvalidRequest(
                "no token can be drawn: the prompt table, the penalties or bad_words leave none"
                if guide is None
                else "bad_words or min_tokens forbid every token that the guide allows next"
            )
        token, log_prob, cumulative, top = drawn
        sequence.first_token_ns = sequence.first_token_ns or now
        if token == request.end_id:
            self._finish(active, sequence, "stop")
            return
        sequence.append(token)
        sequence.cum_log_prob += cumulative
        sequence.last_token_ns = now
        self._total_tokens += 1
        log_probs = [log_prob] if request.return_log_probs else []
        output = SequenceOutput(request.request_id, sequence.index, [token], log_probs, sequence.cum_log_prob)
        if top is not None:
            output.top_log_probs = [top]
        finished = sequence.finish_reason()
        if finished:
            self._finish(active, sequence, finished, output)
        else:
            if guide is not None:
                guide.accept(token)
            if sequence.generated == 1:
                output.stats = sequence.stats(active.arrival_ns)
            self._send(active, output)

    def _finish(
        self,
        active: _Active,
        sequence: Sequence,
        finished: Finished,
        output: SequenceOutput | None = None,
    ) -> None:
        """The last output of an answer, by default one without tokens, and of the request if it is its last answer."""
        self._release(active, [sequence])
        if output is None:
            output = SequenceOutput(active.request.request_id, sequence.index, [], [], sequence.cum_log_prob)
        output.finished, output.final = finished, not active.sequences
        output.stats = sequence.stats(active.arrival_ns)
        self._send(active, output)
        if self._guides is not None and finished != "cancelled":
            self._guides.prepare()

    def _cancel(self, active: _Active) -> None:
        """Finish what is left of a request; harmless if nothing is."""
        for sequence in list(active.sequences):
            self._finish(active, sequence, "cancelled")

    def _fail(self, active: _Active, error: StepAudioError | None = None) -> None:
        if not active.sequences:  # its final output has been sent
            return
        index = active.sequences[0].index
        self._release(active, list(active.sequences))
        self._send_error(active, index, error)

    def _send_error(self, active: _Active, index: int, error: StepAudioError | None = None) -> None:
        error = error or StepAudioError("internal error")
        self._send(active, SequenceOutput(active.request.request_id, index, [], [], 0.0, error=error, final=True))

    def _release(self, active: _Active, sequences: list[Sequence]) -> None:
        """Before an output that is final, so that whoever gets it may use the id again."""
        for sequence in sequences:
            if sequence in active.queued:
                active.queued.remove(sequence)
            else:
                self._scheduler.remove(sequence)
            active.sequences.remove(sequence)
        if not active.sequences:
            with self._condition:
                del self._active[active.request.request_id]

    def _send(self, active: _Active, output: SequenceOutput) -> None:
        try:
            active.request.on_output(output)
        except Exception:
            logger.exception("nobody takes the outputs of request %s", active.request.request_id)
            if active.sequences:
                self._release(active, list(active.sequences))

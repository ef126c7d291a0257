"""What the engine did of a request, as spans."""

from __future__ import annotations

import time

from step_audio import tracing
from step_audio.engine.request import SequenceOutput, SequenceStats
from step_audio.tracing import Tracer


class EngineTraces:
    """Of one engine. An answer is told about when it has ended, for only then all its times are known."""

    def __init__(self, tracer: Tracer):
        self._tracer = tracer

    @classmethod
    def begin(cls) -> EngineTraces | None:
        """None where traces are off."""
        tracer = tracing.tracer("engine")
        return None if tracer is None else cls(tracer)

    def close(self) -> None:
        self._tracer.close()

    def output(self, context: str | None, output: SequenceOutput) -> None:
        """Looks at the ends of answers alone. `context`: the `traceparent` of the request."""
        if context is None or (output.finished is None and output.error is None):
            return
        if output.stats is None:
            now = time.time_ns()
            self._tracer.done("generate", context, now, now, error=output.error)
        else:
            self._answer(context, output, output.stats)

    def _answer(self, context: str, output: SequenceOutput, stats: SequenceStats) -> None:
        """`generate`, and within it what was waited for, and what was computed; 0: it never came to that."""
        now, offset = time.monotonic_ns(), tracing.since_epoch()
        times = {
            "queue": (stats.arrival_ns, stats.first_scheduled_ns or now),
            "prefill": (stats.first_scheduled_ns, stats.first_token_ns or now),
            "decode": (stats.first_token_ns, stats.last_token_ns or stats.first_token_ns),
        }
        end = max(end for start, end in times.values() if start)
        within = self._tracer.done(
            "generate",
            context,
            stats.arrival_ns + offset,
            end + offset,
            {
                "gen_ai.usage.input_tokens": stats.num_input_tokens,
                "gen_ai.usage.output_tokens": stats.num_output_tokens,
                "answer.index": output.sequence_index,
                "answer.finished": output.finished or "",
                "kv_cache.reused_blocks": stats.reused_blocks,
                "kv_cache.new_blocks": stats.new_blocks,
            },
        )
        for name, (start, end) in times.items():
            if start:
                self._tracer.done(name, within, start + offset, end + offset)

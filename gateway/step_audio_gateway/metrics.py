"""What is counted, in Prometheus' text format."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from step_audio_client import ChatDelta

LATENCY = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500)  # seconds
TOKEN_LATENCY = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)  # seconds


class Metrics:
    """A registry of its own: several gateways in one process do not meet."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "step_audio_http_requests", "Responses by route and status", ["route", "status"], registry=self.registry
        )
        self.in_flight = Gauge("step_audio_answers_running", "Answers under way", registry=self.registry)
        self.seconds = Histogram(
            "step_audio_http_request_seconds",
            "From the request's first byte to the reply's last",
            ["route"],
            buckets=LATENCY,
            registry=self.registry,
        )
        self.first = Histogram(
            "step_audio_time_to_first_token_seconds",
            "From the start of an answer to its first text",
            buckets=LATENCY,
            registry=self.registry,
        )
        self.between = Histogram(
            "step_audio_inter_token_latency_seconds",
            "From one token of an answer to the next; those that come together share the time",
            buckets=TOKEN_LATENCY,
            registry=self.registry,
        )
        self.tokens = Counter(
            "step_audio_tokens",
            "Prompt, of which audio; completion, of which reasoning",
            ["kind"],
            registry=self.registry,
        )
        self.unfinished = Counter(
            "step_audio_answers_unfinished", "Answers that failed or were hung up on", registry=self.registry
        )
        self.requests_in_flight = Gauge(
            "step_audio_requests_in_flight", "Places taken by requests, one for each answer", registry=self.registry
        )
        self.requests_limit = Gauge(
            "step_audio_requests_in_flight_limit", "Places that there are", registry=self.registry
        )
        self.bytes_in_flight = Gauge(
            "step_audio_body_bytes_in_flight", "Bytes of the bodies of requests under way", registry=self.registry
        )
        self.refused = Counter(
            "step_audio_refused",
            "Turned away: no place, too many bytes, a key beyond its share, too slow, too many connections",
            ["reason"],
            registry=self.registry,
        )
        for reason in ("queue", "bytes", "share", "slow", "connections"):
            self.refused.labels(reason)

    def text(self) -> bytes:
        return generate_latest(self.registry)

    async def observed(self, answer: AsyncGenerator[ChatDelta]) -> AsyncGenerator[ChatDelta]:
        """The answer's deltas, counted on their way."""
        start, told, finished = time.monotonic(), False, False
        last: float | None = None  # when the last token came
        self.in_flight.inc()
        try:
            async for delta in answer:
                if not told and delta.raw:
                    told = True
                    self.first.observe(time.monotonic() - start)
                if delta.token_ids:
                    now = time.monotonic()
                    if last is not None:
                        for _ in delta.token_ids:
                            self.between.observe((now - last) / len(delta.token_ids))
                    last = now
                if delta.usage:
                    finished = True
                    self.tokens.labels("prompt").inc(delta.usage.prompt_tokens)
                    self.tokens.labels("audio").inc(delta.usage.audio_tokens)
                    self.tokens.labels("completion").inc(delta.usage.completion_tokens)
                    self.tokens.labels("reasoning").inc(delta.usage.reasoning_tokens)
                yield delta
        finally:
            self.in_flight.dec()
            if not finished:
                self.unfinished.inc()
            await answer.aclose()

"""What is counted, in Prometheus' text format."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from step_audio import tracing
from step_audio_client import ChatDelta, Counts, RequestError, RequestTimeout, Unavailable

LATENCY = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500)  # seconds
TOKEN_LATENCY = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)  # seconds


REFUSALS = {
    "queue": "no place is left",
    "bytes": "the bodies under way are too large together",
    "share": "the API key has its share",
    "sessions": "there are too many realtime sessions",
    "slow": "the client sent or read too slowly",
    "connections": "there were too many",
    "size": "the body is too large",
    "key": "no valid API key",
    "busy": "the servers' queues are full",
}
# Name -> field of Counts, and what it counts.
OF_CLIENT = {
    "step_audio_servers_lost": (
        "servers_lost",
        "Attempts whose server, or connection, went away",
    ),
    "step_audio_requests_moved": ("moved", "Requests made again elsewhere, or later, before anything had come"),
    "step_audio_answers_continued": ("continued", "Answers that went on behind the tokens that had come"),
    "step_audio_answers_replayed": ("replayed", "Answers with a schema, made again from their beginning"),
    "step_audio_answers_lost": ("answers_lost", "Answers that had begun, and that no server could go on with"),
    "step_audio_requests_quarantined": ("quarantined", "Requests refused because servers had died with them"),
}


class _OfClient(Collector):
    """What the client library counts by itself."""

    def __init__(self, counts: Counts):
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        for name, (field, text) in OF_CLIENT.items():
            yield CounterMetricFamily(name, text, value=getattr(self._counts, field))


class Metrics:
    """A registry of its own: several gateways in one process do not meet."""

    def __init__(self, counts: Counts | None = None) -> None:
        """`counts`: of the client that is used."""
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
        self.sessions = Gauge("step_audio_realtime_sessions", "Realtime sessions that are open", registry=self.registry)
        self.turn_firsts = {
            what: Histogram(
                f"step_audio_realtime_first_{what}_seconds",
                f"From the end of a turn of a realtime session, or where one asks for it, to the answer's first {told}",
                buckets=LATENCY,
                registry=self.registry,
            )
            for what, told in (("token", "token, of the thought too"), ("word", "text"), ("audio", "sound"))
        }
        self.barge_ins = Counter(
            "step_audio_realtime_barge_ins",
            "Answers that somebody spoke into, and that were ended",
            registry=self.registry,
        )
        self.refused = Counter(
            "step_audio_refused",
            f"Requests turned away: {', '.join(REFUSALS)}",
            ["reason"],
            registry=self.registry,
        )
        for reason in REFUSALS:
            self.refused.labels(reason)
        self.registry.register(_OfClient(counts or Counts()))

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
                    tracing.event("first token")
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
        except RequestError as error:
            if told or isinstance(error, Unavailable | RequestTimeout):  # else it has a status of its own
                tracing.failed(error)
            raise
        finally:
            self.in_flight.dec()
            if not finished:
                self.unfinished.inc()
            await answer.aclose()

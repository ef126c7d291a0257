"""OpenTelemetry traces: who did what of a request, and when; never what was asked or answered.

They are on where OpenTelemetry's own OTEL_EXPORTER_OTLP_ENDPOINT is set, for every process of a server inherits the
environment. Its other variables hold, too, such as OTEL_TRACES_SAMPLER. Elsewhere nothing of it is imported.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span
    from opentelemetry.trace import Tracer as OtelTracer

TIMEOUT = 2.0  # seconds for sending, all tries together: at the end of a process it is waited for

PARAMETER = "traceparent"  # of a request to Triton

# What `attempt` makes its spans with; not OpenTelemetry's global one, for which Starlette makes spans of its own.
_own: ContextVar[OtelTracer | None] = ContextVar("tracer", default=None)

Attributes = Mapping[str, str | int | float | bool]


def endpoint() -> str | None:
    """Where traces go, OTLP over HTTP; None: nowhere."""
    if url := os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        return url
    base = os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    return f"{base.rstrip('/')}/v1/traces" if base else None


def tracer(service: str) -> Tracer | None:
    """For this process, which the traces call `service`; None where traces are off.

    Raises ModuleNotFoundError where they are on, and the extra `trace` is not installed.
    """
    return None if endpoint() is None else Tracer(service)


def check() -> None:
    """Raises ModuleNotFoundError as `tracer` does."""
    if endpoint() is not None:
        from opentelemetry.exporter.otlp.proto.http import trace_exporter  # noqa: F401


def current() -> str | None:
    """The current span, whoever has begun it, as W3C's `traceparent`; None where there is none, or none is recorded."""
    if "opentelemetry.trace" not in sys.modules:
        return None
    from opentelemetry.trace import get_current_span

    return _traceparent(get_current_span())


def given(parameters: str) -> str | None:
    """The `traceparent` among a request's parameters, JSON as Triton's Python backend has it."""
    found = json.loads(parameters).get(PARAMETER) if parameters else None
    return found if isinstance(found, str) else None


@contextmanager
def attempt(name: str, attributes: Attributes) -> Iterator[str | None]:
    """A span for a call of another service, within the current one; its `traceparent`, to be sent along.

    It does not become the current span: generators, which use this, would leave it to their callers.
    """
    if current() is None:
        yield None
        return
    from opentelemetry.trace import SpanKind, StatusCode, get_tracer

    tracer = _own.get() or get_tracer("step_audio_client")
    span = tracer.start_span(name, kind=SpanKind.CLIENT, attributes=dict(attributes))
    try:
        yield _traceparent(span) or current()
    except Exception as error:
        span.set_attribute("error.type", type(error).__name__)
        span.set_status(StatusCode.ERROR)
        raise
    finally:
        span.end()


class Tracer:
    """Sends this process' spans, from a thread of its own. What does not reach the collector is dropped."""

    def __init__(self, service: str):
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self._provider = TracerProvider(resource=Resource.create({"service.name": service}))
        said = os.environ.keys() & {"OTEL_EXPORTER_OTLP_TIMEOUT", "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT"}
        exporter = OTLPSpanExporter(endpoint(), timeout=None if said else TIMEOUT)
        logging.getLogger(OTLPSpanExporter.__module__).setLevel(logging.ERROR)  # one line a loss, none a try
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("step_audio")

    @contextmanager
    def request(self, name: str, given: Mapping[str, str], attributes: Attributes) -> Iterator[RequestSpan]:
        """The current span while this lasts, and a child of the caller's, if `given`, its headers, names one."""
        from opentelemetry.trace import SpanKind

        with self._tracer.start_as_current_span(
            name,
            _context(given),
            SpanKind.SERVER,
            dict(attributes),
            record_exception=False,  # its words may quote the request
            set_status_on_exception=False,
        ) as span:
            token = _own.set(self._tracer)
            try:
                yield RequestSpan(span)
            finally:
                _own.reset(token)

    def done(
        self,
        name: str,
        within: str | None,
        start: int,
        end: int,
        attributes: Attributes | None = None,
        error: Exception | None = None,
    ) -> str | None:
        """A span that has ended, of `start` to `end` in nanoseconds since the epoch. Returns its own `traceparent`.

        `within`: that of the span around it; None, or one that is not recorded: there is no span. Of `error` its type
        is told, for its words may quote the request.
        """
        if within is None:
            return None
        from opentelemetry.trace import StatusCode

        around = _context({"traceparent": within})
        span = self._tracer.start_span(name, around, attributes=dict(attributes or {}), start_time=start)
        if error is not None:
            span.set_attribute("error.type", type(error).__name__)
            span.set_status(StatusCode.ERROR)
        span.end(end)
        return _traceparent(span)

    def close(self) -> None:
        """Sends what is left."""
        self._provider.shutdown()


class RequestSpan:
    """The span of one request."""

    def __init__(self, span: Span):
        self._span = span

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits."""
        return f"{self._span.get_span_context().trace_id:032x}"

    def end(self, name: str, status: int, attributes: Attributes) -> None:
        """`status`: of the HTTP reply; 0: there is none. As OpenTelemetry has it, a 4xx is no error of the server's."""
        from opentelemetry.trace import StatusCode

        self._span.update_name(name)
        self._span.set_attributes({"http.response.status_code": status, **attributes})
        if status >= 500:
            self._span.set_status(StatusCode.ERROR)


def event(name: str) -> None:
    """Something in the course of the current span, if there is one."""
    if "opentelemetry.trace" in sys.modules:
        from opentelemetry.trace import get_current_span

        get_current_span().add_event(name)


def failed(error: Exception) -> None:
    """The current span, if there is one, for an error of this type."""
    if "opentelemetry.trace" in sys.modules:
        from opentelemetry.trace import StatusCode, get_current_span

        get_current_span().set_attribute("error.type", type(error).__name__)
        get_current_span().set_status(StatusCode.ERROR)


def since_epoch() -> int:
    """What is to be added to time.monotonic_ns() for nanoseconds since the epoch."""
    return time.time_ns() - time.monotonic_ns()


def _traceparent(span: Span) -> str | None:
    context = span.get_span_context()
    if not context.trace_flags.sampled:
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def _context(carrier: Mapping[str, Any]) -> Context:
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract(carrier, Context())

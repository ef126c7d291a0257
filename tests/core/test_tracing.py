"""Traces: off unless there is a collector, and harmless where it is gone."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from step_audio import tracing

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
CONTEXT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in (ENDPOINT, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_the_endpoint_is_opentelemetry_s(environment):
    assert tracing.endpoint() is None and tracing.tracer("x") is None
    environment.setenv(ENDPOINT, "http://collector:4318/")
    assert tracing.endpoint() == "http://collector:4318/v1/traces"
    environment.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://other/path")
    assert tracing.endpoint() == "http://other/path"
    environment.setenv(ENDPOINT, "")
    environment.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "")
    assert tracing.endpoint() is None


@pytest.mark.processes
def test_nothing_is_imported_where_they_are_off():
    program = (
        "import sys, step_audio.tracing as t, step_audio.steps.trtllm.traces as e;"
        "assert t.tracer('x') is None and e.EngineTraces.begin() is None and t.current() is None;"
        "t.event('x'); t.failed(ValueError()); t.check();"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_spans_are_within_each_other(environment):
    pytest.importorskip("opentelemetry.sdk")
    from otlp_receiver import receiving

    with receiving() as collector:
        environment.setenv(ENDPOINT, collector.endpoint)
        tracer = tracing.tracer("mine")
        outer = tracer.done("outer", CONTEXT, 1, 9)
        assert tracer.done("inner", outer, 2, 8, {"n": 7}, ValueError("SECRET"))
        assert (
            tracer.done("of nobody", None, 1, 2) is None and tracer.done("unrecorded", CONTEXT[:-1] + "0", 1, 2) is None
        )
        with tracer.request("GET", {"traceparent": "broken"}, {}) as request:
            assert request.trace_id in tracing.current()
            request.end("GET /x", 503, {})
        with tracer.request("GET", {"traceparent": CONTEXT[:-1] + "0"}, {}):
            assert tracing.current() is None
        assert tracing.current() is None
        tracer.close()
    found = {span.name: span for span in collector.spans}
    assert found.keys() == {"outer", "inner", "GET /x"}
    assert found["outer"].parent_id == "b7ad6b7169203331" and found["inner"].parent_id == found["outer"].span_id
    assert (found["inner"].start, found["inner"].end, found["inner"].attributes["n"]) == (2, 8, 7)
    assert found["inner"].error and found["inner"].attributes["error.type"] == "ValueError"
    assert found["GET /x"].error and found["GET /x"].parent_id == "" and found["GET /x"].service == "mine"
    assert b"SECRET" not in b"".join(collector.raw)


def test_a_collector_that_is_gone_holds_nobody_up(environment, caplog):
    pytest.importorskip("opentelemetry.sdk")
    from step_audio_server.launch.ports import free_ports

    environment.setattr(tracing, "TIMEOUT", 0.1)
    environment.setenv(ENDPOINT, f"http://127.0.0.1:{free_ports(1)[0]}")
    tracer = tracing.tracer("mine")
    tracer.done("lost", CONTEXT, 1, 2)
    tracer.close()
    assert [record.levelname for record in caplog.records] == ["ERROR"]


@pytest.mark.parametrize("text", ["", "{}", '{"traceparent": 7}', '{"other": "x"}'])
def test_requests_without_a_span(text):
    assert tracing.given(text) is None


def test_a_request_s_span_is_among_its_parameters():
    assert tracing.given(json.dumps({"traceparent": CONTEXT, "other": 1})) == CONTEXT

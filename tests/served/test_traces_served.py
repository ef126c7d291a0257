"""One request's trace through gateway, tritonserver, steps and engine, as a collector gets it."""

from __future__ import annotations

import base64
import json
import uuid

import httpx
import numpy as np
import pytest

pytest.importorskip("opentelemetry.sdk", reason="pip install -e '.[trace]'")

from audio_fixture import wav
from otlp_receiver import Span, receiving
from serve_process import ServeProcess
from server_settings import settings_for
from waiting import SECONDS, wait_until

pytestmark = pytest.mark.server

CHAT = "POST /v1/chat/completions"
STEPS = ("audio_featurizer", "prompt_builder", "audio_encoder")
SECRET = "the safe is behind the painting"
SOUND = wav(np.random.default_rng(0).normal(0, 300, 16_000).astype("<i2").tobytes())


@pytest.fixture(scope="module")
def collector():
    with receiving() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def running(checkpoint, work_dir, collector):
    process = ServeProcess(
        settings_for(checkpoint, work_dir),
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint,
        OTEL_BSP_SCHEDULE_DELAY="100",
    )
    process.wait_for("ready", 4 * SECONDS)
    yield process
    process.end()


class Caller:
    """Who asks has a span already; W3C Trace Context says which."""

    def __init__(self, sampled: bool = True):
        self.trace_id, self.span_id = uuid.uuid4().hex, uuid.uuid4().hex[:16]
        self.headers = {"traceparent": f"00-{self.trace_id}-{self.span_id}-0{int(sampled)}"}

    def ask(self, running, content, **body) -> httpx.Response:
        return ask(running, content, self.headers, **body)

    def path(self, trace: dict[str, Span], span: Span) -> list[str]:
        """Names of the spans around it, from the caller's on."""
        names: list[str] = []
        while span.parent_id != self.span_id:
            span = trace[span.parent_id]
            names.insert(0, span.name)
        return names


def ask(running, content, headers, **body) -> httpx.Response:
    sent = {"messages": [{"role": "user", "content": content}], "max_tokens": 6, "temperature": 0} | body
    return httpx.post(f"http://127.0.0.1:{running.port}/v1/chat/completions", json=sent, headers=headers, timeout=60)


def audio(data: bytes) -> dict:
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": "wav"}}


def of(trace: dict[str, Span], name: str) -> list[Span]:
    return [span for span in trace.values() if span.name == name]


def whole_trace(collector, caller: Caller, *names: str) -> dict[str, Span]:
    """When spans of these names have come."""
    wait_until(lambda: set(names) <= {span.name for span in collector.trace(caller.trace_id).values()}, "the trace")
    return collector.trace(caller.trace_id)


def test_one_trace_from_the_caller_to_the_engine(running, collector):
    caller = Caller()
    reply = caller.ask(running, [audio(SOUND), {"type": "text", "text": SECRET}], stream=True)
    assert reply.status_code == 200
    names = (CHAT, "step_audio_r1", *STEPS, "generate", "decode")
    trace = whole_trace(collector, caller, *names)

    (gateway,) = of(trace, CHAT)
    assert gateway.service == "step-audio-gateway" and gateway.parent_id == caller.span_id and not gateway.error
    assert gateway.attributes["http.response.status_code"] == 200 and "first token" in gateway.events
    assert gateway.attributes["gen_ai.usage.output_tokens"] == 6
    (ensemble,) = of(trace, "step_audio_r1")
    assert caller.path(trace, ensemble) == [CHAT]
    for step in STEPS:
        (span,) = of(trace, step)
        assert caller.path(trace, span) == [CHAT, "step_audio_r1"] and span.service == step and not span.error
    (whole,) = of(trace, "generate")
    assert caller.path(trace, whole) == [CHAT, "step_audio_r1"] and whole.service == "engine"
    assert whole.attributes["gen_ai.usage.output_tokens"] == 6 and whole.attributes["answer.finished"] == "length"
    parts = [of(trace, name)[0] for name in ("queue", "prefill", "decode")]
    assert all(part.parent_id == whole.span_id for part in parts)
    moments = [moment for part in parts for moment in (part.start, part.end)]
    assert moments == sorted(moments) and whole.end > whole.start

    everything = b"".join(collector.raw)
    said = spoken(reply)
    assert said and SECRET.encode() not in everything and said.encode() not in everything
    assert base64.b64encode(SOUND)[1000:1100] not in everything and SOUND[1000:1100] not in everything


def spoken(reply: httpx.Response) -> str:
    chunks = [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: {")]
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    return "".join(delta.get("content") or delta.get("reasoning_content") or "" for delta in deltas)


def test_what_is_refused_says_so(running, collector):
    """A recording that cannot be read, by a step; without its words, which may quote the request."""
    caller = Caller()
    assert caller.ask(running, [audio(SECRET.encode())]).status_code == 400
    trace = whole_trace(collector, caller, CHAT, "step_audio_r1", STEPS[0])
    (gateway,), (ensemble,), (step,) = of(trace, CHAT), of(trace, "step_audio_r1"), of(trace, STEPS[0])
    assert gateway.attributes["http.response.status_code"] == 400 and gateway.attributes["error.type"]
    assert step.error and step.attributes["error.type"] and ensemble.error
    assert SECRET.encode() not in b"".join(collector.raw)


def test_who_calls_decides_whether_it_is_recorded(running, collector):
    unrecorded, after = Caller(sampled=False), Caller()
    assert unrecorded.ask(running, "hello").status_code == after.ask(running, "hello").status_code == 200
    whole_trace(collector, after, "decode", CHAT)
    assert collector.trace(unrecorded.trace_id) == {}
    # Nobody's: neither the heartbeat's requests nor health checks and scrapes.
    assert not [span for span in collector.spans if span.name == "step_audio_prompt" or "health" in span.name]


def test_without_a_caller_s_span_the_gateway_begins_one(running, collector):
    assert ask(running, "hello", {"X-Request-Id": "rootless"}).status_code == 200

    def begun() -> list[Span]:
        return [span for span in collector.spans if span.attributes.get("request.id") == "rootless"]

    wait_until(begun, "the trace")
    (gateway,) = begun()
    assert gateway.parent_id == ""
    wait_until(lambda: of(collector.trace(gateway.trace_id), "decode"), "the engine's part")
    running.wait_for(gateway.trace_id)  # in the log's line of the request
